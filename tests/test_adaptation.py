"""The adaptation experiment, as small as it goes: every stage, the table, a restart."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from narrow_model import NARROW

from maestro_jax.data.data_dir import data_root
from maestro_jax.experiments.adaptation import DOMAINS, MODELS, RECIPE

# Minutes of compilation: `make test-slow` runs it.
pytestmark = pytest.mark.slow

SMALL = NARROW | {
    "VOCAB_SIZE": "96",
    "CHECKPOINT_EVERY": "2",
    "PAIRED_MIXTURE": "'minivox_tiny_paired'",
    "TEXT_MIXTURE": "'minivox_tiny_text'",
    "TEXT_START_STEP": "0",
    "PAIRED_BATCH": "4",
    "TEXT_BATCH": "4",
}
STEPS = {stage.name: 2 for stage in RECIPE.stages}


def test_the_experiment_compares_all_and_does_not_start_over(tmp_path: Path) -> None:
    output = tmp_path / "experiment"
    script = (
        "from maestro_jax.cli import environment\n"
        "environment.prepare_process()\n"
        "environment.enable_compilation_cache()\n"
        "import dataclasses\n"
        "from maestro_jax.experiments import adaptation\n"
        f"small = {SMALL!r}\n"
        "stages = tuple(\n"
        "    dataclasses.replace(\n"
        "        stage, bindings={k: small.get(k, v) for k, v in stage.bindings.items()}\n"
        "    )\n"
        "    for stage in adaptation.RECIPE.stages\n"
        ")\n"
        "recipe = dataclasses.replace(adaptation.RECIPE, config='tiny', "
        f"further_configs=('tiny',), stages=stages, steps={STEPS!r}, bindings=small)\n"
        f"adaptation.run_adaptation({str(output)!r}, {str(data_root())!r}, recipe=recipe)\n"
    )
    environment = {
        **os.environ,
        "XLA_FLAGS": "",
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "xla"),
    }
    command = [sys.executable, "-c", script]
    first = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert first.returncode == 0, first.stderr[-3000:]
    for expected in (*MODELS.values(), *DOMAINS.values(), "WER %", "minutes"):
        assert expected in first.stdout
    record = json.loads((output / "adaptation.json").read_text())
    assert record["steps"] == STEPS
    assert set(record["models"]) == set(MODELS)
    assert record["models"]["base"]["calendar"]["ratio"] == 1.0
    # What the synthesiser said was heard where it should be, and nowhere else.
    heard = {
        name: "loss/text_transducer" in (output / name / "metrics.jsonl").read_text()
        for name in STEPS
    }
    assert heard == {name: name in ("synthesis", "both") for name in STEPS}
    read = {
        name: "loss/aligned_masked_lm" in (output / name / "metrics.jsonl").read_text()
        for name in STEPS
    }
    assert read == {name: name in ("base", "replay", "text", "both") for name in STEPS}

    checkpoints = sorted(output.glob("*/checkpoints/*/state"))
    before = [path.stat().st_mtime_ns for path in checkpoints]
    subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert [path.stat().st_mtime_ns for path in checkpoints] == before

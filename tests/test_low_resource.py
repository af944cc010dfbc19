"""The low-resource experiment, as small as it goes: every stage, the table, a restart."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from narrow_model import NARROW

from maestro_jax.data.data_dir import data_root

# Minutes of compilation: `make test-slow` runs it.
pytestmark = pytest.mark.slow

SMALL = NARROW | {
    "VOCAB_SIZE": "96",
    "CHECKPOINT_EVERY": "2",
    "PAIRED_START_STEP": "0",
    "TEXT_START_STEP": "0",
}
STEPS = {"pretrain": 3, "finetune": 2, "scratch": 2}
SEARCHES = {"greedy": "greedy", "beam of 8": "beam_of_8"}


def test_the_experiment_compares_both_and_does_not_start_over(tmp_path: Path) -> None:
    output = tmp_path / "experiment"
    script = (
        "from maestro_jax.cli import environment\n"
        "environment.prepare_process()\n"
        "environment.enable_compilation_cache()\n"
        "import dataclasses\n"
        "from maestro_jax.experiments import low_resource\n"
        "recipe = dataclasses.replace(low_resource.RECIPE, config='tiny', "
        f"data_gin='data/minivox_tiny.gin', bindings={SMALL!r}, steps={STEPS!r})\n"
        f"low_resource.run_low_resource({str(output)!r}, {str(data_root())!r}, recipe=recipe)\n"
    )
    environment = {
        **os.environ,
        "XLA_FLAGS": "",
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "xla"),
    }
    command = [sys.executable, "-c", script]
    first = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert first.returncode == 0, first.stderr[-3000:]
    for expected in ("pretrained and fine-tuned", "from scratch", "WER %", "Ratio", "minutes"):
        assert expected in first.stdout
    record = json.loads((output / "low_resource.json").read_text())
    assert record["steps"] == STEPS
    for search, directory in itertools.product(SEARCHES, ("fine_tuned", "from_scratch")):
        found = record["searches"][search]
        assert found["utterances"] == 12
        [scores] = (output / directory / "evaluation" / SEARCHES[search]).glob("*.json")
        rows = json.loads(scores.read_text())["rows"]
        errors = sum(row["words"]["errors"] for row in rows)
        words = sum(row["words"]["reference_length"] for row in rows)
        wer = found["error_rate" if directory == "fine_tuned" else "baseline_error_rate"]
        assert wer == pytest.approx(100 * errors / words)

    checkpoints = sorted(output.glob("*/checkpoints/*/state"))
    assert len(checkpoints) >= len(STEPS)
    before = [path.stat().st_mtime_ns for path in checkpoints]
    subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert [path.stat().st_mtime_ns for path in checkpoints] == before
    assert json.loads((output / "low_resource.json").read_text()) == record

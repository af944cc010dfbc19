"""Each method of pretraining on MiniVox: some steps from the command line, then recognition."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from narrow_model import NARROW

from maestro_jax.cli.main import main

# Most of a minute of compilation each: `make test-slow` runs it.
pytestmark = pytest.mark.slow

BINDINGS = NARROW | {
    "VOCAB_SIZE": "96",
    "LOG_EVERY": "1",
    "CHECKPOINT_EVERY": "10",
    "DIAGNOSTICS_EVERY": "3",
    "GRADIENTS_EVERY": "0",
    # Phases, bfloat16, a batch in parts and a mesh of the eight devices of the tests, all at once.
    "PAIRED_START_STEP": "1",
    "TEXT_START_STEP": "2",
    "TRANSLATION_START_STEP": "2",
    "DTYPE": "bfloat16",
    "ACCUMULATE": "2",
    "MESH": "(2, 2, 2)",
    **dict.fromkeys(("SPEECH_BATCH", "PAIRED_BATCH", "TEXT_BATCH", "MT_BATCH", "ST_BATCH"), "8"),
}
METHODS = {
    "maestro_no_matching": {"matching", "duration"},
    "maestro_fixed_repetition": {"matching", "duration"},
    "joist": {"paired_aligned_masked_lm"},
    "best_alignment": {"matching"},
    "astra": {"matching"},
    "most": {"matching", "duration", "masked_prediction"},
    "maestro_u": {"matching", "duration"},
}
OF_PAIRS = {"matching", "duration", "paired_aligned_masked_lm"}


@pytest.fixture(scope="module", autouse=True)
def minivox() -> None:
    """MiniVox tiny, prepared."""
    from maestro_jax.minivox import dataset

    dataset.prepare("tiny")


def train(files: list[str], bindings: dict[str, str], model_dir: Path) -> list[dict[str, float]]:
    """Runs `maestro train` to its end and returns what it logged."""
    command = ["train", "--model_dir", str(model_dir)]
    command += [argument for file in files for argument in ("--gin_file", file)]
    command += [f"--gin.{name}={value}" for name, value in bindings.items()]
    assert main(command) in (None, 0)
    return [json.loads(line) for line in (model_dir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("method", METHODS)
def test_pretraining_and_then_recognition(method: str, tmp_path: Path) -> None:
    files = ["runs/demo_pretrain.gin", f"objectives/{method}.gin", "data/minivox_tiny.gin"]
    logged = train(files, BINDINGS | {"STEPS": "4"}, tmp_path / "pretrained")
    steps = {line["step"]: line for line in logged if "loss" in line}
    for line in steps.values():
        assert all(np.isfinite(value) for value in line.values() if isinstance(value, float))
    assert "loss/transducer" not in steps[1] and "loss/transducer" in steps[2]
    last = steps[4]
    assert {name for name in OF_PAIRS if f"loss/{name}" in last} == METHODS[method] & OF_PAIRS
    assert {"loss/aligned_masked_lm", "loss/mt", "loss/st"} <= set(last)
    assert last["loss/masked_prediction"] > 0.0

    files = ["runs/demo_finetune_asr.gin", "data/minivox_tiny.gin"]
    kept = (*NARROW, "VOCAB_SIZE", "DTYPE", "MESH", "PAIRED_BATCH")
    bindings = {name: BINDINGS[name] for name in kept}
    bindings |= {"STEPS": "2", "INIT_FROM": str(tmp_path / "pretrained"), "EVAL_EVERY": "2"}
    tuned = train(files, bindings, tmp_path / "recognition")
    assert any("validation/wer" in line for line in tuned)

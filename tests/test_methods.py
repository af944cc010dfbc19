"""Each pretraining method over a shipped run, and recognition after it, from the command line."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from narrow_model import NARROW

from maestro_jax.data.data_dir import data_root

# Minutes of compilation: `make test-slow` runs it.
pytestmark = pytest.mark.slow

SELF_SUPERVISED = {"contrastive", "diversity", "masked_prediction"}
PAIRS = {"tlm", *(f"tlm_{name}" for name in SELF_SUPERVISED)}
LOSSES = {
    "w2v_bert": SELF_SUPERVISED,
    "wav2vec2": SELF_SUPERVISED - {"masked_prediction"},
    "best_rq": {"masked_prediction"},
    "slam": SELF_SUPERVISED | PAIRS | {"span_lm", "speech_text_matching"},
    "mslam": SELF_SUPERVISED | PAIRS | {"span_lm", "ctc"},
}
"""The loss terms of each file of `gin/objectives/`."""
SETTINGS = NARROW | {
    "VOCAB_SIZE": "96",
    "STEPS": "2",
    "CHECKPOINT_EVERY": "2",
    "EVAL_EVERY": "0",
    "DIAGNOSTICS_EVERY": "0",
    "GRADIENTS_EVERY": "None",
}
AT_ONCE = {"PAIRED_START_STEP": "0", "TEXT_START_STEP": "0"}


@pytest.fixture(scope="module")
def maestro(tmp_path_factory: pytest.TempPathFactory):
    """Runs a command as a user does: one CPU device, programs kept between processes."""
    cache = tmp_path_factory.mktemp("xla")
    environment = {**os.environ, "XLA_FLAGS": "", "JAX_COMPILATION_CACHE_DIR": str(cache)}

    def run(*words: str) -> str:
        command = [sys.executable, "-m", "maestro_jax.cli.main", *words]
        command += ["--data_dir", str(data_root())]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout + done.stderr

    run("prepare", "minivox", "--config", "tiny")
    return run


def train(maestro, directory: Path, *files: str, **bindings: str) -> list[dict[str, float]]:
    """Trains for two steps; returns the lines of `metrics.jsonl`."""
    words = [word for file in files for word in ("--gin_file", file)]
    words += [f"--gin.{name}={value}" for name, value in (SETTINGS | bindings).items()]
    maestro("train", *words, "--model_dir", str(directory))
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("method", LOSSES)
def test_a_method_trains_and_is_fine_tuned(maestro, method: str, tmp_path: Path) -> None:
    data = "data/minivox_tiny.gin"
    pretrained = tmp_path / "pretrained"
    files = ("runs/demo_pretrain.gin", data, f"objectives/{method}.gin")
    lines = train(maestro, pretrained, *files, **AT_ONCE)
    last = next(line for line in reversed(lines) if "loss" in line)
    losses = {name.removeprefix("loss/"): x for name, x in last.items() if name[:5] == "loss/"}
    assert set(losses) == LOSSES[method]
    assert all(math.isfinite(value) for value in losses.values())
    assert last["skipped_steps"] == 0

    recognition = tmp_path / "recognition"
    lines = train(
        maestro, recognition, "runs/demo_finetune_asr.gin", data, INIT_FROM=f"'{pretrained}'"
    )
    assert math.isfinite(
        next(line for line in lines if "loss/transducer" in line)["loss/transducer"]
    )
    report = (recognition / "init_report.txt").read_text()
    sections = report.split("skipped: in the checkpoint, and not restored")
    for part in ("subsampling", "speech_encoder", "shared_encoder", "text_encoder"):
        assert f"  {part}/" in sections[0]
    skipped, new = sections[1].split("new: in the model, with their initial values")
    heads = {"slam": ("token_head", "pair_head"), "mslam": ("token_head", "ctc_head")}
    for head in heads.get(method, ()):
        assert f"  {head}/" in skipped
    assert "speech_encoder/stack" not in skipped + new

"""A whole study on MiniVox tiny: killed, continued, and told on a page."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
import time

import jiwer
import pytest

from maestro_jax.evaluation.comparison import compare
from maestro_jax.evaluation.predictions import Prediction, read_predictions
from maestro_jax.experiments.study_summary import block_of, join_seeds

ROOT = pathlib.Path(__file__).resolve().parents[2]
GIN = """
from __gin__ import dynamic_registration
from maestro_jax.experiments import study

study.Study:
  name = "Tiny"
  minivox = "tiny"
  methods = (@maestro/study.Method(), @scratch/study.Method())
  baseline = "scratch"
  seeds = (0, 1)
  pretrain = ("runs/study/pretrain.gin",)
  finetune = ("runs/study/finetune.gin",)
  tasks = ("minivox_tiny_paired_sl", "minivox_tiny_paired_de")
  conditions = ("telephone",)
  trials = {
      "slow": {"finetune": {"LEARNING_RATE": 1e-2}},
      "fast": {"finetune": {"LEARNING_RATE": 2e-2}},
  }
  chosen = {"MAESTRO": "slow", "scratch": "slow"}
  bindings = {
      "FEATURES": 16, "TEXT_FEATURES": 16, "HIDDEN": 32, "SPEECH_LAYERS": 1, "SHARED_LAYERS": 1,
      "CODE_FEATURES": 8, "CODES": 8, "VOCAB_SIZE": 96, "AUDIO_SAMPLES": 48000, "TOKENS": 40,
      "SPEECH_BATCH": 2, "PAIRED_BATCH": 2, "TEXT_BATCH": 2, "STEPS": 12, "WARMUP_STEPS": 1,
      "PAIRED_START_STEP": 0, "TEXT_START_STEP": 0, "LOG_EVERY": 2, "CHECKPOINT_EVERY": 2,
      "EVAL_EVERY": 6, "EVAL_EXAMPLES": 4, "LEARNING_RATE": 1e-2,
      "PAIRED_TASKS": ("minivox_tiny_paired_sl:first4", "minivox_tiny_paired_de"),
      "SPEECH_TASKS": ("minivox_tiny_speech",), "TEXT_TASKS": ("minivox_tiny_text",),
  }

maestro/study.Method.name = "MAESTRO"
scratch/study.Method:
  name = "scratch"
  pretrain = None
"""


@pytest.mark.slow
def test_a_killed_study_continues(tmp_path: pathlib.Path) -> None:
    (tmp_path / "tiny.gin").write_text(GIN)
    output = tmp_path / "study"
    command = [sys.executable, "-m", "maestro_jax.cli.main", "study"]
    command += ["--gin_file", str(tmp_path / "tiny.gin"), "--output_dir", str(output)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    first = output / "cells" / "maestro-all-0"
    second = output / "cells" / "scratch-all-0"
    # The second cell has a checkpoint when the study is killed.
    wait_for(lambda: list((second / "finetune" / "checkpoints").glob("*/commit_success.txt")) or
             list((second / "finetune" / "checkpoints").glob("[0-9]*")), process)  # fmt: skip
    process.kill()
    process.wait()
    done = (first / "result.json").stat().st_mtime_ns
    assert not (second / "result.json").exists()
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1500)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert (first / "result.json").stat().st_mtime_ns == done
    assert "maestro-all-0: begins" not in ended.stdout
    assert "continuing from step" in (second / "log.txt").read_text()

    summary = json.loads((output / "study.json").read_text())
    assert summary["cells"] == {"all": 4, "done": 4, "failed": {}, "missing": []}
    tables = {(t["split"], t["test_set"], t["condition"]): t for t in summary["tables"]}
    assert {key[2] for key in tables} == {"", "telephone"}
    for (split, test_set, condition), table in tables.items():
        assert split == test_set.rpartition(".")[2]
        by_method: dict[str, dict[int, list[Prediction]]] = {}
        for row in table["rows"]:
            for seed in (0, 1):
                folder = f"robustness/{condition}" if condition else ""
                path = output / "cells" / f"{row['method'].lower()}-all-{seed}" / "evaluation"
                predictions = read_predictions(path / folder / f"{test_set}.hypotheses.jsonl")
                by_method.setdefault(row["method"], {})[seed] = predictions
                rate = 100 * jiwer.wer(
                    [one.reference for one in predictions], [one.hypothesis for one in predictions]
                )
                found = row["scores"]["average"]["wer"]["by_seed"][str(seed)]
                assert found == pytest.approx(rate)
        [row] = [row for row in table["rows"] if row["method"] == "MAESTRO"]
        expected = compare(
            *(join_seeds(by_method[name]) for name in ("MAESTRO", "scratch")), blocks=block_of
        )
        assert row["comparison"]["average"] == json.loads(json.dumps(expected.average.as_dict()))
    for cost in summary["costs"]:
        assert cost["flops"] > 0 and cost["hours"] > 0 and cost["host_gib"] > 0.1
    assert (output / "study.html").read_text().count("data:image/png") == 3

    # One of four jobs has one of the four trials, which hears nothing of the test set.
    tuned = run([*command, "--tune", "--shard", "0/4"])
    assert "1 of 4 cells are done" in tuned.stdout and "3 of 4 trials are not done" in tuned.stdout
    trial = output / "tuning" / "cells" / "maestro_slow-all-100"
    names = {path.name for path in (trial / "evaluation").glob("*.hypotheses.jsonl")}
    assert names and all(".validation." in name for name in names)
    assert (output / "tuning" / "study.html").exists() and not (output / "tuning/data").exists()

    pretrained, tuned_model = (saved(first / stage) for stage in ("pretrain", "finetune"))
    (tmp_path / "tiny.gin").write_text(GIN.replace('("telephone",)', "()"))
    again = run([*command, "--cell", "maestro-all-0"])
    assert "maestro-all-0: evaluation had other settings" in again.stdout
    assert not (first / "evaluation" / "robustness").exists()
    assert (pretrained, tuned_model) == (saved(first / "pretrain"), saved(first / "finetune"))
    (tmp_path / "tiny.gin").write_text(GIN.replace('"MAESTRO": "slow"', '"MAESTRO": "fast"'))
    refused = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert refused.returncode != 0 and "(maestro-all-0: finetune, ...)" in refused.stderr
    run([*command, "--cell", "maestro-all-0", "--retrain"])
    assert saved(first / "pretrain") == pretrained
    assert saved(first / "finetune") != tuned_model
    assert (first / "result.json").exists()


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1500)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended


def saved(model_dir: pathlib.Path) -> dict[str, int]:
    """When each checkpoint was written."""
    return {path.name: path.stat().st_mtime_ns for path in (model_dir / "checkpoints").iterdir()}


def wait_for(condition, process: subprocess.Popen, seconds: float = 1200.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.2)

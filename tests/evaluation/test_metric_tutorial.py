"""The tutorial on metrics: its code and its gin file, run as it says."""

from __future__ import annotations

import importlib
import json
import pathlib
import re
import sys

import pytest

import maestro_jax.cli.main as cli
from maestro_jax.evaluation.comparison import compare
from maestro_jax.evaluation.evaluate import score
from maestro_jax.evaluation.predictions import Prediction
from maestro_jax.evaluation.run_evaluation import RunScores
from maestro_jax.evaluation.score_table import ScoreTable
from maestro_jax.scoring import metrics

TUTORIAL = pathlib.Path(__file__).resolve().parents[2] / "docs" / "how_to" / "metric.md"
RUN = """
from __gin__ import dynamic_registration
from maestro_jax.training import run
run.TrainRun.steps = 1
"""


def block(language: str) -> str:
    """The first block of code in that language."""
    match = re.search(rf"^```{language}\n(.*?)^```$", TUTORIAL.read_text(), re.M | re.S)
    assert match is not None
    return match[1]


def test_the_metric_of_the_tutorial_is_in_the_table(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(metrics, "_METRICS", dict(metrics._METRICS))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("MAESTRO_ALLOW_IMPORT", "my_metrics")
    (tmp_path / "my_metrics.py").write_text(block("python"))
    (tmp_path / "metric.gin").write_text(block("gin"))
    (tmp_path / "config.gin").write_text(RUN)
    predictions = [
        Prediction(id=str(i), language="de", reference="Eins, zwei.", hypothesis=hypothesis)
        for i, hypothesis in enumerate(("eins zwei", "eins drei", "drei vier", "Eins zwei"))
    ]

    def evaluate_run(*_, **__):
        return RunScores((ScoreTable(score(predictions, kind="asr", name="toy.test")),))

    monkeypatch.setattr("maestro_jax.evaluation.run_evaluation.evaluate_run", evaluate_run)
    # The run itself, whose model would have to be built, is not needed.
    monkeypatch.setattr("maestro_jax.gin_utils.gin_config.build_run", lambda: None)
    command = ["eval", "--model_dir", str(tmp_path), "--gin_file", str(tmp_path / "metric.gin")]
    try:
        assert cli.main(command) == 0
        header, _, row = capsys.readouterr().out.splitlines()[2:5]
        assert header.split() == (
            "language utterances WER % 95% interval CER % SER % words sub del ins errors".split()
        )
        # Two of four sentences have an error, three of eight words.
        assert row.split()[2] == "37.5" and row.split()[7] == "50.0"
        assert cli.main([*command, "--json"]) == 0
        [content] = json.loads(capsys.readouterr().out)
        [scores] = content["rows"]
        assert scores["ser"] == 50.0 and scores["ser_interval"] == [0.0, 100.0]
        result = compare(predictions, predictions, metric="ser").average
    finally:
        sys.modules.pop("my_metrics", None)
        importlib.invalidate_caches()
    assert (result.score, result.difference) == (50.0, 0.0)

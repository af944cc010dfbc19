"""Checkpoints that appear and disappear while they are evaluated."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest

from maestro_jax.errors import UserError
from maestro_jax.evaluation.evaluate import score
from maestro_jax.evaluation.following import complete_steps, follow, read_followed
from maestro_jax.evaluation.predictions import Prediction
from maestro_jax.evaluation.run_evaluation import RunScores
from maestro_jax.evaluation.score_table import ScoreTable
from maestro_jax.reports.figures import plot_followed


def checkpoint(model: Path, step: int) -> Path:
    directory = model / "checkpoints" / str(step)
    (directory / "state").mkdir(parents=True)
    return directory


def scores_of(step: int) -> RunScores:
    """In step n, one word of n is wrong."""
    predictions = [
        Prediction(
            id="1",
            language=language,
            reference="a " * step,
            hypothesis="a " * (step - 1) + "b",
        )
        for language in ("de", "en")
    ]
    return RunScores((ScoreTable(score(predictions, kind="asr", name="toy.dev")),))


class Training:
    """Writes and removes checkpoints whenever the follower waits or evaluates."""

    def __init__(self, model: Path) -> None:
        self.model, self.time, self.evaluated, self.drawn = model, 0.0, [], []
        self.at_waits: list = []
        self.during: dict = {}

    def sleep(self, seconds: float) -> None:
        self.time += seconds
        if self.at_waits:
            self.at_waits.pop(0)()

    def evaluate(self, step: int) -> RunScores:
        if step in self.during:
            self.during[step]()
        if step not in complete_steps(self.model):
            raise FileNotFoundError(f"no {step}")
        self.evaluated.append(step)
        return scores_of(step)

    def follow(self, **options):
        options = {"last_step": 50, "search": "ema-greedy", "test_sets": ["toy.dev"]} | options
        return follow(
            self.model,
            self.evaluate,
            draw=lambda scores, path: self.drawn.append([one.step for one in scores]),
            poll=10,
            sleep=self.sleep,
            clock=lambda: self.time,
            **options,
        )


def test_each_checkpoint_is_evaluated_once_until_the_last(tmp_path: Path, caplog) -> None:
    training = Training(tmp_path)
    remove = shutil.rmtree
    checkpoint(tmp_path, 10)
    old = checkpoint(tmp_path, 20)
    (tmp_path / "checkpoints" / "25.orbax-checkpoint-tmp" / "state").mkdir(parents=True)
    # Training removes step 20 while step 10 is evaluated, and step 30 while that is.
    training.during[10] = lambda: remove(old)
    training.during[30] = lambda: remove(tmp_path / "checkpoints" / "30")
    training.at_waits = [
        lambda: None,
        lambda: checkpoint(tmp_path, 30),
        lambda: (checkpoint(tmp_path, 40), checkpoint(tmp_path, 50)),
    ]
    with caplog.at_level(logging.WARNING):
        found = training.follow()
    assert training.evaluated == [10, 40, 50]
    assert "step 30 was removed before it was evaluated" in caplog.text
    assert training.drawn == [[10], [10, 40], [10, 40, 50]]
    assert [one.step for one in found] == [10, 40, 50]
    assert [one.average for one in found] == [pytest.approx(100 / n) for n in (10, 40, 50)]
    assert found[0].rows == {"de": pytest.approx(10.0), "en": pytest.approx(10.0)}
    assert read_followed(tmp_path) == found
    lines = (tmp_path / "evaluation" / "follow.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [10, 40, 50]


def test_it_goes_on_where_it_stood(tmp_path: Path) -> None:
    first = Training(tmp_path)
    for step in (10, 20):
        checkpoint(tmp_path, step)

    def interrupt() -> None:
        raise KeyboardInterrupt

    first.at_waits = [interrupt]
    assert [one.step for one in first.follow()] == [10, 20]
    second = Training(tmp_path)
    checkpoint(tmp_path, 50)
    assert [one.step for one in second.follow()] == [10, 20, 50]
    assert second.evaluated == [50]
    # Another search, or another test set, begins anew and leaves the scores of the first.
    third = Training(tmp_path)
    assert [one.step for one in third.follow(search="ema-beam4")] == [10, 20, 50]
    assert third.evaluated == [10, 20, 50] and len(read_followed(tmp_path)) == 6
    # All is done: nothing is evaluated.
    fourth = Training(tmp_path)
    fourth.follow()
    assert fourth.evaluated == [] and fourth.time == 0


def test_it_ends_without_new_checkpoints(tmp_path: Path, caplog) -> None:
    training = Training(tmp_path)
    checkpoint(tmp_path, 10)
    with caplog.at_level(logging.WARNING):
        training.follow(timeout=35)
    assert training.evaluated == [10] and training.time == 40
    assert "no new checkpoint for 35 s" in caplog.text


def test_errors_of_checkpoints_that_are_there_are_errors(tmp_path: Path) -> None:
    training = Training(tmp_path)
    checkpoint(tmp_path, 10)

    def fail() -> None:
        raise UserError("no such task")

    training.during[10] = fail
    with pytest.raises(UserError, match="no such task"):
        training.follow()


def test_the_curve_has_a_panel_for_each_test_set(tmp_path: Path) -> None:
    training = Training(tmp_path)
    for step in (10, 50):
        checkpoint(tmp_path, step)
    path = tmp_path / "curve.png"
    plot_followed(training.follow(), path)
    assert path.read_bytes()[:4] == b"\x89PNG"

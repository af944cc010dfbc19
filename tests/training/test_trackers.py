"""Where metrics go: the lines of a file, TensorBoard, Weights & Biases."""

from __future__ import annotations

import builtins
import dataclasses
import json
import pathlib
import resource
import sys
import types

import numpy as np
import pytest
import tensorflow as tf
from etils import epath
from tensorboard.backend.event_processing import event_accumulator

from maestro_jax.errors import UserError
from maestro_jax.training.callbacks import Callback
from maestro_jax.training.trackers import (
    METRICS_FILE,
    JsonlTracker,
    TensorBoardTracker,
    WandbTracker,
)
from maestro_jax.training.trainer import train


def test_lines_of_steps_to_be_done_again_are_removed(tmp_path):
    writer = JsonlTracker()
    writer.start(epath.Path(tmp_path), 0, {})
    for step in (2, 4, 6):
        writer.log(step, {"loss": float(step), "bad": float("nan")})
    writer.close()
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 7, "lo')  # Its process was killed.
    writer = JsonlTracker()
    writer.start(epath.Path(tmp_path), 4, {})
    writer.log(6, {"loss": 0.5})
    writer.close()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 6]
    assert lines[0] == {"step": 2, "loss": 2.0, "bad": None}
    assert lines[-1]["loss"] == 0.5


def test_without_tensorflow_one_line_says_so(tmp_path, monkeypatch, caplog):
    real_import = builtins.__import__

    def refuse(name, globals=None, locals=None, fromlist=(), level=0):
        if name == "clu" and "metric_writers" in (fromlist or ()):
            raise ImportError("No module named 'tensorflow'")
        return real_import(name, globals, locals, fromlist, level)

    monkeypatch.setattr(builtins, "__import__", refuse)
    writer = TensorBoardTracker()
    writer.start(epath.Path(tmp_path), 0, {})
    writer.log(1, {"loss": 1.0})
    writer.log_images(1, {"image": np.zeros((2, 2, 3), np.uint8)})
    writer.flush()
    writer.close()
    assert "No TensorBoard files are written (No module named 'tensorflow')" in caplog.text
    assert not (tmp_path / "metrics").exists()


class FakeWandb(types.ModuleType):
    """Takes down what it is told, as the package wandb would send it."""

    Image = staticmethod(lambda image: ("image", image.shape))
    Histogram = staticmethod(lambda samples: ("histogram", len(samples)))

    def __init__(self):
        super().__init__("wandb")
        self.begun, self.logged, self.finished = [], [], 0

    def init(self, **settings):
        self.begun.append(settings)
        return self

    def log(self, values, step):
        self.logged.append((step, values))

    def finish(self):
        self.finished += 1


def test_a_restarted_run_goes_on_in_weights_and_biases(toy, tmp_path, monkeypatch):
    wandb = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    run = toy.run(steps=2, trackers=[WandbTracker("speech", mode="offline")])
    train(run, tmp_path, batches=toy.batches)
    train(dataclasses.replace(run, steps=4), tmp_path, batches=toy.batches)
    first, second = wandb.begun
    assert first["project"] == "speech" and first["mode"] == "offline"
    assert first["config"]["model"] == "Toy"
    assert first["id"] == second["id"] and first["resume"] == "allow"
    assert [step for step, _ in wandb.logged] == [2, 4] and wandb.finished == 2
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["loss"] for line in lines] == [v["loss"] for _, v in wandb.logged]
    tracker = WandbTracker("speech")
    tracker.start(epath.Path(tmp_path), 0, {})
    tracker.log_images(5, {"a": np.zeros((2, 3, 3), np.uint8)})
    tracker.log_histograms(5, {"b": np.arange(7)})
    assert wandb.logged[-2:] == [(5, {"a": ("image", (2, 3, 3))}), (5, {"b": ("histogram", 7)})]


def test_a_tracker_that_is_not_installed_is_said_so(toy, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="pip install wandb"):
        train(toy.run(trackers=[WandbTracker("speech")]), tmp_path, batches=toy.batches)
    with pytest.raises(UserError, match=r"trackers is the class W.*write @WandbTracker\(\)"):
        toy.run(trackers=[WandbTracker])
    with pytest.raises(UserError, match=r"trackers has .*, which is no Tracker"):
        toy.run(trackers=[object()])


def _read_tensorboard(directory):
    accumulator = event_accumulator.EventAccumulator(
        str(directory), size_guidance={event_accumulator.TENSORS: 0}
    )
    accumulator.Reload()
    return {
        tag: [(e.step, float(tf.make_ndarray(e.tensor_proto))) for e in accumulator.Tensors(tag)]
        for tag in accumulator.Tags()["tensors"]
    }


class Killed(BaseException):
    pass


class AtStart(Callback):
    """Measures something before the first step, as diagnostics do, and dies at some steps."""

    def __init__(self, *dies_at):
        self.dies_at = dies_at

    def on_start(self, trainer):
        if trainer.step == 0:
            trainer.log_metrics({"before": 1.0})

    def on_step(self, trainer, info):
        if info.step in self.dies_at:
            raise Killed


@pytest.mark.parametrize("deaths", [(1,), (2,), (3,), (1, 4, 5), (5, 4, 6, 6)])
def test_every_step_is_logged_once_after_restarts(toy, tmp_path, deaths):
    """Also before the first checkpoint, which is that of step 3; log points at 2, 4, 6."""
    run = toy.run(tensorboard=True, steps=6, checkpoint_every=3)
    expected = [0, 2, 4, 6]
    for death in deaths:
        with pytest.raises(Killed):
            train(run, tmp_path, batches=toy.batches, callbacks=[AtStart(death)])
    train(run, tmp_path, batches=toy.batches, callbacks=[AtStart()])
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == expected
    read = _read_tensorboard(tmp_path / "metrics")
    assert [step for step, _ in read["loss"]] == expected[1:]
    assert [step for step, _ in read["before"]] == [0]
    for (_, value), line in zip(read["loss"], lines[1:], strict=True):
        assert value == pytest.approx(line["loss"], rel=1e-6)


def test_tensorboard_files_of_the_future_do_not_hide_new_ones(tmp_path):
    """A clock that was set back by a day, and restarts within a second."""
    for start, value in ((0, 1.0), (2, 2.0), (2, 3.0)):
        tracker = TensorBoardTracker()
        tracker.start(epath.Path(tmp_path), start, {})
        for step in (1, 2, 3, 4):
            if step > start:
                tracker.log(step, {"a": value})
        tracker.close()
        if start == 0:
            [path] = (tmp_path / "metrics").iterdir()
            *head, second, rest = path.name.split(".", 4)
            path.rename(path.with_name(".".join([*head, str(int(second) + 86400), rest])))
    assert _read_tensorboard(tmp_path / "metrics")["a"] == [(1, 1), (2, 1), (3, 3), (4, 3)]


def test_what_is_logged_of_a_step_again_goes_into_its_line(tmp_path):
    tracker = JsonlTracker()
    tracker.start(epath.Path(tmp_path), 0, {})
    tracker.log(1, {"a": 1.0})
    tracker.log(1, {"a": 2.0, "b": 3.0})
    tracker.start(epath.Path(tmp_path), 1, {})  # A rollback to the step.
    tracker.log(2, {"a": 4.0})
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [{"step": 1, "a": 2.0, "b": 3.0}, {"step": 2, "a": 4.0}]


def test_metrics_that_a_full_disk_refuses_are_written_when_there_is_room(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = JsonlTracker()
    tracker.start(epath.Path(tmp_path), 0, {})
    path = tmp_path / METRICS_FILE
    tracker.log(1, {"loss" * 50_000: 1.0})
    previous = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 5, previous[1]))
    try:
        tracker.log(2, {"loss": 2.0})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, previous)
    assert f"{path} was not written" in caplog.text
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()[:1]] == [1]
    tracker.log(3, {"loss": 3.0})
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3]

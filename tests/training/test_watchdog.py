"""A run that hangs is ended, and says where."""

from __future__ import annotations

import math
import threading
import time

import pytest

from maestro_jax.training import watchdog
from maestro_jax.training.callbacks import Callback
from maestro_jax.training.trainer import train
from maestro_jax.training.watchdog import Activity, WatchdogConfig


def test_limits_scale_with_the_longest_step(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(watchdog.time, "monotonic", lambda: now[0])
    activity, config = Activity(), WatchdogConfig(step_seconds=10.0, step_factor=20.0)
    activity.begin("compiling step 1")
    assert activity.limit(config) == config.other_seconds
    now[0] += 500  # Compiling does not count.
    for step, seconds in enumerate([0.1, 3.0, 1.0], 1):
        activity.begin(f"step {step}", "step")
        assert activity.limit(config) == pytest.approx(10.0 if step < 3 else 60.0)
        now[0] += seconds
        with activity.during("validation"):
            now[0] += 100
    activity.begin("waiting", "input")
    assert activity.limit(config) == math.inf


class Hanging:
    """Something that hangs until the watchdog has ended the process.

    Attributes:
        ended: Exit status and line of each end of the process.
    """

    def __init__(self, monkeypatch):
        self.ended = []
        self._released = threading.Event()
        monkeypatch.setattr(watchdog, "end_process", self._end)
        monkeypatch.setattr(watchdog, "_TURN_SECONDS", 0.05)

    def hang_here(self):
        self._released.wait(20)

    def _end(self, line, exit_code):
        self.ended.append((exit_code, line))
        self._released.set()
        time.sleep(3600)  # In its daemon thread: the real one does not return.


class HangsAfterStep(Callback):
    """Hangs after a step, in the time of the step."""

    def __init__(self, hanging):
        self._hanging = hanging

    def on_step(self, trainer, info):
        if info.step == 3:
            self._hanging.hang_here()


def test_a_step_that_hangs_ends_the_run_with_stacks(toy, tmp_path, monkeypatch):
    hanging = Hanging(monkeypatch)
    limits = WatchdogConfig(step_seconds=0.5, step_factor=1e-9)
    train(toy.run(watchdog=limits, steps=4, checkpoint_every=2), tmp_path, batches=toy.batches,
          callbacks=[HangsAfterStep(hanging)])  # fmt: skip
    [(code, line)] = hanging.ended
    assert code == 75
    assert line.startswith("step 3 has taken ") and "limit is 0 s" in line
    assert "the same command continues from step 2" in line
    text = (tmp_path / "stacks" / "process-00000.txt").read_text()
    assert "hang_here" in text and "thread MainThread:" in text and "step 3" in text


def test_data_that_hang_when_they_are_opened_end_the_run(toy, tmp_path, monkeypatch):
    hanging = Hanging(monkeypatch)

    def batches(step):
        hanging.hang_here()
        return toy.batches(step)

    train(toy.run(watchdog=WatchdogConfig(other_seconds=0.5)), tmp_path, batches=batches)
    [(code, line)] = hanging.ended
    assert code == 75 and line.startswith("opening the data has taken ")
    assert "hang_here" in (tmp_path / "stacks" / "process-00000.txt").read_text()

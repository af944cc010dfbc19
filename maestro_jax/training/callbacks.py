"""Callbacks: what happens around the steps of training.

The loop of `trainer.Trainer` takes steps; everything else is a callback: logging, checkpoints,
validation and so on. One's own derives from `Callback`, in any module that a gin file can import:

    from my_lab import early_stop
    TrainRun.callbacks = (@early_stop.EarlyStop(),)

Callbacks run on every process, in the same order and at the same steps, so that they may compute
with sharded arrays. Files are written by process 0 alone (``jax.process_index() == 0``).
"""

from __future__ import annotations

import dataclasses
import logging
import re
import tempfile
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
from etils import epath

from maestro_jax.files import copy_tree, is_remote
from maestro_jax.training.metrics import MetricWindow, console_line, throughput

if TYPE_CHECKING:
    from maestro_jax.training.trainer import Trainer

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepInfo:
    """Describes a step that has been dispatched; devices may still be working on it.

    Attributes:
        step: Number of the step, from 1.
        batch: Its batch, ``{stream: {feature: array}}``, global arrays on the mesh.
        metrics: Its metrics, ``{name: (total, count)}`` of scalars on the devices. To read them
            waits for the step.
    """

    step: int
    batch: Any
    metrics: Mapping[str, tuple[jax.Array, jax.Array]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogWindow:
    """Summarises the steps since the last log point, the same on every process.

    Attributes:
        step: Step of the log point.
        steps: Number of steps.
        means: Mean of each metric.
        totals: Total of each metric.
    """

    step: int
    steps: int
    means: Mapping[str, float]
    totals: Mapping[str, float]


class Callback:
    """Acts at certain points of training; every method does nothing unless overridden.

    Attributes:
        name: Key of the callback's state in checkpoints, unique within a run; by default the name
            of the class in snake case.
    """

    name: str = ""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Derives the name from the class."""
        super().__init_subclass__(**kwargs)
        if "name" not in cls.__dict__:
            cls.name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", cls.__name__).lower()

    def on_start(self, trainer: Trainer) -> None:
        """Runs before the first step of this process, with the state restored or initialised."""

    def on_step(self, trainer: Trainer, info: StepInfo) -> None:
        """Runs after each step has been dispatched.

        Work that takes time belongs into ``with trainer.paused()``, which waits for the step and
        excludes the block from the measured speed.
        """

    def log_values(self, trainer: Trainer, window: LogWindow) -> Mapping[str, float]:
        """Returns values to add to a log point; called at each, before it is written."""
        return {}

    def on_log(self, trainer: Trainer, step: int, metrics: Mapping[str, float]) -> None:
        """Runs when metrics of a step have been written.

        Args:
            trainer: The trainer.
            step: The step, which may be one before the current step.
            metrics: What was written: a log point, or what was measured after a step without one.
        """

    def is_healthy(self, trainer: Trainer) -> bool:
        """Returns whether a checkpoint of the current step may replace earlier ones."""
        return True

    def on_roll_back(self, trainer: Trainer) -> None:
        """Runs when training has gone back to an earlier step, with its state restored.

        The state of the callback as it was at that step has been given to `load` before.
        """

    def on_end(self, trainer: Trainer) -> None:
        """Runs when training ends for any reason, an error included, in reverse order."""

    def state(self) -> Mapping[str, Any]:
        """Returns what a checkpoint has to save of the callback, as JSON values."""
        return {}

    def load(self, state: Mapping[str, Any]) -> None:
        """Restores what `state` returned; called before `on_start` when training is resumed."""


class MetricLogger(Callback):
    """Averages metrics over `TrainRun.log_every` steps and writes them.

    A log point is written while devices work on the next step, or as soon as anything needs it.
    """

    def __init__(self) -> None:
        self._window = MetricWindow()
        self._pending: tuple[int, MetricWindow] | None = None

    def on_step(self, trainer: Trainer, info: StepInfo) -> None:
        """Adds the metrics of the step; at a log point, they wait to be written."""
        self._window.add(info.metrics)
        if info.step % trainer.run.log_every == 0 or info.step == trainer.run.steps:
            # Not written yet: that would wait for the step, while the next one could be dispatched.
            self._pending, self._window = (info.step, self._window), MetricWindow()

    def write(self, trainer: Trainer, measured: Mapping[str, float]) -> None:
        """Writes the log point that is due, if one is, with what callbacks have measured.

        Args:
            trainer: The trainer.
            measured: Values that callbacks have measured after the current step.
        """
        if self._pending is None:
            if measured:
                values = {**measured, "elapsed_seconds": trainer.timer.elapsed}
                self._write(trainer, trainer.step, values)
            return
        (step, window), self._pending = self._pending, None
        if step == trainer.step:
            trainer.wait()
        means, totals = window.compute()
        summary = LogWindow(step=step, steps=len(window), means=means, totals=totals)
        values = dict(means)
        for callback in trainer.callbacks:
            values |= callback.log_values(trainer, summary)
        speed = trainer.timer.window(step)
        values |= speed | throughput(totals, len(window), speed.get("steps_per_second"))
        values |= measured
        if jax.process_index() == 0:
            chosen = trainer.run.console_metrics
            names = _console_names(values) if chosen is None else chosen
            log.info("%s", console_line(step, trainer.run.steps, values, names))
        self._write(trainer, step, values)

    def _write(self, trainer: Trainer, step: int, values: dict[str, float]) -> None:
        for tracker in trainer.trackers:
            tracker.log(step, values)
        for callback in trainer.callbacks:
            callback.on_log(trainer, step, values)

    def state(self) -> Mapping[str, Any]:
        """Returns the window that is open."""
        # Sums of the steps since the last log point: a resumed run logs the means of all of them.
        return {"window": self._window.state()}

    def load(self, state: Mapping[str, Any]) -> None:
        """Continues an open window."""
        self._window, self._pending = MetricWindow(state.get("window")), None


def _console_names(values: Mapping[str, float]) -> list[str]:
    """Returns the names of the loss, its terms, the gradient norm and the learning rate."""
    return [
        "loss",
        *sorted(n for n in values if n.startswith("loss/")),
        "grad_norm",
        "learning_rate",
    ]


class Profiler(Callback):
    """Writes a profile of some steps to ``profile/`` in the model directory.

    Args:
        first: First step of the profile.
        last: Last step of the profile.
    """

    def __init__(self, first: int, last: int) -> None:
        self._first, self._last = first, last
        self._is_tracing = False
        self._directory = self._written = epath.Path()

    def on_start(self, trainer: Trainer) -> None:
        """Starts the profile, if it begins with the first step of this process."""
        self._start_before(trainer, trainer.step + 1)

    def on_step(self, trainer: Trainer, info: StepInfo) -> None:
        """Stops the profile after its last step, or starts it before its first one."""
        if self._is_tracing and info.step == self._last:
            trainer.wait()
            self._stop()
        self._start_before(trainer, info.step + 1)

    def on_end(self, trainer: Trainer) -> None:
        """Stops the profile, if training ended within it."""
        self._stop()

    def _start_before(self, trainer: Trainer, step: int) -> None:
        if step == self._first:
            self._directory = trainer.model_dir / "profile"
            self._written = self._directory
            if is_remote(self._directory):
                # JAX writes profiles to a disk only.
                self._written = epath.Path(tempfile.mkdtemp(prefix="profile"))
            jax.profiler.start_trace(str(self._written))
            self._is_tracing = True

    def _stop(self) -> None:
        if self._is_tracing:
            jax.profiler.stop_trace()
            self._is_tracing = False
            if self._written != self._directory:
                copy_tree(self._written, self._directory)
                self._written.rmtree()

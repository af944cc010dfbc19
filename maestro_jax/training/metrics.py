"""Metrics of training: averages between log points, and where they are written."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

log = logging.getLogger(__name__)

METRICS_FILE = "metrics.jsonl"
QUANTITIES = ("examples", "audio_seconds", "tokens")
"""What a stream is counted in."""


class MetricWindow:
    """Metrics of the steps since the last log point.

    Every step adds ``{name: (total, count)}`` scalars, which stay on the device until they are
    asked for; the mean of a metric is the sum of totals by the sum of counts, as in
    ``clu.metrics.Average``. Sums are taken in float64 and in the order of the steps, so that a
    window that was recorded and taken up again gives the same bits.

    Args:
        record: What ``record`` gave when a checkpoint was written; the window goes on from there.
    """

    def __init__(self, record: Mapping[str, Any] | None = None) -> None:
        """Begin without steps, or with those of the record."""
        record = record or {}
        self._steps: list[Mapping[str, tuple[Any, Any]]] = []
        self._recorded = int(record.get("steps", 0))
        self._totals: dict[str, float] = dict(record.get("totals", {}))
        self._counts: dict[str, float] = dict(record.get("counts", {}))

    def __len__(self) -> int:
        """The number of steps added."""
        return self._recorded + len(self._steps)

    def add(self, metrics: Mapping[str, tuple[Any, Any]]) -> None:
        """Take in the metrics of one step."""
        self._steps.append(metrics)

    def compute(self) -> tuple[dict[str, float], dict[str, float]]:
        """Means and totals over all steps added.

        Returns:
            The means of all metrics that were counted at least once (a stream without examples
            has no mean), and the totals of all metrics.
        """
        totals, counts = self._sums()
        means = {name: totals[name] / counts[name] for name in totals if counts[name] > 0}
        return means, totals

    def record(self) -> dict[str, Any]:
        """What a checkpoint has to hold of a window that is still open, for JSON."""
        totals, counts = self._sums()
        return {"steps": len(self), "totals": totals, "counts": counts}

    def _sums(self) -> tuple[dict[str, float], dict[str, float]]:
        totals, counts = dict(self._totals), dict(self._counts)
        for metrics in jax.device_get(self._steps):
            for name, (total, count) in metrics.items():
                totals[name] = totals.get(name, 0.0) + float(np.float64(total))
                counts[name] = counts.get(name, 0.0) + float(np.float64(count))
        return totals, counts


class Chronometer:
    """Time spent in training, over all restarts, and what is left.

    Args:
        step: The step at which this process begins.
        steps: The step at which training ends.
        elapsed: Seconds that earlier processes spent.
    """

    def __init__(self, step: int, steps: int, elapsed: float = 0.0) -> None:
        """Start the clock."""
        self._steps = steps
        self._earlier = elapsed
        self._start = time.monotonic()
        self._mark = (step, self._start)
        self._waited = 0.0

    @property
    def elapsed(self) -> float:
        """Seconds of training so far, those before a restart included."""
        return self._earlier + time.monotonic() - self._start

    def restart_window(self, step: int) -> None:
        """Leave what came before out of the speed (the compilation of the first step)."""
        self._mark = (step, time.monotonic())
        self._waited = 0.0

    def waited(self, seconds: float) -> None:
        """Count time in which the next batch was not ready."""
        self._waited += seconds

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leave what is done meanwhile out of the speed; it counts as elapsed time."""
        began = time.monotonic()
        try:
            yield
        finally:
            step, start = self._mark
            self._mark = (step, start + time.monotonic() - began)

    def window(self, step: int) -> dict[str, float]:
        """Speed since the last window, and open the next one.

        Returns:
            ``steps_per_second``, ``seconds_left`` and ``data_wait_fraction`` (all only once a step
            was timed), and ``elapsed_seconds``.
        """
        first, start = self._mark
        now = time.monotonic()
        values = {"elapsed_seconds": self.elapsed}
        if step > first and now > start:
            speed = (step - first) / (now - start)
            values["steps_per_second"] = speed
            values["seconds_left"] = (self._steps - step) / speed
            values["data_wait_fraction"] = min(self._waited / (now - start), 1.0)
        self._mark = (step, now)
        self._waited = 0.0
        return values


def console_line(step: int, steps: int, values: Mapping[str, float], names: Sequence[str]) -> str:
    """One line for a reader: step, chosen metrics, speed and time.

    Args:
        step: The step.
        steps: The last step.
        values: All metrics of the log point.
        names: The metrics to show, in order; those that are absent are left out.
    """
    parts = [f"step {step:>{len(str(steps))}}/{steps}"]
    parts += [f"{name} {values[name]:.4g}" for name in names if name in values]
    if values.get("skipped_steps"):
        parts.append(f"skipped {values['skipped_steps']:.0f}")
    if "steps_per_second" in values:
        parts.append(f"{values['steps_per_second']:.3g} steps/s")
    parts.append(f"elapsed {duration(values['elapsed_seconds'])}")
    if "seconds_left" in values:
        parts.append(f"left {duration(values['seconds_left'])}")
    return "  ".join(parts)


def duration(seconds: float) -> str:
    """A time span as ``h:mm:ss``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"


def throughput(
    totals: Mapping[str, float], steps: int, steps_per_second: float | None
) -> dict[str, float]:
    """How fast each stream is read.

    Args:
        totals: Of all metrics over a window of steps, `<stream>/examples`, `<stream>/audio_seconds`
            and `<stream>/tokens` among them.
        steps: Steps of the window.
        steps_per_second: The speed of the steps that were timed; None: none was.

    Returns:
        `<stream>/examples_per_second`, `<stream>/audio_seconds_per_second` and
        `<stream>/tokens_per_second`, of the quantities that a stream has.
    """
    if steps_per_second is None:
        return {}
    return {
        f"{name}_per_second": total / steps * steps_per_second
        for name, total in totals.items()
        if name.rpartition("/")[0] and name.rpartition("/")[2] in QUANTITIES
    }


class MetricWriter:
    """Writes log points to ``metrics.jsonl`` and to TensorBoard.

    Only process 0 may make one. After a restart, the lines of steps that will be done again are
    removed first, so that a step has one line.

    Args:
        model_dir: The model directory; TensorBoard files go to ``metrics/`` within.
        start_step: The step from which training continues; later lines are removed.
        tensorboard: Whether to write TensorBoard files.
    """

    def __init__(
        self, model_dir: epath.PathLike, *, start_step: int = 0, tensorboard: bool = True
    ) -> None:
        """Open the files."""
        directory = epath.Path(model_dir).expanduser()
        directory.mkdir(parents=True, exist_ok=True)
        self._path = directory / METRICS_FILE
        self._lines = [
            line
            for line in (self._path.read_text().splitlines() if self._path.exists() else [])
            if _step_of(line) <= start_step
        ]
        # Object stores cannot append: there the file is rewritten at each flush.
        self._appends = "://" not in str(directory)
        self._rewrite()
        self._tensorboard = _summary_writer(directory / "metrics") if tensorboard else None

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Write one log point.

        Args:
            step: The step.
            values: The metrics; a value that is not finite is written as null.
        """
        finite = {
            name: float(value) if math.isfinite(value) else None for name, value in values.items()
        }
        line = json.dumps({"step": step, **finite}, allow_nan=False)
        self._lines.append(line)
        if self._appends:
            with self._path.open("a") as file:
                file.write(line + "\n")
        if self._tensorboard is not None:
            self._tensorboard.write_scalars(step, dict(values))

    def write_pictures(
        self,
        step: int,
        images: Mapping[str, np.ndarray],
        histograms: Mapping[str, np.ndarray],
    ) -> None:
        """Give TensorBoard what is no scalar.

        Args:
            step: The step.
            images: By name, `[height, width, channels]` uint8.
            histograms: By name, the samples of which to make one.
        """
        if self._tensorboard is None:
            return
        if images:
            self._tensorboard.write_images(
                step, {name: image[None] for name, image in images.items()}
            )
        if histograms:
            self._tensorboard.write_histograms(step, dict(histograms))

    def flush(self) -> None:
        """Make sure that everything is in the files."""
        if not self._appends:
            self._rewrite()
        if self._tensorboard is not None:
            self._tensorboard.flush()

    def close(self) -> None:
        """Flush and close."""
        self.flush()
        if self._tensorboard is not None:
            self._tensorboard.close()

    def _rewrite(self) -> None:
        self._path.write_text("".join(line + "\n" for line in self._lines))


def _step_of(line: str) -> float:
    """The step of a line; infinity for a line that was cut off when its process died."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


def _summary_writer(directory: epath.Path) -> Any:
    """A TensorBoard writer, or None where TensorFlow is not installed."""
    try:
        # Imported here: it imports TensorFlow, which training can do without.
        from clu import metric_writers
    except ImportError as error:
        log.warning(
            "No TensorBoard files are written (%s); %s has all metrics", error, METRICS_FILE
        )
        return None
    return metric_writers.AsyncWriter(metric_writers.SummaryWriter(str(directory)))

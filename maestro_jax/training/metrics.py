"""Metrics of training between two log points: averages, the speed of steps, the console line."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

QUANTITIES = ("examples", "audio_seconds", "tokens")
"""Last parts of the names of metrics that count what a stream has."""


def is_of_the_machine(name: str) -> bool:
    """Returns whether a metric tells of time or memory, and not of the model.

    Such metrics differ between a run and its repetition; all others are the same to the bit.
    """
    return (
        name.startswith("goodput/")
        or name in ("data_wait_fraction", "mfu", "host_memory_gib")
        or name.endswith(("_per_second", "_seconds", "seconds_left"))
        and not name.endswith("/audio_seconds")
    )


class MetricWindow:
    """Accumulates the metrics of the steps since the last log point.

    Every step adds ``{name: (total, count)}`` scalars, which stay on the device until they are
    needed. The mean of a metric is the sum of totals over the sum of counts, as in
    ``clu.metrics.Average``. Sums are taken in float64 and in the order of the steps, so that a
    window that is saved and restored gives the same bits.

    Args:
        state: Result of `state` when a checkpoint was written, to continue from.
    """

    def __init__(self, state: Mapping[str, Any] | None = None) -> None:
        state = state or {}
        self._steps: list[Mapping[str, tuple[Any, Any]]] = []
        self._restored_steps = int(state.get("steps", 0))
        self._totals: dict[str, float] = dict(state.get("totals", {}))
        self._counts: dict[str, float] = dict(state.get("counts", {}))

    def __len__(self) -> int:
        """Returns the number of steps added."""
        return self._restored_steps + len(self._steps)

    def add(self, metrics: Mapping[str, tuple[Any, Any]]) -> None:
        """Adds the metrics of one step."""
        self._steps.append(metrics)

    def compute(self) -> tuple[dict[str, float], dict[str, float]]:
        """Computes means and totals over all steps added.

        Returns:
            The means of all metrics with a count above 0 (a stream without examples has no mean),
            and the totals of all metrics.
        """
        totals, counts = self._sums()
        means = {name: totals[name] / counts[name] for name in totals if counts[name] > 0}
        return means, totals

    def state(self) -> dict[str, Any]:
        """Returns what a checkpoint saves of a window that is still open, as JSON values."""
        totals, counts = self._sums()
        return {"steps": len(self), "totals": totals, "counts": counts}

    def _sums(self) -> tuple[dict[str, float], dict[str, float]]:
        totals, counts = dict(self._totals), dict(self._counts)
        # One transfer for all steps of the window, and none at each step: reading a metric waits
        # for its step.
        for metrics in jax.device_get(self._steps):
            for name, (total, count) in metrics.items():
                totals[name] = totals.get(name, 0.0) + float(np.float64(total))
                counts[name] = counts.get(name, 0.0) + float(np.float64(count))
        return totals, counts


@dataclasses.dataclass(frozen=True, kw_only=True)
class _StepTime:
    """Seconds that one step took, those of them spent waiting for its batch, and its FLOPs."""

    step: int
    seconds: float
    waited: float
    flops: float


class StepTimer:
    """Measures the speed of training by the times at which steps are completed.

    A call of a jitted step may return at once, while devices work, or when the step is done, as on
    CPUs. So the time of a step is the difference between two completions, and each step belongs to
    the log point that counts it.

    Args:
        steps: Step at which training ends.
        elapsed: Seconds that earlier processes of the run spent.
        devices: Number of devices.
        peak_flops: Peak FLOPs per second of one device; None if unknown.
    """

    def __init__(
        self,
        steps: int,
        elapsed: float = 0.0,
        *,
        devices: int = 1,
        peak_flops: float | None = None,
    ) -> None:
        self._steps = steps
        self._earlier = elapsed
        self._devices = devices
        self._peak_flops = peak_flops
        self._start = self._last = time.monotonic()
        # Seconds that were paused since `_last`, and whether they are being paused.
        self._paused = 0.0
        self._is_paused = False
        self._has_begun = False
        self._spent = dict.fromkeys(
            ("start", "compile", "input", "step", "checkpoint", "diagnostics"), 0.0
        )
        # Step -> for how long its batch was waited for, and until when.
        self._waited: dict[int, tuple[float, float]] = {}
        self._times: list[_StepTime] = []

    @property
    def elapsed(self) -> float:
        """Returns the seconds of training so far, including those before a restart."""
        return self._earlier + time.monotonic() - self._start

    def waited(self, step: int, seconds: float) -> None:
        """Records for how long the batch of a step, which has just come, was waited for."""
        self._waited[step] = (seconds, time.monotonic())

    def begin(self) -> None:
        """Begins with the steps; what came before was the start."""
        now = time.monotonic()
        self._spent["start"] += now - self._last - self._paused
        self._last, self._paused, self._has_begun = now, 0.0, True

    @contextlib.contextmanager
    def paused(self, part: str = "diagnostics") -> Iterator[None]:
        """Excludes a block from the time of steps; it counts as elapsed time.

        Args:
            part: What it is spent on (`goodput.PARTS`). A block within another one is part of that.
        """
        if self._is_paused:
            yield
            return
        began, self._is_paused = time.monotonic(), True
        try:
            yield
        finally:
            seconds, self._is_paused = time.monotonic() - began, False
            self._paused += seconds
            self._spent[part] += seconds

    def spent(self) -> dict[str, float]:
        """Returns on what the seconds since the timer was made were spent; they add up to them.

        A step in flight counts up to now, whatever it turns out to be.
        """
        since = time.monotonic() - self._last - self._paused
        part = "step" if self._has_begun else "start"
        return {**self._spent, part: self._spent[part] + since}

    def complete(self, step: int, at: float, *, flops: float = 0.0, counted: bool = True) -> None:
        """Records when a step was completed.

        Args:
            step: The step.
            at: Time of `time.monotonic`.
            flops: Model FLOPs of the step on all devices together.
            counted: Whether the step counts; one that was compiled does not.
        """
        waited, until = self._waited.pop(step, (0.0, at))
        # From one completion to the next, without what was paused in between.
        seconds = max(at - self._last - self._paused, 0.0)
        # A batch that came while the step before was computed kept no device waiting.
        idle = min(max(until - max(self._last, until - waited), 0.0), seconds)
        self._spent["input"] += idle
        self._spent["step" if counted else "compile"] += seconds - idle
        if counted:
            waited = min(waited, seconds)
            self._times.append(_StepTime(step=step, seconds=seconds, waited=waited, flops=flops))
        self._last, self._paused = at, 0.0

    def window(self, step: int) -> dict[str, float]:
        """Returns the speed of the steps up to a log point, and forgets them.

        Args:
            step: Step of the log point.

        Returns:
            ``elapsed_seconds`` and, if any step was timed, ``steps_per_second``, ``seconds_left``,
            ``data_wait_fraction``, ``model_tflops_per_second`` (per device) and, if the peak of the
            devices is known, ``mfu``: model FLOPs over what the devices could do at their peak.
        """
        times = [each for each in self._times if each.step <= step]
        self._times = [each for each in self._times if each.step > step]
        values = {"elapsed_seconds": self.elapsed}
        seconds = sum(each.seconds for each in times)
        if seconds <= 0.0:
            return values
        speed = len(times) / seconds
        values["steps_per_second"] = speed
        values["seconds_left"] = (self._steps - step) / speed
        values["data_wait_fraction"] = sum(each.waited for each in times) / seconds
        # Per device: the FLOPs of a step are those of all devices.
        flops = sum(each.flops for each in times) / seconds / self._devices
        if flops:
            values["model_tflops_per_second"] = flops / 1e12
            if self._peak_flops:
                values["mfu"] = flops / self._peak_flops
        return values


def throughput(
    totals: Mapping[str, float], steps: int, steps_per_second: float | None
) -> dict[str, float]:
    """Computes how fast each stream is consumed.

    Args:
        totals: Totals of all metrics over a window of steps, among them ``<stream>/examples``,
            ``<stream>/audio_seconds`` and ``<stream>/tokens``.
        steps: Number of steps of the window.
        steps_per_second: Speed of the steps that were timed; None if none was.

    Returns:
        ``<stream>/examples_per_second``, ``<stream>/audio_seconds_per_second`` and
        ``<stream>/tokens_per_second``, as far as a stream has them, and
        ``audio_hours_per_second`` of all streams together.
    """
    if steps_per_second is None:
        return {}
    rates = {
        f"{name}_per_second": total / steps * steps_per_second
        for name, total in totals.items()
        if name.rpartition("/")[0] and name.rpartition("/")[2] in QUANTITIES
    }
    audio = [rate for name, rate in rates.items() if name.endswith("/audio_seconds_per_second")]
    if audio:
        rates["audio_hours_per_second"] = sum(audio) / 3600.0
    return rates


def console_line(step: int, steps: int, values: Mapping[str, float], names: Sequence[str]) -> str:
    """Formats a log point as one line: step, some metrics, speed and time.

    Args:
        step: The step.
        steps: The last step.
        values: All metrics of the log point.
        names: Names of the metrics to show, in order; those that are absent are left out.
    """
    parts = [f"step {step:>{len(str(steps))}}/{steps}"]
    parts += [f"{name} {values[name]:.4g}" for name in names if name in values]
    if values.get("skipped_steps"):
        parts.append(f"skipped {values['skipped_steps']:.0f}")
    if "steps_per_second" in values:
        parts.append(f"{values['steps_per_second']:.3g} steps/s")
    if "mfu" in values:
        parts.append(f"mfu {values['mfu']:.1%}")
    if "audio_hours_per_second" in values:
        parts.append(f"{3600 * values['audio_hours_per_second']:.3g} s of audio/s")
    if "goodput/fraction" in values:
        parts.append(f"goodput {values['goodput/fraction']:.0%}")
    parts.append(f"elapsed {duration(values['elapsed_seconds'])}")
    if "seconds_left" in values:
        parts.append(f"left {duration(values['seconds_left'])}")
    return "  ".join(parts)


def duration(seconds: float) -> str:
    """Formats a time span as ``h:mm:ss``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"

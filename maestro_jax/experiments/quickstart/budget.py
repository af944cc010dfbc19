"""Keeps a training stage within its time: measures its steps, and says when their number is wrong.

A cosine schedule ends at its last step, so the number of steps has to fit the time. The first steps
of a stage tell how long a step takes. If the number of steps does not fit, `Pace` stops the run
after it has saved its state, and the run goes on with another number from there. Its programs are
in the compilation cache, because the end of the schedule is an input of theirs; a restart traces
and reads them.
"""

from __future__ import annotations

import dataclasses
import logging
import re
import statistics
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from maestro_jax.training.callbacks import Callback, StepInfo
from maestro_jax.training.metrics import duration

if TYPE_CHECKING:
    from maestro_jax.training.trainer import Trainer

log = logging.getLogger(__name__)

FIRST_STEPS = 24
"""Steps without compilation after which the number of steps is corrected."""
SHORTER, LONGER = 0.1, 0.15
"""Fractions of its steps by which a run is too long or too short before they are corrected: what a
run leaves of its time the next stage has, but one that is cut off has not cooled down."""
CHECKS = (0.05, 0.15, 0.3, 0.6, 0.85)
"""Fractions of its steps after which a run is corrected again; other programs on the machine come
and go, and each correction costs a restart."""
EARLY = 0.3
"""Fraction of its steps until which a run may become longer: the cosine has hardly fallen yet."""
WORTH = 0.25
"""Fraction of the time left up to which a restart is worth while."""
_RESTART = 0.35
"""Time in which a program is traced and read from the cache beside that of compiling it."""
_UNITS = "s|secs?|seconds?|m|mins?|minutes?|h|hours?|d|days?"
_UNUSUAL = 3.0
"""How many times the median a step takes that is compiled, or followed by a validation."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
    """How long a run will take.

    Attributes:
        step: Number of steps done.
        steps: Number of steps of the run.
        seconds_per_step: Measured time of a step.
        extra_per_step: Time of validations, checkpoints and compilation, per step.
        seconds_left: Time that is left for the stage.
        later_cost: Time of a later step beside that of the steps measured.
        restart_seconds: Time that it takes to go on with another number of steps.
    """

    step: int
    steps: int
    seconds_per_step: float
    extra_per_step: float
    seconds_left: float
    later_cost: float = 1.0
    restart_seconds: float = 0.0

    @property
    def later_step(self) -> float:
        """Returns the seconds of one of the remaining steps, with all that comes with it."""
        return max(self.seconds_per_step * self.later_cost + self.extra_per_step, 1e-9)

    @property
    def needed(self) -> float:
        """Returns the seconds that the remaining steps need."""
        return (self.steps - self.step) * self.later_step

    @property
    def fitting_steps(self) -> int:
        """Returns the number of steps of the run that fits the time; at least those done and 1."""
        return self.step + max(int(max(self.seconds_left, 0.0) / self.later_step), 1)

    def corrected(self, *, early: bool) -> int | None:
        """Returns another number of steps, if this one does not fit; None if it does.

        None also if a restart would take more than `WORTH` of the time that is left: then the run
        is rather cut off.

        Args:
            early: Whether the run may also become longer.
        """
        if self.restart_seconds > WORTH * self.seconds_left:
            return None
        left = dataclasses.replace(self, seconds_left=self.seconds_left - self.restart_seconds)
        too_long = self.fitting_steps < (1 - SHORTER) * self.steps
        too_short = left.fitting_steps > (1 + LONGER) * self.steps
        return left.fitting_steps if too_long or (early and too_short) else None


class Pace(Callback):
    """Stops a run whose number of steps does not fit its time.

    Args:
        seconds: Time for the run from its start in this process, compilation included.
        later_cost: Function of the step that returns the mean time of later steps beside that of
            the steps so far.
        correct: Whether the number of steps may be corrected; else the run is only stopped at the
            end of its time.
        on_progress: Called at every log point with the step and the seconds left of the run.

    Attributes:
        new_steps: The corrected number of steps; None if the run ended otherwise.
        stopped_at: Step at which it was stopped to be corrected.
        out_of_time: Whether the run was stopped because its time is over.
        seconds_per_step: Measured time of a step; 0 before any was measured.
    """

    def __init__(
        self,
        seconds: float,
        *,
        later_cost: Callable[[int], float] = lambda step: 1.0,
        correct: bool = True,
        on_progress: Callable[[int, int, float], None] = lambda step, steps, left: None,
    ) -> None:
        self._deadline = time.monotonic() + seconds
        self._later_cost = later_cost
        self._correct = correct
        self._on_progress = on_progress
        self._last = time.monotonic()
        self._times: list[float] = []
        self._extra: list[tuple[int, float]] = []
        self._checks: list[float] = []
        self.new_steps: int | None = None
        self.stopped_at = 0
        self.out_of_time = False
        self.seconds_per_step = 0.0

    def on_start(self, trainer: Trainer) -> None:
        """Starts the clock of the first step."""
        self._last = time.monotonic()
        steps, done = trainer.run.steps, trainer.start_step
        self._checks = [fraction * steps for fraction in CHECKS if fraction * steps > done]
        # A resumed run was corrected after its first steps.
        if done < FIRST_STEPS:
            self._checks.insert(0, 0.0)

    def on_step(self, trainer: Trainer, info: StepInfo) -> None:
        """Measures the step, and stops the run if its number of steps does not fit."""
        now = time.monotonic()
        self._times.append(now - self._last)
        self._last = now
        step, steps = info.step, trainer.run.steps
        if step >= steps:
            return
        # Not before there is something to report.
        if now > self._deadline and step >= trainer.run.log_every:
            log.warning("the time of this stage is over after step %d of %d", step, steps)
            self.out_of_time = True
            trainer.stop()
            return
        if len(self._times) < FIRST_STEPS:
            return
        is_due = bool(self._checks) and step >= self._checks[0]
        if not is_due and len(self._times) % (2 * FIRST_STEPS):
            return
        estimate = self.estimate(step, steps, now)
        if is_due:
            self._checks = [each for each in self._checks if each > step]
            if self._correct:
                self._correct_steps(trainer, estimate)
        self._on_progress(step, self.new_steps or steps, estimate.needed)

    def _correct_steps(self, trainer: Trainer, estimate: Estimate) -> None:
        """Stops the run if another number of steps fits its time."""
        step, steps = estimate.step, estimate.steps
        corrected = estimate.corrected(early=step <= EARLY * steps)
        if corrected is None or corrected <= step + 1:
            return
        log.info(
            "%.3g s per step: %d steps fit the time, and not %d; going on with that number",
            self.seconds_per_step,
            corrected,
            steps,
        )
        self.new_steps, self.stopped_at = corrected, step
        trainer.stop()

    def estimate(self, step: int, steps: int, now: float) -> Estimate:
        """Estimates the time that is needed, from the times of the steps so far.

        Times of several steps' length are those of compilation and validation; the ones of the
        first steps are compilation, which will not come again for the same shapes.
        """
        times = self._times[-max(8 * FIRST_STEPS, len(self._times) // 2) :]
        usual = statistics.median(times)
        ordinary = [each for each in times if each <= _UNUSUAL * usual]
        self.seconds_per_step = statistics.fmean(ordinary)
        later = self._times[FIRST_STEPS:]
        extra = sum(each - usual for each in later if each > _UNUSUAL * usual)
        compiling = sum(
            each - usual for each in self._times[:FIRST_STEPS] if each > _UNUSUAL * usual
        )
        return Estimate(
            step=step,
            steps=steps,
            seconds_per_step=self.seconds_per_step,
            # Before any validation has been seen, a few percent are set aside for them.
            extra_per_step=extra / len(later) if later else 0.03 * usual,
            seconds_left=self._deadline - now,
            later_cost=self._later_cost(step),
            restart_seconds=_RESTART * compiling,
        )


def parse_budget(text: str) -> float:
    """Returns the seconds of `30m`, `1.5h`, `90s`, `1h30m`; a bare number is minutes.

    Raises:
        ValueError: It is no time above 0, or more than a year.
    """
    units = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
    text = text.strip().lower()
    if re.fullmatch(r"\d+(\.\d+)?", text):
        seconds = float(text) * 60
    elif re.fullmatch(rf"(\d+(\.\d+)?\s*({_UNITS})\s*)+", text):
        parts = re.findall(r"(\d+(?:\.\d+)?)\s*([smhd])", text)
        seconds = sum(float(number) * units[unit] for number, unit in parts)
    else:
        raise ValueError(f"{text!r} is no time; write 30m, 1.5h or 1h30m")
    if not 0 < seconds <= 366 * units["d"]:
        raise ValueError(f"{text[:40]!r} is no time above 0 and up to a year")
    return seconds


def in_words(seconds: float) -> str:
    """Formats a time span as `h:mm:ss`."""
    return duration(max(seconds, 0.0))

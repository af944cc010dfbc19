"""Computes the hours of a run from seconds per step, phase by phase of its curriculum.

    for phase in run_phases(run):
        phase.streams, phase.steps
    time = run_time(run, seconds_of={("speech",): 0.4, ("speech", "paired"): 0.6}, chips=256)
    time.hours, time.chip_hours, time.audio_hours_per_second

A phase is a number of steps with the same streams. Gates may delay a phase; the hours are those
without any delay. Audio counts as it is padded.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from maestro_jax.batches import SAMPLE_RATE, StreamConfig

Streams = tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunPhase:
    """Steps with the same streams.

    Attributes:
        begins: The first step, counted from 0.
        steps: Number of steps.
        streams: The active streams, in the order of a batch.
    """

    begins: int
    steps: int
    streams: Streams


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunPhaseTime:
    """The time of a phase.

    Attributes:
        phase: The phase.
        step_seconds: Seconds per step.
        audio_seconds: Seconds of audio per step, padding included.
    """

    phase: RunPhase
    step_seconds: float
    audio_seconds: float

    @property
    def hours(self) -> float:
        """Hours of the phase."""
        return self.phase.steps * self.step_seconds / 3600

    @property
    def audio_hours_per_second(self) -> float:
        """Hours of audio per second."""
        return self.audio_seconds / 3600 / self.step_seconds if self.step_seconds else 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunTime:
    """The time of a whole run.

    Attributes:
        phases: The phases, in order.
        chips: Number of chips.
    """

    phases: tuple[RunPhaseTime, ...]
    chips: int

    @property
    def hours(self) -> float:
        """Hours from the first step to the last, without starts, checkpoints and evaluation."""
        return sum(phase.hours for phase in self.phases)

    @property
    def chip_hours(self) -> float:
        """Hours times chips."""
        return self.hours * self.chips

    @property
    def audio_hours(self) -> float:
        """Hours of audio that the run reads, repetitions included."""
        return sum(p.audio_seconds * p.phase.steps for p in self.phases) / 3600

    @property
    def audio_hours_per_second(self) -> float:
        """Hours of audio per second, on average over the run."""
        return self.audio_hours / (self.hours * 3600) if self.hours else 0.0


def run_phases(run: Any) -> tuple[RunPhase, ...]:
    """Finds the phases of a run.

    Args:
        run: A `TrainRun`, whose objective's streams begin and do not end.
    """

    def streams(step: int) -> Streams:
        active = run.objective.active_streams(step)
        return tuple(name for name in run.used_streams if name in active)

    def changes(first: int, last: int) -> Iterator[int]:
        """Yields the steps of (first, last] at which a stream begins, by bisection."""
        if streams(first) == streams(last):
            return
        if last - first == 1:
            yield last
            return
        middle = (first + last) // 2
        yield from changes(first, middle)
        yield from changes(middle, last)

    begins = [0, *changes(0, run.steps - 1)]
    ends = [*begins[1:], run.steps]
    return tuple(
        RunPhase(begins=begin, steps=end - begin, streams=streams(begin))
        for begin, end in zip(begins, ends, strict=True)
        if streams(begin)
    )


def audio_seconds(streams: Mapping[str, StreamConfig]) -> float:
    """Computes the seconds of audio per step of these streams, padding included."""
    return sum(each.batch_size * each.audio_samples for each in streams.values()) / SAMPLE_RATE


def run_time(run: Any, seconds_of: Mapping[Streams, float], chips: int) -> RunTime:
    """Computes the time of a run.

    Args:
        run: A `TrainRun`.
        seconds_of: Seconds per step for the streams of each phase, see `run_phases`.
        chips: Number of chips.

    Raises:
        KeyError: If the streams of a phase have no time.
    """
    return RunTime(
        phases=tuple(
            RunPhaseTime(
                phase=phase,
                step_seconds=seconds_of[phase.streams],
                audio_seconds=audio_seconds({name: run.streams[name] for name in phase.streams}),
            )
            for phase in run_phases(run)
        ),
        chips=chips,
    )

"""From seconds a step to the hours of a run: its phases, in which more and more streams take part.

    for phase in run_phases(run):
        phase.streams, phase.steps
    time = run_time(run, seconds_of={("speech",): 0.4, ("speech", "paired"): 0.6}, chips=256)
    time.hours, time.chip_hours, time.audio_hours_a_second

Gates may hold a phase back; the hours are those of a run that none of them holds. Batches count as
they are padded: what a stream's rows have room for.
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
        steps: How many.
        streams: Those that take part, in the order of a batch.
    """

    begins: int
    steps: int
    streams: Streams


@dataclasses.dataclass(frozen=True, kw_only=True)
class PhaseHours:
    """A phase with its time.

    Attributes:
        phase: Which.
        step_seconds: Of one step.
        audio_seconds: Seconds of audio that one step has room for.
    """

    phase: RunPhase
    step_seconds: float
    audio_seconds: float

    @property
    def hours(self) -> float:
        """Of the phase."""
        return self.phase.steps * self.step_seconds / 3600

    @property
    def audio_hours_a_second(self) -> float:
        """Hours of audio read in one second."""
        return self.audio_seconds / 3600 / self.step_seconds if self.step_seconds else 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunTime:
    """The time of a whole run.

    Attributes:
        phases: One after the other.
        chips: How many work on it.
    """

    phases: tuple[PhaseHours, ...]
    chips: int

    @property
    def hours(self) -> float:
        """From the first step to the last, without starts, checkpoints and evaluation."""
        return sum(phase.hours for phase in self.phases)

    @property
    def chip_hours(self) -> float:
        """Hours of all chips together."""
        return self.hours * self.chips

    @property
    def audio_hours(self) -> float:
        """Hours of audio that the run reads, repetitions counted."""
        return sum(p.audio_seconds * p.phase.steps for p in self.phases) / 3600

    @property
    def audio_hours_a_second(self) -> float:
        """Hours of audio read in one second, on average over the run."""
        return self.audio_hours / (self.hours * 3600) if self.hours else 0.0


def run_phases(run: Any) -> tuple[RunPhase, ...]:
    """The phases of a run, from its objective and its number of steps.

    Args:
        run: A `TrainRun`. Its objective's streams begin and do not end.
    """

    def streams(step: int) -> Streams:
        active = run.objective.active_streams(step)
        return tuple(name for name in run.used_streams if name in active)

    def changes(first: int, last: int) -> Iterator[int]:
        """The steps of (first, last] at which a stream begins."""
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
    """Seconds of audio that one step of these streams has room for."""
    return sum(each.batch_size * each.audio_samples for each in streams.values()) / SAMPLE_RATE


def run_time(run: Any, seconds_of: Mapping[Streams, float], chips: int) -> RunTime:
    """The hours of a run.

    Args:
        run: A `TrainRun`.
        seconds_of: Seconds of a step for the streams of each phase, see `run_phases`.
        chips: How many chips work on it.

    Raises:
        KeyError: A phase's streams have no time.
    """
    return RunTime(
        phases=tuple(
            PhaseHours(
                phase=phase,
                step_seconds=seconds_of[phase.streams],
                audio_seconds=audio_seconds({name: run.streams[name] for name in phase.streams}),
            )
            for phase in run_phases(run)
        ),
        chips=chips,
    )

"""Plans a run by roofline alone, without a compiler: for GPUs, or for any TPU within seconds.

    plan = estimate(run, parse_topology("gpu:H100x8x4"))
    plan.memory.by_part(), plan.fits, plan.step.seconds, plan.step.utilisation, plan.bound
    plan.time.hours, plan.time.chip_hours, plan.time.audio_hours_per_second

A phase of the run is a number of steps with the same streams. Gates may delay a phase; the hours
are those without any delay. Audio counts as it is padded.

Memory is computed (see `maestro_jax.planning.analytic`), not measured: fragments and copies, which
a compiler adds, take a fifth and more. `fits` therefore requires that a fifth is left.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from maestro_jax.batches import SAMPLE_RATE
from maestro_jax.errors import UserError
from maestro_jax.planning.analytic import (
    EstimatedMemory,
    MeshShape,
    StepTrace,
    Transfer,
    trace_step,
)
from maestro_jax.planning.chips import GIB, Topology
from maestro_jax.planning.roofline import StepTime, roofline

ROOM = 0.8
"""Fraction of the usable memory that a computed plan may fill."""


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
    """The plan of a run on a topology, by roofline.

    Attributes:
        topology: The topology.
        mesh: Devices along data, fsdp and tensor.
        rows: Rows of each stream on one device, in the last phase.
        parameters: Number of parameters of the model.
        memory: Bytes of one device in the last phase, which has all streams.
        step: A step of the last phase.
        transfers: What one device sends in that step.
        time: Time of the whole run.
    """

    topology: Topology
    mesh: MeshShape
    rows: Mapping[str, int]
    parameters: int
    memory: EstimatedMemory
    step: StepTime
    transfers: tuple[Transfer, ...]
    time: RunTime

    @property
    def capacity(self) -> float:
        """Bytes of one device that a program may use."""
        return self.topology.usable_bytes

    @property
    def fits(self) -> bool:
        """Whether the memory suffices, with room for what is not computed."""
        return self.memory.total <= ROOM * self.capacity

    @property
    def refusal(self) -> str | None:
        """One line with the largest part, if the run does not fit."""
        if self.fits:
            return None
        part, size = next(iter(self.memory.by_part().items()))
        return (
            f"{self.topology} with the mesh {self.mesh} is too small: a device needs about "
            f"{self.memory.total / GIB:.1f} GiB of {self.capacity / GIB:.1f} GiB, most of it "
            f"{part} ({size / GIB:.1f} GiB)."
        )


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
                audio_seconds=sum(
                    run.streams[name].batch_size * run.streams[name].audio_samples
                    for name in phase.streams
                )
                / SAMPLE_RATE,
            )
            for phase in run_phases(run)
        ),
        chips=chips,
    )


def rows_of_a_device(run: Any, mesh: MeshShape) -> dict[str, int]:
    """Computes the rows of each stream on one device.

    Raises:
        UserError: If the devices along data and fsdp do not divide a batch.
    """
    parts = mesh[0] * mesh[1]
    rows = {}
    for name in run.used_streams:
        size = run.streams[name].batch_size
        if size % parts:
            raise UserError(
                f"The batch size {size} of the stream {name!r} is not a multiple of the {parts} "
                f"devices along data and fsdp (mesh {mesh}); set it to {-(-size // parts) * parts},"
                " or give the tensor axis more devices."
            )
        rows[name] = size // parts
    return rows


def estimate(
    run: Any,
    topology: Topology,
    mesh: MeshShape | None = None,
    *,
    traces: Mapping[Streams, StepTrace] | None = None,
) -> Estimate:
    """Plans a run by roofline.

    Args:
        run: A `TrainRun`.
        topology: The topology.
        mesh: Devices along data, fsdp and tensor; None for the run's own.
        traces: Traces of steps with the streams of each phase and the rows of one device; missing
            ones are traced, which takes seconds.

    Raises:
        UserError: If the batches or the mesh do not fit the topology.
    """
    mesh = run.partitioning.shape(topology.devices) if mesh is None else mesh
    rows = rows_of_a_device(run, mesh)
    known = dict(traces or {})
    seconds = {}
    phases = run_phases(run)
    for phase in phases:
        if phase.streams not in known:
            known[phase.streams] = trace_step(run, {name: rows[name] for name in phase.streams})
        step = roofline(topology, known[phase.streams], mesh)
        seconds[phase.streams] = step.seconds
    trace = known[phases[-1].streams]
    return Estimate(
        topology=topology,
        mesh=mesh,
        rows=rows,
        parameters=trace.parameters,
        memory=trace.memory(mesh),
        step=roofline(topology, trace, mesh),
        transfers=trace.transfers(mesh),
        time=run_time(run, seconds, topology.chips),
    )

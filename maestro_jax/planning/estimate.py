"""Plans a run by roofline alone, without a compiler: for GPUs, or for any TPU within seconds.

    plan = estimate(run, parse_topology("gpu:H100x8x4"))
    plan.memory.by_part(), plan.fits, plan.step.seconds, plan.step.utilisation, plan.bound
    plan.time.hours, plan.time.chip_hours

Memory is computed (see `maestro_jax.planning.analytic`), not measured: fragments and copies, which
a compiler adds, take a fifth and more. `fits` therefore requires that a fifth is left.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from maestro_jax.errors import UserError
from maestro_jax.planning.analytic import (
    EstimatedMemory,
    MeshShape,
    StepTrace,
    Transfer,
    trace_step,
)
from maestro_jax.planning.chips import GIB, Topology
from maestro_jax.planning.roofline import StepTime, roofline, slow_bytes
from maestro_jax.planning.run_time import RunTime, Streams, run_phases, run_time

ROOM = 0.8
"""Fraction of the usable memory that a computed plan may fill."""


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

    @property
    def slow_bytes(self) -> float:
        """Bytes that one device sends to other slices or machines in a step."""
        return sum(slow_bytes(self.topology, self.mesh, each) for each in self.transfers)


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

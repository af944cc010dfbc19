"""A plan by roofline alone, for machines without a compiler at hand: GPUs, or any TPU in seconds.

    plan = estimate(run, parse_topology("gpu:H100x8x4"))
    plan.memory.by_part(), plan.fits, plan.step.seconds, plan.step.utilisation, plan.bound
    plan.time.hours, plan.time.chip_hours

Memory is computed (see `maestro_jax.planning.analytic`), not measured: what a compiler needs beside
it, fragments and copies, is a fifth and more. `fits` therefore asks for a fifth to be left.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from maestro_jax.errors import UserError
from maestro_jax.planning.analytic import Memory, MeshShape, StepTrace, Transfer, trace_step
from maestro_jax.planning.chips import GIB, Topology
from maestro_jax.planning.curriculum import RunTime, Streams, run_phases, run_time
from maestro_jax.planning.roofline import Assumptions, StepTime, roofline, slow_bytes

ROOM = 0.8
"""Share of the usable memory that a computed plan may fill."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
    """A run on a topology, by roofline.

    Attributes:
        topology: Where.
        mesh: Devices along data, fsdp and tensor.
        rows: Rows of each stream on one device, in the last phase.
        parameters: Numbers of the model.
        memory: Bytes of one device in the last phase, in which all streams take part.
        step: A step of the last phase.
        transfers: What one device sends in such a step.
        time: The whole curriculum.
    """

    topology: Topology
    mesh: MeshShape
    rows: Mapping[str, int]
    parameters: int
    memory: Memory
    step: StepTime
    transfers: tuple[Transfer, ...]
    time: RunTime

    @property
    def capacity(self) -> float:
        """Bytes of one device that a program may use."""
        return self.topology.chip.usable_hbm_bytes / self.topology.chip.devices_per_chip

    @property
    def fits(self) -> bool:
        """Whether the memory is enough, with room for what was not computed."""
        return self.memory.total <= ROOM * self.capacity

    @property
    def refusal(self) -> str | None:
        """One line with the part that asks for the most, if the run does not fit."""
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
    """Rows of each stream that one device gets.

    Raises:
        UserError: A batch does not divide by the devices along data and fsdp.
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
    assumptions: Assumptions | None = None,
    traces: Mapping[Streams, StepTrace] | None = None,
) -> Estimate:
    """Plans a run by roofline.

    Args:
        run: A `TrainRun`.
        topology: The machine.
        mesh: Devices along data, fsdp and tensor; None: the run's own.
        assumptions: What is assumed of the machine; None: the defaults.
        traces: Traces of steps with the streams of each phase and the rows of one device; what is
            missing is traced, which takes seconds.

    Raises:
        UserError: The batches or the mesh do not fit the topology.
    """
    mesh = run.partitioning.shape(topology.devices) if mesh is None else mesh
    rows = rows_of_a_device(run, mesh)
    known = dict(traces or {})
    seconds = {}
    phases = run_phases(run)
    for phase in phases:
        if phase.streams not in known:
            known[phase.streams] = trace_step(run, {name: rows[name] for name in phase.streams})
        step = roofline(topology, known[phase.streams], mesh, assumptions=assumptions)
        seconds[phase.streams] = step.seconds
    trace = known[phases[-1].streams]
    return Estimate(
        topology=topology,
        mesh=mesh,
        rows=rows,
        parameters=trace.parameters,
        memory=trace.memory(mesh),
        step=roofline(topology, trace, mesh, assumptions=assumptions),
        transfers=trace.transfers(mesh),
        time=run_time(run, seconds, topology.chips),
    )

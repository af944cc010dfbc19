"""Searches for the fastest mesh and batch that fit a topology.

    candidates = search(run, parse_topology("v5e:16x16"), compiled=2)
    candidates[0].mesh, candidates[0].rows, candidates[0].program.memory.free_share

Every mesh is tried with the run's batches and multiples of them, by roofline. The fastest that fit
by estimate are then compiled, until enough of them fit by the compiler.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from maestro_jax.batches import SAMPLE_RATE
from maestro_jax.errors import UserError
from maestro_jax.planning.analytic import MeshShape, StepTrace, trace_step
from maestro_jax.planning.chips import GIB, Topology
from maestro_jax.planning.compiled import compiler_devices
from maestro_jax.planning.estimate import ROOM
from maestro_jax.planning.plan import ProgramPlan, training_program
from maestro_jax.planning.roofline import StepTime, roofline
from maestro_jax.progress import Progress
from maestro_jax.training.run import TrainRun

TENSOR = (1, 2, 4)
TIMES = (0.5, 1.0, 2.0, 4.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Candidate:
    """A mesh with batches.

    Attributes:
        mesh: Devices along data, fsdp and tensor.
        times: Factor of the run's batches.
        rows: Examples of each stream on one device along data and fsdp.
        estimated_bytes: Memory of a device by estimate.
        fits: Whether that leaves a fifth of the memory.
        step: A step by roofline.
        audio_hours_per_second: Hours of audio per second.
        program: The compiled step; None if it was not compiled.
    """

    mesh: MeshShape
    times: float
    rows: Mapping[str, int]
    estimated_bytes: float
    fits: bool
    step: StepTime
    audio_hours_per_second: float
    program: ProgramPlan | None = None

    @property
    def speed(self) -> float:
        """Batches of the run's own size per second."""
        return self.times / self.step.seconds

    def as_dict(self) -> dict[str, Any]:
        """Returns a row of a table, or of JSON."""
        memory = None if self.program is None else self.program.memory
        compiled = None if memory is None else round(memory.used / GIB, 2)
        return {
            "mesh": "x".join(map(str, self.mesh)),
            "batch": f"{self.times:g}x",
            "a device": dict(self.rows),
            "GiB, estimated": round(self.estimated_bytes / GIB, 2),
            "fits": self.fits if self.program is None else self.program.fits,
            "s a step": round(self.step.seconds, 4),
            "utilisation": round(self.step.utilisation, 3),
            "audio hours a second": round(self.audio_hours_per_second, 2),
            "GiB, compiled": compiled,
        }


def search(
    run: TrainRun,
    topology: Topology,
    *,
    compiled: int = 1,
    times: Sequence[float] = TIMES,
    tensor: Sequence[int] = TENSOR,
    exact: bool = False,
) -> tuple[Candidate, ...]:
    """Tries meshes and batches.

    Args:
        run: The run.
        topology: The topology.
        compiled: Number of candidates that must fit by the compiler before the search ends; 0
            compiles none, as for GPUs.
        times: Factors of the run's batches.
        tensor: Numbers of devices along the tensor axis.
        exact: Whether to compile as training does, without `quick_options`.

    Returns:
        Candidates that fit, compiled ones first, the fastest first; then those that do not fit.

    Raises:
        UserError: If no mesh divides the batches.
    """
    pairs = list(_pairs(run, topology, times, tensor))
    if not pairs:
        raise UserError(
            f"no mesh of {topology} divides the batches of this run; choose batches that are "
            f"multiples of {topology.devices}."
        )
    traces: dict[tuple[tuple[str, int], ...], StepTrace] = {}
    candidates: list[Candidate] = []
    with Progress(len(pairs), "estimating") as progress:
        for mesh, factor, rows in pairs:
            key = tuple(rows.items())
            if key not in traces:
                traces[key] = trace_step(run, rows)
            candidates.append(_candidate(run, topology, mesh, factor, rows, traces[key]))
            progress.update()
    candidates.sort(key=lambda each: (not each.fits, -each.speed))
    if not compiled or topology.chip.kind != "tpu":
        return tuple(candidates)
    devices = compiler_devices(topology)
    accepted = 0
    with Progress(compiled, "compiling") as progress:
        for place, each in enumerate(candidates):
            if accepted == compiled or not each.fits:
                break
            partitioning = dataclasses.replace(run.partitioning, mesh_shape=each.mesh)
            streams = _streams(run, each.times)
            changed = dataclasses.replace(run, partitioning=partitioning, streams=streams)
            program = training_program(changed, topology, partitioning.mesh(devices), exact=exact)
            candidates[place] = dataclasses.replace(each, program=program)
            if program.fits:
                accepted += 1
                progress.update()
    candidates.sort(key=_order)
    return tuple(candidates)


def _order(each: Candidate) -> tuple[bool, bool, float]:
    fits = each.fits if each.program is None else each.program.fits
    return not fits, each.program is None, -each.speed


def _pairs(
    run: TrainRun, topology: Topology, times: Sequence[float], tensor: Sequence[int]
) -> Iterator[tuple[MeshShape, float, dict[str, int]]]:
    """Yields meshes and factors that divide evenly, with the rows of a device."""
    for parts, factor in itertools.product(tensor, times):
        shards, rest = divmod(topology.devices, parts)
        if rest:
            continue
        sizes = {name: run.streams[name].batch_size * factor for name in run.used_streams}
        if any(size % shards for size in sizes.values()):
            continue
        rows = {name: int(size) // shards for name, size in sizes.items()}
        for fsdp in sorted(_useful(shards // topology.slices)):
            # Slices are joined along `data`.
            if shards % (fsdp * topology.slices) == 0:
                yield (shards // fsdp, fsdp, parts), factor, rows


def _useful(shards: int) -> set[int]:
    """Returns the numbers of devices along fsdp to try: 1, a whole slice, powers of 4 between."""
    powers = {4**n for n in range(1, 8) if shards % 4**n == 0}
    return {1, shards, *powers}


def _streams(run: TrainRun, factor: float) -> dict[str, Any]:
    return {
        name: dataclasses.replace(stream, batch_size=int(stream.batch_size * factor), buckets=None)
        for name, stream in run.streams.items()
        if name in run.used_streams
    }


def _candidate(
    run: TrainRun,
    topology: Topology,
    mesh: MeshShape,
    factor: float,
    rows: dict[str, int],
    trace: StepTrace,
) -> Candidate:
    step = roofline(topology, trace, mesh)
    memory = trace.memory(mesh)
    audio = sum(
        count * mesh[0] * mesh[1] * run.streams[name].audio_samples for name, count in rows.items()
    )
    return Candidate(
        mesh=mesh,
        times=factor,
        rows=rows,
        estimated_bytes=memory.total,
        fits=memory.total <= ROOM * topology.usable_bytes,
        step=step,
        audio_hours_per_second=audio / SAMPLE_RATE / 3600 / step.seconds,
    )

"""Computes weak scaling: the same rows per chip, on more and more chips.

    table = scale_run(run, parse_topology("v5e:16x16"), [16, 64, 256, 1024, 4096])
    for row in table:
        row.topology, row.mesh, row.step.seconds, row.efficiency
    scaling_cells(table), plot_scaling(table, "scaling.png")

The step is traced once, with the rows of one device: more chips mean a larger batch, and only the
network and the shards of the state change. Each size gets the fastest mesh of `data` and `fsdp`
that fits; parameters are split within a slice, and slices are joined along `data`. Efficiency is
examples per second and chip, relative to the smallest size; `serial` is the same if no transfer
overlaps with computation, the worst case.
"""

from __future__ import annotations

import dataclasses
import io
import math
import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from maestro_jax.batches import SAMPLE_RATE
from maestro_jax.errors import UserError
from maestro_jax.files import as_path, naming_failures, write_atomically
from maestro_jax.planning.analytic import (
    EstimatedMemory,
    MeshShape,
    StepTrace,
    Transfer,
    trace_step,
)
from maestro_jax.planning.chips import Chip, Topology, slice_shapes
from maestro_jax.planning.estimate import ROOM, rows_of_a_device
from maestro_jax.planning.roofline import Assumptions, StepTime, roofline, slow_bytes

SIZES = (16, 64, 256, 1024, 4096)

# Okabe and Ito's colours, which readers of any colour vision can distinguish.
_BLUE, _VERMILION = "#0072B2", "#D55E00"
_COLOURS = {"compute": _BLUE, "memory": "#56B4E9", "loops": "#E69F00", "network": _VERMILION}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScalingRow:
    """The plan for one number of chips.

    Attributes:
        topology: The topology.
        mesh: Devices along data, fsdp and tensor.
        memory: Bytes of one device.
        fits: Whether the memory suffices.
        step: A step whose transfers overlap with computation.
        serial: The same step if nothing overlaps.
        transfers: What one device sends.
        slow_bytes: Bytes of them that go to other slices or machines.
        efficiency: Examples per second and chip, relative to the smallest size.
        serial_efficiency: The same if nothing overlaps at this size, relative to the smallest size
            with overlap.
        audio_hours_per_second: Hours of audio per second.
    """

    topology: Topology
    mesh: MeshShape
    memory: EstimatedMemory
    fits: bool
    step: StepTime
    serial: StepTime
    transfers: tuple[Transfer, ...]
    slow_bytes: float
    efficiency: float
    serial_efficiency: float
    audio_hours_per_second: float

    @property
    def sent(self) -> float:
        """Bytes that one device sends in a step."""
        return sum(each.sent for each in self.transfers)


def topology_of(chip: Chip, chips: int) -> Topology:
    """Finds the topology of a number of chips: one slice if possible, of the most even shape.

    Raises:
        UserError: If no number of slices has that many chips.
    """
    shapes = list(slice_shapes(chip))
    exact = [shape for shape in shapes if math.prod(shape) == chips]
    if exact:
        return Topology(chip=chip, shape=min(exact, key=lambda shape: max(shape)))
    largest = shapes[-1] if chip.torus != 3 else _largest_part(shapes, chips)
    slices, rest = divmod(chips, math.prod(largest))
    if rest or not slices:
        raise UserError(
            f"No slices of {chip.name} have {chips} chips in all; one slice has up to "
            f"{math.prod(shapes[-1])}, and several of the largest have a multiple of that."
        )
    return Topology(chip=chip, shape=largest, slices=slices)


def _largest_part(shapes: Sequence[tuple[int, ...]], chips: int) -> tuple[int, ...]:
    """Finds the largest, most even slice whose multiple is a number of chips."""
    parts = [shape for shape in shapes if chips % math.prod(shape) == 0]
    return max(parts, key=lambda shape: (math.prod(shape), -max(shape)))


def scale_run(
    run: Any,
    topology: Topology,
    sizes: Iterable[int] = SIZES,
) -> tuple[ScalingRow, ...]:
    """Computes the table of a run: each chip keeps the rows that it has on one topology.

    Args:
        run: A `TrainRun`; its mesh gives the number of devices along `tensor`.
        topology: The topology for the run's own batches.
        sizes: Numbers of chips, in ascending order.

    Raises:
        UserError: If the run's batches do not fit the topology, or no slices have a size.
    """
    mesh = run.partitioning.shape(topology.devices)
    rows = rows_of_a_device(run, mesh)
    seconds = sum(count * run.streams[name].audio_samples for name, count in rows.items())
    return weak_scaling(
        trace_step(run, rows),
        topology.chip,
        sizes,
        audio_seconds=seconds / SAMPLE_RATE,
        tensor=mesh[2],
    )


def weak_scaling(
    trace: StepTrace,
    chip: Chip,
    sizes: Iterable[int] = SIZES,
    *,
    audio_seconds: float = 0.0,
    tensor: int = 1,
    assumptions: Assumptions | None = None,
) -> tuple[ScalingRow, ...]:
    """Computes the table of a traced step.

    Args:
        trace: A step with the rows of one device.
        chip: The chip.
        sizes: Numbers of chips, in ascending order.
        audio_seconds: Seconds of audio in the rows of one device, padding included.
        tensor: Devices along `tensor`, the same for every size.
        assumptions: Assumptions on the hardware; None for the defaults.

    Raises:
        UserError: If no slices have a size, or the tensor axis does not divide one.
    """
    assumed = assumptions or Assumptions()
    rows: list[ScalingRow] = []
    for chips in sizes:
        topology = topology_of(chip, chips)
        mesh, step = _fastest(trace, topology, tensor, assumed)
        serial = roofline(
            topology, trace, mesh, assumptions=dataclasses.replace(assumed, overlap=False)
        )
        memory = trace.memory(mesh)
        transfers = trace.transfers(mesh)
        first = rows[0] if rows else None
        shards = mesh[0] * mesh[1]
        rows.append(
            ScalingRow(
                topology=topology,
                mesh=mesh,
                memory=memory,
                fits=memory.total <= ROOM * topology.usable_bytes,
                step=step,
                serial=serial,
                transfers=transfers,
                slow_bytes=sum(slow_bytes(topology, mesh, each) for each in transfers),
                efficiency=first.step.seconds / step.seconds if first else 1.0,
                serial_efficiency=(first.step if first else step).seconds / serial.seconds,
                audio_hours_per_second=audio_seconds * shards / 3600 / step.seconds,
            )
        )
    return tuple(rows)


def _fastest(
    trace: StepTrace, topology: Topology, tensor: int, assumptions: Assumptions
) -> tuple[MeshShape, StepTime]:
    """Finds the fastest mesh that fits; if none fits, the one that needs the least memory."""
    per_slice = topology.devices_per_slice
    if per_slice % tensor:
        raise UserError(
            f"{topology.name} has {per_slice} devices, not a multiple of the {tensor} along the "
            "tensor axis; change MESH."
        )
    candidates: list[tuple[bool, float, MeshShape, StepTime]] = []
    for fsdp in _divisors(per_slice // tensor):
        mesh = (topology.devices // (fsdp * tensor), fsdp, tensor)
        step = roofline(topology, trace, mesh, assumptions=assumptions)
        total = trace.memory(mesh).total
        too_large = total > ROOM * topology.usable_bytes
        candidates.append((too_large, total if too_large else step.seconds, mesh, step))
    _, _, mesh, step = min(candidates, key=lambda each: each[:2])
    return mesh, step


def _divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]


HEAD = (
    "chips", "topology", "mesh", "GiB", "step s", "MFU", "bound", "efficiency", "serial",
    "sent GiB", "slow GiB", "audio h/s",
)  # fmt: skip


def scaling_cells(rows: Sequence[ScalingRow]) -> list[list[str]]:
    """Formats the table, `HEAD` first."""
    cells = [list(HEAD)]
    for row in rows:
        cells.append(
            [
                f"{row.topology.chips:,}",
                str(row.topology),
                "x".join(map(str, row.mesh)),
                f"{row.memory.total / 2**30:.1f}" + ("" if row.fits else " (too much)"),
                f"{row.step.seconds:.3f}",
                f"{row.step.utilisation:.1%}",
                row.step.bound,
                f"{row.efficiency:.1%}",
                f"{row.serial_efficiency:.1%}",
                f"{row.sent / 2**30:.2f}",
                f"{row.slow_bytes / 2**30:.3f}",
                f"{row.audio_hours_per_second:,.1f}",
            ]
        )
    return cells


def plot_scaling(rows: Sequence[ScalingRow], path: str | os.PathLike[str]) -> None:
    """Plots throughput against chips, and the seconds of each resource in a step.

    Args:
        rows: From `weak_scaling`.
        path: File of the figure; its suffix determines the format.
    """
    from matplotlib.figure import Figure

    chips = [row.topology.chips for row in rows]
    # Throughput in model FLOPs, which is defined without audio, too.
    flops = [row.step.model_flops / row.step.seconds / 1e15 for row in rows]
    serial = [row.serial.model_flops / row.serial.seconds / 1e15 for row in rows]
    ideal = [flops[0] * count / chips[0] for count in chips]
    figure = Figure(figsize=(9.5, 4.2), layout="constrained")
    figure.suptitle(f"Weak scaling on {rows[0].topology.chip.name}, by roofline")
    left, right = figure.subplots(1, 2)
    left.plot(chips, ideal, color="0.6", linestyle="--", label="ideal")
    left.plot(chips, flops, "o-", color=_BLUE, label="transfers overlap with work")
    left.plot(chips, serial, "s:", color=_VERMILION, label="nothing overlaps")
    left.set_xscale("log", base=2)
    left.set_yscale("log")
    # Room for the percentages beside the first and the last point.
    left.margins(x=0.18, y=0.16)
    left.set_ylabel("model PFLOP/s")
    left.set_xticks(chips, [f"{count:,}" for count in chips])
    left.minorticks_off()
    left.legend(frameon=False)
    for place, row in enumerate(rows):
        left.annotate(
            f"{row.efficiency:.0%}",
            (chips[place], flops[place]),
            xytext=(-4, 8),
            textcoords="offset points",
            ha="right",
        )
    bottoms = np.zeros(len(rows))
    for name, colour in _COLOURS.items():
        heights = np.array([sum(getattr(p, name) for p in row.step.phases) for row in rows])
        right.bar(range(len(rows)), heights, 0.6, bottom=bottoms, color=colour, label=name)
        bottoms += heights
    right.plot(
        range(len(rows)), [row.step.seconds for row in rows], "k_", markersize=28, label="a step"
    )
    right.set_xticks(range(len(rows)), [f"{count:,}" for count in chips])
    right.set_ylabel("seconds of each resource")
    right.set_ylim(0, 1.35 * max(bottoms))
    right.legend(frameon=False, ncols=3)
    for axis in (left, right):
        axis.set_xlabel("chips")
        axis.grid(alpha=0.25, axis="y")
    file = as_path(path)
    content = io.BytesIO()
    figure.savefig(content, dpi=130, format=file.suffix[1:] or "png")
    with naming_failures(file, "figure"):
        write_atomically(file, content.getvalue())

"""Computes the time of a step from FLOPs and bytes, by a roofline model.

    step = roofline(topology, trace, mesh)          # Or with the transfers of a compiled program.
    step.seconds, step.utilisation, step.bound      # "compute", "memory", "network", "loops"
    step.phases                                     # Seconds of each resource in each part

A part of the step takes the time of its busiest resource if resources overlap, the aim of XLA's
asynchronous collectives, or the sum of all if they do not (`Assumptions.overlap`).

- *compute*: FLOPs, recomputation included, at `Chip.achievable` of the peak; a product that is
  bound by the memory of its operands takes the time of its bytes.
- *memory*: elementwise operations, `fused` of them per pass over the memory; in the update, the
  state.
- *network*: bytes sent over the links that a group's axis has in the torus, or between slices.
- *loops*: sequential turns of the prediction network and of the lattices, at `turn_seconds` each;
  nothing overlaps with them.

The update follows the gradients and overlaps with nothing. This is a model, not a measurement. What
it leaves out (the compiler's copies, waiting for the slowest chip) is in `Chip.achievable`, which
others measured with larger products.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable

from maestro_jax.flops import FlopCount
from maestro_jax.planning.analytic import MeshShape, StepTrace, Transfer
from maestro_jax.planning.chips import Chip, Topology

RESOURCES = ("compute", "memory", "network", "loops")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Assumptions:
    """Assumptions on the hardware.

    Attributes:
        memory: Fraction of the memory's bandwidth that programs reach. Copies on an H100 were
            measured at 0.867 (https://github.com/aigatech/vpbenchmarking).
        network: Fraction of the links' bandwidth. Copies over NVLink were measured at 380 of 450
            GB/s, 0.84 (https://github.com/NVIDIA/nccl/issues/1264); collectives reach somewhat
            less.
        fused: Number of elementwise operations per pass over the memory. XLA fuses chains of them,
            also into the products next to them. The value lies between 2 to 3, which follow from
            the TPU compiler's cycles for the joint network's loops, and the whole layers that it
            fuses elsewhere.
        turn_seconds: Least time of a turn of a loop. The TPU compiler estimates 5 to 13
            microseconds on a v5e for the loops of the tiny model's LSTM and lattices, of 4 to 10
            operations per turn.
        slice_doubling: Fraction of the speed that remains when the number of TPU slices doubles.
            MaxText's models of 22B on v4 and of 16B on v5e keep 0.979 and 0.978, from one to 8 and
            to 32 slices (`chip_table`). GPUs need none: their `achievable` was measured on
            thousands.
        overlap: Whether the resources of a part overlap.
    """

    memory: float = 0.85
    network: float = 0.8
    fused: int = 4
    turn_seconds: float = 1e-5
    slice_doubling: float = 0.978
    overlap: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepPart:
    """Seconds of each resource in a part of the step.

    Attributes:
        name: ``gradient`` or ``update``.
        compute: Seconds of products.
        memory: Seconds of elementwise operations.
        network: Seconds of transfers.
        loops: Seconds of sequential turns.
        overlap: Whether transfers overlap with computation.
    """

    name: str
    compute: float
    memory: float
    network: float
    loops: float
    overlap: bool

    @property
    def seconds(self) -> float:
        """Time of the part."""
        own = self.compute + self.memory
        together = max(own, self.network) if self.overlap else own + self.network
        return together + self.loops

    @property
    def bound(self) -> str:
        """The resource that takes the longest."""
        return max(RESOURCES, key=lambda name: getattr(self, name))


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepTime:
    """The time of a step by roofline.

    Attributes:
        phases: Its parts, in order.
        model_flops: FLOPs of the algorithm, on all chips together.
        chips: Number of chips.
        peak_flops: FLOPs per second of one chip.
    """

    phases: tuple[StepPart, ...]
    model_flops: float
    chips: int
    peak_flops: float

    @property
    def seconds(self) -> float:
        """Time of the step."""
        return sum(phase.seconds for phase in self.phases)

    @property
    def utilisation(self) -> float:
        """Model-FLOPs utilisation: fraction of the peak."""
        return model_flops_utilisation(self.model_flops, self.seconds, self.chips, self.peak_flops)

    @property
    def bound(self) -> str:
        """The resource that takes the longest in the longest part."""
        return max(self.phases, key=lambda phase: phase.seconds).bound


def model_flops_utilisation(
    model_flops: float, seconds: float, chips: int, peak_flops: float
) -> float:
    """Computes the fraction of the peak FLOPs that the algorithm uses.

    Args:
        model_flops: FLOPs per step on all chips together, without recomputation.
        seconds: Seconds per step.
        chips: Number of chips.
        peak_flops: FLOPs per second of one chip.
    """
    return model_flops / (seconds * chips * peak_flops) if seconds else 0.0


def roofline(
    topology: Topology,
    trace: StepTrace,
    mesh: MeshShape,
    *,
    transfers: Iterable[Transfer] | None = None,
    assumptions: Assumptions | None = None,
) -> StepTime:
    """Computes the time of a step.

    Args:
        topology: The topology.
        trace: The step with the rows of one device.
        mesh: Devices along data, fsdp and tensor.
        transfers: What one device sends; None for the estimate from mesh and parameters.
        assumptions: Assumptions on the hardware; None for the defaults.
    """
    assumed = assumptions or Assumptions()
    chip = topology.chip
    share = 1 / chip.devices_per_chip
    doublings = math.log2(topology.slices) if chip.kind == "tpu" else 0.0
    scaling = assumed.slice_doubling**doublings
    sends = tuple(trace.transfers(mesh) if transfers is None else transfers)
    slow = sum(slow_bytes(topology, mesh, each) for each in sends)
    fast = sum(each.sent / axis_bandwidth(topology, mesh, each.axis) for each in sends)
    network = max(fast, slow / (chip.dcn_bandwidth * share)) / assumed.network
    gradient = StepPart(
        name="gradient",
        compute=product_seconds(chip, trace.flops, mesh[2], assumed) / scaling,
        memory=2
        * trace.flops.elementwise
        / (mesh[2] * assumed.fused * chip.hbm_bandwidth * share * assumed.memory),
        network=network,
        loops=trace.flops.turns * assumed.turn_seconds,
        overlap=assumed.overlap,
    )
    update = StepPart(
        name="update",
        compute=0.0,
        memory=trace.update_bytes(mesh) / (chip.hbm_bandwidth * share * assumed.memory),
        network=0.0,
        loops=0.0,
        overlap=False,
    )
    shards = mesh[0] * mesh[1]
    return StepTime(
        phases=(gradient, update),
        model_flops=trace.flops.model * shards,
        chips=topology.chips,
        peak_flops=chip.peak_flops,
    )


def product_seconds(
    chip: Chip, flops: FlopCount, tensor: int = 1, assumptions: Assumptions | None = None
) -> float:
    """Computes the seconds of one device for all products, each by its FLOPs or its bytes.

    Args:
        chip: The chip.
        flops: The products of one device's rows.
        tensor: Devices that share each product.
        assumptions: Assumptions on the hardware; None for the defaults.
    """
    assumed = assumptions or Assumptions()
    share = 1 / chip.devices_per_chip
    peak = chip.peak_flops * share * chip.achievable
    bandwidth = chip.hbm_bandwidth * share * assumed.memory
    return sum(
        each.count * max(each.flops / peak, each.bytes / bandwidth) / tensor
        for each in flops.products
    )


def axis_bandwidth(topology: Topology, mesh: MeshShape, axis: str) -> float:
    """Computes the bytes per second that one device sends along an axis of the mesh in a slice.

    The last axes of the mesh are assigned to neighbours first, as `mesh_utils.create_device_mesh`
    does if it can: a group takes the shortest axes of the torus that hold it, each with a link in
    either direction, or in one direction if the axis is not a ring.
    """
    chip = topology.chip
    share = 1 / chip.devices_per_chip
    if chip.torus == 0:
        return chip.link_bandwidth
    size = dict(zip(("data", "fsdp", "tensor"), mesh, strict=True))[axis]
    if axis == "data":
        size = max(1, size // topology.slices)
    size = max(1, size // chip.devices_per_chip)
    best = 0.0
    axes = list(zip(topology.shape, topology.wraps, strict=True))
    for mask in range(1, 2 ** len(axes)):
        subset = [each for place, each in enumerate(axes) if mask >> place & 1]
        # Subsets of axes that hold the group, but not without any of them.
        held = math.prod(length for length, _ in subset)
        if held < size or any(held // length >= size for length, _ in subset if len(subset) > 1):
            continue
        links = sum(2 if ring else 1 for length, ring in subset if length > 1)
        best = max(best, (links or 1) * chip.link_bandwidth)
    return (best or chip.link_bandwidth) * share


def slow_bytes(topology: Topology, mesh: MeshShape, transfer: Transfer) -> float:
    """Computes the bytes that one device sends to other slices or machines for a transfer.

    Slices are joined along `data`, so that transfers along `data` cross them: first within a slice,
    then each device exchanges its shard with the other slices. A machine of GPUs holds neighbours;
    a group larger than a machine uses the network cards of all its GPUs at once.
    """
    if topology.slices == 1 or transfer.group < 2:
        return 0.0
    data, fsdp, tensor = mesh
    per_slice = topology.devices_per_slice
    stride = {"data": fsdp * tensor, "fsdp": tensor, "tensor": 1}[transfer.axis]
    if stride * transfer.group <= per_slice:
        return 0.0
    within = max(1, per_slice // stride)
    groups = math.ceil(transfer.group / within)
    payload = transfer.sent * transfer.group / (transfer.group - 1)
    # What one slice sends, divided among its devices in the group.
    return payload / within * (groups - 1) / groups

"""From work and bytes to seconds: the roofline of a step.

    step = roofline(topology, trace, mesh)          # Or with what a compiled program sends.
    step.seconds, step.utilisation, step.bound      # "compute", "memory", "network", "loops"
    step.phases                                     # Seconds of each resource in each phase

A phase takes as long as the busiest of its resources if they overlap, which XLA's asynchronous
collectives aim at, or all of them one after the other if they do not (`Assumptions.overlap`).

- *compute*: FLOPs that are done, what is computed twice included, at `Chip.achievable` of the peak;
  a product that its operands keep waiting takes the time of its bytes.
- *memory*: what is done element by element, `fused` operations for one pass over the memory; in the
  update, the state.
- *network*: bytes sent over the links that a group's axis has in the torus, or between slices.
- *loops*: turns of the prediction network and of the lattices, one after the other, at
  `turn_seconds` each; nothing overlaps with them.

The update follows the gradients and overlaps with nothing. This is a model of a machine, not a
measurement: what it leaves out (the compiler's copies, waiting for the slowest chip) is in
`Chip.achievable`, which others measured with larger products.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable

from maestro_jax.planning.analytic import MeshShape, StepTrace, Transfer
from maestro_jax.planning.chips import Chip, Topology
from maestro_jax.planning.flops import FlopCount

RESOURCES = ("compute", "memory", "network", "loops")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Assumptions:
    """What is assumed of the machine.

    Attributes:
        memory: Share of the memory's bandwidth that programs reach. Copies on an H100 were measured
            at 0.867 of it (https://github.com/aigatech/vpbenchmarking).
        network: Share of the links'. Copies over NVLink were measured at 380 of 450 GB/s, 0.84
            (https://github.com/NVIDIA/nccl/issues/1264); collectives reach somewhat less.
        fused: Operations of one element at a time that read and write memory once together. XLA
            fuses chains of them, and into the products next to them. Assumed, between the 2 to 3
            that the TPU compiler's cycles make of the joint network's loops and the whole layers
            that it fuses elsewhere.
        turn_seconds: The least that a turn of a loop takes, whatever it computes. The TPU compiler
            reckons 5 to 13 microseconds on a v5e for the loops of the tiny model's LSTM and
            lattices, of 4 to 10 operations a turn.
        slice_doubling: What is left of the speed when the slices of a TPU double, for whatever
            reason. MaxText's models of 22B on v4 and of 16B on v5e keep 0.979 and 0.978, from one
            to 8 and to 32 slices (`chip_table`). Machines of GPUs need none: what they achieve was
            measured on thousands.
        overlap: Whether a phase's resources work at the same time.
    """

    memory: float = 0.85
    network: float = 0.8
    fused: int = 4
    turn_seconds: float = 1e-5
    slice_doubling: float = 0.978
    overlap: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class PhaseTime:
    """Seconds of each resource in a part of the step.

    Attributes:
        name: ``gradient`` or ``update``.
        compute: Seconds of products.
        memory: Seconds of what is done element by element.
        network: Seconds of transfers.
        loops: Seconds of turns.
        overlap: Whether the first three work at the same time.
    """

    name: str
    compute: float
    memory: float
    network: float
    loops: float
    overlap: bool

    @property
    def seconds(self) -> float:
        """How long it takes."""
        own = self.compute + self.memory
        together = max(own, self.network) if self.overlap else own + self.network
        return together + self.loops

    @property
    def bound(self) -> str:
        """The resource that takes the longest."""
        return max(RESOURCES, key=lambda name: getattr(self, name))


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepTime:
    """A step by roofline.

    Attributes:
        phases: Its parts, one after the other.
        model_flops: FLOPs of the algorithm, on all chips together.
        chips: How many.
        peak_flops: Of one of them.
    """

    phases: tuple[PhaseTime, ...]
    model_flops: float
    chips: int
    peak_flops: float

    @property
    def seconds(self) -> float:
        """How long a step takes."""
        return sum(phase.seconds for phase in self.phases)

    @property
    def utilisation(self) -> float:
        """Model-FLOPs utilisation: the algorithm's share of the peak."""
        return model_flops_utilisation(self.model_flops, self.seconds, self.chips, self.peak_flops)

    @property
    def bound(self) -> str:
        """The resource that takes the longest in the longest phase."""
        return max(self.phases, key=lambda phase: phase.seconds).bound


def model_flops_utilisation(
    model_flops: float, seconds: float, chips: int, peak_flops: float
) -> float:
    """The share of the peak that goes into the algorithm.

    Args:
        model_flops: Of a step, on all chips together, nothing counted twice.
        seconds: Of a step, by whatever clock.
        chips: How many.
        peak_flops: FLOPs a second of one.
    """
    return model_flops / (seconds * chips * peak_flops) if seconds else 0.0


def roofline(
    topology: Topology,
    trace: StepTrace,
    mesh: MeshShape,
    *,
    transfers: Iterable[Transfer] | None = None,
    between_slices: float | None = None,
    assumptions: Assumptions | None = None,
) -> StepTime:
    """The time of a step.

    Args:
        topology: The machine.
        trace: The step with the rows of one device.
        mesh: Devices along data, fsdp and tensor.
        transfers: What one device sends; None: what follows from mesh and parameters.
        between_slices: Bytes that one device sends to other slices or machines, of those; None:
            what follows from the mesh, see `slow_bytes`.
        assumptions: What is assumed of the machine; None: the defaults.
    """
    assumed = assumptions or Assumptions()
    chip = topology.chip
    share = 1 / chip.devices_per_chip
    doublings = math.log2(topology.slices) if chip.kind == "tpu" else 0.0
    kept = assumed.slice_doubling**doublings
    sends = tuple(trace.transfers(mesh) if transfers is None else transfers)
    slow = sum(slow_bytes(topology, mesh, each) for each in sends)
    if between_slices is not None:
        slow = between_slices
    fast = sum(each.sent / axis_bandwidth(topology, mesh, each.axis) for each in sends)
    network = max(fast, slow / (chip.dcn_bandwidth * share)) / assumed.network
    gradient = PhaseTime(
        name="gradient",
        compute=product_seconds(chip, trace.flops, mesh[2], assumed) / kept,
        memory=2
        * trace.flops.elementwise
        / (mesh[2] * assumed.fused * chip.hbm_bandwidth * share * assumed.memory),
        network=network,
        loops=trace.flops.turns * assumed.turn_seconds,
        overlap=assumed.overlap,
    )
    update = PhaseTime(
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
    """Seconds of one device for all products: FLOPs or bytes of each, whichever takes longer.

    Args:
        chip: The chip.
        flops: The products of one device's rows.
        tensor: Devices that share each product.
        assumptions: What is assumed of the machine; None: the defaults.
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
    """Bytes a second that one device sends along an axis of the mesh within a slice.

    The last axes of the mesh take neighbours first, as `mesh_utils.create_device_mesh` lays them
    out where it can: a group takes the shortest axes of the torus that hold it, each with a link
    in either direction, one of which is missing where the axis is no ring.
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
        chosen = [each for place, each in enumerate(axes) if mask >> place & 1]
        # Axes that are needed to hold the group, and no more.
        held = math.prod(length for length, _ in chosen)
        if held < size or any(held // length >= size for length, _ in chosen if len(chosen) > 1):
            continue
        links = sum(2 if ring else 1 for length, ring in chosen if length > 1)
        best = max(best, (links or 1) * chip.link_bandwidth)
    return (best or chip.link_bandwidth) * share


def slow_bytes(topology: Topology, mesh: MeshShape, transfer: Transfer) -> float:
    """Bytes that one device sends to other slices or machines for a transfer.

    Slices are joined along `data`, so what runs along `data` crosses: within a slice first, then
    each device its part with the other slices. Machines of GPUs hold neighbours; a group larger
    than a machine crosses with all cards of the machine at once.
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
    # What one slice hands on, shared by its devices in the group.
    return payload / within * (groups - 1) / groups

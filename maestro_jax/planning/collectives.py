"""Counts the bytes that a compiled program sends between chips, by kind and by axis of the mesh.

    sends = find_collectives(compiled.as_text(), {"data": 2, "fsdp": 16, "tensor": 8}, slices=2)
    by_kind_and_axes(sends)   # {("all-gather", ("fsdp",)): bytes sent by one chip in one step}

`sent` are the bytes that one device sends with ring algorithms: in a group of n, (n - 1) / n of the
whole array for an all-gather or a reduce-scatter, twice that for an all-reduce, (n - 1) / n of the
device's shard for an all-to-all, and the whole shard for a permutation. Loops multiply, see
`maestro_jax.planning.hlo`. The text of a partitioned module has the shapes of one device.

In programs for TPUs:

- A fused asynchronous collective appears in three computations, for its start, the overlapped
  computation and its end, with one channel and one ``chain_id``: it is counted once.
- A reduce-scatter is an all-reduce with ``from-cross-replica-sharding``, fused with the slice that
  keeps a shard of it.
- Collectives between slices are ``send`` and ``recv`` of the multislice runtime (``xla_megascale``)
  with an attribute for their kind. All other groups consist of one slice's devices, numbered from
  0.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from maestro_jax.planning.hlo import HloInstruction, HloModule, arrays, parse_hlo, parts_of_tuple

KINDS = (
    "all-gather",
    "reduce-scatter",
    "all-reduce",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
)
_MEGASCALE = "_xla_megascale_transfer_type"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collective:
    """One instruction that sends.

    Attributes:
        name: The instruction.
        kind: One of `KINDS`.
        axes: The axes of the mesh along which the devices of a group differ.
        group: Devices per group; for a permutation, per ring or chain.
        payload: Bytes of the whole array: after gathering, before scattering, reduced, or sent.
        times: How often it runs in one run of the program.
        crosses_slices: Whether it sends between slices.
        source: JAX's name of the operation from which it comes.
    """

    name: str
    kind: str
    axes: tuple[str, ...]
    group: int
    payload: float
    times: float
    crosses_slices: bool
    source: str = ""

    @property
    def sent(self) -> float:
        """Bytes that one device sends in all runs of the instruction."""
        return self.times * sent_bytes(self.kind, self.payload, self.group)


def sent_bytes(kind: str, payload: float, group: int) -> float:
    """Computes the bytes that one device of a group sends.

    Args:
        kind: One of `KINDS`.
        payload: Bytes of the whole array.
        group: Number of devices.
    """
    if kind in ("collective-permute", "collective-broadcast"):
        return payload
    fraction = (group - 1) / group if group else 0.0
    return payload * fraction * (2 if kind == "all-reduce" else 1)


def by_kind_and_axes(
    collectives: Iterable[Collective],
) -> dict[tuple[str, tuple[str, ...]], float]:
    """Sums the bytes that one device sends, by kind and axes, largest first."""
    sums: dict[tuple[str, tuple[str, ...]], float] = defaultdict(float)
    for each in collectives:
        sums[each.kind, each.axes] += each.sent
    return dict(sorted(sums.items(), key=lambda item: -item[1]))


def between_slices(collectives: Iterable[Collective]) -> float:
    """Sums the bytes that one device sends to other slices."""
    return sum(each.sent for each in collectives if each.crosses_slices)


def find_collectives(
    module: str | HloModule, mesh: Mapping[str, int], *, slices: int = 1
) -> tuple[Collective, ...]:
    """Finds the collectives of a compiled module.

    Args:
        module: The optimized module, as text or parsed.
        mesh: Devices along each axis, in the order of the mesh, as in `jax.sharding.Mesh.shape`.
            Slices split the first axis that has more than one device.
        slices: Number of slices of the topology.

    Returns:
        One entry per instruction, in the order of the text.

    Raises:
        ValueError: If the text has no entry, or more devices than the mesh.
    """
    program = parse_hlo(module) if isinstance(module, str) else module
    layout = _Layout(mesh, slices)
    collectives = []
    fused: set[tuple[str, ...]] = set()
    for computation, instruction, times in program.executed():
        kind = _kind(instruction, computation, program.computations[computation])
        if kind is None:
            continue
        chain = re.search(r'chain_id="(\d+)"', instruction.attributes)
        if chain:
            key = (kind, instruction.attribute("channel_id") or "", chain[1])
            if key in fused:
                continue
            fused.add(key)
        collectives.append(_collective(instruction, kind, times, layout))
    return tuple(each for each in collectives if each.group > 1)


def _kind(
    instruction: HloInstruction, computation: str, others: Mapping[str, HloInstruction]
) -> str | None:
    opcode = instruction.opcode
    if opcode == "send":
        match = re.search(rf'{_MEGASCALE}="(\w+)"', instruction.attributes)
        if match is None:
            return None
        name = match[1].lower().replace("_", "-")
        return name if name in KINDS else "collective-permute"
    kind = opcode.removesuffix("-start").replace("ragged-all-to-all", "all-to-all")
    if kind not in KINDS:
        return None
    keeps_a_shard = any(each.root and "slice" in each.opcode for each in others.values())
    if kind == "all-reduce" and "all-reduce-scatter" in computation and keeps_a_shard:
        return "reduce-scatter"
    return kind


def _collective(
    instruction: HloInstruction, kind: str, times: float, layout: _Layout
) -> Collective:
    source = re.search(r'op_name="([^"]*)"', instruction.attributes)
    common: dict[str, Any] = {
        "name": instruction.name,
        "kind": kind,
        "times": times,
        "source": source[1] if source else "",
    }
    if instruction.opcode == "send":
        return Collective(
            **common,
            axes=layout.split_axes,
            group=layout.slices,
            payload=arrays(parts_of_tuple(instruction.type)[0])[0][2],
            crosses_slices=True,
        )
    pairs = instruction.attribute("source_target_pairs")
    groups = (
        _rings(_explicit(pairs))
        if pairs is not None
        else replica_groups(_groups_text(instruction), layout.devices)
    )
    size = max(map(len, groups), default=1)
    payload = _result_bytes(instruction)
    # The result of a reduce-scatter is a shard; the all-reduce of TPUs has the whole.
    if instruction.opcode.startswith("reduce-scatter"):
        payload *= size
    axes, crosses = layout.axes(groups)
    return Collective(**common, axes=axes, group=size, payload=payload, crosses_slices=crosses)


def _result_bytes(instruction: HloInstruction) -> float:
    result = instruction.type
    if instruction.opcode in ("all-gather-start", "collective-permute-start"):
        # A tuple of operands, results, and transfer contexts.
        result = parts_of_tuple(result)[1]
    return sum(size for _, _, size in arrays(result))


class _Layout:
    """Maps groups of devices to axes of the mesh."""

    def __init__(self, mesh: Mapping[str, int], slices: int) -> None:
        self.mesh = dict(mesh)
        self.slices = slices
        self.devices = math.prod(self.mesh.values())
        first = next((name for name, size in self.mesh.items() if size > 1), None)
        self.split_axes = (first,) if first is not None and slices > 1 else ()
        # In a program for several slices, groups number the devices of one slice.
        self.within = dict(self.mesh)
        if self.split_axes:
            if self.mesh[self.split_axes[0]] % slices:
                raise ValueError(f"{slices} slices cannot split the mesh {self.mesh}")
            self.within[self.split_axes[0]] //= slices

    def axes(self, groups: Sequence[Sequence[int]]) -> tuple[tuple[str, ...], bool]:
        """Returns the axes along which a group's members differ, and whether it spans slices."""
        if not groups:
            return (), False
        highest = max(max(group) for group in groups)
        if highest >= self.devices:
            raise ValueError(f"device {highest} is not in the mesh {self.mesh}")
        per_slice = self.devices // self.slices
        whole = highest >= per_slice
        shape = self.mesh if whole else self.within
        differ: set[str] = set()
        crosses = False
        for group in groups:
            coordinates = np.unravel_index(np.asarray(group), tuple(shape.values()))
            differ |= {
                name
                for name, each in zip(shape, coordinates, strict=True)
                if np.any(each != each[0])
            }
            crosses |= len({member // per_slice for member in group}) > 1
        return tuple(name for name in self.mesh if name in differ), crosses


def _groups_text(instruction: HloInstruction) -> str:
    """Returns the replica groups of a collective as they are written; ``{}`` without any."""
    text = instruction.attribute("replica_groups") or "{}"
    # A mesh whose devices are in another order has that order behind a comma, before the axes.
    order = instruction.attribute("device_ids") if text.startswith("mesh[") else None
    return f"{text}, device_ids={order}" if order else text


def replica_groups(text: str, devices: int) -> list[list[int]]:
    """Parses replica groups, in any of the forms that XLA writes.

    ``{{0,1},{2,3}}``, ``[2,4]<=[8]``, ``[4,2]<=[2,4]T(1,0)``, ``{}`` for all devices, and from jax
    0.10 the axes of a mesh: ``mesh['a'=2,'b'=4] {'a'}``, also with the order of its devices:
    ``mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'a'}``.

    Raises:
        ValueError: The text has another form.
    """
    text = text.strip()
    if mesh := re.fullmatch(
        r"mesh\[([^\]]*)\](?:, device_ids=\((\[[\d,]+\]T\([\d,]+\)|[\d,]+)\))? *\{([^}]*)\}", text
    ):
        return _groups_of_axes(mesh[1], mesh[3], mesh[2])
    iota = re.fullmatch(r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text)
    if iota:
        shape, sizes = _numbers(iota[1]), _numbers(iota[2])
        ids = np.arange(math.prod(sizes)).reshape(sizes)
        if iota[3]:
            ids = ids.transpose(_numbers(iota[3]))
        return ids.reshape(shape[0], -1).tolist()
    if not re.fullmatch(r"\{(\{[\d,]+\},?)*\}", text.replace(" ", "")):
        raise ValueError(f"replica groups of an unknown form: {text!r}")
    return _explicit(text) or [list(range(devices))]


def _groups_of_axes(mesh: str, axes: str, order: str | None) -> list[list[int]]:
    """Parses groups along axes of a mesh, or along parts of them: ``'data':(2)4``.

    A part ``(pre)size`` of an axis is what remains of it after its `pre` outermost parts: the axis
    is taken as `[pre, size, rest]`. `order` lists the devices of the mesh, row by row; None means
    ascending ids.
    """
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", mesh)}
    parts = re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", axes)
    if re.sub(r"'[^']+'(:\(\d+\)\d+)?,?", "", axes.replace(" ", "")) or not sizes:
        raise ValueError(f"replica groups of an unknown form: mesh[{mesh}] {{{axes}}}")
    if len({name for name, *_ in parts}) < len(parts):
        raise ValueError(f"two parts of an axis in replica groups: mesh[{mesh}] {{{axes}}}")
    # Every axis becomes three dimensions, so that each part is one of its own.
    shape: list[int] = []
    along: dict[str, int] = {}
    cuts = {name: (int(pre or 1), int(size or sizes[name])) for name, pre, size in parts}
    for name, size in sizes.items():
        pre, taken = cuts.get(name, (1, size))
        along[name] = len(shape) + 1
        shape += [pre, taken, size // (pre * taken)]
    ids = np.arange(math.prod(shape))
    if order and (iota := re.fullmatch(r"\[([\d,]+)\]T\(([\d,]+)\)", order)):
        ids = ids.reshape(_numbers(iota[1])).transpose(_numbers(iota[2]))
    elif order:
        ids = np.array(_numbers(order))
    ids = ids.reshape(shape)
    inner = [along[name] for name in cuts]
    outer = [d for d in range(len(shape)) if d not in inner]
    return ids.transpose(outer + inner).reshape(-1, math.prod(shape[d] for d in inner)).tolist()


def _explicit(text: str) -> list[list[int]]:
    return [_numbers(group) for group in re.findall(r"\{([\d,]+)\}", text)]


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def _rings(pairs: Sequence[Sequence[int]]) -> list[list[int]]:
    """Joins the pairs of a permutation to rings and chains."""
    group: dict[int, set[int]] = {}
    for source, target in pairs:
        joined = group.get(source, {source}) | group.get(target, {target})
        for member in joined:
            group[member] = joined
    return [sorted(each) for each in _distinct(group.values())]


def _distinct(sets: Iterable[set[int]]) -> Iterator[set[int]]:
    known: set[int] = set()
    for each in sets:
        if id(each) not in known:
            known.add(id(each))
            yield each

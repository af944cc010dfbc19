"""The bytes that a compiled program sends from chip to chip, by kind and by axis of the mesh.

    found = find_collectives(compiled.as_text(), {"data": 2, "fsdp": 16, "tensor": 8}, slices=2)
    by_kind_and_axes(found)   # {("all-gather", ("fsdp",)): bytes sent by one chip in one step}

`sent` are the bytes that one device sends, with the algorithms of rings: an all-gather or a
reduce-scatter among n sends (n - 1) / n of the whole array, an all-reduce twice that, an all-to-all
(n - 1) / n of the device's part, a permutation all of it. Loops multiply, see
`maestro_jax.planning.hlo`; what one device holds is what the text of a partitioned module shows.

How TPUs write it:

- A fused asynchronous collective stands in three computations, of its start, its overlapping and
  its end, with one channel and one ``chain_id``: it is counted once.
- A reduce-scatter is an all-reduce with ``from-cross-replica-sharding``, in a fusion with the slice
  that keeps a part of it.
- Between slices there are no collectives but ``send`` and ``recv`` of the runtime of several slices
  (``xla_megascale``), whose attribute says what they are; all other groups are of one slice's
  devices, numbered from 0.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from maestro_jax.planning.hlo import Instruction, Program, arrays, parse_hlo, parts_of_tuple

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
        axes: The axes of the mesh along which a group's devices differ.
        group: Devices of a group; for a permutation, of the ring or chain that it is made of.
        payload: Bytes of the whole array: gathered, before it is scattered, reduced, or sent on.
        times: How often it runs in one run of the program.
        crosses_slices: Whether its bytes travel between slices.
        source: The operation that it comes from, as JAX names it.
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
        """Bytes that one device sends in all its runs."""
        return self.times * sent_bytes(self.kind, self.payload, self.group)


def sent_bytes(kind: str, payload: float, group: int) -> float:
    """Bytes that one of a group's devices sends.

    Args:
        kind: One of `KINDS`.
        payload: Bytes of the whole array.
        group: Devices.
    """
    if kind in ("collective-permute", "collective-broadcast"):
        return payload
    share = (group - 1) / group if group else 0.0
    return payload * share * (2 if kind == "all-reduce" else 1)


def by_kind_and_axes(
    collectives: Iterable[Collective],
) -> dict[tuple[str, tuple[str, ...]], float]:
    """Bytes that one device sends, by kind and axes, largest first."""
    sums: dict[tuple[str, tuple[str, ...]], float] = defaultdict(float)
    for each in collectives:
        sums[each.kind, each.axes] += each.sent
    return dict(sorted(sums.items(), key=lambda item: -item[1]))


def between_slices(collectives: Iterable[Collective]) -> float:
    """Bytes that one device sends to other slices."""
    return sum(each.sent for each in collectives if each.crosses_slices)


def find_collectives(
    module: str | Program, mesh: Mapping[str, int], *, slices: int = 1
) -> tuple[Collective, ...]:
    """All collectives of a compiled module.

    Args:
        module: The optimized module's text, or what `parse_hlo` made of it.
        mesh: Devices along each axis, in the order of the mesh, as `jax.sharding.Mesh.shape` has
            it. Slices split the first axis that has more than one device.
        slices: Slices of the topology.

    Returns:
        One entry an instruction, in the order of the text.

    Raises:
        ValueError: The text has no entry, or more devices than the mesh.
    """
    program = parse_hlo(module) if isinstance(module, str) else module
    layout = _Layout(mesh, slices)
    found = []
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
        found.append(_collective(instruction, kind, times, layout))
    return tuple(each for each in found if each.group > 1)


def _kind(
    instruction: Instruction, computation: str, others: Mapping[str, Instruction]
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
    if kind == "all-reduce" and "all-reduce-scatter" in computation:
        if any(each.root and "slice" in each.opcode for each in others.values()):
            return "reduce-scatter"
    return kind


def _collective(instruction: Instruction, kind: str, times: float, layout: _Layout) -> Collective:
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
        else _groups(instruction.attribute("replica_groups") or "{}", layout.devices)
    )
    size = max(map(len, groups), default=1)
    payload = _result_bytes(instruction, kind)
    # The result of a reduce-scatter is a part; TPUs keep the whole in the all-reduce.
    if instruction.opcode.startswith("reduce-scatter"):
        payload *= size
    axes, crosses = layout.axes(groups)
    return Collective(**common, axes=axes, group=size, payload=payload, crosses_slices=crosses)


def _result_bytes(instruction: Instruction, kind: str) -> float:
    result = instruction.type
    if instruction.opcode in ("all-gather-start", "collective-permute-start"):
        # Operands, results, and the marks of the transfer.
        result = parts_of_tuple(result)[1]
    return sum(size for _, _, size in arrays(result))


class _Layout:
    """Which axes of the mesh a group of devices runs along."""

    def __init__(self, mesh: Mapping[str, int], slices: int) -> None:
        self.mesh = dict(mesh)
        self.slices = slices
        self.devices = math.prod(self.mesh.values())
        first = next((name for name, size in self.mesh.items() if size > 1), None)
        self.split_axes = (first,) if first is not None and slices > 1 else ()
        # Groups of a program of several slices number the devices of one.
        self.within = dict(self.mesh)
        if self.split_axes:
            if self.mesh[self.split_axes[0]] % slices:
                raise ValueError(f"{slices} slices cannot split the mesh {self.mesh}")
            self.within[self.split_axes[0]] //= slices

    def axes(self, groups: Sequence[Sequence[int]]) -> tuple[tuple[str, ...], bool]:
        """The axes along which members of a group differ, and whether they are of two slices."""
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
            places = np.unravel_index(np.asarray(group), tuple(shape.values()))
            differ |= {
                name for name, each in zip(shape, places, strict=True) if np.any(each != each[0])
            }
            crosses |= len({member // per_slice for member in group}) > 1
        return tuple(name for name in self.mesh if name in differ), crosses


def _groups(text: str, devices: int) -> list[list[int]]:
    """Replica groups: ``{{0,1},{2,3}}``, ``[2,4]<=[8]``, ``[4,2]<=[2,4]T(1,0)``, ``{}``."""
    text = text.strip()
    iota = re.fullmatch(r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text)
    if iota:
        shape, sizes = _numbers(iota[1]), _numbers(iota[2])
        ids = np.arange(math.prod(sizes)).reshape(sizes)
        if iota[3]:
            ids = ids.transpose(_numbers(iota[3]))
        return ids.reshape(shape[0], -1).tolist()
    return _explicit(text) or [list(range(devices))]


def _explicit(text: str) -> list[list[int]]:
    return [_numbers(group) for group in re.findall(r"\{([\d,]+)\}", text)]


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def _rings(pairs: Sequence[Sequence[int]]) -> list[list[int]]:
    """The rings and chains that a permutation's pairs make."""
    group: dict[int, set[int]] = {}
    for source, target in pairs:
        joined = group.get(source, {source}) | group.get(target, {target})
        for member in joined:
            group[member] = joined
    return [sorted(each) for each in _distinct(group.values())]


def _distinct(sets: Iterable[set[int]]) -> Iterator[set[int]]:
    seen: set[int] = set()
    for each in sets:
        if id(each) not in seen:
            seen.add(id(each))
            yield each

"""Says where the time of a compiled program goes, by the cycles of the TPU compiler.

    module = parse_hlo(compiled.text)
    compiler_seconds(module, chip)
    for share in time_shares(module, chip):
        share.kind, share.phase, share.part, share.seconds, share.floor

The compiler estimates cycles for every operation that it schedules: the time in which one chip
computes, without waiting for others. Beside it stands a floor, the time that the same operation
would take at the chip's limits: the FLOPs of its products at the peak, or the bytes that it reads
from the memory and writes there at the full bandwidth, whichever is longer. What the compiler keeps
in the fast memory of a core (``S(1)`` in a layout) costs no bytes.
"""

from __future__ import annotations

import dataclasses
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Literal

from maestro_jax.flops import part_and_phase, window_pairs
from maestro_jax.planning.chips import Chip
from maestro_jax.planning.collectives import KINDS as COLLECTIVES
from maestro_jax.planning.compiled import part_of
from maestro_jax.planning.hlo import HloInstruction, HloModule, arrays, parse_hlo, parts_of_tuple

Kind = Literal[
    "products", "convolutions", "random numbers", "reductions", "element-wise", "layout changes",
    "copies", "transfers", "kernels",
]  # fmt: skip
StepPhase = Literal["forward", "recomputed", "backward", "update"]
PHASES: tuple[StepPhase, ...] = ("forward", "recomputed", "backward", "update")

# Cycles per second. v4: Jouppi et al. 2023 (arXiv 2304.01433), table 4. The others: the peak FLOPs
# divided by two operations per cell of the chip's matrix units, 4 of 128 x 128 (v5e), 8 (v5p), and
# 4 of 256 x 256 (v6e) (https://jax-ml.github.io/scaling-book/tpus).
CLOCKS = {"v4": 1.05e9, "v5e": 1.50e9, "v5p": 1.75e9, "v6e": 1.75e9}

# The compiler for v5p writes this for transfers that it cannot estimate.
_UNKNOWN = 2**63 - 1

_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_NAME = re.compile(r'op_name="([^"]*)"')
_MOVES = {
    "bitcast", "broadcast", "concatenate", "constant", "convert", "copy", "dynamic-slice",
    "dynamic-update-slice", "fusion", "get-tuple-element", "iota", "pad", "parameter", "reshape",
    "reverse", "slice", "transpose", "tuple",
}  # fmt: skip
_REDUCTIONS = {"reduce", "reduce-window", "scatter", "select-and-scatter", "sort"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TimeShare:
    """What the operations of one kind take in one phase of one part of the model.

    Attributes:
        kind: What they do. A fusion counts as the first of these that is in it: a convolution, a
            product, a transfer, a kernel of our own, random numbers, a reduction; as layout change
            or copy if it only moves numbers; else as element-wise.
        phase: ``forward``, ``recomputed`` or ``backward``, as in `maestro_jax.flops`; ``update``
            for whatever is not differentiated.
        part: Part of the model, as of `part_of`.
        seconds: Seconds of one chip by the compiler's cycles.
        floor: Seconds at the limits of the chip.
        runs: How often an operation runs.
    """

    kind: Kind
    phase: StepPhase
    part: str
    seconds: float
    floor: float
    runs: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoopTime:
    """A loop of a program.

    Attributes:
        name: JAX's name of the operation.
        turns: Turns of one run; None if their number is unknown before it runs, and one is counted.
        seconds: Seconds of all turns of all runs, loops within it included.
    """

    name: str
    turns: int | None
    seconds: float


def compiler_seconds(module: str | HloModule, chip: Chip) -> float | None:
    """Sums the cycles that XLA for TPU estimates for every operation that it schedules.

    Args:
        module: The optimized module, as text or parsed. A loop whose trip count is unknown before
            it runs counts once.
        chip: The kind of chip for which it was compiled.

    Returns:
        Seconds that one chip computes in one run, without waiting for other chips; None for a chip
        of unknown clock.
    """
    if chip.name not in CLOCKS:
        return None
    program = parse_hlo(module) if isinstance(module, str) else module
    return sum(seconds for *_, seconds in _timed(program, chip))


def time_shares(module: str | HloModule, chip: Chip) -> tuple[TimeShare, ...]:
    """Divides the seconds of a program by kind, phase and part; the longest share first.

    Args:
        module: The optimized module, as text or parsed.
        chip: The kind of chip for which it was compiled.

    Returns:
        The shares; none for a chip of unknown clock.
    """
    program = parse_hlo(module) if isinstance(module, str) else module
    costs = _Costs(program, chip)
    sums: dict[tuple[Kind, StepPhase, str], list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])
    for computation, instruction, times, seconds in _timed(program, chip):
        name = costs.name(computation, instruction)
        total = sums[costs.kind(computation, instruction), phase_of(name), part_of(name)]
        total[0] += seconds
        total[1] += times * costs.floor(computation, instruction)
        total[2] += times
    shares = (
        TimeShare(kind=kind, phase=phase, part=part, seconds=seconds, floor=floor, runs=runs)
        for (kind, phase, part), (seconds, floor, runs) in sums.items()
    )
    return tuple(sorted(shares, key=lambda share: -share.seconds))


def loop_times(module: str | HloModule, chip: Chip) -> tuple[LoopTime, ...]:
    """Returns the loops of a program, the longest first; 0 seconds each for an unknown clock."""
    program = parse_hlo(module) if isinstance(module, str) else module
    own: dict[str, float] = defaultdict(float)
    for computation, _, times, seconds in _timed(program, chip):
        own[computation] += seconds / times
    loops = [
        (computation, each) for computation, each, _ in program.executed() if each.opcode == "while"
    ]

    def once(computation: str) -> float:
        """Seconds of one run of a computation, with its loops."""
        return own[computation] + sum(
            (program.trips(where, loop) or 1) * once(loop.called("body")[0])
            for where, loop in loops
            if where == computation
        )

    found = []
    for computation, loop in loops:
        trips = program.trips(computation, loop)
        seconds = program.times[computation] * (trips or 1) * once(loop.called("body")[0])
        name = match[1] if (match := _NAME.search(loop.attributes)) else loop.name
        found.append(LoopTime(name=name, turns=trips, seconds=seconds))
    return tuple(sorted(found, key=lambda loop: -loop.seconds))


def phase_of(name: str) -> StepPhase:
    """Returns the phase of an operation by its name in JAX."""
    return part_and_phase(name)[1] if "jvp(" in name else "update"


def summed(
    shares: Iterable[TimeShare], key: Callable[[TimeShare], str]
) -> dict[str, tuple[float, float]]:
    """Sums seconds and floors by a key, the longest first."""
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for share in shares:
        sums[key(share)][0] += share.seconds
        sums[key(share)][1] += share.floor
    ordered = sorted(sums.items(), key=lambda item: -item[1][0])
    return {name: (seconds, floor) for name, (seconds, floor) in ordered}


def _timed(program: HloModule, chip: Chip) -> Iterator[tuple[str, HloInstruction, float, float]]:
    """Yields computation, instruction, runs and seconds of all runs of what has an estimate."""
    if chip.name not in CLOCKS:
        return
    # The estimate of a fusion includes the operations that are fused.
    fused = {
        callee
        for instructions in program.computations.values()
        for instruction in instructions.values()
        if instruction.opcode == "fusion"
        for callee in instruction.called("calls")
    }
    for computation, instruction, times in program.executed():
        if computation in fused:
            continue
        match = _CYCLES.search(instruction.attributes)
        if match and int(match[1]) != _UNKNOWN:
            yield computation, instruction, times, times * int(match[1]) / CLOCKS[chip.name]


class _Costs:
    """Kinds and floors of the instructions of a program."""

    def __init__(self, program: HloModule, chip: Chip) -> None:
        self._computations = program.computations
        share = 1 / chip.devices_per_chip
        self._peak, self._bandwidth = chip.peak_flops * share, chip.hbm_bandwidth * share

    def _inside(
        self, computation: str, instruction: HloInstruction
    ) -> Iterator[tuple[Mapping[str, HloInstruction], HloInstruction]]:
        """Yields an instruction, or all that are fused in it, with those of their computation."""
        if instruction.opcode != "fusion":
            yield self._computations[computation], instruction
            return
        for callee in instruction.called("calls"):
            for each in self._computations[callee].values():
                yield from self._inside(callee, each)

    def name(self, computation: str, instruction: HloInstruction) -> str:
        """Returns JAX's name of an instruction, or of the last one in a fusion without a name."""
        names = [
            match[1]
            for _, each in self._inside(computation, instruction)
            if (match := _NAME.search(each.attributes))
        ]
        own = _NAME.search(instruction.attributes)
        return own[1] if own else names[-1] if names else ""

    def kind(self, computation: str, instruction: HloInstruction) -> Kind:
        """Returns the kind of an instruction."""
        inside = [each for _, each in self._inside(computation, instruction)]
        opcodes = {each.opcode for each in inside}
        products = [each for each in inside if each.opcode in ("convolution", "dot")]
        if any(_slides(each) for each in products):
            return "convolutions"
        if products:
            return "products"
        if any(opcode.startswith(COLLECTIVES) for opcode in opcodes):
            return "transfers"
        if any("tpu_custom_call" in each.attributes for each in inside):
            return "kernels"
        if any(opcode.startswith("rng") for opcode in opcodes):
            return "random numbers"
        if opcodes & _REDUCTIONS:
            return "reductions"
        if opcodes <= {"copy", "copy-start", "copy-done", "bitcast", "parameter", "tuple"}:
            return "copies"
        return "layout changes" if opcodes <= _MOVES else "element-wise"

    def floor(self, computation: str, instruction: HloInstruction) -> float:
        """Returns the seconds of one run at the limits of the chip."""
        flops = sum(
            product_flops(each, others)
            for others, each in self._inside(computation, instruction)
            if each.opcode == "convolution"
        )
        return max(flops / self._peak, self._moved(computation, instruction) / self._bandwidth)

    def _moved(self, computation: str, instruction: HloInstruction) -> float:
        """Returns the bytes that one run reads from the memory and writes there."""
        others = self._computations[computation]
        operands = instruction.operand_types(others)
        if instruction.opcode != "fusion":
            return _moved_alone(instruction, operands)
        [callee] = instruction.called("calls")
        inside = self._computations[callee]
        parameters = {
            int(each.operands): each for each in inside.values() if each.opcode == "parameter"
        }
        written = [each for each in inside.values() if each.root]
        if written and written[0].opcode == "tuple":
            written = [inside[name] for name in written[0].operand_names]
        moved = sum(
            _memory_bytes(part) * _part_written(each, inside)
            for part, each in zip(parts_of_tuple(instruction.type), written, strict=False)
        )
        for place, operand in enumerate(operands):
            if place in parameters:
                moved += _memory_bytes(operand) * _part_read(parameters[place], inside)
        return moved


_SLICES = ("dynamic-slice", "slice", "gather")
_SAME = ("bitcast", "copy", "convert", "reshape", "transpose")


def _moved_alone(instruction: HloInstruction, operands: Sequence[str]) -> float:
    """Returns the bytes that an instruction that is not fused reads and writes."""
    written = _memory_bytes(instruction.type)
    if instruction.opcode in _SLICES:
        return 2 * written
    if instruction.opcode == "dynamic-update-slice":
        return 2 * _memory_bytes(operands[1])
    return written + sum(map(_memory_bytes, operands))


def _part_read(array: HloInstruction, inside: Mapping[str, HloInstruction]) -> float:
    """Returns the fraction of an array that a fusion reads: less than 1 if all take slices."""
    whole = max(sum(size for _, _, size in arrays(array.type)), 1.0)
    read = 0.0
    for user in inside.values():
        if array.name not in user.operand_names:
            continue
        if user.opcode in _SLICES and user.operand_names[0] == array.name:
            read += sum(size for _, _, size in arrays(user.type)) / whole
        elif user.opcode in _SAME and not user.root:
            read += _part_read(user, inside)
        # What is overwritten in place is not read.
        elif user.opcode != "dynamic-update-slice" or user.operand_names[0] != array.name:
            return 1.0
    return min(read, 1.0)


def _part_written(result: HloInstruction, inside: Mapping[str, HloInstruction]) -> float:
    """Returns the fraction of a result that a fusion writes: the slice that it updates in place."""
    while result.opcode in _SAME and result.operand_names[0] in inside:
        result = inside[result.operand_names[0]]
    if result.opcode != "dynamic-update-slice" or result.operand_names[1] not in inside:
        return 1.0
    update = inside[result.operand_names[1]]
    whole = max(sum(size for _, _, size in arrays(result.type)), 1.0)
    return min(sum(size for _, _, size in arrays(update.type)) / whole, 1.0)


def _memory_bytes(type_text: str) -> float:
    """Returns the bytes of the arrays of a type that are in the memory, not in a core's."""
    return sum(
        size
        for part in parts_of_tuple(type_text)
        if "S(" not in part
        for _, _, size in arrays(part)
    )


def _window(instruction: HloInstruction) -> dict[str, list[str]]:
    """Returns the window of a convolution: ``{"size": ["3", "3"], "stride": ["2", "2"]}``."""
    text = instruction.attribute("window") or "{}"
    return {key: value.split("x") for key, value in re.findall(r"(\w+)=([\dx_-]+)", text)}


def _slides(instruction: HloInstruction) -> bool:
    """Whether a convolution moves a window over places; products are written without, or as one.

    Of a product, a dimension of a batch is one whose input is so diluted that each window meets one
    row, further outputs are windows that meet one place between paddings, and a dimension that is
    summed over is a window with one place for it.
    """
    window = _window(instruction)
    labels = (instruction.attribute("dim_labels") or "").rpartition("->")[2]
    result = dict(zip(labels, arrays(instruction.type)[0][1], strict=False))
    for place, written in enumerate(window.get("size", [])):
        size = int(written)
        low, _, high = window.get("pad", ["0_0"] * 9)[place].partition("_")
        dilution = int(window.get("lhs_dilate", ["1"] * 9)[place])
        one_place = dilution == size or low == high == str(size - 1)
        if size > 1 and result.get(str(place), 1) > 1 and not one_place:
            return True
    return False


def product_flops(instruction: HloInstruction, others: Mapping[str, HloInstruction]) -> float:
    """Returns the FLOPs of a convolution, as which XLA for TPU writes all products.

    Only multiplications of numbers count, not those of padding and of what dilution inserts.

    Args:
        instruction: The convolution.
        others: The instructions of its computation by name, its operands among them.
    """
    labels = re.fullmatch(r"(\w+)_(\w+)->(\w+)", instruction.attribute("dim_labels") or "")
    if labels is None:
        return 0.0
    types = [*instruction.operand_types(others)[:2], instruction.type]
    shapes = [arrays(each)[0][1] for each in types]
    left, right, result = (
        dict(zip(text, shape, strict=True))
        for text, shape in zip(labels.groups(), shapes, strict=True)
    )
    window = _window(instruction)
    products = float(result["b"] * result["f"] * right["i"])
    for place in range(len(window.get("size", []))):
        axis = str(place)
        stride, spread, dilation = (
            int(window.get(key, ["1"] * 9)[place]) for key in ("stride", "lhs_dilate", "rhs_dilate")
        )
        products *= window_pairs(
            left[axis],
            right[axis],
            result[axis],
            stride,
            int(window.get("pad", ["0_0"] * 9)[place].partition("_")[0]),
            spread,
            dilation,
        )
    return 2.0 * products

"""Parses the text of a compiled program: its instructions, and how often each of them runs.

    program = parse_hlo(compiled.as_text())
    for instruction, times in program.executed():
        ...

The text is that of XLA's optimized modules for CPUs, GPUs and TPUs: operands without types, layouts
with tiles (``bf16[8,128]{1,0:T(8,128)(2,1)S(1)}``), elements of tuples as instructions of their own
or, from jax 0.12 on, as ``%tuple#1``, loops with or without ``known_trip_count`` (modules for TPUs
have none; the trip count then follows from the loop's counter).
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping

_BYTES = {
    "pred": 1, "s2": 0.25, "u2": 0.25, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "s16": 2, "u16": 2,
    "s32": 4, "u32": 4, "s64": 8, "u64": 8, "bf16": 2, "f16": 2, "f32": 4, "f64": 8, "c64": 8,
    "c128": 16, "token": 0,
}  # fmt: skip
_ARRAY = re.compile(r"(\w+)\[([0-9,<= ]*)\]")


@dataclasses.dataclass(frozen=True, kw_only=True)
class HloInstruction:
    """An instruction, which is one line.

    Attributes:
        name: Name, without the percent sign.
        opcode: ``all-gather``, ``fusion`` ...
        type: Type of the result, as text.
        operands: Content of the parentheses, as text.
        attributes: The text after them.
        root: Whether it is the result of its computation.
    """

    name: str
    opcode: str
    type: str
    operands: str
    attributes: str
    root: bool

    @property
    def operand_names(self) -> list[str]:
        """Names of the operands; of ``%tuple#1``, an element of a tuple, that of the tuple."""
        return re.findall(r"%([\w.-]+)", self.operands)

    def element(self, operand: int) -> int | None:
        """Returns the place of the element that an operand takes from a tuple: 1 of ``%tuple#1``.

        None if the operand is the whole result of an instruction.
        """
        places = re.findall(r"%[\w.-]+(?:#(\d+))?", self.operands)
        return int(places[operand]) if places[operand] else None

    def operand_types(self, others: Mapping[str, HloInstruction]) -> list[str]:
        """Returns the types of the operands.

        Args:
            others: The instructions of the same computation by name.
        """
        types = []
        for operand, name in enumerate(self.operand_names):
            whole, element = others[name].type, self.element(operand)
            types.append(whole if element is None else parts_of_tuple(whole)[element])
        return types

    def attribute(self, name: str) -> str | None:
        """Returns the text after ``name=``, up to the next comma outside of brackets."""
        match = re.search(rf"(?:^|[\s,{{]){re.escape(name)}=", self.attributes)
        return _up_to_comma(self.attributes[match.end() :]) if match else None

    def called(self, name: str) -> list[str]:
        """Returns the computations in an attribute, one or a list in braces."""
        return re.findall(r"%([\w.-]+)", self.attribute(name) or "")


@dataclasses.dataclass(frozen=True)
class HloModule:
    """A module.

    Attributes:
        computations: Instructions by name, of each computation by name.
        entry: Name of the entry computation.
    """

    computations: Mapping[str, Mapping[str, HloInstruction]]
    entry: str

    def executed(self) -> Iterator[tuple[str, HloInstruction, float]]:
        """Yields every instruction with its computation, and how often it runs."""
        times = self.times
        for name, instructions in self.computations.items():
            if times[name]:
                for instruction in instructions.values():
                    yield name, instruction, times[name]

    @functools.cached_property
    def times(self) -> Mapping[str, float]:
        """How often each computation runs: loops multiply, every branch counts once."""
        calls: dict[str, list[tuple[str, float]]] = defaultdict(list)
        for name, instructions in self.computations.items():
            for instruction in instructions.values():
                for callee, factor in self._callees(name, instruction):
                    if callee in self.computations:
                        calls[callee].append((name, factor))

        @functools.cache
        def times(name: str) -> float:
            if name == self.entry:
                return 1.0
            return sum(times(caller) * factor for caller, factor in calls[name])

        return {name: times(name) for name in self.computations}

    def _callees(
        self, computation: str, instruction: HloInstruction
    ) -> Iterator[tuple[str, float]]:
        if instruction.opcode == "while":
            trips = self.trips(computation, instruction)
            for callee in instruction.called("body"):
                yield callee, float(1 if trips is None else trips)
            return
        # An asynchronous call counts where it starts.
        if instruction.opcode in ("async-update", "async-done"):
            return
        for attribute in (
            *("calls", "to_apply", "branch_computations", "called_computations"),
            *("true_computation", "false_computation"),
        ):
            for callee in instruction.called(attribute):
                yield callee, 1.0

    def trips(self, computation: str, loop: HloInstruction) -> int | None:
        """Finds the trip count of a ``while``; None if it is unknown before the loop runs."""
        known = re.search(r'known_trip_count[^}]*?"?n"?\s*[:=]\s*"?(\d+)', loop.attributes)
        if known:
            return int(known[1])
        condition = self.computations[loop.called("condition")[0]]
        test = next((i for i in condition.values() if i.root), None)
        if test is None or test.opcode != "compare" or len(test.operand_names) != 2:
            return None
        direction = test.attribute("direction")
        counter, limit = (condition[name] for name in test.operand_names)
        place = test.element(0)
        if place is None and counter.opcode == "get-tuple-element":
            place = int(counter.attribute("index") or 0)
        last = _constant(condition, limit.name)
        if place is None or last is None or direction not in ("LT", "LE", "GT", "GE", "NE"):
            return None
        start = self._first(computation, loop, place)
        step = self._step(loop.called("body")[0], place)
        if start is None or step is None:
            return None
        distance = last - start + (math.copysign(1, step) if direction in ("LE", "GE") else 0)
        return max(0, math.ceil(distance / step))

    def _first(self, computation: str, loop: HloInstruction, place: int) -> int | None:
        """Finds the initial value of an element of the loop's state."""
        instructions = self.computations[computation]
        state = instructions.get(loop.operand_names[0]) if loop.operand_names else None
        if state is None or state.opcode != "tuple":
            return None
        return _constant(instructions, state.operand_names[place])

    def _step(self, body: str, place: int) -> int | None:
        """Finds the increment of an element of the loop's state per turn."""
        instructions = self.computations[body]
        root = next((i for i in instructions.values() if i.root), None)
        if root is None or root.opcode != "tuple":
            return None
        last = instructions.get(root.operand_names[place])
        while last is not None and last.opcode in _TRANSPARENT:
            last = instructions.get(last.operand_names[0])
        if last is None or last.opcode not in ("add", "subtract"):
            return None
        for name in last.operand_names:
            value = _constant(instructions, name)
            if value:
                return -value if last.opcode == "subtract" else value
        return None


_TRANSPARENT = ("copy", "bitcast", "convert")


def _constant(instructions: Mapping[str, HloInstruction], name: str) -> int | None:
    source = instructions.get(name)
    while source is not None and source.opcode in _TRANSPARENT:
        source = instructions.get(source.operand_names[0])
    if source is None or source.opcode != "constant":
        return None
    return int(source.operands) if re.fullmatch(r"-?\d+", source.operands) else None


def parse_hlo(text: str) -> HloModule:
    """Parses the text of a compiled module.

    Args:
        text: From `jax.stages.Compiled.as_text`.

    Raises:
        ValueError: If it has no entry.
    """
    computations: dict[str, dict[str, HloInstruction]] = {}
    entry = None
    current: dict[str, HloInstruction] = {}
    for line in text.splitlines():
        head = re.match(r"(ENTRY )?%?([\w.-]+) \(.*\) -> .*\{$", line)
        if head:
            current = computations[head[2]] = {}
            entry = head[2] if head[1] else entry
            continue
        instruction = _instruction(line)
        if instruction is not None:
            current[instruction.name] = instruction
    if entry is None:
        raise ValueError("the text is not that of a compiled module: it has no ENTRY")
    return HloModule(computations, entry)


def arrays(type_text: str) -> list[tuple[str, tuple[int, ...], float]]:
    """Returns element type, shape and bytes of each array of a type, in order."""
    parsed = []
    for dtype, sizes in _ARRAY.findall(type_text):
        if dtype not in _BYTES and not dtype.startswith("f8") and not dtype.startswith("f4"):
            continue
        shape = tuple(int(size.lstrip("<= ")) for size in sizes.split(",") if size)
        width = _BYTES.get(dtype, 0.5 if dtype.startswith("f4") else 1)
        parsed.append((dtype, shape, math.prod(shape) * width))
    return parsed


def parts_of_tuple(type_text: str) -> list[str]:
    """Returns the types of a tuple's elements; the type itself if it is not a tuple."""
    if not type_text.startswith("("):
        return [type_text]
    inside, parts = type_text[1:-1], []
    while inside:
        part = _up_to_comma(inside)
        parts.append(re.sub(r"/\*.*?\*/", "", part).strip())
        inside = inside[len(part) + 1 :]
    return parts


_LINE = re.compile(r"\s+(ROOT )?%?([\w.-]+) = ")


def _instruction(line: str) -> HloInstruction | None:
    match = _LINE.match(line)
    if not match:
        return None
    rest = line[match.end() :]
    if rest.startswith("("):
        end = _closing(rest, 0)
        result, rest = rest[: end + 1], rest[end + 2 :]
    else:
        result, _, rest = rest.partition(" ")
    opcode, parenthesis, _ = rest.partition("(")
    if not parenthesis:
        return None
    end = _closing(rest, len(opcode))
    return HloInstruction(
        name=match[2],
        opcode=opcode.strip(),
        type=result,
        operands=rest[len(opcode) + 1 : end],
        attributes=rest[end + 1 :].lstrip(", "),
        root=bool(match[1]),
    )


def _closing(text: str, start: int) -> int:
    """Finds the bracket that closes the one at a position."""
    return next(
        (place for place, depth, _ in _outside_quotes(text, start) if not depth), len(text) - 1
    )


def _up_to_comma(text: str) -> str:
    """Returns a text up to its first comma outside of brackets."""
    ends = (place for place, depth, letter in _outside_quotes(text) if letter == "," and not depth)
    return text[: next(ends, len(text))]


def _outside_quotes(text: str, start: int = 0) -> Iterator[tuple[int, int, str]]:
    """Yields the place of each letter outside of quotes, the open brackets after it, and itself."""
    depth, quoted = 0, False
    for place in range(start, len(text)):
        letter = text[place]
        if letter == '"' and text[place - 1 : place] != "\\":
            quoted = not quoted
        if not quoted:
            depth += (letter in "([{") - (letter in ")]}")
            yield place, depth, letter

"""Tables of measurements and those of their peers."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bar:
    """Threshold of a measurement.

    Attributes:
        limit: The number.
        on: `ratio`, or `ours` for the value itself.
        at_most: Whether the limit is an upper one.
    """

    limit: float
    on: str = "ratio"
    at_most: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One line of a table.

    Attributes:
        what: What was measured.
        size: Of which input.
        ours: This project's value, in `unit`.
        unit: `s`, `MiB` or `x real time`.
        peer_name: What it is compared with; empty for nothing.
        peer: The peer's value, in `unit`.
        ratio: The comparison; what it divides, its table's heading says.
        percent: Whether the ratio is printed as a percentage.
        bar: What has to be reached, if anything.
        note: What else was seen: medians, compilation.
    """

    what: str
    size: str
    ours: float
    unit: str
    peer_name: str = ""
    peer: float | None = None
    ratio: float | None = None
    percent: bool = False
    bar: Bar | None = None
    note: str = ""

    @property
    def passed(self) -> bool | None:
        """Returns whether the bar is reached; None without a bar."""
        if self.bar is None:
            return None
        value = self.ours if self.bar.on == "ours" else self.ratio
        if value is None:
            return None
        return value <= self.bar.limit if self.bar.at_most else value >= self.bar.limit

    def cells(self) -> tuple[str, ...]:
        """Returns the columns as text, in the order of `HEADINGS`."""
        bar = ""
        if self.bar is not None:
            sign = "<=" if self.bar.at_most else ">="
            value = self.bar.limit
            in_ours = self.bar.on == "ours"
            limit = _quantity(value, self.unit) if in_ours else _ratio(value, self.percent, True)
            bar = f"{sign} {limit}"
        return (
            self.what,
            self.size,
            _quantity(self.ours, self.unit),
            f"{self.peer_name} {_quantity(self.peer, self.unit)}" if self.peer is not None else "",
            _ratio(self.ratio, self.percent) if self.ratio is not None else "",
            bar,
            {True: "✓", False: "✗", None: ""}[self.passed],
            self.note,
        )

    def as_json(self) -> dict[str, Any]:
        """Returns the fields, and whether the bar is reached."""
        return dataclasses.asdict(self) | {"passed": self.passed}


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of rows.

    Attributes:
        title: Its heading.
        ratio: What the ratio divides.
        rows: The lines.
        remarks: Sentences below the table, e.g. what could not be measured.
    """

    title: str
    ratio: str
    rows: tuple[Row, ...]
    remarks: tuple[str, ...] = ()

    def headings(self) -> tuple[str, ...]:
        """Returns the column headings."""
        return ("", "size", "ours", "peer", self.ratio, "bar", "", "note")

    def text(self) -> str:
        """Returns the table as plain text."""
        lines = [self.headings(), *(row.cells() for row in self.rows)]
        widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
        body = ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) for line in lines]
        return "\n".join([self.title, *(line.rstrip() for line in body), *self.remarks])

    def markdown(self) -> str:
        """Returns the table as Markdown."""
        lines = ["| " + " | ".join(row.cells()) + " |" for row in self.rows]
        heads = "| " + " | ".join(self.headings()) + " |"
        rule = "|" + "---|" * len(self.headings())
        remarks = [f"\n{remark}" for remark in self.remarks]
        return "\n".join([f"### {self.title}", "", heads, rule, *lines, *remarks])

    def as_json(self) -> dict[str, Any]:
        """Returns the rows under the title of the table."""
        return {
            "title": self.title,
            "ratio": self.ratio,
            "rows": [row.as_json() for row in self.rows],
            "remarks": list(self.remarks),
        }


def size_text(size: Sequence[int], letters: str) -> str:
    """Returns `B8 T250` for `(8, 250)` and `BT`."""
    return " ".join(f"{letter}{number}" for letter, number in zip(letters, size, strict=True))


def _quantity(value: float, unit: str) -> str:
    if unit == "s":
        return f"{value:.3g} s" if value >= 1 else f"{1000 * value:.3g} ms"
    return f"{value:.4g} {unit}"


def _ratio(value: float, percent: bool, exact: bool = False) -> str:
    if percent:
        return f"{100 * value:g} %" if exact else f"{100 * value:.2f} %"
    return f"{value:g}x" if exact else f"{value:.3g}x"

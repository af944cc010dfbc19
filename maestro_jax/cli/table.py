"""Records as a table of plain text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Aligned columns under a line of headings.

    Args:
        rows: Records with the same keys in the same order; at least one. Numbers stand to the
            right, sequences and mappings are joined by commas, truth values are `yes` and `no`,
            None is empty.

    Returns:
        Lines without a newline at the end.
    """
    names = list(rows[0])
    cells = [[_cell(row[name]) for name in names] for row in rows]
    right = [all(_is_number(row[name]) for row in rows) for name in names]
    widths = [
        max(len(name), *(len(line[column]) for line in cells)) for column, name in enumerate(names)
    ]

    def line(texts: Sequence[str]) -> str:
        aligned = [
            text.rjust(width) if is_right else text.ljust(width)
            for text, width, is_right in zip(texts, widths, right, strict=True)
        ]
        return "  ".join(aligned).rstrip()

    return "\n".join([line(names), line(["-" * width for width in widths]), *map(line, cells)])


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) or value is None


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ",".join(f"{key}={_cell(entry)}" for key, entry in value.items())
    if isinstance(value, (list, tuple)):
        return ",".join(map(_cell, value))
    return str(value)

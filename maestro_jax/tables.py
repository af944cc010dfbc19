"""Tables of plain text and Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import tabulate

# Headings of numbers would otherwise stand two blanks further to the right.
tabulate.MIN_PADDING = 0


def table(rows: Sequence[Mapping[str, Any]], style: str = "simple") -> str:
    """Formats records as aligned columns under a line of headings.

    Args:
        rows: At least one record; all have the same keys in the same order. Numbers are aligned to
            the right, sequences and mappings are joined by commas, truth values are `yes` and `no`,
            None is empty.
        style: As of `align_columns`.

    Returns:
        Lines without a newline at the end.
    """
    names = list(rows[0])
    alignment = [
        "right" if all(_is_number(row[name]) for row in rows) else "left" for name in names
    ]
    cells = [[_cell(row[name]) for name in names] for row in rows]
    return align_columns(names, cells, alignment, style)


def align_columns(
    header: Sequence[str], rows: Sequence[Any], alignment: Sequence[str], style: str = "simple"
) -> str:
    """Formats cells as a table.

    Args:
        header: Headings of the columns.
        rows: Cells of each row; `tabulate.SEPARATING_LINE` for a rule.
        alignment: `left` or `right` for each column.
        style: `simple` for terminals, `pipe` for Markdown.

    Returns:
        Lines without a newline at the end.
    """
    text = tabulate.tabulate(
        rows, headers=header, tablefmt=style, colalign=alignment, disable_numparse=True
    )
    return "\n".join(line.rstrip() for line in text.splitlines())


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

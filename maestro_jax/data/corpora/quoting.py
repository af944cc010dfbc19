"""Tables whose cells are quoted, as spreadsheets, pandas and Python's csv module write them.

A cell in quotation marks may hold tabs, ends of lines and, written twice, quotation marks (RFC
4180). In tables that were written without quoting, quotation marks belong to the sentences, often
without a partner. Which of the two a table is can be seen from all of it: where cells are quoted,
no other cell has a quotation mark.
"""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Iterable, Iterator

_QUOTED = re.compile(r'"[^"]*(?:""[^"]*)*"')
_OPEN = re.compile(r'"[^"]*(?:""[^"]*)*')
_MOST_LINES = 256
"""Of a cell. A quotation mark that is not closed before is none that quotes."""


@dataclasses.dataclass(frozen=True)
class QuotedRow:
    """A row of a table whose cells may be quoted.

    Attributes:
        number: Of its first line.
        values: Of its cells, without the quotation marks that quote them.
        proves: Whether a cell is quoted that had to be: it holds a quotation mark, a delimiter or
            the end of a line.
        denies: Whether a cell holds a quotation mark and is not quoted.
    """

    number: int
    values: list[str]
    proves: bool
    denies: bool


def has_quoted_cells(lines: Iterable[tuple[int, str]], delimiter: str) -> bool:
    """Whether cells of a table are quoted.

    Args:
        lines: The numbered lines of the table, with its header.
        delimiter: Between columns.

    Returns:
        False where quotation marks belong to the text.
    """
    denied = False
    for row in quoted_rows(lines, delimiter):
        if row.proves:
            return True
        denied |= row.denies
    return not denied


def quoted_rows(lines: Iterable[tuple[int, str]], delimiter: str) -> Iterator[QuotedRow]:
    """The rows of a table whose cells may be quoted.

    A cell that is not quoted as RFC 4180 has it is read as it stands, so that one stray quotation
    mark cannot swallow the rows behind it.

    Args:
        lines: The numbered lines of the table, the first of which is its header; empty ones are
            skipped between rows.
        delimiter: Between columns.
    """
    source = iter(lines)
    waiting: collections.deque[tuple[int, str]] = collections.deque()
    columns = 0
    while first := (waiting.popleft() if waiting else next(source, None)):
        number, line = first
        if not line.strip():
            continue
        row, is_open = _parse(number, line, delimiter)
        if is_open:
            # The lines that a quoted cell would go on to; they are read again if it does not.
            taken: list[tuple[int, str]] = []
            closed = None
            text = line
            while closed is None and len(taken) < _MOST_LINES:
                following = waiting.popleft() if waiting else next(source, None)
                if following is None:
                    break
                taken.append(following)
                if len(row.values) == columns == following[1].count(delimiter) + 1 > 1:
                    break  # Each is a row of its own.
                text += "\n" + following[1]
                joined, still_open = _parse(number, text, delimiter)
                if not still_open:
                    closed = joined if len(joined.values) == columns else None
                    break
            if closed is None:
                waiting.extendleft(reversed(taken))
            else:
                row = closed
        plain = line.split(delimiter)
        if columns and len(row.values) != columns == len(plain):
            row = QuotedRow(number, plain, proves=False, denies=True)
        columns = columns or len(row.values)
        yield row


def _parse(number: int, text: str, delimiter: str) -> tuple[QuotedRow, bool]:
    """The cells of a text, and whether the last one is quoted and not closed."""
    values: list[str] = []
    proves = denies = is_open = False
    place = 0
    while True:
        end = text.find(delimiter, place)
        end = len(text) if end < 0 else end
        match = _QUOTED.match(text, place)
        if match and (match.end() == len(text) or text.startswith(delimiter, match.end())):
            end = match.end()
            content = match[0][1:-1]
            proves |= any(mark in content for mark in ('"', delimiter, "\n"))
            values.append(content.replace('""', '"'))
        else:
            if text.startswith('"', place) and _OPEN.fullmatch(text, place):
                is_open = True
            values.append(text[place:end])
            denies |= '"' in values[-1]
        if end == len(text):
            return QuotedRow(number, values, proves, denies), is_open
        place = end + len(delimiter)

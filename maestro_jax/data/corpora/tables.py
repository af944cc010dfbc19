"""Reads the text files of corpora, plain or gzipped: lines, JSON objects and tables."""

from __future__ import annotations

import collections
import dataclasses
import gzip
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from maestro_jax.data.corpora.issues import IssueLog
from maestro_jax.errors import UserError


def open_text(path: Path) -> IO[str]:
    """Opens a UTF-8 file, gzipped if its name ends in `.gz`, and skips a byte order mark.

    Bytes that are not UTF-8 become halves of surrogate pairs (`surrogateescape`).

    Raises:
        UserError: The file does not exist or cannot be read.
    """
    try:
        if path.suffix == ".gz":
            return gzip.open(
                path, "rt", encoding="utf-8-sig", errors="surrogateescape", newline="\n"
            )
        return path.open(encoding="utf-8-sig", errors="surrogateescape", newline="\n")
    except OSError as error:
        raise UserError(f"{path} cannot be opened: {error.strerror or error}.") from error


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yields the number, from 1, and the text of each line of a file, without the end of the line.

    Raises:
        UserError: The file cannot be read, or is not UTF-8.
    """
    with open_text(path) as file:
        try:
            for number, line in enumerate(file, start=1):
                if not line.isascii() and not _is_encodable(line):
                    raise UserError(f"{path}:{number} is not UTF-8; convert the file.")
                yield number, line.rstrip("\r\n")
        except (OSError, EOFError) as error:
            raise UserError(
                f"{path} cannot be read to its end ({error}); get the file again."
            ) from error


def _is_encodable(line: str) -> bool:
    try:
        line.encode()
    except UnicodeEncodeError:
        return False
    return True


def objects(
    path: Path, issues: IssueLog, *, split: str = "", name: str = ""
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the JSON objects of a file with one object per line.

    Args:
        path: The file.
        issues: Takes the lines that are not JSON objects.
        split: Split to which these are counted.
        name: Name of the file in messages; by default its own.

    Yields:
        `file:line` and the object. Empty lines are skipped.

    Raises:
        UserError: The file cannot be read.
    """
    for number, line in lines(path):
        if not line.strip():
            continue
        place = f"{name or path.name}:{number}"
        try:
            fields = json.loads(line)
        except (ValueError, RecursionError) as error:
            issues.add("bad row", split=split, item=place, detail=f"no JSON: {error}")
            continue
        if not isinstance(fields, dict):
            issues.add("bad row", split=split, item=place, detail="no JSON object")
            continue
        yield place, fields


def rows(
    path: Path,
    issues: IssueLog,
    *,
    delimiter: str = "\t",
    escape: str = "",
    quoted: bool = False,
    columns: Sequence[str] | None = None,
    required: Sequence[str] = (),
    split: str = "",
) -> Iterator[tuple[str, dict[str, str]]]:
    r"""Yields the rows of a table.

    By default quotation marks are ordinary characters: in the tables that speech corpora publish
    they belong to the sentences, and often only one of a pair is there.

    Args:
        path: The file.
        issues: Takes the rows with too many or too few columns.
        delimiter: Delimiter between columns.
        escape: Character that escapes the next one, be it a delimiter, the end of the line or
            itself; usually a backslash. Nothing is escaped if it is empty.
        quoted: Whether cells may be quoted, as spreadsheets, pandas and Python's csv module do.
            `has_quoted_cells` then decides from the whole table whether they are.
        columns: Names of the columns, if the file has no header.
        required: Columns that the table must have, besides which it may have others.
        split: Split to which bad rows are counted.

    Yields:
        `file:line` and the row by column. Empty lines are skipped.

    Raises:
        UserError: The file cannot be read, is empty, or lacks a column.
    """
    names = None if columns is None else list(columns)
    for number, values in _cells(path, issues, delimiter, escape, quoted, split):
        if names is None:
            names = [name.strip() for name in values]
            missing = [name for name in required if name not in names]
            if missing:
                raise UserError(f"{path} has no column {missing[0]!r}; it has {', '.join(names)}.")
            continue
        place = f"{path.name}:{number}"
        if len(values) != len(names):
            issues.add(
                "bad row",
                split=split,
                item=place,
                detail=f"{len(values)} columns instead of {len(names)}",
            )
            continue
        yield place, dict(zip(names, values, strict=True))
    if names is None:
        raise UserError(f"{path} is empty; it should begin with a header.")


def _cells(
    path: Path, issues: IssueLog, delimiter: str, escape: str, quoted: bool, split: str
) -> Iterator[tuple[int, list[str]]]:
    """Yields the number and the cells of every line that is not empty, including the header."""
    if quoted and has_quoted_cells(lines(path), delimiter):
        for row in quoted_rows(lines(path), delimiter):
            yield row.number, row.values
        return
    for number, line in _whole_lines(path, issues, escape, split):
        if line.strip():
            yield number, _values(line, delimiter, escape)


def _whole_lines(
    path: Path, issues: IssueLog, escape: str, split: str
) -> Iterator[tuple[int, str]]:
    """Yields the lines, joined where the end of a line is escaped, with the first one's number."""
    unfinished, first = "", 0
    for number, line in lines(path):
        first = first if unfinished else number
        line = unfinished + line
        unfinished = ""
        # An even number of escape characters at the end are pairs that escape each other.
        if escape and (len(line) - len(line.rstrip(escape))) % 2:
            unfinished = line + "\n"
            continue
        yield first, line
    if unfinished:
        place = f"{path.name}:{first}"
        issues.add("bad row", split=split, item=place, detail="the end of the file is escaped")


def _values(line: str, delimiter: str, escape: str) -> list[str]:
    """Splits a line at its delimiters and removes the escape characters."""
    if not escape or escape not in line:
        return line.split(delimiter)
    values = [""]
    characters = iter(line)
    for character in characters:
        if character == escape:
            values[-1] += next(characters, "")
        elif character == delimiter:
            values.append("")
        else:
            values[-1] += character
    return values


# Tables with quoted cells. A cell in quotation marks may hold tabs, ends of lines and, doubled,
# quotation marks (RFC 4180). In tables that were written without quoting, quotation marks belong to
# the sentences, often only one of a pair. The whole table shows which of the two it is: where cells
# are quoted, no other cell has a quotation mark.
_QUOTED = re.compile(r'"[^"]*(?:""[^"]*)*"')
_OPEN = re.compile(r'"[^"]*(?:""[^"]*)*')
# A quotation mark that is not closed within this number of lines does not quote.
_MAX_LINES_PER_CELL = 256


@dataclasses.dataclass(frozen=True)
class QuotedRow:
    """A row of a table whose cells may be quoted.

    Attributes:
        number: Number of the row's first line.
        values: Values of the cells, without the quotation marks around them.
        proves: Whether a quoted cell needs its quotation marks: it holds a quotation mark, a
            delimiter or the end of a line.
        denies: Whether an unquoted cell holds a quotation mark.
    """

    number: int
    values: list[str]
    proves: bool
    denies: bool


def has_quoted_cells(lines: Iterable[tuple[int, str]], delimiter: str) -> bool:
    """Returns whether cells of a table are quoted, or else quotation marks belong to the text.

    Args:
        lines: Numbered lines of the table, including the header.
        delimiter: Delimiter between columns.
    """
    denied = False
    for row in quoted_rows(lines, delimiter):
        if row.proves:
            return True
        denied |= row.denies
    return not denied


def quoted_rows(lines: Iterable[tuple[int, str]], delimiter: str) -> Iterator[QuotedRow]:
    """Yields the rows of a table whose cells may be quoted.

    A cell that is not quoted as in RFC 4180 is read unchanged, so that one stray quotation mark
    cannot swallow the following rows.

    Args:
        lines: Numbered lines of the table, the first of which is its header. Empty lines between
            rows are skipped.
        delimiter: Delimiter between columns.
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
            # Look ahead for the line that closes the cell; without one, read these lines again.
            lookahead: list[tuple[int, str]] = []
            closed = None
            text = line
            while closed is None and len(lookahead) < _MAX_LINES_PER_CELL:
                following = waiting.popleft() if waiting else next(source, None)
                if following is None:
                    break
                lookahead.append(following)
                if len(row.values) == columns == following[1].count(delimiter) + 1 > 1:
                    break  # Both lines are complete rows by themselves.
                text += "\n" + following[1]
                joined, still_open = _parse(number, text, delimiter)
                if not still_open:
                    closed = joined if len(joined.values) == columns else None
                    break
            if closed is None:
                waiting.extendleft(reversed(lookahead))
            else:
                row = closed
        plain = line.split(delimiter)
        if columns and len(row.values) != columns == len(plain):
            row = QuotedRow(number, plain, proves=False, denies=True)
        columns = columns or len(row.values)
        yield row


def _parse(number: int, text: str, delimiter: str) -> tuple[QuotedRow, bool]:
    """Splits a text into cells, and returns whether the last one is quoted and not closed."""
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

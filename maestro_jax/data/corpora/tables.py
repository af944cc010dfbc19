"""The tables that corpora come with: tab, pipe or comma between columns, or JSON; or gzipped."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from maestro_jax.data.corpora.problems import Problems
from maestro_jax.data.corpora.quoting import has_quoted_cells, quoted_rows
from maestro_jax.errors import UserError


def open_text(path: Path) -> IO[str]:
    """Opens a UTF-8 file, gzipped if its name ends in `.gz`; a byte order mark is skipped.

    Bytes that are not UTF-8 are halves of surrogate pairs in what is read (`surrogateescape`).

    Raises:
        UserError: It is not there or not readable.
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
    """The lines of a text file without their ends, with numbers from 1.

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
            raise UserError(f"{path} cannot be read to its end ({error}).") from error


def _is_encodable(line: str) -> bool:
    try:
        line.encode()
    except UnicodeEncodeError:
        return False
    return True


def objects(
    path: Path, problems: Problems, *, split: str = "", name: str = ""
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The JSON objects of a file that has one a line.

    Args:
        path: The file.
        problems: Takes the lines that are none.
        split: Under which these are counted.
        name: Of the file in messages; its own if empty.

    Yields:
        File and line number, and the object; empty lines are skipped.

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
            problems.add("bad row", split=split, item=place, detail=f"no JSON: {error}")
            continue
        if not isinstance(fields, dict):
            problems.add("bad row", split=split, item=place, detail="no JSON object")
            continue
        yield place, fields


def rows(
    path: Path,
    problems: Problems,
    *,
    delimiter: str = "\t",
    escape: str = "",
    quoted: bool = False,
    columns: Sequence[str] | None = None,
    required: Sequence[str] = (),
    split: str = "",
) -> Iterator[tuple[str, dict[str, str]]]:
    r"""The rows of a table.

    By default quotation marks mean themselves: in the tables that speech corpora publish they
    belong to the sentences, often without a partner.

    Args:
        path: The file.
        problems: Takes the rows with too many or too few columns.
        delimiter: Between columns.
        escape: A character that takes the meaning from the one behind it, be it a delimiter, the
            end of the line or itself; usually a backslash. None if it is empty.
        quoted: Whether cells may be quoted, as in tables that spreadsheets, pandas or Python's csv
            module wrote; whether they are is seen from the whole table (see `quoting`).
        columns: Their names, if the file has no header.
        required: Columns that must be there; others are given as found.
        split: Under which bad rows are counted.

    Yields:
        File and line number, and the row by column; empty lines are skipped.

    Raises:
        UserError: The file cannot be read, is empty, or lacks a column.
    """
    names = None if columns is None else list(columns)
    for number, values in _cells(path, problems, delimiter, escape, quoted, split):
        if names is None:
            names = [name.strip() for name in values]
            missing = [name for name in required if name not in names]
            if missing:
                raise UserError(f"{path} has no column {missing[0]!r}; it has {', '.join(names)}.")
            continue
        place = f"{path.name}:{number}"
        if len(values) != len(names):
            problems.add(
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
    path: Path, problems: Problems, delimiter: str, escape: str, quoted: bool, split: str
) -> Iterator[tuple[int, list[str]]]:
    """The number and the cells of every line that is not empty, header included."""
    if quoted and has_quoted_cells(lines(path), delimiter):
        for row in quoted_rows(lines(path), delimiter):
            yield row.number, row.values
        return
    for number, line in _whole_lines(path, problems, escape, split):
        if line.strip():
            yield number, _values(line, delimiter, escape)


def _whole_lines(
    path: Path, problems: Problems, escape: str, split: str
) -> Iterator[tuple[int, str]]:
    """The lines, joined where the end of one is escaped, with the numbers of the first ones."""
    begun, first = "", 0
    for number, line in lines(path):
        first = first if begun else number
        line = begun + line
        begun = ""
        if escape and (len(line) - len(line.rstrip(escape))) % 2:
            begun = line + "\n"
            continue
        yield first, line
    if begun:
        place = f"{path.name}:{first}"
        problems.add("bad row", split=split, item=place, detail="its end is escaped")


def _values(line: str, delimiter: str, escape: str) -> list[str]:
    """The values between delimiters, without the characters that escape others."""
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

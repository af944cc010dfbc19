"""The tables that corpora come with: tab, pipe or comma between columns, plain or gzipped."""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from maestro_jax.data.corpora.problems import Problems
from maestro_jax.errors import UserError


def open_text(path: Path) -> IO[str]:
    """Opens a UTF-8 file, gzipped if its name ends in `.gz`; a byte order mark is skipped.

    Raises:
        UserError: It is not there or not readable.
    """
    try:
        raw: IO[bytes] = gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")
    except OSError as error:
        raise UserError(f"{path} cannot be opened: {error.strerror or error}.") from error
    return io.TextIOWrapper(raw, encoding="utf-8-sig", errors="strict", newline="\n")


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a text file without their ends, with numbers from 1.

    Raises:
        UserError: The file cannot be read, or is not UTF-8.
    """
    with open_text(path) as file:
        try:
            for number, line in enumerate(file, start=1):
                yield number, line.rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is not UTF-8 ({error.reason}); convert it.") from error
        except (OSError, EOFError) as error:
            raise UserError(f"{path} cannot be read to its end ({error}).") from error


def rows(
    path: Path,
    problems: Problems,
    *,
    delimiter: str = "\t",
    columns: Sequence[str] | None = None,
    required: Sequence[str] = (),
    split: str = "",
) -> Iterator[tuple[str, dict[str, str]]]:
    r"""The rows of a table.

    Quotation marks mean themselves: in the tables of speech corpora they belong to the sentences,
    often without a partner.

    Args:
        path: The file.
        problems: Takes the rows with too many or too few columns.
        delimiter: Between columns.
        columns: Their names, if the file has no header.
        required: Columns that must be there; others are given as found.
        split: Under which bad rows are counted.

    Yields:
        File and line number, and the row by column; empty lines are skipped.

    Raises:
        UserError: The file cannot be read, is empty, or lacks a column.
    """
    names = None if columns is None else list(columns)
    for number, line in lines(path):
        if not line.strip():
            continue
        values = line.split(delimiter)
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

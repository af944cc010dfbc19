"""Common parts of the benchmarks: options, a description of the machine, tables in the docs."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import pathlib
import platform
import sys
from collections.abc import Sequence

from rows import Table
from timing import machine, progress

DOCUMENT = pathlib.Path(__file__).resolve().parent.parent / "docs" / "results" / "benchmarks.md"


def sizes(text: str) -> tuple[tuple[int, ...], ...]:
    """Parses `2x750x512,4x40x10` into tuples."""
    return tuple(tuple(int(n) for n in size.split("x")) for size in text.split(","))


def add_options(parser: argparse.ArgumentParser, parts: Sequence[str]) -> None:
    """Adds the options for parts, repeats, the peers' interpreter and the output."""
    parser.add_argument(
        "--only", choices=parts, action="append", help="run only this part; may be repeated"
    )
    parser.add_argument("--repeats", type=int, default=7, help="number of timed rounds (default 7)")
    parser.add_argument(
        "--peers_python",
        default=os.environ.get("MAESTRO_PEERS_PYTHON", sys.executable),
        help="Python interpreter with the peers (default $MAESTRO_PEERS_PYTHON, else this one)",
    )
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true", help="print JSON")
    output.add_argument("--markdown", action="store_true", help="print the tables as Markdown")
    output.add_argument(
        "--update_docs", action="store_true", help=f"write the tables into {DOCUMENT}"
    )


def check_sizes(
    parser: argparse.ArgumentParser, option: str, letters: str, given: Sequence[tuple[int, ...]]
) -> None:
    """Refuses sizes whose number of axes is not that of `letters`, as in BxTxU."""
    for size in given:
        if len(size) != letters.count("x") + 1:
            parser.error(f"--{option}: {'x'.join(map(str, size))} is not {letters}")


def environment(packages: Sequence[str]) -> str:
    """Returns one line with the machine and the versions that affect speed."""
    versions = [f"{name} {importlib.metadata.version(name)}" for name in packages]
    return f"{machine()}; Python {platform.python_version()}, {', '.join(versions)}"


def markdown(name: str, tables: Sequence[Table], repeats: int, ran_on: str) -> str:
    """Returns the text between the marks of the document, with the command that prints it."""
    head = (
        f"Printed again by `python benchmarks/{name}.py --markdown` "
        f"(`--update_docs` writes it here).\nBest of {repeats}, on: {ran_on}."
    )
    return "\n\n".join([head, *(table.markdown() for table in tables)]) + "\n"


def put_out(
    name: str, tables: Sequence[Table], arguments: argparse.Namespace, packages: Sequence[str]
) -> None:
    """Prints or writes the tables as the options say; plain text is already printed."""
    ran_on = environment(packages)
    if arguments.json:
        content = {"environment": ran_on, "tables": [table.as_json() for table in tables]}
        print(json.dumps(content, indent=2, ensure_ascii=False))
    elif arguments.markdown:
        print(markdown(name, tables, arguments.repeats, ran_on), end="")
    else:
        print(ran_on)
    if arguments.update_docs:
        begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
        before, rest = DOCUMENT.read_text().split(begin)
        after = rest.split(end)[1]
        content = markdown(name, tables, arguments.repeats, ran_on)
        DOCUMENT.write_text(f"{before}{begin}\n{content}{end}{after}")
        progress(f"wrote {DOCUMENT}")

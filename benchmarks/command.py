"""What the benchmarks share: options, what they ran on, and tables in the document."""

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
    """`2x750x512,4x40x10` as tuples."""
    return tuple(tuple(int(n) for n in size.split("x")) for size in text.split(","))


def add_options(parser: argparse.ArgumentParser, parts: Sequence[str]) -> None:
    """Which parts, how often, where the peers are, and what becomes of the tables."""
    parser.add_argument("--only", choices=parts, action="append", help="a part; may be repeated")
    parser.add_argument("--repeats", type=int, default=7, help="rounds that count (default 7)")
    parser.add_argument(
        "--peers_python",
        default=os.environ.get("MAESTRO_PEERS_PYTHON", sys.executable),
        help="the interpreter that has the peers; by default $MAESTRO_PEERS_PYTHON, else this one",
    )
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true", help="print JSON")
    output.add_argument("--markdown", action="store_true", help="print the tables for a document")
    output.add_argument("--update_docs", action="store_true", help=f"write them into {DOCUMENT}")


def check_sizes(
    parser: argparse.ArgumentParser, option: str, letters: str, given: Sequence[tuple[int, ...]]
) -> None:
    """Refuse sizes of another number of axes than `letters`, as in BxTxU, has."""
    for size in given:
        if len(size) != letters.count("x") + 1:
            parser.error(f"--{option}: {'x'.join(map(str, size))} is not {letters}")


def environment(packages: Sequence[str]) -> str:
    """The machine and the versions that decide about speed, one line."""
    versions = [f"{name} {importlib.metadata.version(name)}" for name in packages]
    return f"{machine()}; Python {platform.python_version()}, {', '.join(versions)}"


def markdown(name: str, tables: Sequence[Table], repeats: int, ran_on: str) -> str:
    """What stands between the document's marks, with the command that prints it again."""
    head = (
        f"Printed again by `python benchmarks/{name}.py --markdown` "
        f"(`--update_docs` writes it here).\nBest of {repeats}, on: {ran_on}."
    )
    return "\n\n".join([head, *(table.markdown() for table in tables)]) + "\n"


def put_out(
    name: str, tables: Sequence[Table], arguments: argparse.Namespace, packages: Sequence[str]
) -> None:
    """Prints or writes the tables, as the options say; plain text has been printed part by part."""
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

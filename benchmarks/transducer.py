"""The transducer's speed and memory beside what one would use otherwise.

    python benchmarks/transducer.py                 # everything, some minutes
    python benchmarks/transducer.py --only logits   # one part
    python benchmarks/transducer.py --update_docs   # and write the tables into docs/benchmarks.md

joint: from the joint network's inputs to all gradients, in chunks and as a whole lattice.
logits: the loss from ready logits, beside torchaudio and warprnnt-numba.
decoding: greedy and beam search over a minute of speech, beside a Python loop.

Every contender runs in a process of its own, pinned to its cores; they take turns, round by round.
Times are the best of the repeats, without compilation, which is reported apart.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import pathlib
import platform
import sys

import decoding_speed
import joint_loss
import logits_loss
from rows import Table
from timing import available_cores, machine, progress

PARTS = ("joint", "logits", "decoding")
DOCUMENT = pathlib.Path(__file__).resolve().parent.parent / "docs" / "benchmarks.md"
BEGIN, END = "<!-- transducer: begin -->", "<!-- transducer: end -->"


def sizes(text: str) -> tuple[tuple[int, ...], ...]:
    """`8x250x60x1024x640,4x40x10x64x128` as tuples."""
    return tuple(tuple(int(n) for n in size.split("x")) for size in text.split(","))


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=PARTS, action="append", help="a part; may be repeated")
    parser.add_argument("--repeats", type=int, default=7, help="rounds that count (default 7)")
    parser.add_argument(
        "--joint_sizes",
        type=sizes,
        default=joint_loss.SIZES,
        metavar="BxTxUxVxH,...",
        help="batch, frames, labels, vocabulary, joint features",
    )
    parser.add_argument(
        "--logits_sizes", type=sizes, default=logits_loss.SIZES, metavar="BxTxUxV,..."
    )
    parser.add_argument("--seconds", type=float, default=60.0, help="of speech to decode")
    parser.add_argument("--model_dir", help="decode with a trained model instead of random weights")
    parser.add_argument(
        "--peers_python",
        default=os.environ.get("MAESTRO_PEERS_PYTHON", sys.executable),
        help="the interpreter that has torchaudio and warprnnt-numba; by default "
        "$MAESTRO_PEERS_PYTHON, else this one",
    )
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true", help="print JSON")
    output.add_argument("--markdown", action="store_true", help="print the tables of the document")
    output.add_argument("--update_docs", action="store_true", help=f"write them into {DOCUMENT}")
    arguments = parser.parse_args()
    for name, letters in (("joint_sizes", "BxTxUxVxH"), ("logits_sizes", "BxTxUxV")):
        for size in getattr(arguments, name):
            if len(size) != letters.count("x") + 1:
                parser.error(f"--{name}: {'x'.join(map(str, size))} is not {letters}")
    if arguments.repeats < 1:
        parser.error("--repeats must be at least 1")
    if arguments.update_docs and arguments.only:
        parser.error("--update_docs writes all parts: leave --only out")
    return arguments


def environment() -> str:
    """The machine and the versions that decide about speed, one line."""
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("jax", "jaxlib", "numpy")]
    return f"{machine()}; Python {platform.python_version()}, {', '.join(versions)}"


def markdown(tables: list[Table], repeats: int) -> str:
    """What stands between the document's marks, with the command that prints it again."""
    head = (
        "Printed again by `python benchmarks/transducer.py --markdown` "
        f"(`--update_docs` writes it here).\nBest of {repeats}, on: {environment()}."
    )
    return "\n\n".join([head, *(table.markdown() for table in tables)]) + "\n"


def main() -> None:
    """Measures and prints."""
    arguments = parse_arguments()
    parts = arguments.only or PARTS
    tables = []
    for part in PARTS:
        if part not in parts:
            continue
        if part == "joint":
            table = joint_loss.measure(arguments.joint_sizes, arguments.repeats, available_cores())
        elif part == "logits":
            table = logits_loss.measure(
                arguments.logits_sizes, arguments.repeats, arguments.peers_python
            )
        else:
            table = decoding_speed.measure(
                arguments.seconds, arguments.repeats, arguments.model_dir
            )
        tables.append(table)
        if not arguments.json and not arguments.markdown:
            print(f"{table.text()}\n", flush=True)
    if arguments.json:
        print(
            json.dumps(
                {"environment": environment(), "tables": [table.as_json() for table in tables]},
                indent=2,
                ensure_ascii=False,
            )
        )
    elif arguments.markdown:
        print(markdown(tables, arguments.repeats), end="")
    else:
        print(environment())
    if arguments.update_docs:
        text = DOCUMENT.read_text()
        before, rest = text.split(BEGIN)
        after = rest.split(END)[1]
        DOCUMENT.write_text(f"{before}{BEGIN}\n{markdown(tables, arguments.repeats)}{END}{after}")
        progress(f"wrote {DOCUMENT}")


if __name__ == "__main__":
    main()

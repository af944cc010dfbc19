"""How fast the model trains, and a Conformer layer beside transformers'.

    python benchmarks/train_step.py                    # everything, some minutes
    python benchmarks/train_step.py --only layer       # one part
    python benchmarks/train_step.py --only step --model base --rows 16 --seconds 15
    python benchmarks/train_step.py --update_docs      # and write the tables into the document

step: a whole training step of tiny and base: seconds, model FLOPs, and their share of the speed of
    a large matrix product in the same run; on a GPU or TPU that the planner's table knows, of the
    vendor's peak too. It takes whatever device JAX finds.
layer: one Conformer layer of base's and of the paper's size beside transformers'
    Wav2Vec2ConformerEncoderLayer on CPU PyTorch, forward, and forward and backward; on CPU always.

Every contender runs in a process of its own; they take turns, round by round. Times are the best of
the repeats, without compilation.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import pathlib
import platform
import sys

import conformer_layer
import step_speed
from rows import Table
from timing import available_cores, machine, progress

PARTS = ("step", "layer")
DOCUMENT = pathlib.Path(__file__).resolve().parent.parent / "docs" / "benchmarks.md"
BEGIN, END = "<!-- train_step: begin -->", "<!-- train_step: end -->"


def sizes(text: str) -> tuple[tuple[int, ...], ...]:
    """`2x750x512x8x2048,2x750x1024x8x4096` as tuples."""
    return tuple(tuple(int(n) for n in size.split("x")) for size in text.split(","))


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=PARTS, action="append", help="a part; may be repeated")
    parser.add_argument("--repeats", type=int, default=7, help="rounds that count (default 7)")
    parser.add_argument(
        "--model",
        choices=("tiny", "base", "xl"),
        help="one model instead of tiny and base, with --rows and --seconds",
    )
    parser.add_argument("--rows", type=int, default=1, help="examples a stream and device")
    parser.add_argument("--seconds", type=float, default=6.0, help="padded length of the speech")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        help="what the step is computed in (default: float32 on CPUs, else bfloat16)",
    )
    parser.add_argument(
        "--layer_sizes",
        type=sizes,
        default=conformer_layer.SIZES,
        metavar="BxTxDxHxF,...",
        help="batch, frames, features, heads, hidden",
    )
    parser.add_argument(
        "--peers_python",
        default=os.environ.get("MAESTRO_PEERS_PYTHON", sys.executable),
        help="the interpreter that has PyTorch and transformers; by default "
        "$MAESTRO_PEERS_PYTHON, else this one",
    )
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true", help="print JSON")
    output.add_argument("--markdown", action="store_true", help="print the tables for a document")
    output.add_argument("--update_docs", action="store_true", help=f"write them into {DOCUMENT}")
    arguments = parser.parse_args()
    for size in arguments.layer_sizes:
        if len(size) != 5:
            parser.error(f"--layer_sizes: {'x'.join(map(str, size))} is not BxTxDxHxF")
    if arguments.repeats < 1 or arguments.rows < 1 or arguments.seconds <= 0:
        parser.error("--repeats and --rows must be at least 1, and --seconds above 0")
    if arguments.update_docs and (arguments.only or arguments.model):
        parser.error("--update_docs writes all parts: leave --only and --model out")
    return arguments


def environment() -> str:
    """The machine and the versions that decide about speed, one line."""
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("jax", "jaxlib")]
    return f"{machine()}; Python {platform.python_version()}, {', '.join(versions)}"


def measure(part: str, arguments: argparse.Namespace) -> Table:
    """One part's table."""
    if part == "layer":
        cores = min(2, available_cores())
        return conformer_layer.measure(
            arguments.layer_sizes, arguments.repeats, cores, arguments.peers_python
        )
    settings = None
    if arguments.model:
        settings = (step_speed.Setting(arguments.model, arguments.rows, arguments.seconds),)
    devices = os.environ.get("JAX_PLATFORMS", "")
    return step_speed.measure(settings, arguments.dtype, arguments.repeats, devices)


def markdown(tables: list[Table], repeats: int) -> str:
    """What stands between the document's marks, with the command that prints it again."""
    head = (
        "Printed again by `python benchmarks/train_step.py --markdown` "
        f"(`--update_docs` writes it here).\nBest of {repeats}, on: {environment()}."
    )
    return "\n\n".join([head, *(table.markdown() for table in tables)]) + "\n"


def main() -> None:
    """Measures and prints."""
    arguments = parse_arguments()
    tables = []
    for part in PARTS:
        if part in (arguments.only or PARTS):
            table = measure(part, arguments)
            tables.append(table)
            if not arguments.json and not arguments.markdown:
                print(f"{table.text()}\n", flush=True)
    if arguments.json:
        content = {
            "environment": environment(),
            "tables": [table.as_json() for table in tables],
        }
        print(json.dumps(content, indent=2, ensure_ascii=False))
    elif arguments.markdown:
        print(markdown(tables, arguments.repeats), end="")
    else:
        print(environment())
    if arguments.update_docs:
        before, rest = DOCUMENT.read_text().split(BEGIN)
        after = rest.split(END)[1]
        content = markdown(tables, arguments.repeats)
        DOCUMENT.write_text(f"{before}{BEGIN}\n{content}{END}{after}")
        progress(f"wrote {DOCUMENT}")


if __name__ == "__main__":
    main()

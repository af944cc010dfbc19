"""Measures training steps, and a Conformer layer against transformers'.

    python benchmarks/train_step.py                    # everything, some minutes
    python benchmarks/train_step.py --only layer       # one part
    python benchmarks/train_step.py --only step --model base --rows 16 --seconds 15
    python benchmarks/train_step.py --update_docs      # also write the tables into the docs

step: a whole training step of tiny and base: seconds, model FLOPs per second, and their fraction
    of the speed of a large matrix product in the same run; on a GPU or TPU of the planner's table,
    also of the vendor's peak. It runs on the device that JAX finds.
layer: a Conformer layer of base's and of the paper's size against transformers'
    Wav2Vec2ConformerEncoderLayer on CPU PyTorch, forward, and forward and backward, always on CPU.

Every contender runs in a process of its own; they take turns, round by round. Times are the best of
the repeats, without compilation.
"""

from __future__ import annotations

import argparse
import os

import conformer_layer
import step_speed
from command import add_options, check_sizes, put_out, sizes
from rows import Table
from timing import available_cores

PARTS = ("step", "layer")


def parse_arguments() -> argparse.Namespace:
    """Returns the parser of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser, PARTS)
    parser.add_argument(
        "--model",
        choices=("tiny", "base", "xl"),
        help="measure one model, with --rows and --seconds, instead of tiny and base",
    )
    parser.add_argument("--rows", type=int, default=1, help="examples per stream and device")
    parser.add_argument("--seconds", type=float, default=6.0, help="padded seconds of speech")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        help="computation dtype (default: float32 on CPUs, else bfloat16)",
    )
    parser.add_argument(
        "--layer_sizes",
        type=sizes,
        default=conformer_layer.SIZES,
        metavar="BxTxDxHxF,...",
        help="batch, frames, features, heads, hidden",
    )
    arguments = parser.parse_args()
    check_sizes(parser, "layer_sizes", "BxTxDxHxF", arguments.layer_sizes)
    if arguments.repeats < 1 or arguments.rows < 1 or arguments.seconds <= 0:
        parser.error("--repeats and --rows must be at least 1, and --seconds above 0")
    if arguments.update_docs and (arguments.only or arguments.model):
        parser.error("--update_docs writes all parts: leave --only and --model out")
    return arguments


def measure(part: str, arguments: argparse.Namespace) -> Table:
    """Returns the table of one part."""
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


def main() -> None:
    """Runs the benchmark."""
    arguments = parse_arguments()
    tables = []
    for part in PARTS:
        if part in (arguments.only or PARTS):
            table = measure(part, arguments)
            tables.append(table)
            if not arguments.json and not arguments.markdown:
                print(f"{table.text()}\n", flush=True)
    put_out("train_step", tables, arguments, ("jax", "jaxlib"))


if __name__ == "__main__":
    main()

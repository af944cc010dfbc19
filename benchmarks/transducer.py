"""Measures speed and memory of the transducer against alternatives.

    python benchmarks/transducer.py                 # everything, some minutes
    python benchmarks/transducer.py --only logits   # one part
    python benchmarks/transducer.py --update_docs   # writes docs/results/benchmarks.md

joint: joint network and loss with all gradients, in chunks and as a whole lattice.
logits: the loss from given logits, against torchaudio and warprnnt-numba.
decoding: greedy and beam search over a minute of speech, against a Python loop.

Every contender runs in its own process, pinned to its cores; they take turns. Times are the best of
the repeats, without compilation, which is reported separately.
"""

from __future__ import annotations

import argparse

import decoding_speed
import joint_loss
import logits_loss
from command import add_options, check_sizes, put_out, sizes
from timing import available_cores

PARTS = ("joint", "logits", "decoding")


def parse_arguments() -> argparse.Namespace:
    """Returns the parser of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser, PARTS)
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
    parser.add_argument("--seconds", type=float, default=60.0, help="seconds of speech to decode")
    parser.add_argument("--model_dir", help="decode with a trained model instead of random weights")
    arguments = parser.parse_args()
    for name, letters in (("joint_sizes", "BxTxUxVxH"), ("logits_sizes", "BxTxUxV")):
        check_sizes(parser, name, letters, getattr(arguments, name))
    if arguments.repeats < 1:
        parser.error("--repeats must be at least 1")
    if arguments.update_docs and arguments.only:
        parser.error("--update_docs writes all parts: leave --only out")
    return arguments


def main() -> None:
    """Runs the benchmark."""
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
    put_out("transducer", tables, arguments, ("jax", "jaxlib", "numpy"))


if __name__ == "__main__":
    main()

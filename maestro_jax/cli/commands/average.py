"""`maestro average`: short for `maestro checkpoints MODEL_DIR average`."""

from __future__ import annotations

import argparse

from maestro_jax.cli.commands import checkpoints


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.add_argument("model_dir", metavar="MODEL_DIR", help="model directory of a run")
    checkpoints.add_average_options(parser)


def run(arguments: argparse.Namespace) -> None:
    """Runs the command."""
    checkpoints.average(arguments)

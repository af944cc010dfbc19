"""`maestro average`: averages the last checkpoints of a run."""

from __future__ import annotations

import argparse

from maestro_jax.cli import environment, options
from maestro_jax.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.add_argument("model_dir", metavar="MODEL_DIR", help="model directory of a run")
    parser.add_argument(
        "--last",
        type=options.positive,
        metavar="N",
        help="number of checkpoints, the last ones; default: 5",
    )
    parser.add_argument(
        "--step",
        action="extend",
        type=_steps,
        default=[],
        metavar="STEP,STEP",
        help="steps of the checkpoints, instead of the last ones; repeatable",
    )
    parser.add_argument(
        "--output",
        metavar="DIR",
        help="model directory to write; default: `averaged` in MODEL_DIR",
    )


def run(arguments: argparse.Namespace) -> None:
    """Runs the command."""
    if arguments.step and arguments.last:
        raise UserError("--last and --step both name the checkpoints: give only one of them")
    environment.prepare_process()
    from maestro_jax.files import absolute_path
    from maestro_jax.gin_utils import run_record
    from maestro_jax.provenance import command_line
    from maestro_jax.training.averaging import (
        AVERAGED_DIRECTORY,
        average_checkpoints,
        last_steps,
    )

    # Read first: nothing is written for a directory of something else.
    names = ("config.gin", "operative_config.gin")
    texts = {name: run_record.latest(arguments.model_dir, name).read_text() for name in names}
    steps = arguments.step or last_steps(arguments.model_dir, arguments.last or 5)
    source = absolute_path(arguments.model_dir)
    output = absolute_path(arguments.output) if arguments.output else source / AVERAGED_DIRECTORY
    written = average_checkpoints(source, steps, output)
    run_record.write(output, texts, command_line())
    print(
        f"{written} is the mean of the steps {', '.join(map(str, sorted(set(steps))))}. "
        f"Score it: maestro eval --model_dir {output}"
    )


def _steps(text: str) -> list[int]:
    """Parses steps separated by commas."""
    numbers = options.names(text)
    if not numbers or not all(number.isdecimal() for number in numbers):
        raise argparse.ArgumentTypeError(f"{text!r} is not steps such as 1000,2000")
    return [int(number) for number in numbers]

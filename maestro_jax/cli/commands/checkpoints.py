"""`maestro checkpoints`: lists, verifies, removes and averages the checkpoints of a run."""

from __future__ import annotations

import argparse

from maestro_jax.cli import environment, options
from maestro_jax.errors import UserError

_ACTIONS = ("list", "verify", "prune", "average")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.add_argument("model_dir", metavar="MODEL_DIR", help="model directory of a run")
    parser.add_argument(
        "action",
        nargs="?",
        choices=_ACTIONS,
        default="list",
        help="list: a table of step, size, date and state (default); verify: read every array, and "
        "fail if a checkpoint is damaged; prune: remove older ones; average: write the mean of the "
        "last ones as a model directory",
    )
    parser.add_argument(
        "--keep_last",
        type=options.positive,
        metavar="N",
        help="prune: keep the newest N whole checkpoints; the best one is always kept",
    )
    parser.add_argument(
        "--keep_every",
        type=options.positive,
        metavar="STEPS",
        help="prune: keep also those whose step is a multiple of STEPS",
    )
    parser.add_argument(
        "--yes",
        action="store_true",
        help="prune: remove them; without it, only print which ones",
    )
    add_average_options(parser, "average: ")


def add_average_options(parser: argparse.ArgumentParser, prefix: str = "") -> None:
    """Adds the options that choose the checkpoints to average."""
    parser.add_argument(
        "--last",
        type=options.positive,
        metavar="N",
        help=f"{prefix}number of checkpoints, the last ones; default: 5",
    )
    parser.add_argument(
        "--step",
        action="extend",
        type=_steps,
        default=[],
        metavar="STEP,STEP",
        help=f"{prefix}steps of the checkpoints, instead of the last ones; repeatable",
    )
    parser.add_argument(
        "--output",
        metavar="DIR",
        help=f"{prefix}model directory to write; default: `averaged` in MODEL_DIR",
    )


def run(arguments: argparse.Namespace) -> None:
    """Runs the command."""
    _check_options(arguments)
    if arguments.action == "average":
        average(arguments)
        return
    environment.prepare_process()
    from maestro_jax.tables import table
    from maestro_jax.training.checkpoint_inventory import summaries

    found = list(summaries(arguments.model_dir, thorough=arguments.action == "verify"))
    if arguments.action == "prune":
        _prune(arguments, found)
        return
    print(table([checkpoint.row() for checkpoint in found]))
    damaged = [checkpoint for checkpoint in found if checkpoint.damage is not None]
    if arguments.action == "verify" and damaged:
        first = damaged[0]
        raise UserError(
            f"{len(damaged)} of {len(found)} checkpoints are damaged, {first.directory} first "
            f"({first.damage}); copy it again from where it is whole, or remove it."
        )


def average(arguments: argparse.Namespace) -> None:
    """Averages checkpoints, as the options of `add_average_options` choose them."""
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


def _prune(arguments: argparse.Namespace, found: list) -> None:
    from maestro_jax.tables import table
    from maestro_jax.training.checkpoint_inventory import superfluous

    removed = superfluous(found, keep_last=arguments.keep_last, keep_every=arguments.keep_every)
    if not removed:
        print("nothing to remove")
        return
    print(table([checkpoint.row() for checkpoint in removed]))
    size = f"{sum(checkpoint.size for checkpoint in removed) / 1e9:.3f} GB"
    if not arguments.yes:
        print(f"{len(removed)} of {len(found)} checkpoints, {size}: --yes removes them")
        return
    for checkpoint in removed:
        checkpoint.directory.rmtree()
    print(f"removed {len(removed)} of {len(found)} checkpoints, {size}")


def _check_options(arguments: argparse.Namespace) -> None:
    """Refuses options of other actions, which would be ignored."""
    given = {
        "prune": {"--keep_last": arguments.keep_last, "--keep_every": arguments.keep_every}
        | {"--yes": arguments.yes or None},
        "average": {"--last": arguments.last, "--output": arguments.output}
        | {"--step": arguments.step or None},
    }
    for action, values in given.items():
        for name, value in values.items():
            if value is not None and action != arguments.action:
                raise UserError(
                    f"{name} belongs to `maestro checkpoints MODEL_DIR {action}`, not to "
                    f"{arguments.action}"
                )
    if arguments.action == "prune" and arguments.keep_last is None:
        raise UserError("prune needs --keep_last N: the number of newest checkpoints to keep")


def _steps(text: str) -> list[int]:
    """Parses steps separated by commas."""
    numbers = options.names(text)
    if not numbers or not all(number.isdecimal() for number in numbers):
        raise argparse.ArgumentTypeError(f"{text!r} is not steps such as 1000,2000")
    return [int(number) for number in numbers]

"""`maestro tasks`: lists the tasks and mixtures that runs can name."""

from __future__ import annotations

import argparse
import dataclasses
import json

from maestro_jax.cli import environment, options
from maestro_jax.errors import UserError, near_misses
from maestro_jax.tables import table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.add_argument(
        "filter", nargs="?", default="", metavar="TEXT", help="list only names that contain TEXT"
    )
    options.add_data_dir(parser)
    options.add_json(parser)


def run(arguments: argparse.Namespace) -> None:
    """Runs the command."""
    environment.prepare_process(tensorflow=True)
    from maestro_jax.data.task_registry import list_tasks

    tasks = list_tasks(arguments.data_dir)
    rows = [dataclasses.asdict(task) for task in tasks if arguments.filter in task.name]
    if arguments.json:
        print(json.dumps(rows, indent=2, ensure_ascii=False))
    elif rows:
        commands = dict.fromkeys(command for row in rows for command in row.pop("missing"))
        print(table(rows))
        if arguments.filter and commands:
            # Without a filter, this would be every corpus that there is.
            print("\nTo make all of them ready, run:")
            print("\n".join(f"  {command}" for command in commands))
    else:
        # Names begin with that of the corpus: minivox_small_paired.
        parts = [task.name.split("_")[0] for task in tasks] + [task.name for task in tasks]
        raise UserError(
            f"no task or mixture has {arguments.filter!r} in its name."
            f"{near_misses(arguments.filter, dict.fromkeys(parts))}"
        )

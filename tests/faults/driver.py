"""A small real run, for the campaign: a toy model, and batches that are read from a file.

    python -m tests.faults.driver --model_dir DIR --data_dir DIR --steps 60

It runs under the error handling of the `maestro` command. With `JAX_COORDINATOR_ADDRESS`,
`JAX_NUM_PROCESSES` and `JAX_PROCESS_ID`, it is one of several processes.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from maestro_jax.cli import main as command_line
from tests.faults.control import CONTROL, Control

BATCHES = "batches.bin"
"""File in the data directory: for each step, the seed of its batch, 8 bytes."""
PROBE_EVERY = 20


def write_data(directory: pathlib.Path, steps: int) -> None:
    """Writes the data of a run."""
    directory.mkdir(parents=True, exist_ok=True)
    seeds = np.random.default_rng(0).integers(2**31, size=steps, dtype=np.int64)
    (directory / BATCHES).write_bytes(seeds.tobytes())


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options, of which some are those of `maestro train`."""
    parser.add_argument("--model_dir", required=True)
    parser.add_argument("--data_dir", required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--log_every", type=int, default=2)
    parser.add_argument("--checkpoint_every", type=int, default=5)


def run(arguments: argparse.Namespace) -> None:
    """Trains, as `maestro train` does."""
    from maestro_jax.cli import environment

    environment.prepare_process()
    environment.enable_compilation_cache()
    from maestro_jax.training import distributed

    distributed.initialize()
    import jax

    sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "training"))
    from conftest import ProbedObjective, ProbedToy, held_out, toy_batches, toy_run

    from maestro_jax.training.diagnostics import DiagnosticsConfig
    from maestro_jax.training.partitioning import Partitioning
    from maestro_jax.training.trainer import train

    partitioning = Partitioning(mesh_shape=(-1, 1, 1))
    index, count = partitioning.data_shard(partitioning.mesh())
    control = Control(os.environ[CONTROL]) if CONTROL in os.environ else None
    rows = 8 // count

    def batches(start: int) -> Iterator[Any]:
        file = os.open(os.path.join(arguments.data_dir, BATCHES), os.O_RDONLY)
        for step in range(start, arguments.steps):
            if control is not None:
                time.sleep(control.pace)
                if index == 0:
                    control.progress = step
            seed = int(np.frombuffer(os.pread(file, 8, 8 * step), np.int64)[0])
            batch = next(toy_batches(seed))
            yield jax.tree.map(lambda x: x[index * rows : (index + 1) * rows], batch)

    train_run = toy_run(
        model=ProbedToy(),
        objective=ProbedObjective(),
        diagnostics=DiagnosticsConfig(every=PROBE_EVERY),
        partitioning=partitioning,
        steps=arguments.steps,
        log_every=arguments.log_every,
        checkpoint_every=arguments.checkpoint_every,
    )
    with distributed.ending_together():
        train(train_run, arguments.model_dir, batches=batches, held_out=held_out())


if __name__ == "__main__":
    # A command like the others: what it raises becomes their lines and exit statuses.
    sys.modules["maestro_jax.cli.commands.train"] = sys.modules["__main__"]
    sys.exit(command_line.main(["train", *sys.argv[1:]]))

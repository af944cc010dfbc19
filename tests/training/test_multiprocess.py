"""Two processes train as one does."""

from __future__ import annotations

import json
import os
import pathlib
import socket
import subprocess
import sys
import textwrap

import jax
import numpy as np
import pytest

from maestro_jax.training.checkpoint_files import damage
from maestro_jax.training.diagnostics import DiagnosticsConfig
from maestro_jax.training.partial_restore import restore_params
from maestro_jax.training.partitioning import Partitioning
from maestro_jax.training.trainer import train

pytestmark = pytest.mark.multiprocess

_PROCESS = """
    import logging, os, resource, sys, time
    sys.path.insert(0, sys.argv[1])
    from maestro_jax.training import distributed
    assert distributed.initialize()
    import jax
    from conftest import ProbedObjective, ProbedToy, held_out, toy_batches, toy_run
    from maestro_jax.training import checkpointer
    from maestro_jax.training.callbacks import Callback
    from maestro_jax.training.diagnostics import DiagnosticsConfig
    from maestro_jax.training.trainer import train
    from maestro_jax.training.partitioning import Partitioning
    logging.basicConfig(level=logging.INFO, force=True)
    partitioning = Partitioning(mesh_shape=(-1, 2, 2))
    index, count = partitioning.data_shard(partitioning.mesh())
    assert (index, count) == (jax.process_index(), 2)

    def own_rows(start):
        for batch in toy_batches(start):
            time.sleep(float(sys.argv[4]))
            yield jax.tree.map(lambda x: x[index * 4 : (index + 1) * 4], batch)

    class FullDisk(Callback):
        # Lets this process write no large files after step 2, until step 6.
        def on_step(self, trainer, info):
            if info.step in (2, 6):
                size = 50_000 if info.step == 2 else resource.RLIM_INFINITY
                resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
            time.sleep(0.3)

    steps = int(sys.argv[3])
    changes, callbacks = {}, ()
    if "FULL_DISK" in os.environ:
        checkpointer.FIRST_PAUSE = 0.1
        changes = {"checkpoint_every": 3, "log_every": 1, "model": ProbedToy(hidden=20_000)}
        if int(os.environ["FULL_DISK"]) == index:
            callbacks = (FullDisk(),)
    arguments = {"checkpoint_every": 1_000_000, "model": ProbedToy()} | changes
    run = toy_run(
        partitioning=partitioning, steps=steps, objective=ProbedObjective(),
        diagnostics=DiagnosticsConfig(every=steps), **arguments,
    )
    train(run, sys.argv[2], batches=own_rows, held_out=held_out(), callbacks=callbacks)
"""


def _start(index, port, *arguments):
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
        "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
        "JAX_NUM_PROCESSES": "2",
        "JAX_PROCESS_ID": str(index),
    }
    here = str(pathlib.Path(__file__).parent)
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(_PROCESS), here, *map(str, arguments)],
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=pathlib.Path(__file__).parents[2],
    )


def _free_port():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def test_two_processes_train_as_one_does(toy, tmp_path):
    port = _free_port()
    processes = [_start(index, port, tmp_path / "two", 6, 0.0) for index in range(2)]
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(errors)
    run = toy.run(
        partitioning=Partitioning(mesh_shape=(-1, 2, 2)),
        model=toy.ProbedModel(),
        objective=toy.ProbedObjective(),
        diagnostics=DiagnosticsConfig(every=6),
    )
    state = train(run, tmp_path / "one", batches=toy.batches, held_out=toy.held_out())
    theirs = restore_params(tmp_path / "two", "params")
    for a, b in zip(*map(jax.tree.leaves, (theirs, state.params)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
    two, one = (
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("two", "one")
    )
    assert [line["step"] for line in two] == [0, 2, 4, 6]
    for here, there in ((two[0], one[0]), (two[-1], one[-1])):
        seen = [name for name in there if name.startswith(("probe/", "grad_norm/"))]
        assert "probe/heard" in seen and here["probe/heard"] == there["probe/heard"]
        for name in seen:
            np.testing.assert_allclose(here[name], there[name], rtol=1e-3, err_msg=name)
    for name in ("00000000", "00000006"):
        here, there = (
            np.load(tmp_path / run / "diagnostics" / f"{name}.npz") for run in ("two", "one")
        )
        for key in there.files:
            np.testing.assert_array_equal(here[key], there[key])


@pytest.mark.slow
@pytest.mark.parametrize("full", [0, 1])
def test_both_go_on_while_the_disk_of_one_is_full(tmp_path, monkeypatch, full):
    monkeypatch.setenv("FULL_DISK", str(full))
    port = _free_port()
    processes = [_start(index, port, tmp_path, 12, 0.0) for index in range(2)]
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(errors)
    assert "File too large): attempt 1 of 10" in errors[0] or "process 1 could not" in errors[0]
    assert "the storage works again" in errors[0] and "Traceback" not in "".join(errors)
    steps = sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir())
    assert steps[-1] == 12
    assert damage(tmp_path / "checkpoints" / "12") is None

"""Two processes stop together, and notice when one is lost or hangs."""

from __future__ import annotations

import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import textwrap
import time

import jax
import pytest

from maestro_jax.training.partitioning import Partitioning
from maestro_jax.training.trainer import Trainer

pytestmark = pytest.mark.multiprocess

_PROCESS = """
    import logging, os, signal, sys, time
    sys.path.insert(0, sys.argv[1])
    from maestro_jax.training import distributed
    assert distributed.initialize()
    import jax
    from conftest import toy_batches, toy_run
    from maestro_jax.training.callbacks import Callback
    from maestro_jax.training.partitioning import Partitioning
    from maestro_jax.training.trainer import train
    from maestro_jax.training.watchdog import WatchdogConfig
    logging.basicConfig(level=logging.INFO, force=True)
    index = jax.process_index()
    # What goes wrong, where and at which step: "SIGKILL 0 7".
    fault, where, when = os.environ["FAULT"].split()
    is_here = index == int(where)

    def own_rows(start):
        for step, batch in enumerate(toy_batches(start), start + 1):
            if is_here and step == int(when):
                if fault == "stall":
                    print("FAULT", file=sys.stderr, flush=True)
                    time.sleep(3600)
                elif fault in ("SIGKILL", "SIGSTOP"):
                    os.kill(os.getpid(), getattr(signal, fault))
            time.sleep(0.05)
            yield jax.tree.map(lambda x: x[index * 4 : (index + 1) * 4], batch)

    class Hangs(Callback):
        def on_step(self, trainer, info):
            if fault == "hang" and is_here and info.step == int(when):
                time.sleep(3600)

    run = toy_run(
        partitioning=Partitioning(mesh_shape=(-1, 2, 2)), steps=1_000_000,
        checkpoint_every=int(os.environ["CHECKPOINT_EVERY"]),
        watchdog=WatchdogConfig(step_seconds=5.0, step_factor=1e-9, input_seconds=6.0),
    )
    with distributed.ending_together():
        train(run, sys.argv[2], batches=own_rows, callbacks=[Hangs()])
"""


@pytest.fixture
def start_two(tmp_path):
    """Starts two processes, which are gone when the test ends."""
    processes = []

    def start(fault="none -1 -1", checkpoint_every=1_000_000, script=_PROCESS):
        with socket.socket() as probe:
            probe.bind(("localhost", 0))
            port = probe.getsockname()[1]
        environment = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
            "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
            "JAX_NUM_PROCESSES": "2",
            "FAULT": fault,
            "CHECKPOINT_EVERY": str(checkpoint_every),
        }
        here = pathlib.Path(__file__).parent
        for index in range(2):
            processes.append(
                subprocess.Popen(
                    [sys.executable, "-c", textwrap.dedent(script), str(here), str(tmp_path)],
                    stderr=subprocess.PIPE,
                    text=True,
                    env=environment | {"JAX_PROCESS_ID": str(index)},
                    cwd=here.parents[1],
                )
            )
        return processes

    yield start
    for process in processes:
        process.kill()
        process.wait()


def _read_until(process, text):
    for line in process.stderr:
        if text in line:
            return
    pytest.fail(f"the process ended without {text!r}")


def _saved_steps(tmp_path):
    names = [path.name for path in (tmp_path / "checkpoints").iterdir()]
    return sorted(int(name) for name in names if name.isdigit())


@pytest.mark.parametrize(
    ("number", "index"),
    [
        (signal.SIGTERM, 1),
        pytest.param(signal.SIGINT, 0, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, 1, marks=pytest.mark.slow),
    ],
)
def test_a_signal_to_one_process_stops_both_after_saving(start_two, tmp_path, number, index):
    processes = start_two()
    _read_until(processes[0], "first step after")
    processes[index].send_signal(number)
    began = time.monotonic()
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert time.monotonic() - began < 15
    codes = [process.returncode for process in processes]
    assert codes == [128 + number, 128 + number], "\n".join(errors)
    [step] = _saved_steps(tmp_path)
    assert all(f"saved step {step};" in error for error in errors)
    name = signal.Signals(number).name
    assert all(f"{name} at host {socket.gethostname()} (process {index} of 2)" in e for e in errors)


@pytest.mark.parametrize(
    ("fault", "index"),
    [
        # The first process has JAX's coordinator.
        ("SIGKILL", 0),
        pytest.param("SIGKILL", 1, marks=pytest.mark.slow),
        pytest.param("SIGSTOP", 0, marks=pytest.mark.slow),
        pytest.param("SIGSTOP", 1, marks=pytest.mark.slow),
    ],
)
def test_a_lost_process_is_named_in_one_line(start_two, tmp_path, fault, index):
    processes = start_two(f"{fault} {index} 12", checkpoint_every=5)
    other = processes[1 - index]
    _read_until(other, "first step after")
    began = time.monotonic()
    error = other.communicate(timeout=60)[1]
    assert other.returncode == 75, error
    assert time.monotonic() - began < 35
    last = error.strip().splitlines()[-1]
    assert last.startswith(f"error: host {socket.gethostname()} (process {index} of 2) ")
    assert "lost since" in last
    assert last.endswith(f"the same command continues from step {_saved_steps(tmp_path)[-1]}")
    assert "Traceback" not in error and "Check failure" not in error


@pytest.mark.slow
@pytest.mark.parametrize("index", [0, 1])
def test_a_signal_saves_while_the_input_of_one_stalls(start_two, tmp_path, index):
    processes = start_two(f"stall {index} 12")
    _read_until(processes[index], "FAULT")
    time.sleep(1.0)
    processes[1 - index].send_signal(signal.SIGTERM)
    began = time.monotonic()
    errors = [process.communicate(timeout=60)[1] for process in processes]
    assert time.monotonic() - began < 15
    assert [process.returncode for process in processes] == [143, 143], "\n".join(errors)
    assert _saved_steps(tmp_path) == [11]


@pytest.mark.slow
@pytest.mark.parametrize("index", [0, 1])
def test_input_that_stalls_ends_both_with_the_state_saved(start_two, tmp_path, index):
    processes = start_two(f"stall {index} 12")
    errors = [process.communicate(timeout=90)[1] for process in processes]
    assert [process.returncode for process in processes] == [75, 75], "\n".join(errors)
    assert _saved_steps(tmp_path) == [11]
    for error in errors:
        [line] = [line for line in error.splitlines() if line.startswith("error: ")]
        assert f"(process {index} of 2)" in line and "no batch for step 12" in line


@pytest.mark.slow
@pytest.mark.parametrize("index", [0, 1])
def test_a_process_that_hangs_ends_both_with_the_stacks_of_both(start_two, tmp_path, index):
    processes = start_two(f"hang {index} 12", checkpoint_every=5)
    errors = [process.communicate(timeout=90)[1] for process in processes]
    assert [process.returncode for process in processes] == [75, 75], "\n".join(errors)
    for error in errors:
        line = error.strip().splitlines()[-1]
        # The other one hangs in the collective operations of the next step.
        assert re.search("step 1[23] has taken", line) and "continues from step" in line
    texts = [(tmp_path / "stacks" / f"process-0000{n}.txt").read_text() for n in (0, 1)]
    assert "time.sleep(3600)" in texts[index] or "on_step" in texts[index]
    assert all(f"(process {n} of 2)" in text for n, text in enumerate(texts))
    assert all("thread MainThread:" in text and "in fit" in text for text in texts)


@pytest.mark.slow
def test_what_two_processes_began_goes_on_in_one_with_half_the_devices(
    start_two, toy, tmp_path, monkeypatch
):
    processes = start_two()
    _read_until(processes[0], "first step after")
    processes[1].send_signal(signal.SIGTERM)
    assert [process.wait(timeout=60) for process in processes] == [143, 143]
    [step] = _saved_steps(tmp_path)
    run = toy.run(
        partitioning=Partitioning(mesh_shape=(2, 2, 2)),
        elastic=True,
        steps=step + 3,
        checkpoint_every=1_000_000,
    )
    few = jax.devices()[:4]
    monkeypatch.setattr(jax, "devices", lambda *_: few)
    seen = []

    def batches(start):
        seen.append(start)
        return toy.batches(start)

    trainer = Trainer(run, tmp_path, batches=batches)
    trainer.fit()
    assert seen == [step] and _saved_steps(tmp_path)[-1] == step + 3
    assert dict(trainer.mesh.shape) == {"data": 1, "fsdp": 2, "tensor": 2}
    assert trainer.run.accumulate == 2


_MEETING = """
    import sys
    from maestro_jax.training import distributed
    from maestro_jax.errors import RestartableError
    distributed.initialize()
    import jax
    index = jax.process_index()
    assert distributed.first_process_decides(10 + index) == 10
    assert distributed.first_process_says({"of": [index, "a"]}) == {"of": [0, "a"]}
    distributed.meet("here")
    if index:
        try:
            distributed.meet("there", seconds=2)
        except RestartableError as error:
            print(error, file=sys.stderr)
"""


@pytest.mark.slow
def test_a_barrier_has_a_limit(start_two, tmp_path):
    first, second = start_two(script=_MEETING)
    error = second.stderr.read()
    assert "has waited for 2 s for all processes to come to 'there' (process 0: " in error
    assert "(process 1 of 2)" in error

"""One run per model directory: leases of the living are respected, those of the dead are not."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import platform
import signal
import subprocess
import sys
import threading
import time

import pytest

from maestro_jax.errors import UserError
from maestro_jax.training import lease as leases
from maestro_jax.training.lease import LEASE_FILE, Holder, Lease
from maestro_jax.training.trainer import train

_HOLDER = """
import sys, time
from maestro_jax.training import lease
lease.PERIOD = 0.1
held = lease.Lease(sys.argv[1])
held.acquire()
held.confirm()
print("held", flush=True)
time.sleep(600)
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Beats in tenths of a second instead of ten seconds."""
    monkeypatch.setattr(leases, "PERIOD", 0.1)
    monkeypatch.setattr(leases, "PATIENCE", 0.6)
    monkeypatch.setattr(leases, "SETTLE", 0.05)


@pytest.fixture
def other(tmp_path):
    """A process that holds the lease of the directory."""
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def on_another_host(path: pathlib.Path, **changes) -> Holder:
    """Writes the lease of a process that this host knows nothing of."""
    holder = dataclasses.replace(
        Holder.here(), token="other", host="elsewhere", process="b n 1", **changes
    )
    path.write_bytes(holder.to_bytes())
    return holder


def test_a_lease_is_taken_beaten_and_given_back(tmp_path):
    path = tmp_path / "new" / LEASE_FILE
    with Lease(path.parent) as lease:
        lease.acquire()
        lease.confirm()
        first = json.loads(path.read_text())
        assert (first["host"], first["pid"]) == (platform.node(), os.getpid())
        time.sleep(0.5)
        assert json.loads(path.read_text())["beat"] >= first["beat"] + 2
        lease.check()
    # A directory that was there for the lease alone goes with it.
    assert not path.parent.exists()


def test_a_living_run_is_named_and_a_killed_one_is_followed_at_once(tmp_path, other):
    with pytest.raises(UserError) as refused, Lease(tmp_path) as lease:
        lease.acquire()
    text = str(refused.value)
    assert f"process {other.pid} of " in text and f" on {platform.node()}, since 2" in text
    assert "--take_over" in text and "\n" not in text
    # The refused one has not taken it away.
    assert json.loads((tmp_path / LEASE_FILE).read_text())["pid"] == other.pid
    other.send_signal(signal.SIGKILL)
    other.wait()
    began = time.monotonic()
    with Lease(tmp_path) as lease:
        lease.acquire()
        lease.confirm()
    assert time.monotonic() - began < leases.PATIENCE


def test_a_process_that_got_the_number_of_a_dead_one_holds_nothing(tmp_path):
    holder = dataclasses.replace(Holder.here(), token="dead")
    boot, namespace, _ = holder.process.split()
    assert not holder.is_dead()
    assert dataclasses.replace(holder, process=f"{boot} {namespace} 1").is_dead()
    # A host that was started anew, and a container beside this one.
    assert dataclasses.replace(holder, process=f"boot {namespace} 1").is_dead()
    assert not dataclasses.replace(holder, process=f"{boot} pid:[1] 1").is_dead()
    assert not dataclasses.replace(holder, host="elsewhere", process="a b c").is_dead()


def test_another_host_without_a_beat_is_waited_for_and_followed(tmp_path, caplog):
    on_another_host(tmp_path / LEASE_FILE)
    began = time.monotonic()
    with Lease(tmp_path) as lease:
        lease.acquire()
        lease.confirm()
    assert leases.PATIENCE <= time.monotonic() - began < leases.PATIENCE + 5
    assert "waiting up to" in caplog.text and "on elsewhere" in caplog.text


def test_another_host_with_a_beat_is_refused(tmp_path):
    path = tmp_path / LEASE_FILE
    on_another_host(path)
    timer = threading.Timer(0.2, lambda: on_another_host(path, beat=1))
    timer.start()
    with pytest.raises(UserError, match="on elsewhere"), Lease(tmp_path) as lease:
        lease.acquire()
    timer.join()


@pytest.mark.parametrize("content", ["", "{", '{"token": 3}'])
def test_a_damaged_lease_is_followed(tmp_path, content):
    (tmp_path / LEASE_FILE).write_text(content)
    with Lease(tmp_path) as lease:
        lease.acquire()
        lease.confirm()
    assert not (tmp_path / LEASE_FILE).exists()


@pytest.mark.parametrize("stale", [False, True])
def test_of_many_that_start_together_one_gets_it(tmp_path, monkeypatch, stale):
    """Each as another process would, from one instant."""
    monkeypatch.setattr(leases, "SETTLE", 0.5)
    if stale:
        dead = dataclasses.replace(Holder.here(), token="dead", pid=2**22 + 1)
        (tmp_path / LEASE_FILE).write_bytes(dead.to_bytes())
        assert dead.is_dead()
    barrier, outcomes = threading.Barrier(6), []
    all_done = threading.Event()

    def start(index: int) -> None:
        lease = Lease(tmp_path)
        lease._me = dataclasses.replace(lease._me, token=f"token {index}")
        barrier.wait()
        try:
            lease.acquire()
            lease.confirm()
        except UserError:
            outcomes.append(False)
            return
        outcomes.append(True)
        all_done.wait(20)
        lease.release()

    threads = [threading.Thread(target=start, args=(index,)) for index in range(6)]
    for thread in threads:
        thread.start()
    until = time.monotonic() + 20
    while len(outcomes) < 6 and time.monotonic() < until:
        time.sleep(0.05)
    all_done.set()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == [False] * 5 + [True]


def test_a_run_that_is_taken_over_stops_before_it_writes(toy, tmp_path):
    directory = tmp_path / "model"

    def batches(start):
        for step, batch in enumerate(toy.batches(start), start + 1):
            if step == 4:
                for _ in range(5):  # A beat that has begun may write over one.
                    on_another_host(directory / LEASE_FILE)
                    time.sleep(0.1)
            yield batch

    with pytest.raises(UserError, match="taken over by another run .* on elsewhere"):
        train(toy.run(checkpoint_every=2), directory, batches=batches)
    assert "6" not in os.listdir(directory / "checkpoints")
    # What the other one holds is left to it.
    assert json.loads((directory / LEASE_FILE).read_text())["host"] == "elsewhere"


def test_a_second_run_is_refused_before_it_touches_anything(toy, tmp_path, other):
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(UserError, match="is in use by another run"):
        train(toy.run(), tmp_path, batches=toy.batches)
    assert sorted(os.listdir(tmp_path)) == before
    state = train(toy.run(steps=1), tmp_path, batches=toy.batches, take_over=True)
    assert int(state.step) == 1


@pytest.mark.skipif(os.getuid() == 0, reason="root writes everywhere")
def test_a_directory_that_cannot_be_written_is_named(tmp_path):
    tmp_path.chmod(0o555)
    with pytest.raises(UserError, match="the model directory .* cannot be used: Permission"):
        Lease(tmp_path).acquire()

"""Signals, notices of preemption, and input that stops to come."""

from __future__ import annotations

import http.server
import logging
import os
import signal
import threading
import time

import pytest

from maestro_jax.errors import RestartableError, UserError
from maestro_jax.training import preemption
from maestro_jax.training.preemption import (
    PreemptionHandler,
    TrainingPreempted,
    preemption_notice,
)
from maestro_jax.training.signal_watch import SignalWatch, stop_signals
from maestro_jax.training.trainer import Trainer, train
from maestro_jax.training.watchdog import WatchdogConfig


@pytest.fixture(scope="module")
def uninterrupted(toy, tmp_path_factory):
    """The state of a run of six steps in one go."""
    return train(toy.run(), tmp_path_factory.mktemp("one_go"), batches=toy.batches)


@pytest.fixture
def metadata(monkeypatch):
    """A metadata server over loopback; what it answers can be changed."""
    answers = {"preempted": "FALSE", "maintenance-event": "NONE"}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            prefix, _, key = self.path.rpartition("/")
            known = prefix == "/computeMetadata/v1/instance" and key in answers
            allowed = self.headers.get("Metadata-Flavor") == "Google"
            self.send_response(200 if known and allowed else 404 if allowed else 403)
            self.end_headers()
            if known and allowed:
                self.wfile.write(answers[key].encode())

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("localhost", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        monkeypatch.setenv("GCE_METADATA_HOST", f"localhost:{server.server_port}")
        yield answers
        server.shutdown()


def test_what_the_metadata_server_says(metadata):
    server = preemption.metadata_server()
    assert preemption_notice(server) is None
    metadata["maintenance-event"] = "MIGRATE_ON_HOST_MAINTENANCE"
    assert preemption_notice(server) is None
    metadata["maintenance-event"] = "TERMINATE_ON_HOST_MAINTENANCE"
    assert "ends for maintenance" in preemption_notice(server)
    metadata["preempted"] = "TRUE"
    assert preemption_notice(server) == "this host is being preempted"
    del metadata["preempted"], metadata["maintenance-event"]
    assert preemption_notice(server) is None


def test_a_notice_saves_and_the_run_goes_on(toy, uninterrupted, tmp_path, metadata, monkeypatch):
    monkeypatch.setattr(preemption, "_POLL_SECONDS", 0.05)

    def batches(start):
        for step, batch in enumerate(toy.batches(start), start + 1):
            if step == 4 and start == 0:
                metadata["preempted"] = "TRUE"
                time.sleep(0.5)
            yield batch

    with pytest.raises(TrainingPreempted) as caught:
        train(toy.run(), tmp_path, batches=batches)
    assert caught.value.code == 143
    metadata["preempted"] = "FALSE"
    toy.assert_trees_equal(train(toy.run(), tmp_path, batches=batches), uninterrupted)


def stalling(toy, then):
    """Batches that stop before step 5 in a new run, after calling a function."""

    def batches(start):
        for step, batch in enumerate(toy.batches(start), start + 1):
            if step == 5 and start == 0:
                then()
                time.sleep(1.5)
            yield batch

    return batches


def test_a_signal_is_served_while_the_input_stalls(toy, uninterrupted, tmp_path):
    batches = stalling(toy, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(TrainingPreempted):
        train(toy.run(), tmp_path, batches=batches)
    assert "4" in {path.name for path in (tmp_path / "checkpoints").iterdir()}
    toy.assert_trees_equal(train(toy.run(), tmp_path, batches=batches), uninterrupted)


def test_input_that_stalls_is_reported_and_ends_the_run(toy, uninterrupted, tmp_path, caplog):
    run = toy.run(watchdog=WatchdogConfig(input_warning_seconds=0.3, input_seconds=0.8))
    batches = stalling(toy, lambda: None)
    with caplog.at_level(logging.WARNING), pytest.raises(RestartableError) as caught:
        train(run, tmp_path, batches=batches)
    assert "no batch for step 5" in str(caught.value) and "saved step 4" in str(caught.value)
    assert "stacks of all threads" in caplog.text and "BatchFeed" in caplog.text
    assert "in batches" in caplog.text  # The function that stalls.
    toy.assert_trees_equal(train(run, tmp_path, batches=batches), uninterrupted)


def test_a_signal_is_seen_while_the_main_thread_is_in_a_library():
    seen = []
    watch = SignalWatch([signal.SIGUSR2], lambda number: seen.append((number, time.monotonic())))
    before = signal.getsignal(signal.SIGUSR2)
    assert watch.start()
    lock = threading.Lock()
    try:
        with lock:
            threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGUSR2)).start()
            # Python's handlers do not run in it.
            began = time.monotonic()
            __import__("hashlib").pbkdf2_hmac("sha512", b"x" * 64, b"y" * 64, 800_000)
            ended = time.monotonic()
    finally:
        watch.stop()
    [(number, at)] = seen
    assert number == signal.SIGUSR2 and at < ended
    assert at - began < 0.2 + 0.15
    assert signal.getsignal(signal.SIGUSR2) is before


def test_an_echo_of_a_signal_counts_once():
    seen = []
    watch = SignalWatch([signal.SIGUSR2], seen.append)
    watch.start()
    try:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGUSR2)
            time.sleep(0.1)
    finally:
        watch.stop()
    assert seen == [signal.SIGUSR2]


def test_slurm_sends_a_signal_of_its_own(monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert signal.SIGUSR1 not in stop_signals()
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    assert signal.SIGUSR1 in stop_signals()


def test_limits_are_checked():
    with pytest.raises(UserError, match="input_seconds"):
        WatchdogConfig(input_seconds=0.0)


def test_a_second_signal_ends_at_once_but_for_a_checkpoint_that_is_written(toy, tmp_path):
    ended = []
    trainer = Trainer(toy.run(), tmp_path, batches=toy.batches)
    trainer.processes.end_by_signal = ended.append
    [handler] = [each for each in trainer.callbacks if isinstance(each, PreemptionHandler)]
    handler._trainer = trainer
    with trainer.activity.during("saving step 3"):
        handler.receive(signal.SIGTERM)
        handler.receive(signal.SIGTERM)
        assert ended == []
        handler.receive(signal.SIGTERM)
        assert ended == [signal.SIGTERM]
    handler._closed.set()


def test_it_is_said_when_the_state_is_not_saved_in_time(toy, tmp_path, caplog):
    run = toy.run(watchdog=WatchdogConfig(save_seconds=0.1))
    trainer = Trainer(run, tmp_path, batches=toy.batches)
    trainer.processes.resume = lambda: "the same command continues from step 2"
    [handler] = [each for each in trainer.callbacks if isinstance(each, PreemptionHandler)]
    handler._trainer = trainer
    with trainer.activity.during("work after step 3"):
        handler.receive(signal.SIGTERM)
        time.sleep(0.5)
    handler._closed.set()
    assert "not saved yet 0 s after SIGTERM (work after step 3)" in caplog.text
    assert "continues from step 2" in caplog.text

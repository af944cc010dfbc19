"""Training while checkpoints cannot be saved, and after the storage works again."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import resource
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import pytest

from maestro_jax.errors import RestartableError
from maestro_jax.training import checkpointer
from maestro_jax.training.callbacks import Callback
from maestro_jax.training.checkpoint_files import damage
from maestro_jax.training.checkpoints import Checkpoints
from maestro_jax.training.trainer import train

HIDDEN = 4000
"""A state of 1.5 MB, beside which all other files are small."""


def wait_for_orbax() -> None:
    """Lets a checkpoint fail before the next step."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and any(
        thread.name in ("async_save", "save_finalize") for thread in threading.enumerate()
    ):
        time.sleep(0.01)


class At(Callback):
    """Calls a function after a step, when what was to be saved is saved, or has failed."""

    def __init__(self, actions: dict[int, Callable[[], None]]) -> None:
        self.actions = actions

    def on_step(self, trainer, info) -> None:
        if info.step in self.actions:
            wait_for_orbax()
            self.actions[info.step]()


@pytest.fixture
def run(toy, monkeypatch):
    monkeypatch.setattr(checkpointer, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(checkpointer, "_PAUSE_AT_STOP", 0.01)

    def make(**changes):
        arguments = {"steps": 8, "checkpoint_every": 2, "log_every": 1, "accumulate": 1}
        return toy.run(model=toy.Model(hidden=HIDDEN), **(arguments | changes))

    return make


@pytest.fixture
def limit() -> Iterator[Callable[[int], None]]:
    """Sets the size of the largest file that may be written: a disk that fills up, for anyone."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size if size > 0 else soft, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def failures(model: Path) -> list[float]:
    lines = [json.loads(line) for line in (model / "metrics.jsonl").read_text().splitlines()]
    return [line.get("checkpoint_failures", 0.0) for line in lines if "loss" in line]


def steps(model: Path) -> list[str]:
    return sorted(os.listdir(model / "checkpoints"))


def check_saved(model: Path) -> None:
    """Two whole checkpoints, the first of them saved by a further attempt; nothing unfinished."""
    first, last = steps(model)
    assert first in "67" and last == "8"
    assert all(damage(model / "checkpoints" / step) is None for step in (first, last))


@pytest.mark.extended
def test_training_goes_on_until_files_can_be_written_again(
    run, toy, tmp_path, limit, caplog
) -> None:
    whole = train(run(), tmp_path / "whole", batches=toy.batches)
    actions = At({3: lambda: limit(100_000), 6: lambda: limit(0)})
    seen = []
    actions.actions[5] = lambda: seen.append(steps(tmp_path / "model"))
    with caplog.at_level(logging.WARNING):
        found = train(run(), tmp_path / "model", batches=toy.batches, callbacks=(actions,))
    toy.assert_trees_equal(jax.device_get(found), jax.device_get(whole))
    assert seen[0][0] == "2", "the last good one is kept"
    check_saved(tmp_path / "model")
    counts = failures(tmp_path / "model")
    assert counts[:4] == [0.0] * 4 and counts[-1] >= 1 and counts == sorted(counts)
    told = [r.getMessage() for r in caplog.records if "could not be saved" in r.getMessage()]
    assert len(told) == counts[-1]
    assert re.search(
        r"could not be saved in \S+model/checkpoints \(File too large\): attempt 1 of 10, the next "
        r"one in 0.01 s$",
        told[0],
    )
    assert not [r for r in caplog.records if r.exc_info]


def test_after_a_limit_the_run_ends_in_a_line_and_the_last_good_one_is_whole(
    run, toy, tmp_path
) -> None:
    model = tmp_path / "model"

    def block() -> None:
        (model / "checkpoints").rename(model / "away")
        (model / "checkpoints").write_text("")  # Even root cannot write below a file.

    began = time.monotonic()
    with pytest.raises(
        RestartableError,
        match=r"no checkpoint could be saved in \S+ in 3 attempts \(File exists: .*\), and "
        "the last good one is of step 2: see to the storage",
    ):
        train(
            run(max_checkpoint_failures=3, steps=100),
            model,
            batches=toy.batches,
            callbacks=(At({3: block}),),
        )
    assert time.monotonic() - began < 20
    assert not [t for t in threading.enumerate() if t.name in ("async_save", "save_finalize")]
    (model / "checkpoints").unlink()
    (model / "away").rename(model / "checkpoints")
    assert damage(model / "checkpoints" / "2") is None
    resumed = train(run(), model, batches=toy.batches)
    assert int(resumed.step) == 8


def test_the_last_step_waits_for_the_storage_and_a_stop_does_not_wait_long(
    run, toy, tmp_path, limit
) -> None:
    attempts = []

    class Count(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            attempts.append(record)
            if len(attempts) == 3:
                limit(0)

    handler = Count(logging.WARNING)
    logging.getLogger(checkpointer.__name__).addHandler(handler)
    try:
        train(
            run(steps=4),
            tmp_path / "last",
            batches=toy.batches,
            callbacks=(At({3: lambda: limit(100_000)}),),
        )
        assert steps(tmp_path / "last") == ["2", "4"] and len(attempts) == 3
        stopping = run(steps=100)

        class Stop(Callback):
            def on_step(self, trainer, info) -> None:
                if info.step == 3:
                    wait_for_orbax()
                    limit(100_000)
                    trainer.stop(143)

        attempts.extend([None] * 10)  # type: ignore[list-item]
        with pytest.raises(
            RestartableError, match="in 3 attempts .*the last good one is of step 2"
        ):
            train(stopping, tmp_path / "stop", batches=toy.batches, callbacks=(Stop(),))
    finally:
        logging.getLogger(checkpointer.__name__).removeHandler(handler)


def test_the_best_one_that_exists_is_kept_while_a_better_one_fails(
    run, toy, tmp_path, limit
) -> None:
    class Score(Callback):
        def on_step(self, trainer, info) -> None:
            value = {1: 0.5, 4: 0.1}.get(info.step, 1.0)
            trainer.log_metrics({"validation/wer": value, "validation_seconds": 0.0})

    model = tmp_path / "model"
    train(
        run(keep_checkpoints=1, best_metric="validation/wer", best_mode="min"),
        model,
        batches=toy.batches,
        callbacks=(
            Score(),
            At({3: lambda: limit(100_000), 5: lambda: None, 6: lambda: limit(0)}),
        ),
    )
    assert steps(model) == ["1", "8"]
    assert json.loads((model / "best_checkpoint.json").read_text())["step"] == 1


def test_training_goes_on_while_a_checkpoint_takes_long(
    run, toy, tmp_path, monkeypatch, caplog
) -> None:
    """A bucket that answers late: what is due meanwhile is saved when it is there."""
    monkeypatch.setattr(checkpointer, "PATIENCE", 0.01)
    answers = threading.Event()
    finish = Checkpoints._finish

    def wait_and_finish(self, step: int) -> str | None:
        answers.wait()
        return finish(self, step)

    monkeypatch.setattr(Checkpoints, "_finish", wait_and_finish)
    seen = []

    def look() -> None:
        seen.append(steps(tmp_path / "model"))
        monkeypatch.setattr(checkpointer, "PATIENCE", 60.0)
        answers.set()
        time.sleep(0.5)

    train(run(), tmp_path / "model", batches=toy.batches, callbacks=(At({5: look}),))
    assert seen == [["2"]]
    assert caplog.text.count("still being written after") == 1
    first, last = steps(tmp_path / "model")
    assert int(first) in (5, 6) and last == "8"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
@pytest.mark.parametrize("trouble", ["full", "read-only"])
def test_a_disk_that_is_full_or_read_only(run, toy, tmp_path, caplog, trouble) -> None:
    place = tmp_path / "model" / "checkpoints"
    place.mkdir(parents=True)
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", place], check=False)
    if made.returncode:
        pytest.skip("this machine lets nobody mount")
    filler = place / "filler"

    def fail() -> None:
        if trouble == "full":
            with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(1 << 16))
        else:
            subprocess.run(["mount", "-o", "remount,ro", place], check=True)

    def mend() -> None:
        if trouble == "full":
            filler.unlink()
        else:
            subprocess.run(["mount", "-o", "remount,rw", place], check=True)

    try:
        train(
            run(),
            tmp_path / "model",
            batches=toy.batches,
            callbacks=(At({3: fail, 6: mend}),),
        )
        check_saved(tmp_path / "model")
        reason = {"full": "No space left", "read-only": "Read-only file system"}[trouble]
        assert f"({reason}" in caplog.text and not [r for r in caplog.records if r.exc_info]
    finally:
        subprocess.run(["umount", "-l", place], check=False)

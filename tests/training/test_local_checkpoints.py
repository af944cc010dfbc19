"""Two tiers of checkpoints: a local disk that may be lost, and the model directory."""

from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path

import jax
import pytest

from maestro_jax.errors import UserError
from maestro_jax.training.callbacks import Callback
from maestro_jax.training.local_checkpoints import LOCAL_FILE
from maestro_jax.training.trainer import train


class Killed(Exception):
    """Ends training as a signal would that nobody can catch: nothing is saved."""


class KillAfter(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, trainer, info) -> None:
        if info.step == self.step:
            raise Killed


@pytest.fixture
def run(toy, tmp_path):
    def make(**changes):
        arguments = {
            "steps": 8,
            "checkpoint_every": 4,
            "local_checkpoint_dir": str(tmp_path / "disk"),
            "local_checkpoint_every": 1,
            "log_every": 2,
        }
        return toy.run(**(arguments | changes))

    return make


def local(tmp_path: Path) -> list[str]:
    [directory] = (tmp_path / "disk").iterdir()
    return sorted(os.listdir(directory / "checkpoints"))


def saved(tmp_path: Path) -> list[str]:
    return sorted(os.listdir(tmp_path / "model" / "checkpoints"))


def test_the_newest_of_both_is_restored_and_the_result_is_the_same(
    toy, run, tmp_path, caplog
) -> None:
    whole = train(
        run(local_checkpoint_dir=None, local_checkpoint_every=None),
        tmp_path / "whole",
        batches=toy.batches,
    )
    model = tmp_path / "model"
    with pytest.raises(Killed):
        train(run(), model, batches=toy.batches, callbacks=(KillAfter(7),))
    assert (saved(tmp_path), local(tmp_path)) == (["4"], ["6"])
    assert json.loads((model / LOCAL_FILE).read_text())["directory"].endswith("/checkpoints")
    with caplog.at_level(logging.INFO):
        found = train(run(), model, batches=toy.batches)
    assert "continuing from step 6 of" in caplog.text
    toy.assert_trees_equal(jax.device_get(found), jax.device_get(whole))
    lines = [
        [json.loads(line)["step"] for line in (tmp_path / name / "metrics.jsonl").open()]
        for name in ("whole", "model")
    ]
    assert lines[0] == lines[1]
    assert saved(tmp_path) == ["4", "8"]
    assert not list((tmp_path / "disk").iterdir()) and not (model / LOCAL_FILE).exists()


def test_a_lost_or_damaged_disk_costs_steps_only(toy, run, tmp_path, caplog) -> None:
    model = tmp_path / "model"
    with pytest.raises(Killed):
        train(run(), model, batches=toy.batches, callbacks=(KillAfter(7),))
    [directory] = (tmp_path / "disk").iterdir()
    (directory / "checkpoints" / "6" / "data" / "metadata").unlink()
    with caplog.at_level(logging.INFO), pytest.raises(Killed):
        train(run(), model, batches=toy.batches, callbacks=(KillAfter(6),))
    assert "/6 is damaged" in caplog.text and "continuing from step 4" in caplog.text
    shutil.rmtree(tmp_path / "disk")
    caplog.clear()
    with caplog.at_level(logging.INFO):
        assert int(train(run(), model, batches=toy.batches).step) == 8
    assert "continuing from step 4" in caplog.text


def test_what_another_run_left_on_the_disk_is_not_taken(toy, run, tmp_path, caplog) -> None:
    model = tmp_path / "model"
    with pytest.raises(Killed):
        train(run(), model, batches=toy.batches, callbacks=(KillAfter(7),))
    shutil.rmtree(model)
    with caplog.at_level(logging.INFO), pytest.raises(Killed):
        train(run(), model, batches=toy.batches, callbacks=(KillAfter(2),))
    assert "starting from scratch" in caplog.text
    assert len(list((tmp_path / "disk").iterdir())) == 2


def test_what_cannot_be_used_is_refused(toy, run, tmp_path) -> None:
    with pytest.raises(UserError, match="belong together"):
        run(local_checkpoint_every=None)
    (tmp_path / "disk").write_text("")
    with pytest.raises(UserError, match=r"local_checkpoint_dir: \S+ cannot be used \(Not a dir"):
        train(run(), tmp_path / "model", batches=toy.batches)
    with pytest.raises(UserError, match="is not on a disk"):
        train(run(local_checkpoint_dir="gs://bucket/a"), tmp_path / "m2", batches=toy.batches)

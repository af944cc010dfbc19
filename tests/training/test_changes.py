"""A restart says what it changes, and asks before it changes the result."""

from __future__ import annotations

import dataclasses
import json
import logging

import jax
import numpy as np
import pytest

from maestro_jax.batches import StreamConfig
from maestro_jax.errors import UserError
from maestro_jax.training.changes import describe, find_changes
from maestro_jax.training.optimizers import AdafactorConfig, AdamConfig
from maestro_jax.training.partitioning import Partitioning
from maestro_jax.training.trainer import train

PAIRED = StreamConfig(mixture="toy", batch_size=8, audio_samples=400, text_tokens=4)


def snapshot(directory) -> dict[str, tuple[int, bytes]]:
    """Time and content of every file below a directory."""
    return {
        str(path.relative_to(directory)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in directory.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def trained(toy, tmp_path_factory):
    directory = tmp_path_factory.mktemp("trained")
    train(toy.run(steps=2), directory, batches=toy.batches)
    return directory


def changed(toy, **fields) -> dict[str, tuple]:
    """Name, before, now and harmlessness of what these fields change."""
    before = json.loads(json.dumps(describe(toy.run())))
    found = find_changes(before, describe(toy.run(**fields)))
    return {each.name: (each.before, each.now, each.is_harmless) for each in found}


def test_a_run_is_described_by_the_names_of_gin(toy):
    assert changed(toy) == {}
    assert changed(toy, steps=7, log_every=3) == {
        "TrainRun.steps": (6, 7, True),
        "TrainRun.log_every": (2, 3, True),
    }
    assert changed(toy, optimizer=AdamConfig(learning_rate=1.0, warmup_steps=2)) == {
        "AdamConfig.learning_rate": (0.01, 1.0, False)
    }
    # Of another class there is nothing more to say.
    assert changed(toy, optimizer=AdafactorConfig()) == {
        "TrainRun.optimizer": ("AdamConfig", "AdafactorConfig", False)
    }
    text = dataclasses.replace(toy.streams["text"], batch_size=16)
    assert changed(toy, streams={"text": text}) == {"text/StreamConfig.batch_size": (8, 16, False)}
    # A stream that the objective does not use is none of the run.
    assert changed(toy, streams={**toy.streams, "paired": PAIRED}) == {}
    assert changed(toy, model=toy.Model(hidden=16)) == {"Toy.hidden": (12, 16, False)}
    assert changed(toy, partitioning=Partitioning(mesh_shape=(-1, 2, 1))).popitem()[1][2]


def test_an_end_matters_to_the_cosine_alone(toy):
    def run(name, end):
        return AdamConfig(schedule_name=name, warmup_steps=1, decay_steps=end)

    for name, harmless in (("inverse_sqrt", True), ("cosine", False)):
        before = describe(toy.run(optimizer=run(name, 10)))
        [change] = find_changes(before, describe(toy.run(optimizer=run(name, 20))))
        assert (change.name, change.is_harmless) == ("AdamConfig.decay_steps", harmless)


def test_fields_of_another_version_are_no_changes(toy):
    now = describe(toy.run())
    before = {**now, "optimizer.gone": 1}
    del before["optimizer.b1"]
    assert find_changes(before, now) == []


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"optimizer": AdamConfig(learning_rate=1.0, warmup_steps=2)}, r"AdamConfig.learning_rate"),
        ({"optimizer": AdafactorConfig()}, r"TrainRun.optimizer AdamConfig -> AdafactorConfig"),
        ({"seed": 3, "ema_decay": 0.8}, r"seed 0 -> 3, TrainRun.ema_decay 0.9 -> 0.8\)"),
        ({"ema_decay": None}, r"of another model or setting: ema_params"),
    ],
)
def test_what_changes_the_result_is_refused_and_nothing_is_written(
    toy, trained, fields, message, caplog
):
    before = snapshot(trained)
    with pytest.raises(UserError, match=message) as refused, caplog.at_level(logging.INFO):
        train(toy.run(**fields), trained, batches=toy.batches)
    assert snapshot(trained) == before and "\n" not in str(refused.value)
    assert "changed since the last checkpoint" in caplog.text


def test_another_model_is_refused_also_with_allow_changes(toy, trained):
    before = snapshot(trained)
    with pytest.raises(UserError, match="of another model or setting: params .*init_from"):
        model = toy.Model(hidden=16)
        train(toy.run(model=model), trained, batches=toy.batches, allow_changes=True)
    assert snapshot(trained) == before


def test_data_that_do_not_open_leave_a_model_as_it_was(toy, trained, tmp_path):
    def batches(start):
        raise UserError("nothing is prepared")

    before = snapshot(trained)
    for directory in (trained, tmp_path / "new"):
        with pytest.raises(UserError, match="nothing is prepared"):
            train(toy.run(), directory, batches=batches)
    assert snapshot(trained) == before and not (tmp_path / "new").exists()


def test_harmless_changes_are_told_and_go_on_to_the_same_bits(toy, tmp_path, caplog):
    train(toy.run(steps=2), tmp_path / "a", batches=toy.batches)
    with caplog.at_level(logging.INFO):
        state = train(toy.run(log_every=3, steps=4), tmp_path / "a", batches=toy.batches)
    [told] = [line for line in caplog.messages if "changed since the last checkpoint" in line]
    lines = [line.split() for line in told.splitlines()[3:]]
    assert lines == [["TrainRun.steps", "2", "4"], ["TrainRun.log_every", "2", "3"]]
    toy.assert_trees_equal(state, train(toy.run(steps=4), tmp_path / "b", batches=toy.batches))


def test_another_optimizer_starts_its_state_anew(toy, tmp_path, caplog):
    before = train(toy.run(steps=2), tmp_path, batches=toy.batches)
    still = AdafactorConfig(learning_rate=0.0)
    run = toy.run(steps=3, optimizer=still)
    with caplog.at_level(logging.INFO):
        state = train(run, tmp_path, batches=toy.batches, allow_changes=True)
    assert "the state of the optimizer, with its warm-up, is started anew" in caplog.text
    toy.assert_trees_equal(state.params, before.params)
    assert int(state.step) == 3
    counts = [x for x in jax.tree.leaves(state.opt_state) if np.ndim(x) == 0 and x.dtype == "int32"]
    assert {int(count) for count in counts} == {1}


def test_checkpoints_of_earlier_versions_know_no_run(toy, tmp_path, caplog):
    train(toy.run(steps=2), tmp_path, batches=toy.batches)
    step_directory = tmp_path / "checkpoints" / "2"
    path = step_directory / "data" / "metadata"
    path.write_text(json.dumps({**json.loads(path.read_text()), "run": None}))
    (step_directory / "files.json").unlink()
    with pytest.raises(UserError, match="state of another optimizer"):
        train(toy.run(optimizer=AdafactorConfig()), tmp_path, batches=toy.batches)
    with pytest.raises(UserError, match="started with seed 0, not 3"):
        train(toy.run(seed=3), tmp_path, batches=toy.batches)
    with caplog.at_level(logging.INFO):
        train(toy.run(steps=3), tmp_path, batches=toy.batches)
    assert "written by an earlier version, which did not record the run" in caplog.text

"""Bad steps, rollbacks, and the batches that they leave out."""

from __future__ import annotations

import dataclasses
import json
import re

import jax
import numpy as np
import pytest

from maestro_jax.errors import UserError
from maestro_jax.training.callbacks import Callback
from maestro_jax.training.health import HealthConfig, HealthGuard
from maestro_jax.training.left_out import BatchesLeavingOut, LeftOut, read_left_out
from maestro_jax.training.metrics import is_of_the_machine
from maestro_jax.training.optimizers import AdamConfig
from maestro_jax.training.trainer import train

LIMIT = 4


def _lines(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def _untimed(line):
    return {name: value for name, value in line.items() if not is_of_the_machine(name)}


def _steps_saved(directory):
    return sorted(int(p.name) for p in (directory / "checkpoints").iterdir() if p.name.isdigit())


class Taken(Callback):
    """Takes down which batch each step was given: its first token counts the batches."""

    def __init__(self):
        self.batches = {}

    def on_step(self, trainer, info):
        self.batches[info.step] = int(info.batch["text"]["language"][0])


@pytest.fixture
def numbered(toy):
    """Batches that carry their number, from 1, in a feature that the toy ignores."""

    def batches(done):
        for number, batch in enumerate(toy.batches(done), done + 1):
            text = {**batch["text"], "language": np.full(8, number, np.int32)}
            yield {"text": text}

    return batches


@pytest.fixture
def poisoned(toy):
    """An objective that is not finite on the batches of certain numbers."""

    @dataclasses.dataclass(frozen=True)
    class Poisoned(toy.Objective):
        first: int = 6
        last: int = 60

        def loss(self, model, params, ema_params, batch, **keywords):
            loss, metrics = super().loss(model, params, ema_params, batch, **keywords)
            number = batch["text"]["language"][0]
            bad = (number >= self.first) & (number <= self.last)
            return jax.numpy.where(bad, jax.numpy.nan, loss), metrics

    return Poisoned


def test_which_batch_a_step_takes_by_counting():
    left_out = LeftOut(((9, 9), (3, 4), (5, 5), (20, 22)))
    assert left_out.ranges == ((3, 5), (9, 9), (20, 22))
    kept = [number for number in range(1, 60) if number not in {3, 4, 5, 9, 20, 21, 22}]
    assert [left_out.batch_of(step) for step in range(1, 50)] == kept[:49]
    assert (LeftOut(((1, 2),)) | LeftOut(((2, 7),))).ranges == ((1, 7),)


@pytest.mark.parametrize("done", range(9))
def test_batches_left_out_are_not_read(done):
    read = []

    def batches(before):
        number = before
        while True:
            number += 1
            read.append(number)
            yield number

    left_out = LeftOut(((1, 1), (4, 6), (8, 8)))
    taken = [n for n in range(1, 30) if n not in {1, 4, 5, 6, 8}][done : done + 6]
    iterator = BatchesLeavingOut(batches, left_out, done)
    assert [next(iterator) for _ in range(6)] == taken == read


@pytest.mark.parametrize("ranges", [[(0, 2)], [(3, 2)], [(1,)]])
def test_ranges_that_are_none_are_refused(toy, ranges):
    with pytest.raises(UserError, match="leave_out_batches has"):
        toy.run(leave_out_batches=ranges)


def test_a_run_rolls_back_and_equals_one_that_was_told_from_the_start(
    toy, numbered, poisoned, tmp_path, caplog
):
    """Not finite from batch 6 to 60: back to step 3, the last checkpoint before it."""
    objective = poisoned(last=12)
    run = toy.run(
        objective=objective,
        steps=14,
        checkpoint_every=3,
        max_skipped_steps=LIMIT,
        health=HealthConfig(margin=1),
    )
    taken = Taken()
    state = train(run, tmp_path / "a", batches=numbered, callbacks=[taken])
    [entry] = read_left_out(tmp_path / "a")
    # Found when step 9 was to be saved; 6 to 9 were bad, and 5 is the margin.
    assert entry["batches"] == [5, 9] and entry["rolled_back_to"] == 3
    assert [bad["batch"] for bad in entry["bad_steps"]] == [6, 7, 8, 9]
    assert "going back to step 3, and leaving out the batches 5 to 9" in caplog.text
    # Batches 10 to 12 are as bad, but too few: the run passes them.
    assert [taken.batches[step] for step in range(4, 15)] == [4, *range(10, 20)]
    told = dataclasses.replace(run, leave_out_batches=((5, 9),))
    expected = train(told, tmp_path / "b", batches=numbered)
    toy.assert_trees_equal(jax.device_get(state), jax.device_get(expected))
    lines = [[_untimed(line) for line in _lines(tmp_path / name)] for name in "ab"]
    assert lines[0] == lines[1] and [line["step"] for line in lines[0]] == [2, 4, 6, 8, 10, 12, 14]


class DamagesCheckpoint(Callback):
    """Cuts a file of the checkpoint of step 6, two steps later."""

    def on_step(self, trainer, info):
        if info.step == 8 and not trainer.rollbacks:
            trainer.checkpoints.settle()
            (trainer.checkpoints.directory / "6" / "state" / "manifest.ocdbt").write_bytes(b"")


def test_a_rollback_takes_the_checkpoint_before_a_damaged_one(
    toy, numbered, poisoned, tmp_path, caplog
):
    run = toy.run(
        objective=poisoned(first=8, last=11),
        steps=14,
        checkpoint_every=3,
        max_skipped_steps=LIMIT,
        health=HealthConfig(margin=1),
    )
    state = train(run, tmp_path / "a", batches=numbered, callbacks=[DamagesCheckpoint()])
    [entry] = read_left_out(tmp_path / "a")
    assert "going back to step 6" in caplog.text
    assert re.search(r"checkpoints/6 is damaged .*; continuing from step 3", caplog.text)
    assert entry["batches"] == [7, 11] and entry["rolled_back_to"] == 3
    told = dataclasses.replace(run, leave_out_batches=((7, 11),))
    expected = train(told, tmp_path / "b", batches=numbered)
    toy.assert_trees_equal(jax.device_get(state), jax.device_get(expected))
    assert _steps_saved(tmp_path / "a") == _steps_saved(tmp_path / "b")


class Killed(BaseException):
    pass


@pytest.mark.extended
@pytest.mark.parametrize("at", [4, 5, 7, 8])
def test_a_run_that_rolled_back_and_was_killed_goes_on_without_the_batches(
    toy, numbered, poisoned, tmp_path, at
):
    """Killed before and after the first checkpoint that follows the rollback."""

    class Killer(Callback):
        def on_step(self, trainer, info):
            if trainer.rollbacks and info.step == at:
                raise Killed

    run = toy.run(
        objective=poisoned(last=10),
        steps=9,
        checkpoint_every=3,
        max_skipped_steps=LIMIT,
        health=HealthConfig(margin=1),
    )
    with pytest.raises(Killed):
        train(run, tmp_path / "a", batches=numbered, callbacks=[Killer()])
    taken = Taken()
    state = train(run, tmp_path / "a", batches=numbered, callbacks=[taken])
    assert taken.batches[9] == 14 and len(read_left_out(tmp_path / "a")) == 1
    told = dataclasses.replace(run, leave_out_batches=((5, 9),))
    toy.assert_trees_equal(
        jax.device_get(state), jax.device_get(train(told, tmp_path / "b", batches=numbered))
    )


def test_a_diverging_run_ends_in_one_line_and_keeps_a_good_checkpoint(toy, numbered, tmp_path):
    """A learning rate of 1e9: the loss is huge, or not a number, from the second step on."""
    run = toy.run(
        optimizer=AdamConfig(learning_rate=1e9, warmup_steps=100),
        steps=400,
        log_every=5,
        checkpoint_every=10,
        max_skipped_steps=20,
        health=HealthConfig(window=8, max_rollbacks=1),
    )
    good = toy.run(steps=10, checkpoint_every=10)
    state = train(good, tmp_path, batches=numbered)
    with pytest.raises(UserError, match=r"after 1 rollbacks; lower the learning rate") as caught:
        train(run, tmp_path, batches=numbered, allow_changes=True)
    message = str(caught.value)
    assert "\n" not in message and str(tmp_path / "left_out.jsonl") in message
    assert _steps_saved(tmp_path)[0] == 10
    first, last = map(json.loads, (tmp_path / "left_out.jsonl").read_text().splitlines())
    assert first["rolled_back_to"] == 10 and last["rolled_back_to"] is None
    kept = train(good, tmp_path, batches=numbered, allow_changes=True)
    toy.assert_trees_equal(jax.device_get(state.params), jax.device_get(kept.params))


SHORT = HealthConfig(window=16)


def _judged(losses, config=SHORT, limit=100):
    guard = HealthGuard(limit, config)
    for step, loss in enumerate(losses, 1):
        finite = np.isfinite(loss)
        metrics = {
            "loss": (np.float32(loss if finite else 0), np.float32(finite)),
            "skipped_steps": (np.float32(not finite), np.float32(1)),
        }
        guard._unread.append((step, ("text",), metrics))
    return guard, guard.state()


def test_spikes_against_a_rule_written_out():
    rng = np.random.default_rng(0)
    losses = 3 + 0.2 * rng.standard_normal(40)
    losses[[20, 30]] = 7.0, np.nan
    losses[25] = 5.5  # 12 standard deviations, but not twice the median.
    _, state = _judged(losses)
    assert state["loss_spikes"] == 1 and state["skipped_steps"] == 1
    assert state["bad"] == [] and state["consecutive"] == 0
    # The same from a state as JSON keeps it.
    half, before = _judged(losses[:22])
    rest = HealthGuard(100, SHORT)
    rest.load(json.loads(json.dumps(before)))
    assert rest.state()["losses"] == before["losses"]
    assert before["bad"] == [] and half._last == 22
    # Without detection, and before enough losses are known.
    assert _judged(losses, HealthConfig(spike_sigmas=None))[1]["loss_spikes"] == 0
    assert _judged([1, 1, 9, 1])[1]["loss_spikes"] == 0


def test_a_stream_that_begins_is_no_spike():
    guard, _ = _judged([1.0] * 20)
    metrics = {"loss": (np.float32(9), np.float32(1)), "skipped_steps": (0.0, 1.0)}
    guard._unread = [(21, ("text", "st"), metrics)]
    assert guard.state()["loss_spikes"] == 0
    guard._unread = [(22, ("text", "st"), metrics)]
    assert guard.state()["losses"] == [9.0, 9.0]

"""Whole runs: meshes, restarts, signals, starting points."""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import time

import jax
import numpy as np
import pytest

from maestro_jax.batches import Buckets, synthetic_batch
from maestro_jax.chip_table import CHIPS
from maestro_jax.errors import UserError
from maestro_jax.training import trainer
from maestro_jax.training.metrics import is_of_the_machine
from maestro_jax.training.optimizers import AdamConfig
from maestro_jax.training.partial_restore import restore_params
from maestro_jax.training.partitioning import Partitioning
from maestro_jax.training.preemption import TrainingPreempted
from maestro_jax.training.trainer import train


def _lines(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def _without_times(lines):
    return [
        {key: value for key, value in line.items() if not is_of_the_machine(key)} for line in lines
    ]


@pytest.fixture(scope="module")
def uninterrupted(toy, tmp_path_factory):
    """A run of six steps in one go: its directory, state and log points."""
    directory = tmp_path_factory.mktemp("uninterrupted")
    points = {}
    state = train(
        toy.run(), directory, batches=toy.batches, callbacks=[toy.OnLog(points.__setitem__)]
    )
    return directory, state, points


class Stop(Exception):
    """The power went."""


def _until(batches, last_step):
    """Batches that raise after a step, as when a process dies."""

    def source(start):
        for step, batch in enumerate(batches(start), start):
            if step >= last_step:
                raise Stop
            yield batch

    return source


def test_a_run_leaves_what_it_should(toy, uninterrupted):
    directory, state, points = uninterrupted
    assert int(state.step) == 6
    assert sorted(points) == [2, 4, 6]
    lines = _lines(directory)
    assert [line["step"] for line in lines] == [2, 4, 6]
    assert lines[-1]["loss"] == points[6]["loss"]
    assert points[6]["loss/text"] < points[2]["loss/text"]
    assert "loss/mt" not in points[6]  # The stream had no examples.
    assert points[6]["steps_per_second"] > 0
    assert points[6]["skipped_steps"] == 0
    assert sorted(p.name for p in (directory / "checkpoints").iterdir()) == ["3", "6"]
    assert "up/kernel" in (directory / "parameters.txt").read_text()
    toy.assert_trees_equal(restore_params(directory), jax.device_get(state.ema_params))


def test_the_speed_of_every_log_point_is_that_of_its_steps(toy, tmp_path):
    """The last one too, which nothing follows: each step waits 0.05 s for its batch."""

    def slowly(start):
        for batch in toy.batches(start):
            time.sleep(0.05)
            yield batch

    train(toy.run(log_every=1, steps=5), tmp_path, batches=slowly)
    first, *others = _lines(tmp_path)
    assert "steps_per_second" not in first  # It was compiled.
    for line in others:
        assert 0.1 < line["steps_per_second"] <= 20.0
        assert line["data_wait_fraction"] > 0.01
    assert others[-1]["seconds_left"] == 0.0


def test_model_flops_and_their_share_of_the_peak(toy, tmp_path, monkeypatch):
    chip = dataclasses.replace(CHIPS["v4"], peak_flops=2e9, devices_per_chip=2)
    monkeypatch.setattr(trainer, "chip_of", lambda kind: chip)
    train(toy.run(steps=3), tmp_path, batches=toy.batches)
    line = _lines(tmp_path)[-1]
    # By hand: 48 tokens through kernels of 8 x 12 and 12 x 16, three products each.
    flops = 3 * 2 * 48 * (8 * 12 + 12 * 16)
    per_device = flops * line["steps_per_second"] / jax.device_count()
    assert line["model_tflops_per_second"] == pytest.approx(per_device / 1e12)
    assert line["mfu"] == pytest.approx(per_device / 1e9)


def test_devices_without_a_known_peak_have_no_utilisation(uninterrupted):
    line = _lines(uninterrupted[0])[-1]
    assert "mfu" not in line and line["model_tflops_per_second"] > 0


def test_parameters_are_born_and_stay_sharded(toy, tmp_path):
    run = toy.run(partitioning=Partitioning(mesh_shape=(2, 2, 2)), steps=2)
    state = train(run, tmp_path, batches=toy.batches)
    kernel = state.params["up"]["kernel"]
    assert kernel.shape == (8, 12)
    assert kernel.addressable_shards[0].data.shape == (4, 6)
    assert state.ema_params["table"].addressable_shards[0].data.shape == (8, 4)
    assert len({str(shard.index) for shard in kernel.addressable_shards}) == 4


def test_the_mesh_does_not_change_the_loss(toy, tmp_path, monkeypatch):
    everything = jax.devices()
    losses = {}
    for count, shape in ((1, (1, 1, 1)), (8, (2, 2, 2))):
        monkeypatch.setattr(jax, "devices", lambda n=count: everything[:n])
        run = toy.run(partitioning=Partitioning(mesh_shape=shape), log_every=1)
        losses[count] = []
        train(
            run,
            tmp_path / str(count),
            batches=toy.batches,
            callbacks=[toy.OnLog(lambda _, values, n=count: losses[n].append(values["loss"]))],
        )
    assert len(losses[1]) == 6
    np.testing.assert_allclose(losses[1], losses[8], rtol=1e-5)


def test_a_restart_changes_nothing(toy, uninterrupted, tmp_path):
    directory, state, _ = uninterrupted
    with pytest.raises(Stop):
        train(toy.run(), tmp_path, batches=_until(toy.batches, 5))
    # Steps after the checkpoint are done again: their line must not stay.
    assert [line["step"] for line in _lines(tmp_path)] == [2, 4]
    seen = []

    def batches(start):
        seen.append(start)
        return toy.batches(start)

    restarted = train(toy.run(), tmp_path, batches=batches)
    assert seen == [3]
    toy.assert_trees_equal(restarted, state)
    assert [line["step"] for line in _lines(tmp_path)] == [2, 4, 6]
    # The window of steps 3 and 4 was open when step 3 was saved: its first half was not lost.
    assert _without_times(_lines(tmp_path)) == _without_times(_lines(directory))


def test_a_finished_run_returns_at_once(toy, uninterrupted, caplog):
    directory, state, _ = uninterrupted

    def batches(start):
        raise AssertionError("no batch is needed")

    with caplog.at_level(logging.INFO):
        toy.assert_trees_equal(train(toy.run(), directory, batches=batches), state)
    assert "nothing to do: step 6 of 6 is done" in caplog.text


def test_going_on_with_another_seed_is_refused(toy, uninterrupted):
    with pytest.raises(UserError, match=r"trained otherwise so far \(TrainRun.seed 0 -> 3\)"):
        train(toy.run(seed=3), uninterrupted[0], batches=toy.batches)


def test_elapsed_time_counts_all_restarts(toy, tmp_path):
    train(toy.run(steps=3), tmp_path, batches=toy.batches)
    path = tmp_path / "checkpoints" / "3" / "data" / "metadata"
    record = json.loads(path.read_text())
    assert record["step"] == 3 and 0 < record["elapsed_seconds"] < 300
    assert record["streams"]["text"]["examples"] == 3 * 8
    path.write_text(json.dumps({**record, "elapsed_seconds": 5000.0}))
    # Without its list, which has the record as it was.
    (tmp_path / "checkpoints" / "3" / "files.json").unlink()
    train(toy.run(steps=6), tmp_path, batches=toy.batches)
    assert 5000 < _lines(tmp_path)[-1]["elapsed_seconds"] < 5300


def test_starting_points_in_order(toy, uninterrupted, tmp_path, caplog):
    source, state, _ = uninterrupted
    learning_nothing = toy.run(init_from=str(source), optimizer=_still(), steps=1)
    with caplog.at_level(logging.INFO):
        new = train(learning_nothing, tmp_path / "fine_tuned", batches=toy.batches)
    assert "5 parameters loaded, 0 skipped, 0 new" in caplog.text
    toy.assert_trees_equal(new.params, state.ema_params)
    toy.assert_trees_equal(new.ema_params, state.ema_params)
    # The average of the source is the default; its last values are there for the asking.
    run = toy.run(init_from=str(source), init_which="params", optimizer=_still(), steps=1)
    new = train(run, tmp_path / "other", batches=toy.batches)
    toy.assert_trees_equal(new.params, state.params)
    # An own checkpoint goes before init_from.
    caplog.clear()
    absent = toy.run(init_from="absent", steps=2)
    with caplog.at_level(logging.INFO):
        train(absent, tmp_path / "other", batches=toy.batches, allow_changes=True)
    assert "continuing from step 1" in caplog.text
    with pytest.raises(UserError, match="absent is not a checkpoint directory"):
        train(absent, tmp_path / "empty", batches=toy.batches)


def _still():
    return AdamConfig(learning_rate=0.0)


def test_part_of_a_model_is_taken_over(toy, uninterrupted, tmp_path, caplog):
    source, state, _ = uninterrupted
    run = toy.run(model=toy.Model(hidden=16), init_from=str(source), optimizer=_still(), steps=1)
    with caplog.at_level(logging.INFO):
        new = train(run, tmp_path, batches=toy.batches)
    assert "2 parameters loaded, 3 skipped, 3 new" in caplog.text
    assert "up: 2 skipped, 2 new (up/bias: shape (12,) there, (16,) here, ...)" in caplog.text
    report = (tmp_path / "init_report.txt").read_text()
    assert report.startswith(f"{source / 'checkpoints' / '6'} (ema)\n2 parameters loaded, 3 skip")
    assert "  up/kernel: shape (8, 12) there, (8, 16) here\n" in report
    toy.assert_trees_equal(new.params["table"], state.ema_params["table"])
    run = toy.run(
        init_from=str(source),
        init_include=("table", "up/.*"),
        init_exclude=("table",),
        optimizer=_still(),
        steps=1,
    )
    new = train(run, tmp_path / "up_only", batches=toy.batches)
    toy.assert_trees_equal(new.params["up"], state.ema_params["up"])
    assert not np.array_equal(new.params["table"], state.ema_params["table"])


def test_a_restart_on_another_mesh_goes_on(toy, uninterrupted, tmp_path):
    train(
        toy.run(steps=3, partitioning=Partitioning(mesh_shape=(2, 2, 2))),
        tmp_path,
        batches=toy.batches,
    )
    state = train(toy.run(), tmp_path, batches=toy.batches)
    for a, b in zip(*map(jax.tree.leaves, (state.params, uninterrupted[1].params)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


def test_skipped_steps_are_counted_over_restarts(toy, tmp_path):
    run = toy.run(objective=toy.Objective(explode_at=2), steps=3, checkpoint_every=3, log_every=2)
    train(run, tmp_path, batches=toy.batches)
    points = {}
    train(
        toy.run(objective=toy.Objective(explode_at=3)),
        tmp_path,
        batches=toy.batches,
        callbacks=[toy.OnLog(points.__setitem__)],
        allow_changes=True,
    )
    assert points[4]["skipped_steps"] == 2.0
    assert points[6]["skipped_steps"] == 2.0
    assert np.isfinite(points[6]["loss"])


def test_a_skipped_step_of_an_open_window_is_counted_once(toy, tmp_path):
    run = toy.run(objective=toy.Objective(explode_at=2))
    with pytest.raises(Stop):
        train(run, tmp_path, batches=_until(toy.batches, 4))
    data = json.loads((tmp_path / "checkpoints" / "3" / "data" / "metadata").read_text())
    states = data["callbacks"]
    assert states["metric_logger"]["window"]["totals"]["skipped_steps"] == 1.0
    assert states["non_finite_guard"]["skipped_steps"] == 1
    points = {}
    train(run, tmp_path, batches=toy.batches, callbacks=[toy.OnLog(points.__setitem__)])
    assert [points[step]["skipped_steps"] for step in (4, 6)] == [1.0, 1.0]


def test_a_hopeless_run_ends(toy, tmp_path):
    class Hopeless(toy.Objective):
        def weighted_loss(self, *arguments, **keywords):
            loss, metrics = super().weighted_loss(*arguments, **keywords)
            return loss * np.nan, metrics

    with pytest.raises(UserError, match="4 of the steps 1 to 4 had a loss or .* 3 rollbacks"):
        train(toy.run(objective=Hopeless(), max_skipped_steps=4), tmp_path, batches=toy.batches)
    assert [line["skipped_steps"] for line in _lines(tmp_path)] == [2, 4]


def test_data_that_ends_is_said_so(toy, tmp_path):
    def batches(start):
        return iter([next(toy.batches(0))])

    with pytest.raises(UserError, match="data ended before step 2 of 6"):
        train(toy.run(), tmp_path, batches=batches)


def test_a_batch_that_the_mesh_cannot_split_is_refused(toy, tmp_path):
    run = toy.run(
        partitioning=Partitioning(mesh_shape=(4, 2, 1)),
        streams={"text": type(toy.streams["text"])(mixture="toy", batch_size=4, text_tokens=6)},
    )
    with pytest.raises(UserError, match="not a multiple of the 8 devices"):
        train(run, tmp_path, batches=toy.batches)


def test_a_profile_is_written(toy, tmp_path):
    train(toy.run(profile_steps=(2, 2), steps=2), tmp_path, batches=toy.batches)
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_the_run_goes_on_from_there(toy, uninterrupted, tmp_path, number):
    def batches(start):
        for step, batch in enumerate(toy.batches(start), start + 1):
            if step == 5 and start == 0:
                os.kill(os.getpid(), number)
                time.sleep(0.3)
            yield batch

    before = signal.getsignal(number)
    with pytest.raises(TrainingPreempted) as caught:
        train(toy.run(), tmp_path, batches=batches)
    assert caught.value.code == 128 + number
    assert signal.getsignal(number) is before
    assert "4" in {p.name for p in (tmp_path / "checkpoints").iterdir()}
    toy.assert_trees_equal(train(toy.run(), tmp_path, batches=batches), uninterrupted[1])


_PROCESS = """
    import logging, sys, time
    sys.path.insert(0, sys.argv[1])
    from conftest import toy_batches, toy_run
    from maestro_jax.training.trainer import train
    assert not {"tensorflow", "gin", "seqio"} & {name.split(".")[0] for name in sys.modules}
    logging.basicConfig(level=logging.INFO, force=True)

    def slowly(start):
        for batch in toy_batches(start):
            time.sleep(0.01)
            yield batch

    run = toy_run(steps=100_000, checkpoint_every=100_000, log_every=5)
    train(run, sys.argv[2], batches=slowly)
"""


def test_a_terminated_process_saves_and_exits_with_143(tmp_path):
    here = str(pathlib.Path(__file__).parent)
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(_PROCESS), here, str(tmp_path)],
        stderr=subprocess.PIPE,
        text=True,
        cwd=pathlib.Path(__file__).parents[2],
    )
    seen = []
    for line in process.stderr:
        seen.append(line)
        if "first step after" in line:
            process.send_signal(signal.SIGTERM)
            break
    seen += process.stderr.readlines()
    assert process.wait(60) == 143, "".join(seen)
    assert "SIGTERM: saving after this step" in "".join(seen)
    steps = [int(p.name) for p in (tmp_path / "checkpoints").iterdir()]
    assert len(steps) == 1 and f"saved step {steps[0]}" in "".join(seen)


def test_every_shape_is_compiled_once_and_told(toy, tmp_path, caplog):
    text = toy.streams["text"]
    buckets = Buckets(batch_sizes=(16,), text_tokens=(3,))
    shapes = dataclasses.replace(text, buckets=buckets).shapes()
    order = [0, 1, 1, 0, 0, 1]

    def batches(start):
        for step in itertools.count(start):
            yield synthetic_batch({"text": shapes[order[step % 6]]}, seed=step, vocab_size=16)

    traced = []

    class Counted(toy.Objective):
        def loss_terms(self, model, params, ema_params, batch, **keywords):
            traced.append(batch["text"]["text"].shape)
            return super().loss_terms(model, params, ema_params, batch, **keywords)

    streams = {"text": dataclasses.replace(text, buckets=buckets)}
    run = toy.run(streams=streams, objective=Counted(), checkpoint_every=4)
    with caplog.at_level(logging.INFO):
        train(run, tmp_path, batches=batches)
    assert sorted(traced) == [(8, 6), (16, 3)]
    told = [line for line in caplog.messages if "compiling the training step" in line]
    assert [line.split(": ")[1] for line in told] == ["text 16 x 3", "text 8 x 6"]
    for line in _lines(tmp_path):
        two = itertools.islice(batches(line["step"] - 2), 2)
        real = sum(int(batch["text"]["text_length"].sum()) for batch in two)
        assert line["text/token_padding"] == pytest.approx(2 * 48 / real)
    # A restart with the same buckets goes on without a word, with others it asks.
    for steps, limit in ((7, 3), (8, 4)):
        caplog.clear()
        buckets = Buckets(batch_sizes=(16,), text_tokens=(limit,))
        streams = {"text": dataclasses.replace(text, buckets=buckets)}
        changed = dataclasses.replace(run, streams=streams, steps=steps)
        if limit == 4:
            with pytest.raises(UserError, match=r"Buckets.text_tokens \(streams.text.buckets\)"):
                train(changed, tmp_path, batches=batches)
        with caplog.at_level(logging.INFO):
            train(changed, tmp_path, batches=batches, allow_changes=limit == 4)
        assert ("Buckets.text_tokens" in caplog.text) == (limit == 4)

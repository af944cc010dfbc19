"""What a run tells of its health: when, on which parameters, and after a restart."""

from __future__ import annotations

import errno
import json
import os
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maestro_jax.errors import UserError
from maestro_jax.training import diagnostics
from maestro_jax.training.diagnostics import DiagnosticsConfig
from maestro_jax.training.metrics import is_of_the_machine, throughput
from maestro_jax.training.partitioning import Partitioning
from maestro_jax.training.step import stream_sizes
from maestro_jax.training.trainer import train


@pytest.fixture(scope="module")
def parts(toy):
    """Runs of the toy that are looked at."""

    def run(**changes):
        settings = {
            "model": toy.ProbedModel(),
            "objective": toy.ProbedObjective(),
            "diagnostics": DiagnosticsConfig(every=3, gradients_every=6),
            "steps": 7,
        }
        return toy.run(**(settings | changes))

    return types.SimpleNamespace(run=run)


def lines(directory):
    return {
        record["step"]: record
        for record in map(json.loads, (directory / "metrics.jsonl").read_text().splitlines())
    }


@pytest.fixture(scope="module")
def whole(parts, toy, tmp_path_factory):
    """A run in one go: its directory, the steps at which it was looked at, and its state."""
    directory = tmp_path_factory.mktemp("whole")
    looks = []

    def on_log(step, metrics):
        assert step in lines(directory)  # A report that is made now has it.
        if "diagnostics_seconds" in metrics:
            looks.append(step)

    state = train(
        parts.run(),
        directory,
        batches=toy.batches,
        held_out=toy.held_out(),
        callbacks=[toy.OnLog(on_log)],
    )
    return directory, looks, state


def test_looks_before_the_first_step_every_so_often_and_at_the_end(toy, whole):
    directory, looks, _ = whole
    assert looks == [0, 3, 6, 7]
    written = lines(directory)
    assert list(written) == [0, 2, 3, 4, 6, 7]  # one line a step
    assert "loss" in written[6] and "probe/table" in written[6]
    assert "loss" not in written[3] and "probe/table" in written[3]
    assert sorted(path.name for path in (directory / "diagnostics").iterdir()) == [
        *(f"{step:08d}.npz" for step in looks),
        "run.json",
    ]
    for step in looks:
        assert written[step]["diagnostics_seconds"] > 0
        assert written[step]["probe/heard"] == toy.held_out()["audio_length"].sum() / 8
        assert "probe/never" not in written[step]
        assert written[step]["probe/codes_used"] == 2
        measured = {name for name in written[step] if name.startswith("grad_norm/")}
        terms = set() if step in (0, 3) else set(toy.Objective().term_weights)
        assert measured == {f"grad_norm/{term}" for term in terms}


def test_the_average_of_the_weights_is_probed(whole):
    directory, _, state = whole
    average = float(jnp.mean(state.ema_params["table"]))
    assert abs(average - float(jnp.mean(state.params["table"]))) > 1e-5
    assert lines(directory)[7]["probe/table"] == pytest.approx(average, rel=1e-5)


def test_arrays_without_padding(toy, whole):
    directory, _, _ = whole
    arrays = dict(np.load(directory / "diagnostics" / "00000003.npz"))
    pairs = toy.held_out()
    mask = np.arange(pairs["text"].shape[1]) < pairs["text_length"][:, None]
    np.testing.assert_array_equal(arrays["aligned"], pairs["text"][mask])
    np.testing.assert_array_equal(arrays["predicted"], arrays["aligned"] + 1)
    # Of the seven that are heard, the one of median length: 2 4 6 [8] 10 12 12.
    assert arrays["emission_frames"].tolist() == [2, 2]
    assert arrays["tokens"].tolist() == pairs["text"][2, :2].tolist()
    assert arrays["posterior"].shape == (4, 2) and arrays["similarity"].shape == (4, 4)
    assert arrays["mel"].shape == (16, 5)


def test_gradient_norms_are_those_of_each_term_alone(parts, toy, whole):
    """With the weights after the last update, and the batch of that update."""
    directory, _, state = whole
    run = parts.run()
    batch = next(toy.batches(6))

    def text_alone(params):
        rng = jax.random.fold_in(jax.random.key(run.seed), 7)
        _, metrics = run.objective.loss(run.model, params, state.ema_params, batch, rng=rng, step=7)
        total, count = metrics["loss/text"]
        return total / count

    gradient = jax.jit(jax.grad(text_alone))(state.params)
    squares = [np.sum(np.square(leaf)) for leaf in jax.tree.leaves(gradient)]
    last = lines(directory)[7]
    np.testing.assert_allclose(last["grad_norm/text"], np.sqrt(np.sum(squares)), rtol=1e-4)
    assert last["grad_norm/mt"] == 0  # it had no examples


def test_a_restart_gives_the_same_numbers(parts, toy, whole, tmp_path):
    class Stop(Exception):
        pass

    def until_the_fifth(start):
        for step, batch in enumerate(toy.batches(start), start):
            if step == 5:
                raise Stop
            yield batch

    run = parts.run(checkpoint_every=2, diagnostics=DiagnosticsConfig(every=3, gradients_every=6))
    with pytest.raises(Stop):
        train(run, tmp_path, batches=until_the_fifth, held_out=toy.held_out())
    # A look that the restarted run will come to again, and one it will not.
    (tmp_path / "diagnostics" / "00000006.npz").write_bytes(b"of an earlier process")
    (tmp_path / "diagnostics" / "00000099.npz").write_bytes(b"of another run")
    train(run, tmp_path, batches=toy.batches, held_out=toy.held_out())
    for name in ("00000000", "00000003", "00000006", "00000007"):
        here, there = (
            np.load(directory / "diagnostics" / f"{name}.npz") for directory in (tmp_path, whole[0])
        )
        for key in there.files:
            np.testing.assert_array_equal(here[key], there[key])
    assert not (tmp_path / "diagnostics" / "00000099.npz").exists()
    untimed = [
        {
            step: {k: v for k, v in line.items() if not is_of_the_machine(k)}
            for step, line in lines(directory).items()
        }
        for directory in (tmp_path, whole[0])
    ]
    assert untimed[0] == untimed[1]


def test_looking_does_not_change_training_nor_does_a_mesh_change_the_look(
    parts, toy, whole, tmp_path
):
    blind = parts.run(diagnostics=DiagnosticsConfig())
    state = train(blind, tmp_path / "blind", batches=toy.batches)
    toy.assert_trees_equal(state, whole[2])
    assert not (tmp_path / "blind" / "diagnostics").exists()
    meshed = parts.run(partitioning=Partitioning(mesh_shape=(2, 2, 2)))
    train(meshed, tmp_path / "meshed", batches=toy.batches, held_out=toy.held_out())
    here, there = (lines(directory) for directory in (tmp_path / "meshed", whole[0]))
    for step in (0, 7):
        for name, value in there[step].items():
            if name.startswith(("probe/", "grad_norm/")):
                assert here[step][name] == pytest.approx(value, rel=1e-3), name


def test_without_pairs_gradients_are_still_measured(toy, tmp_path):
    run = toy.run(steps=1, diagnostics=DiagnosticsConfig(every=1))
    train(run, tmp_path, batches=toy.batches)
    written = lines(tmp_path)[1]
    assert written["grad_norm/text"] > 0 and not any(name.startswith("probe/") for name in written)


def test_throughput():
    """Ten steps held 60 examples; at four steps a second that is 24 a second."""
    totals = {
        "paired/examples": 60.0,
        "paired/audio_seconds": 150.0,
        "paired/tokens": 1200.0,
        "text/tokens": 500.0,
        "loss": 3.0,
        "examples": 2.0,
    }
    assert throughput(totals, 10, 4.0) == {
        "paired/examples_per_second": 24.0,
        "paired/audio_seconds_per_second": 60.0,
        "paired/tokens_per_second": 480.0,
        "text/tokens_per_second": 200.0,
        "audio_hours_per_second": 60.0 / 3600.0,
    }
    assert throughput(totals, 10, None) == {}


def test_stream_sizes():
    batch = {
        "speech": {"audio_length": jnp.asarray([32000, 0, 8000])},
        "mt": {
            "text_length": jnp.asarray([3, 0]),
            "translation_length": jnp.asarray([4, 0]),
            "language": jnp.asarray([1, 1]),
        },
    }
    assert {name: float(total) for name, (total, _) in stream_sizes(batch).items()} == {
        "speech/examples": 2.0,
        "speech/audio_seconds": 2.5,
        "mt/examples": 1.0,
        "mt/tokens": 7.0,
    }
    batch["speech"]["audio"] = jnp.zeros((3, 50_000), jnp.int16)
    batch["mt"] |= {"text": jnp.zeros((2, 5)), "translation": jnp.zeros((2, 6))}
    padding = {
        name: (float(total), float(count))
        for name, (total, count) in stream_sizes(batch).items()
        if name.endswith("padding")
    }
    assert padding == {
        "speech/audio_padding": (150_000.0, 40_000.0),
        "mt/token_padding": (22.0, 7.0),
    }


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"every": -1}, "every is -1"),
        ({"every": 2, "examples": 0}, "examples is 0"),
        ({"every": 4, "gradients_every": 6}, "multiple of every, which is 4"),
        ({"gradients_every": 6}, "multiple of every, which is 0"),
    ],
)
def test_settings_that_cannot_be(settings, told):
    with pytest.raises(UserError, match=told):
        DiagnosticsConfig(**settings)


def test_a_run_goes_on_where_diagnostics_cannot_be_written(
    parts, toy, tmp_path, monkeypatch, caplog
):
    def full(path, content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    def fill(step, metrics):
        monkeypatch.setattr(diagnostics, "write_atomically", full)

    train(
        parts.run(),
        tmp_path,
        batches=toy.batches,
        held_out=toy.held_out(),
        callbacks=[toy.OnLog(fill)],
    )
    assert (tmp_path / "diagnostics" / "00000000.npz").exists()
    assert not (tmp_path / "diagnostics" / "00000003.npz").exists()
    assert "00000003.npz was not written: [Errno 28] No space left" in caplog.text
    assert lines(tmp_path)[7]["probe/table"]

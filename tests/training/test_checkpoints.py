"""Saving, and restoring to the same mesh, another mesh, another model."""

from __future__ import annotations

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maestro_jax.errors import UserError
from maestro_jax.training import parameter_trees
from maestro_jax.training.checkpoints import BestCheckpoint, Checkpoints
from maestro_jax.training.partial_restore import mismatch_reason, partial_restore, restore_params
from maestro_jax.training.partitioning import Partitioning
from maestro_jax.training.saved_checkpoints import find_checkpoint
from maestro_jax.training.state import create_state, initial_params


def _abstract(run, mesh_shape):
    partitioning = Partitioning(mesh_shape=mesh_shape)
    boxed = run.abstract_state()
    shardings = partitioning.state_shardings(partitioning.mesh(), boxed)
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        parameter_trees.unbox(boxed),
        shardings,
    )


def _state(run, mesh_shape=(-1, 1, 1)):
    @jax.jit
    def init():
        params = initial_params(run.model, run.objective, run.batch_shapes(), run.seed)
        state = create_state(parameter_trees.unbox(params), run.optimizer)
        # The average is told from the values by its numbers.
        return state.replace(ema_params=jax.tree.map(lambda p: p + 1, state.ema_params))

    shardings = jax.tree.map(lambda leaf: leaf.sharding, _abstract(run, mesh_shape))
    return jax.device_put(init(), shardings)


@pytest.fixture
def saved(toy, tmp_path):
    """A model directory with a checkpoint of step 5, and its state."""
    state = _state(toy.run(), (2, 2, 2)).replace(step=jnp.int32(5))
    checkpoints = Checkpoints(tmp_path / "model")
    checkpoints.save(state, {"step": 5, "seed": 0, "elapsed_seconds": 12.5})
    checkpoints.close()
    return tmp_path / "model", state


@pytest.mark.parametrize("mesh_shape", [(2, 2, 2), (1, 8, 1), (4, 1, 2)])
def test_restores_onto_any_mesh(toy, saved, mesh_shape):
    directory, state = saved
    abstract = _abstract(toy.run(), mesh_shape)
    checkpoints = Checkpoints(directory)
    restored, record = checkpoints.restore_latest(abstract)
    checkpoints.close()
    assert record == {"step": 5, "seed": 0, "elapsed_seconds": 12.5}
    toy.assert_trees_equal(restored, state)
    for leaf, target in zip(jax.tree.leaves(restored), jax.tree.leaves(abstract), strict=True):
        assert leaf.sharding.is_equivalent_to(target.sharding, leaf.ndim)


def test_another_model_is_refused(toy, saved):
    directory, _ = saved
    checkpoints = Checkpoints(directory)
    with pytest.raises(UserError, match=r"out/kernel is \(12, 16\) there and \(16, 16\) here"):
        checkpoints.restore_latest(_abstract(toy.run(model=toy.Model(hidden=16)), (2, 2, 2)))
    with pytest.raises(UserError, match="ema_params .* absent here"):
        checkpoints.restore_latest(_abstract(toy.run(ema_decay=None), (2, 2, 2)))
    checkpoints.close()


def test_keeps_the_last_and_the_best(toy, tmp_path):
    state = _state(toy.run())
    checkpoints = Checkpoints(tmp_path, keep=2)
    best = BestCheckpoint(step=0, metric="wer", mode="min", value=1.0)
    for step, wer in ((1, 0.5), (2, 0.1), (3, 0.4)):
        if best.is_beaten_by(wer):
            best = checkpoints.best = dataclasses.replace(best, step=step, value=wer)
        checkpoints.save(state, {"step": step})
    checkpoints.close()
    # The next process has to be told, as training does from its record.
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.best = best
    for step in (4, 5):
        checkpoints.save(state, {"step": step})
    checkpoints.settle()
    assert checkpoints.all_steps() == [2, 4, 5]
    checkpoints.save(state, {"step": 5})  # Saved already.
    checkpoints.close()
    for name, step in (("best", 2), ("checkpoints/best", 2), ("latest", 5), ("", 5)):
        assert find_checkpoint(tmp_path / name).name == str(step)
    shutil.rmtree(tmp_path / "checkpoints" / "2")
    with pytest.raises(UserError, match="names step 2, but .*checkpoints/2 does not exist"):
        find_checkpoint(tmp_path / "best")


def test_a_run_without_a_best_checkpoint_is_said_so(saved):
    with pytest.raises(UserError, match=r"model has no best checkpoint: .*leave /best out"):
        find_checkpoint(saved[0] / "best")


def test_an_empty_directory_restores_nothing(toy, tmp_path):
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.latest_step() is None
    assert checkpoints.restore_latest(_abstract(toy.run(), (2, 2, 2))) is None
    checkpoints.close()


def test_parameters_for_evaluation(toy, saved):
    directory, state = saved
    for source in (directory, directory / "checkpoints", directory / "checkpoints" / "5"):
        toy.assert_trees_equal(restore_params(source), jax.device_get(state.ema_params))
    with pytest.raises(UserError, match=r"has no checkpoint 6; it has those of steps (\d, )*5\."):
        restore_params(directory / "checkpoints" / "6")
    params = restore_params(directory, "params")
    toy.assert_trees_equal(params, jax.device_get(state.params))
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(params))
    abstract = _abstract(toy.run(), (1, 4, 2)).params
    placed = restore_params(directory, "params", abstract_params=abstract)
    toy.assert_trees_equal(placed, state.params)
    assert placed["up"]["kernel"].sharding == abstract["up"]["kernel"].sharding
    other = _abstract(toy.run(model=toy.Model(hidden=16)), (1, 4, 2)).params
    with pytest.raises(UserError, match=r"does not fit the model: \S+: shape \(\d+,.* there"):
        restore_params(directory, "params", abstract_params=other)


def test_what_is_no_checkpoint_is_said_so(tmp_path):
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(UserError, match="is not a checkpoint directory"):
            find_checkpoint(path)
        with pytest.raises(UserError, match="is not a checkpoint directory"):
            restore_params(path)
    (tmp_path / "checkpoints" / "7.orbax-checkpoint-tmp-1").mkdir(parents=True)
    with pytest.raises(UserError, match="is not a checkpoint directory"):
        find_checkpoint(tmp_path)
    (tmp_path / "runs" / "asr" / "checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match=r"; below it are asr\.$"):
        find_checkpoint(tmp_path / "runs")


def test_unknown_kind_of_parameters(saved):
    with pytest.raises(UserError, match="choose 'ema' or 'params'"):
        restore_params(saved[0], "average")


def test_partial_restore_reports_each_parameter(toy, saved):
    directory, state = saved
    # Another vocabulary, a part renamed, a part in bfloat16.
    params = {
        "table": jnp.full((20, 8), 7.0),
        "up": {"kernel": jnp.zeros((8, 12), jnp.bfloat16), "bias": jnp.full((12,), 3.0)},
        "exit": {"kernel": jnp.full((12, 16), 7.0)},
    }
    merged, report = partial_restore(params, directory, "params")
    assert sorted(report.loaded) == ["up/bias", "up/kernel"]
    assert dict(report.skipped) == {
        "table": "shape (16, 8) there, (20, 8) here",
        "out/kernel": "not in this model",
        "out/bias": "not in this model",
    }
    assert sorted(report.new) == ["exit/kernel", "table"]
    assert report.summary().splitlines() == [
        "2 parameters loaded, 3 skipped, 2 new",
        "  exit: 1 new",
        "  out: 2 skipped (out/bias: not in this model, ...)",
        "  table: 1 skipped, 1 new (table: shape (16, 8) there, (20, 8) here)",
        "  up: 2 loaded",
    ]
    lines = report.text().splitlines()
    assert "  table: shape (16, 8) there, (20, 8) here" in lines
    # Every name that is anywhere is there, once for the checkpoint and once for the model.
    assert sorted(line.split(":")[0].strip() for line in lines if line.startswith("  ")) == sorted(
        ["up/kernel", "up/bias", "table", "table", "out/kernel", "out/bias", "exit/kernel"]
    )
    np.testing.assert_array_equal(merged["table"], params["table"])
    np.testing.assert_array_equal(merged["exit"]["kernel"], params["exit"]["kernel"])
    np.testing.assert_array_equal(merged["up"]["bias"], state.params["up"]["bias"])
    np.testing.assert_array_equal(
        merged["up"]["kernel"], state.params["up"]["kernel"].astype(jnp.bfloat16)
    )
    with pytest.raises(UserError, match="No parameter of .* fits"):
        partial_restore({"table": jnp.zeros((3, 3))}, directory)


def test_what_fits_may_be_left_out(toy, saved):
    """A vocabulary that was replaced by one of the same size; an encoder taken alone."""
    directory, state = saved
    params = jax.tree.map(lambda leaf: jnp.full_like(leaf, 7.0), state.params)
    merged, report = partial_restore(
        params, directory, "params", include=("up/.*", "table"), exclude=("ta.*",)
    )
    assert sorted(report.loaded) == ["up/bias", "up/kernel"]
    assert dict(report.skipped) == {
        "table": "excluded by init_exclude",
        "out/kernel": "not in init_include",
        "out/bias": "not in init_include",
    }
    assert sorted(report.new) == ["out/bias", "out/kernel", "table"]
    toy.assert_trees_equal(merged["up"], state.params["up"])
    toy.assert_trees_equal(merged["table"], params["table"])
    for option in ("include", "exclude"):
        with pytest.raises(
            UserError, match=rf"'uq/\.\*' of init_{option}, .* matches no .* mean 'up/\.\*'"
        ):
            partial_restore(params, directory, **{option: ("uq/.*",)})
    with pytest.raises(UserError, match="No parameter .*: excluded by init_exclude"):
        partial_restore(params, directory, exclude=(".*",))


def test_stacks_that_are_held_otherwise_are_said_so():
    def reason(name, *wanted):
        shapes = {key: jax.ShapeDtypeStruct((2, 3), "float32") for key in wanted}
        return mismatch_reason(name, (2, 3), shapes, include=(".*",), exclude=())

    assert "set scan = True" in reason("stack/layers/up/kernel", "stack/layer_0/up/kernel")
    assert "set scan = False" in reason("stack/layer_1/up/kernel", "stack/layers/up/kernel")
    assert reason("stack/layer_1/up/kernel", "stack/layer_0/up/kernel") == "not in this model"
    assert reason("layers/up", "layers/up") is None


def test_what_an_objective_learned_is_skipped_and_nothing_else(toy, saved, tmp_path):
    _, state = saved
    learned = state.replace(
        params={**state.params, "loss_weighting": {"text": jnp.zeros(()), "mt": jnp.ones(())}}
    )
    checkpoints = Checkpoints(tmp_path / "learned")
    checkpoints.save(learned, {"step": 5})
    checkpoints.close()
    merged, report = partial_restore(state.params, tmp_path / "learned", "params")
    toy.assert_trees_equal(jax.device_get(merged), jax.device_get(state.params))
    assert dict(report.skipped) == {
        "loss_weighting/mt": "not in this model",
        "loss_weighting/text": "not in this model",
    }
    assert report.new == ()

"""Averages of checkpoints against numpy, in a model directory of its own."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maestro_jax.cli import main as cli
from maestro_jax.errors import UserError
from maestro_jax.training.averaging import average_checkpoints, last_steps
from maestro_jax.training.checkpoint_files import damage
from maestro_jax.training.checkpoints import Checkpoints
from maestro_jax.training.partial_restore import restore_params
from maestro_jax.training.saved_checkpoints import find_checkpoint, saved_record
from maestro_jax.training.state import TrainState

STEPS = (10, 20, 30, 40)


def values(step: int) -> dict:
    rng = np.random.default_rng(step)
    return {
        "up": {"kernel": (1e3 + rng.normal(size=(40, 30))).astype(np.float32)},
        "bias": rng.normal(size=7).astype(jnp.bfloat16),
    }


def state(step: int) -> TrainState:
    params, ema = (jax.tree.map(jnp.asarray, values(seed)) for seed in (step, step + 1))
    return TrainState(jnp.int32(step), params, (), ema)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model")
    checkpoints = Checkpoints(directory, keep=10)
    for step in STEPS:
        checkpoints.save(state(step), {"step": step, "seed": 3, "vocabulary": {"pieces": 5}})
    checkpoints.close()
    for name in ("config.gin", "operative_config.gin", "vocabulary.model", "languages.txt"):
        (directory / name).write_text(name)
    return directory


def test_an_average_is_the_mean_in_float64(model: Path, tmp_path: Path) -> None:
    written = average_checkpoints(model, [40, 20, 30], tmp_path / "mean")
    assert find_checkpoint(tmp_path / "mean") == written and damage(written) is None
    for which, offset in (("params", 0), ("ema", 1)):
        found = restore_params(written, which)
        for path in (("up", "kernel"), ("bias",)):
            leaves = []
            for step in (20, 30, 40):
                leaf = values(step + offset)
                for key in path:
                    leaf = leaf[key]
                leaves.append(leaf.astype(np.float64))
            got = found
            for key in path:
                got = got[key]
            want = np.mean(leaves, axis=0).astype(got.dtype)
            assert got.dtype == (np.float32 if path[0] == "up" else jnp.bfloat16)
            np.testing.assert_array_equal(got, want)
    record = saved_record(written)
    assert record["averaged_steps"] == [20, 30, 40] and record["step"] == 40
    assert record["vocabulary"] == {"pieces": 5}


def test_the_command_writes_a_model_directory(model: Path, capsys) -> None:
    assert cli.main(["average", str(model), "--last", "2"]) == 0
    assert "is the mean of the steps 30, 40" in capsys.readouterr().out
    averaged = model / "averaged"
    for name in ("config.gin", "vocabulary.model", "languages.txt"):
        assert (averaged / name).read_text() == name
    # The run's own newest checkpoint is what it was.
    assert find_checkpoint(model).name == "40" and find_checkpoint(model).parent.parent == model
    for argv, expected in [
        (["--last", "2"], None),
        (["--last", "3"], "has checkpoints; give another --output"),
        (["--last", "5"], "has 4 whole checkpoints (10, 20, 30, 40), not 5"),
        (["--step", "10,15"], "there is no checkpoint"),
        (["--step", "10,b"], "'10,b' is not steps"),
        (["--step", "10", "--last", "2"], "give only one of them"),
    ]:
        assert (cli.main(["average", str(model), *argv]) == 0) == (expected is None)
        error = capsys.readouterr().err.strip()
        if expected is not None:
            assert expected in error and len(error.splitlines()) == 1
    # Nothing but parameters is left to continue from.
    checkpoints = Checkpoints(averaged)
    with pytest.raises(UserError, match="is an average of checkpoints.*INIT_FROM"):
        checkpoints.restore_latest(state(0))
    checkpoints.close()


def test_other_models_are_refused(model: Path, tmp_path: Path) -> None:
    other = Checkpoints(tmp_path, keep=10)
    params = {"up": {"kernel": jnp.zeros((4, 3))}}
    other.save(TrainState(jnp.int32(1), params, (), None), {"step": 1})
    params = {"up": {"kernel": jnp.zeros((4, 4))}}
    other.save(TrainState(jnp.int32(2), params, (), None), {"step": 2})
    other.close()
    assert last_steps(tmp_path, 2) == [1, 2]
    with pytest.raises(UserError, match=r"differ in \['up'\]\['kernel'\]"):
        average_checkpoints(tmp_path, [1, 2], tmp_path / "mean")
    assert not (tmp_path / "mean").exists()

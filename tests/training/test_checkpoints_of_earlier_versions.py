"""Checkpoints that lack what models have got since are read as the models that they were."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from narrow_model import NARROW

from maestro_jax.errors import UserError
from maestro_jax.gin_utils import gin_config
from maestro_jax.training.checkpoints import Checkpoints
from maestro_jax.training.parameter_trees import unbox
from maestro_jax.training.partial_restore import restore_params
from maestro_jax.training.saved_checkpoints import as_begun, as_saved
from maestro_jax.training.state import create_state

FILES = [
    f"{name}.gin"
    for name in ("runs/pretrain", "models/tiny", "objectives/maestro", "data/minivox_tiny")
]


def zeros(run):
    shapes = unbox(run.abstract_state().params)
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)


@pytest.fixture(scope="module")
def run():
    return gin_config.parse_and_build(FILES, NARROW | {"STEPS": "10"})


@pytest.mark.parametrize("earlier", [True, False])
def test_a_refiner_without_its_last_normalisation(run, tmp_path, earlier):
    params = zeros(run)
    if earlier:
        del params["refiner"]["final_norm"]
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(create_state(params, run.optimizer), {"step": 3})
    checkpoints.close()
    found = as_saved(run, tmp_path)
    assert run.model.refiner.normalize and found.model.refiner.normalize != earlier
    abstract = unbox(found.abstract_state().params)
    restored = restore_params(tmp_path, abstract_params=abstract)
    assert jax.tree.structure(restored) == jax.tree.structure(params)
    if earlier:
        with pytest.raises(UserError, match="refiner/final_norm"):
            restore_params(tmp_path, abstract_params=unbox(run.abstract_state().params))


@pytest.mark.parametrize("earlier", [True, False])
def test_a_run_goes_on_with_the_model_with_which_it_began(run, tmp_path, earlier, caplog):
    params = zeros(run)
    if earlier:
        del params["refiner"]["final_norm"]
    checkpoints = Checkpoints(tmp_path)
    for step in (3, 6):
        checkpoints.save(create_state(params, run.optimizer), {"step": step})
    checkpoints.settle()
    # The newest is damaged: the one before it tells.
    (checkpoints.directory / "6" / "state" / "_METADATA").unlink()
    found = as_begun(run, checkpoints.directory, checkpoints.all_steps())
    assert found.model.refiner.normalize != earlier
    assert ("started by an earlier version" in caplog.text) == earlier
    checkpoints.close()
    assert as_begun(run, checkpoints.directory, ()) is run

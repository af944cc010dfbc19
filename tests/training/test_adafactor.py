"""Adafactor against optax's, and where its moments lie on a mesh."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from maestro_jax.errors import UserError
from maestro_jax.training import parameter_trees
from maestro_jax.training.optimizers import AdafactorConfig, AdamConfig
from maestro_jax.training.parameter_groups import ParameterGroup
from maestro_jax.training.partitioning import Partitioning
from maestro_jax.training.trainer import train

SHAPES = {"kernel": (6, 9), "scanned": (3, 8, 4), "narrow": (2, 9), "bias": (9,), "scalar": ()}


def draw(seed):
    rng = np.random.default_rng(seed)
    return {name: jnp.asarray(rng.normal(size=s), jnp.float32) for name, s in SHAPES.items()}


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({}, {"multiply_by_parameter_scale": False}),
        ({"parameter_scale": True, "b1": 0.9}, {"momentum": 0.9}),
        (
            {"clip_rms": None, "decay_rate": 0.7, "b1": 0.5, "mu_dtype": "bfloat16"},
            {
                "clipping_threshold": None,
                "decay_rate": 0.7,
                "multiply_by_parameter_scale": False,
                "momentum": 0.5,
                "dtype_momentum": jnp.bfloat16,
            },
        ),
    ],
)
def test_updates_are_those_of_optax(ours, theirs):
    config = AdafactorConfig(
        learning_rate=0.25,
        warmup_steps=0,
        schedule_name="constant",
        clip_norm=None,
        smallest_factored=4,
        **ours,
    )
    reference = optax.adafactor(0.25, min_dim_size_to_factor=4, **theirs)
    params = other = draw(0)
    optimizer = config.build(params)
    state, other_state = optimizer.init(params), reference.init(other)
    for step in range(4):
        gradients = draw(step + 1)
        updates, state = optimizer.update(gradients, state, params)
        other_updates, other_state = reference.update(gradients, other_state, other)
        params = optax.apply_updates(params, updates)
        other = optax.apply_updates(other, other_updates)
    # A first moment in bfloat16 is rounded before or after the learning rate is applied, a power
    # of two here.
    for name in SHAPES:
        np.testing.assert_allclose(params[name], other[name], rtol=2e-5, atol=1e-6, err_msg=name)


@pytest.fixture
def run(toy):
    return toy.run(
        model=toy.Model(hidden=24),
        optimizer=AdafactorConfig(learning_rate=1e-2, warmup_steps=2, smallest_factored=8, b1=0.9),
    )


def moments(state):
    return next(part for part in jax.tree.leaves(state, is_leaf=_is_factored) if _is_factored(part))


def _is_factored(node):
    return hasattr(node, "v_row")


def test_moments_lie_along_the_axes_that_are_left(run):
    """Of `up/kernel` (embed 8, mlp 24) the row means are over mlp, the column means over embed."""
    partitioning = Partitioning(mesh_shape=(2, 2, 2))
    shardings = partitioning.state_shardings(partitioning.mesh(), run.abstract_state())
    found = moments(shardings.opt_state)
    specs = {
        field: {n: s.spec for n, s in parameter_trees.named_leaves(getattr(found, field))}
        for field in ("v_row", "v_col", "v")
    }
    assert specs["v_row"]["up/kernel"] == PartitionSpec("fsdp")
    assert specs["v_col"]["up/kernel"] == PartitionSpec("tensor")
    assert specs["v"]["up/kernel"] == PartitionSpec()
    # (mlp 24, embed 16): the largest axis is the first.
    assert specs["v_row"]["out/kernel"] == PartitionSpec("fsdp")
    assert specs["v_col"]["out/kernel"] == PartitionSpec("tensor")
    assert specs["v"]["up/bias"] == PartitionSpec("tensor")


def test_nothing_that_could_be_split_is_whole(run):
    """Every axis of a statistic is the axis of its parameter of that size, split as that is."""
    partitioning = Partitioning(mesh_shape=(1, 4, 2))
    mesh = partitioning.mesh()
    boxed = run.abstract_state()
    shardings = partitioning.state_shardings(mesh, boxed)
    params = dict(parameter_trees.named_leaves(shardings.params))
    shapes = dict(parameter_trees.named_leaves(parameter_trees.unbox(boxed.params)))
    found, values = moments(shardings.opt_state), moments(parameter_trees.unbox(boxed.opt_state))
    checked = 0
    for field in ("v_row", "v_col", "v"):
        leaves = dict(parameter_trees.named_leaves(getattr(values, field)))
        for name, sharding in parameter_trees.named_leaves(getattr(found, field)):
            shape = leaves[name].shape
            split = {
                size: params[name].spec[axis] if axis < len(params[name].spec) else None
                for axis, size in enumerate(shapes[name].shape)
            }
            for axis, size in enumerate(shape):
                if size > 1:
                    spec = sharding.spec[axis] if axis < len(sharding.spec) else None
                    assert spec == split[size], (field, name)
                    checked += spec is not None
    assert checked >= 5


def test_the_state_is_small_and_keeps_no_second_moments_of_kernels(toy):
    """Of the parameters above the size that is factored, rows and columns alone are kept."""
    config = AdafactorConfig()
    params = {"kernel": jax.ShapeDtypeStruct((18, 1024, 4096), jnp.float32)}
    state = jax.eval_shape(config.build(params).init, params)
    numbers = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(state))
    assert numbers < 18 * (1024 + 4096) + 10
    adam = jax.eval_shape(AdamConfig(mu_dtype="bfloat16").build(params).init, params)
    sizes = sorted(leaf.dtype.itemsize for leaf in jax.tree.leaves(adam) if leaf.ndim == 3)
    assert sizes == [2, 4]


@pytest.mark.extended
def test_a_run_with_groups_is_taken_up_again(toy, run, tmp_path):
    """On a mesh, with a frozen group; stopped in the middle, it gives the bits of one go."""
    groups = (
        ParameterGroup(name="table", patterns="table", frozen=True),
        ParameterGroup(name="out", patterns="out/.*", learning_rate=3e-3, frozen_steps=2),
    )
    run = dataclasses.replace(
        run,
        optimizer=dataclasses.replace(run.optimizer, groups=groups),
        partitioning=Partitioning(mesh_shape=(2, 2, 2)),
    )
    whole = train(run, tmp_path / "whole", batches=toy.batches)
    train(dataclasses.replace(run, steps=3), tmp_path / "two", batches=toy.batches)
    taken_up = train(run, tmp_path / "two", batches=toy.batches)
    toy.assert_trees_equal(whole, taken_up)
    start = train(dataclasses.replace(run, steps=1), tmp_path / "one", batches=toy.batches)
    np.testing.assert_array_equal(whole.params["table"], start.params["table"])
    assert not np.array_equal(whole.params["up"]["kernel"], start.params["up"]["kernel"])
    assert not np.array_equal(whole.params["out"]["kernel"], start.params["out"]["kernel"])


def test_settings_that_mean_nothing_are_refused():
    with pytest.raises(UserError, match="decay_rate=0"):
        AdafactorConfig(decay_rate=0.0)
    with pytest.raises(UserError, match="smallest_factored=0"):
        AdafactorConfig(smallest_factored=0)
    with pytest.raises(UserError, match="mu_dtype is 'bfloat15'.*Did you mean 'bfloat16'"):
        AdamConfig(mu_dtype="bfloat15")

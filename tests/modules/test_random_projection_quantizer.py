"""The random-projection quantizer by its definition in float64, and that nothing ever moves it."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from maestro_jax.modules.frontend import ConvSubsampling, stack_frames
from maestro_jax.modules.quantizer import RandomProjectionQuantizer
from maestro_jax.training.optimizers import AdamConfig

BOOKS, CODES, SIZE, INPUTS = 3, 11, 4, 24


@pytest.fixture(scope="module")
def made():
    features = 2.0 + np.random.default_rng(0).normal(size=(2, 40, INPUTS)).astype(np.float32)
    module = RandomProjectionQuantizer(BOOKS, CODES, SIZE)
    variables = nn.unbox(module.init(jax.random.key(0), features))
    return module, variables["params"], features


def nearest(params, features):
    """The code with the smallest Euclidean distance between unit vectors, frame by frame."""
    projections, codebooks = (
        np.asarray(params[name], np.float64) for name in ("frozen_projections", "frozen_codebooks")
    )
    ids = np.zeros((*features.shape[:2], BOOKS), int)
    for b, t, k in np.ndindex(ids.shape):
        x = features[b, t].astype(np.float64)
        x = (x - x.mean()) / x.std()
        y = x @ projections[k]
        y /= np.linalg.norm(y)
        codes = codebooks[k] / np.linalg.norm(codebooks[k], axis=1)[:, None]
        ids[b, t, k] = np.linalg.norm(codes - y, axis=1).argmin()
    return ids


def test_ids_are_the_nearest_codes(made):
    module, params, features = made
    ids = module.apply({"params": params}, features)
    assert ids.dtype == jnp.int32
    np.testing.assert_array_equal(ids, nearest(params, features))
    # The codebooks differ, and none says the same of all frames.
    assert np.mean(np.asarray(ids[..., 0]) == np.asarray(ids[..., 1])) < 0.4
    assert min(len(np.unique(ids[..., k])) for k in range(BOOKS)) > CODES // 2


def test_initial_values(made):
    _, params, _ = made
    np.testing.assert_allclose(np.linalg.norm(params["frozen_codebooks"], axis=-1), 1.0, rtol=1e-5)
    # Xavier uniform, of each matrix for itself.
    bound = np.sqrt(6.0 / (INPUTS + SIZE))
    largest = np.abs(params["frozen_projections"]).max(axis=(1, 2))
    assert np.all(largest <= bound) and np.all(largest > 0.9 * bound)


def test_scale_and_offset_of_features_and_scale_of_parameters_change_nothing(made):
    module, params, features = made
    ids = module.apply({"params": params}, features)
    louder = module.apply({"params": params}, 3.0 * features - 7.0)
    assert np.mean(np.asarray(louder) == np.asarray(ids)) > 0.99
    smaller = jax.tree.map(lambda leaf: leaf / 1024.0, params)
    np.testing.assert_array_equal(module.apply({"params": smaller}, features), ids)


def test_training_with_weight_decay_leaves_every_bit(made):
    """Beside a trained parameter, which does move; whatever names are excluded by hand."""
    module, params, features = made
    optimizer = AdamConfig(weight_decay=0.1, warmup_steps=0, weight_decay_exclude=())
    tree = {"quantizer": params, "head": {"kernel": jnp.ones((BOOKS,))}}
    transformation = optimizer.build(tree)
    state = transformation.init(tree)

    def loss(tree):
        ids = module.apply({"params": tree["quantizer"]}, features)
        return jnp.sum(ids * tree["head"]["kernel"])

    for _ in range(3):
        gradients = jax.grad(loss)(tree)
        assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradients["quantizer"]))
        updates, state = transformation.update(gradients, state, tree)
        tree = optax.apply_updates(tree, updates)
    for name, leaf in params.items():
        np.testing.assert_array_equal(tree["quantizer"][name], leaf)
    assert np.all(np.abs(tree["head"]["kernel"] - 1.0) > 1e-4)


def test_no_gradient_reaches_the_features(made):
    module, params, features = made

    def total(x):
        return jnp.sum(module.apply({"params": params}, x).astype(jnp.float32))

    assert not np.any(jax.grad(total)(features))


@pytest.mark.parametrize("frames", [1, 4, 5, 20])
def test_stacked_frames_are_the_frames_of_the_encoder(frames):
    x = np.arange(1.0, 2 * frames + 1).reshape(1, frames, 2)
    subsampling = ConvSubsampling()
    stacked = stack_frames(jnp.asarray(x), subsampling.factor)
    assert subsampling.factor == 4 and stacked.shape[1] == subsampling.frame_count(frames)
    flat = np.asarray(stacked).reshape(-1, 2)
    np.testing.assert_array_equal(flat[:frames], x[0])
    assert not flat[frames:].any()

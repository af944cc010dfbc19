"""The refiner with either mixer: what it may see, and what it gives for nothing."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maestro_jax.modules.masking import length_mask
from maestro_jax.modules.refiner import MIXERS, Refiner


def refiner(mixer, **changes):
    settings = {"features": 10, "layers": 2, "heads": 2, "kernel_size": 5, "hidden": 12}
    return Refiner(mixer=mixer, **(settings | changes))


@pytest.fixture(params=MIXERS, scope="module")
def built(request):
    """The compiled module and parameters of which none is zero."""
    module = refiner(request.param)
    x = np.random.default_rng(0).normal(size=(3, 6, 8)).astype(np.float32)
    lengths = jnp.array([6, 3, 0])
    variables = nn.unbox(jax.jit(module.init)(jax.random.key(0), x, length_mask(lengths, 6)))
    variables = jax.tree.map(lambda p: p + 0.1, variables)
    return request.param, jax.jit(module.apply), variables, x, lengths


def test_padding_is_not_seen_whatever_it_holds_and_however_long_it_is(built):
    _, apply, variables, x, lengths = built
    mask = length_mask(lengths, 6)
    expected = apply(variables, x, mask)
    assert expected.shape == (3, 6, 10)
    assert not np.any(expected[1, 3:]) and not np.any(expected[2])
    other = np.where(np.asarray(mask)[:, :, None], x, 1e3)
    np.testing.assert_allclose(apply(variables, other, mask), expected, atol=1e-5)
    longer = np.concatenate([other, np.full((3, 4, 8), -1e3, np.float32)], axis=1)
    found = apply(variables, longer, length_mask(lengths, 10))
    np.testing.assert_allclose(found[:, :6], expected, atol=1e-5)
    assert not np.any(found[:, 6:])


def test_no_gradient_of_what_is_valid_reaches_padding(built):
    _, apply, variables, x, lengths = built
    mask = length_mask(lengths, 6)
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(jnp.square(apply(variables, x, mask)))))(x)
    assert np.all(np.isfinite(gradient))
    assert not np.any(np.asarray(gradient)[~np.asarray(mask)])
    assert np.all(np.any(np.asarray(gradient)[np.asarray(mask)], axis=-1))


def test_how_far_a_frame_sees(built):
    """Convolutions alone reach (kernel - 1) / 2 frames a layer; attention reaches all."""
    mixer, apply, variables, _, _ = built
    x = np.random.default_rng(1).normal(size=(1, 12, 8)).astype(np.float32)
    mask = jnp.ones((1, 12), bool)
    changed = x.copy()
    changed[0, 0] += 1.0
    difference = np.abs(apply(variables, changed, mask) - apply(variables, x, mask)).max(-1)[0]
    reach = 11 if mixer == "attention_lconv" else 2 * 2
    assert np.all(difference[: reach + 1] > 1e-7)
    assert not np.any(difference[reach + 1 :])


def test_unknown_mixer():
    with pytest.raises(ValueError, match="choose one of"):
        refiner("fourier")

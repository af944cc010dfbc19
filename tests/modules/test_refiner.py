"""The refiner with either mixer: what it may see, and what it gives for nothing."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maestro_jax.layers.conformer import ConformerStack
from maestro_jax.layers.masking import length_mask
from maestro_jax.modules.refiner import MIXERS, Refiner


def refiner(mixer, **changes):
    settings = {"features": 10, "layers": 2, "heads": 2, "kernel_size": 5, "hidden": 12}
    return Refiner(mixer=mixer, **(settings | changes))


@pytest.fixture(params=MIXERS, scope="module")
def built(request):
    """The compiled module, its vector-Jacobian product, and parameters of which none is zero."""
    module = refiner(request.param)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 12, 8)).astype(np.float32)
    abstract = nn.unbox(jax.eval_shape(module.init, jax.random.key(0), x, np.ones((3, 12), bool)))
    draw = lambda leaf: (0.3 * rng.normal(size=leaf.shape) + 0.1).astype(leaf.dtype)  # noqa: E731
    variables = jax.tree.map(draw, abstract)

    def outputs(x, mask, cotangents):
        found, backward = jax.vjp(lambda x: module.apply(variables, x, mask), x)
        return found, backward(cotangents)[0]

    return request.param, jax.jit(outputs), x


def test_padding_is_not_seen_whatever_it_holds(built):
    """Nor has it a gradient, whatever comes back from the frames that are valid."""
    _, outputs, x = built
    mask = np.asarray(length_mask(jnp.array([12, 5, 0]), 12))
    cotangents = np.random.default_rng(2).normal(size=(3, 12, 10)).astype(np.float32)
    expected, expected_gradient = outputs(x, mask, cotangents)
    assert not np.any(expected[~mask]) and np.all(np.any(expected[mask], axis=-1))
    other = np.where(mask[:, :, None], x, 1e3).astype(np.float32)
    found, gradient = outputs(other, mask, np.where(mask[:, :, None], cotangents, 1e3))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    for each in (gradient, expected_gradient):
        assert np.all(np.isfinite(each)) and not np.any(np.asarray(each)[~mask])
    np.testing.assert_allclose(gradient, expected_gradient, atol=1e-4)
    assert np.all(np.any(np.asarray(gradient)[mask], axis=-1))


def test_a_short_row_is_what_it_is_alone(built):
    """Rows of 5 and 12 frames together, and the first 5 frames of the row as all that there is."""
    _, outputs, x = built
    zeros = np.zeros((3, 12, 10), np.float32)
    together, _ = outputs(x, np.asarray(length_mask(jnp.array([12, 5, 9]), 12)), zeros)
    alone, _ = outputs(x, np.asarray(length_mask(jnp.array([0, 5, 0]), 12)), zeros)
    np.testing.assert_allclose(together[1], alone[1], atol=1e-6)


def test_how_far_a_frame_sees(built):
    """Convolutions alone reach (kernel - 1) / 2 frames a layer; attention reaches all."""
    mixer, outputs, x = built
    mask, zeros = np.ones((3, 12), bool), np.zeros((3, 12, 10), np.float32)
    changed = x.copy()
    # A constant over the features would be undone by layer normalisation.
    changed[:, 0] = x[:, 0, ::-1]
    difference = outputs(changed, mask, zeros)[0] - outputs(x, mask, zeros)[0]
    moved = np.abs(np.asarray(difference)).max(axis=(0, 2))
    reach = 11 if mixer == "attention_lconv" else 2 * 2
    assert np.all(moved[: reach + 1] > 1e-4)
    assert not np.any(moved[reach + 1 :])


def test_unknown_mixer():
    with pytest.raises(ValueError, match="choose one of"):
        refiner("fourier")


def test_the_scale_is_that_of_what_comes_out_of_a_conformer():
    """Whatever the linear map before has learned; and without, that map decides."""
    rng = np.random.default_rng(3)
    x, mask = rng.normal(size=(2, 9, 10)).astype(np.float32), np.ones((2, 9), bool)
    stack = ConformerStack(layers=1, features=10, heads=2, hidden=12, kernel_size=3, groups=2)
    speech, _ = stack.init_with_output(jax.random.key(0), x, mask)
    found = {}
    for normalize in (True, False):
        module = refiner("lconv", layers=1, normalize=normalize)
        variables = nn.unbox(module.init(jax.random.key(1), x, mask))
        variables["params"]["output"]["kernel"] *= 1.5
        found[normalize] = np.mean(np.square(module.apply(variables, x, mask)), axis=-1)
    np.testing.assert_allclose(found[True], np.mean(np.square(speech), axis=-1), rtol=1e-3)
    assert np.mean(found[False]) > 1.5

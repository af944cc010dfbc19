"""Lightweight convolution against equation 5 of its paper (Wu et al. 2019), written as loops."""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maestro_jax.layers.convolution import LightweightConv, LightweightConvBlock
from maestro_jax.layers.masking import length_mask


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def by_definition(x, weights, lengths):
    """Equation 5: sum over j of softmax(W)[ceil(c H / d), j] x[i + j - ceil((k + 1) / 2), c].

    The paper's indices count from one; positions outside of the sequence are zero.
    """
    (width, heads), features = weights.shape, x.shape[-1]
    out = np.zeros(x.shape)
    for b, i, c in np.ndindex(*x.shape):
        head = math.ceil((c + 1) * heads / features) - 1
        kernel = np.exp(weights[:, head] - weights[:, head].max())
        kernel /= kernel.sum()
        for j in range(1, width + 1):
            source = (i + 1) + j - math.ceil((width + 1) / 2)
            if 1 <= source <= lengths[b]:
                out[b, i, c] += kernel[j - 1] * x[b, source - 1, c]
    return out


@pytest.mark.parametrize(("heads", "width"), [(1, 3), (2, 3), (3, 5), (6, 9)])
def test_convolution_is_that_of_the_definition(heads, width):
    """The widest kernel is longer than the sequence; the last row is all padding."""
    x, weights = normal(3, 7, 6), normal(width, heads, seed=1)
    lengths = [7, 4, 0]
    mask = length_mask(jnp.array(lengths), 7)
    apply = jax.jit(LightweightConv(heads, width).apply)
    found = apply({"params": {"weights": weights}}, x, mask)
    expected = by_definition(x.astype(np.float64), weights.astype(np.float64), lengths)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_gradients_are_those_of_finite_differences_of_the_definition():
    heads, width, lengths = 2, 3, [5, 3]
    x, weights, probe = normal(2, 5, 4), normal(width, heads, seed=1), normal(2, 5, 4, seed=2)
    mask = length_mask(jnp.array(lengths), 5)

    def loss(x, weights):
        out = LightweightConv(heads, width).apply({"params": {"weights": weights}}, x, mask)
        return jnp.sum(out * probe)

    def slopes(function, at, step=1e-5):
        found = np.zeros(at.shape)
        for place in np.ndindex(*at.shape):
            up, down = at.copy(), at.copy()
            up[place] += step
            down[place] -= step
            found[place] = (function(up) - function(down)) / (2 * step)
        return found

    x64, weights64 = x.astype(np.float64), weights.astype(np.float64)
    of_x, of_weights = jax.jit(jax.grad(loss, (0, 1)))(x, weights)
    np.testing.assert_allclose(
        of_x,
        slopes(lambda at: np.sum(by_definition(at, weights64, lengths) * probe), x64),
        atol=1e-5,
    )
    np.testing.assert_allclose(
        of_weights,
        slopes(lambda at: np.sum(by_definition(x64, at, lengths) * probe), weights64),
        atol=1e-5,
    )
    assert not np.any(np.asarray(of_x)[1, 3:])


def test_settings_that_cannot_work_are_refused():
    with pytest.raises(ValueError, match="kernel_size is 4"):
        LightweightConv(heads=2, kernel_size=4)
    with pytest.raises(ValueError, match="heads is 4, which does not divide the 6 features"):
        LightweightConv(heads=4, kernel_size=3).init(
            jax.random.key(0), normal(1, 3, 6), jnp.ones((1, 3), bool)
        )


def test_block_does_not_see_padding_and_copes_with_absent_rows():
    module = LightweightConvBlock(heads=2, kernel_size=3, hidden=6)
    x = normal(2, 5, 4)
    lengths = jnp.array([5, 0])
    variables = nn.unbox(jax.jit(module.init)(jax.random.key(0), x, length_mask(lengths, 5)))
    variables = jax.tree.map(lambda p: p + 0.1, variables)
    alone = jax.jit(module.apply)(variables, x, length_mask(lengths, 5))
    longer = np.concatenate([x, 10 * normal(2, 3, 4, seed=1)], axis=1)
    padded = jax.jit(module.apply)(variables, longer, length_mask(lengths, 8))
    np.testing.assert_allclose(padded[:, :5], alone, atol=1e-5)
    assert not np.any(padded[0, 5:]) and not np.any(padded[1])

    def loss(variables):
        return jnp.sum(module.apply(variables, 0 * x, length_mask(lengths, 5)) ** 2)

    gradient = jax.jit(jax.grad(loss))(variables)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradient))

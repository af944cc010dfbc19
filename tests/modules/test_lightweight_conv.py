"""Lightweight convolution against equation 5 of its paper, written as loops."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from maestro_jax.modules.lightweight_conv import LightweightConv, LightweightConvBlock
from maestro_jax.modules.masking import length_mask


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_convolution_is_that_of_the_definition():
    batch, positions, features, heads, width = 2, 6, 4, 2, 3
    x, weights = normal(batch, positions, features), normal(width, heads, seed=1)
    lengths = [6, 4]
    mask = length_mask(jnp.array(lengths), positions)
    found = LightweightConv(heads, width).apply({"params": {"weights": weights}}, x, mask)
    expected = np.zeros(x.shape)
    for b in range(batch):
        for i in range(positions):
            for c in range(features):
                head = c * heads // features
                total = np.exp(weights[:, head].astype(np.float64)).sum()
                for j in range(width):
                    source = i + j - width // 2
                    if 0 <= source < lengths[b]:
                        expected[b, i, c] += np.exp(weights[j, head]) / total * x[b, source, c]
    np.testing.assert_allclose(found, expected, atol=1e-5)


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

"""Smoothed cross entropy against its definition in float64."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maestro_jax.losses.cross_entropy import smoothed_cross_entropy


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.6])
def test_sums_and_gradient(smoothing):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(3, 4, 6), scale=3.0)
    targets = rng.integers(0, 6, (3, 4))
    mask = np.arange(4) < np.asarray([[4], [2], [0]])
    q = np.full(logits.shape, smoothing / 6) + (1 - smoothing) * np.eye(6)[targets]
    log_p = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
    # Padding may hold anything.
    given = jnp.asarray(np.where(mask[..., None], logits, np.inf), jnp.float32)

    def compute(x):
        found = smoothed_cross_entropy(x, targets, mask, smoothing=smoothing)
        return found.loss[0], found

    (_, found), gradient = jax.value_and_grad(compute, has_aux=True)(given)
    np.testing.assert_allclose(found.loss, (-(q * log_p).sum(-1)[mask].sum(), 6), rtol=1e-6)
    picked = np.take_along_axis(log_p, targets[..., None], -1)[..., 0]
    np.testing.assert_allclose(found.nats, (-picked[mask].sum(), 6), rtol=1e-6)
    hits = (logits.argmax(-1) == targets)[mask].sum()
    np.testing.assert_array_equal(found.accuracy, (hits, 6))
    np.testing.assert_allclose(gradient, (np.exp(log_p) - q) * mask[..., None], atol=1e-6)


def test_nothing_valid_is_no_loss():
    empty = smoothed_cross_entropy(
        jnp.zeros((2, 3, 4)), jnp.zeros((2, 3), int), np.zeros((2, 3), bool)
    )
    assert all(pair == (0.0, 0.0) for pair in empty)


def test_a_smoothing_of_one_teaches_nothing():
    with pytest.raises(ValueError, match=r"smoothing is 1\.0"):
        smoothed_cross_entropy(
            jnp.zeros((1, 1, 2)), jnp.zeros((1, 1), int), np.ones((1, 1), bool), smoothing=1.0
        )

"""Masked prediction against float64 NumPy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from maestro_jax.losses.cross_entropy import masked_prediction_loss
from maestro_jax.losses.reduction import mean


def test_cross_entropy_and_accuracy_over_masked_frames():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2, 4, 5)).astype(np.float32)
    targets = rng.integers(0, 5, (2, 4))
    targets[0, 0] = logits[0, 0].argmax()
    masked = np.array([[1, 1, 0, 1], [0, 0, 0, 1]], bool)
    (total, count), (correct, _) = masked_prediction_loss(logits, targets, masked)
    expected, hits = 0.0, 0
    for b, t in zip(*np.nonzero(masked), strict=True):
        row = logits[b, t].astype(np.float64)
        expected -= np.log(np.exp(row[targets[b, t]]) / np.exp(row).sum())
        hits += row.argmax() == targets[b, t]
    assert float(count) == 4
    assert float(correct) == hits >= 1
    np.testing.assert_allclose(total, expected, rtol=1e-5)


def test_several_codebooks_are_averaged():
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(2, 4, 3, 5)).astype(np.float32)
    targets = rng.integers(0, 5, (2, 4, 3))
    masked = np.array([[1, 1, 0, 1], [0, 0, 0, 1]], bool)
    found, accuracy = masked_prediction_loss(logits, targets, masked)
    each = [masked_prediction_loss(logits[:, :, k], targets[:, :, k], masked) for k in range(3)]
    np.testing.assert_allclose(found[0], np.mean([loss[0] for loss, _ in each]), rtol=1e-5)
    np.testing.assert_allclose(accuracy[0], np.mean([right[0] for _, right in each]), rtol=1e-5)
    assert float(found[1]) == float(accuracy[1]) == 4


def test_uniform_logits_cost_the_logarithm_of_the_codes():
    weighted, _ = masked_prediction_loss(
        jnp.zeros((1, 3, 16)), jnp.array([[0, 7, 15]]), jnp.ones((1, 3), bool)
    )
    np.testing.assert_allclose(mean(weighted), np.log(16), rtol=1e-6)


def test_nothing_masked_is_zero_with_no_gradient():
    def loss(logits):
        none = jnp.zeros((1, 2), bool)
        return mean(masked_prediction_loss(logits, jnp.zeros((1, 2), jnp.int32), none)[0])

    value, gradient = jax.value_and_grad(loss)(jnp.ones((1, 2, 3)))
    assert float(value) == 0.0
    assert not np.any(gradient)

"""Cross entropies, with smoothing and over masked frames, against their definitions in float64."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maestro_jax.losses.cross_entropy import masked_prediction_loss, smoothed_cross_entropy
from maestro_jax.losses.reduction import mean


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.6])
def test_smoothed_sums_and_gradient(smoothing):
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

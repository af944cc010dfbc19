"""The duration loss against float64 NumPy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maestro_jax.losses.duration import duration_loss, gaussian_duration_loss
from maestro_jax.losses.reduction import mean

LOGITS = np.array([[2.0, -1.0, 0.5, 3.0], [-2.0, 1.0, 0.0, 9.0]], np.float32)
FRAMES = np.array([[2.4, 3.0, 0.3, 7.0], [5.0, 1.6, 2.0, 9.0]], np.float32)
TARGETS = np.array([[3, 2, 0, 7], [0, 1, 4, 0]], np.int32)
MASK = np.array([[1, 1, 1, 1], [1, 1, 1, 0]], bool)


@pytest.mark.parametrize("form", ["l1", "log_mse"])
def test_loss_is_presence_plus_distance_of_tokens_that_last(form):
    (total, count), (error, error_count) = duration_loss(LOGITS, FRAMES, TARGETS, MASK, form=form)
    expected = 0.0
    for b, t in zip(*np.nonzero(MASK), strict=True):
        probability = 1 / (1 + np.exp(-np.float64(LOGITS[b, t])))
        frames, target = np.float64(FRAMES[b, t]), TARGETS[b, t]
        if target == 0:
            expected -= np.log(1 - probability)
        elif form == "l1":
            expected += abs(frames - target) - np.log(probability)
        else:
            expected += np.log((1 + frames) / (1 + target)) ** 2 - np.log(probability)
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    # Rounded: 2 0 1 7 and 0 2 0, against 3 2 0 7 and 0 1 4.
    assert float(error) == 1 + 2 + 1 + 0 + 0 + 1 + 4
    assert float(count) == float(error_count) == 7


@pytest.mark.parametrize("form", ["l1", "log_mse"])
def test_nothing_valid_is_zero_with_no_gradient(form):
    def loss(logits, frames):
        return mean(duration_loss(logits, frames, TARGETS, jnp.zeros_like(MASK), form=form)[0])

    value, gradients = jax.value_and_grad(loss, (0, 1))(LOGITS, FRAMES)
    assert float(value) == 0.0
    assert not any(np.any(g) for g in gradients)


def test_silent_tokens_do_not_teach_the_duration_head():
    def loss(frames):
        return duration_loss(LOGITS, frames, TARGETS, MASK)[0][0]

    gradient = np.asarray(jax.grad(loss)(FRAMES))
    np.testing.assert_array_equal(gradient[(TARGETS == 0) | ~MASK], 0.0)
    assert abs(gradient[0, 0]) == 1.0


@pytest.mark.parametrize("form", ["l1", "log_mse"])
def test_targets_are_clipped_and_the_threshold_decides_what_lasts(form):
    """With at most 4 frames and a threshold of 0.8, whose log-odds are 1.386."""
    (total, _), (error, _) = duration_loss(
        LOGITS, FRAMES, TARGETS, MASK, form=form, threshold=0.8, max_frames=4
    )
    clipped, _ = duration_loss(LOGITS, FRAMES, np.minimum(TARGETS, 4), MASK, form=form)
    np.testing.assert_allclose(total, clipped[0], rtol=1e-6)
    assert float(total) != float(duration_loss(LOGITS, FRAMES, TARGETS, MASK, form=form)[0][0])
    # Rounded: 2 0 0 4 and 0 0 0, against 3 2 0 7 and 0 1 4: the error knows no clipping.
    assert float(error) == 1 + 2 + 0 + 3 + 0 + 1 + 4


def test_unknown_form():
    with pytest.raises(ValueError, match="choose one of"):
        duration_loss(LOGITS, FRAMES, TARGETS, MASK, form="l3")


def test_gaussian_likelihood_is_that_of_the_density():
    """Of tokens that last; the most likely Gaussian has the mean and deviation of the targets."""
    means = np.array([[2.0, 1.0, 3.0, 6.0], [1.0, 2.0, 4.0, 1.0]], np.float32)
    deviations = np.array([[1.0, 0.5, 2.0, 1.5], [1.0, 3.0, 0.7, 1.0]], np.float32)
    expected = 0.0
    lasting = MASK & (TARGETS > 0)
    for d, m, s in zip(TARGETS[lasting], means[lasting], deviations[lasting], strict=True):
        m, s = np.float64(m), np.float64(s)
        expected -= np.log(np.exp(-(((d - m) / s) ** 2) / 2) / (s * np.sqrt(2 * np.pi)))
    total, count = gaussian_duration_loss(means, deviations, TARGETS, MASK)
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    assert float(count) == lasting.sum() == 5

    def loss(mean_and_deviation):
        full = jnp.broadcast_to(mean_and_deviation[:, None, None], (2, *TARGETS.shape))
        return gaussian_duration_loss(*full, TARGETS, MASK)[0]

    durations = TARGETS[lasting].astype(np.float32)
    at_best = jax.grad(loss)(jnp.array([durations.mean(), durations.std()]))
    np.testing.assert_allclose(at_best, 0.0, atol=1e-5)

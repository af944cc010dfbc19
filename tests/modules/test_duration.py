"""The duration model: rounding rules, padding, positive durations."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maestro_jax.layers.masking import length_mask
from maestro_jax.modules.duration import DurationModel, DurationPrediction


def test_rounding_rules():
    #        silent, at least one, rounded down and up, at most ten, padding, undecided = silent
    logits = [-1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0]
    frames = [7.0, 0.2, 3.4, 3.6, 99.0, 5.0, 4.0]
    mask = jnp.array([[True] * 5 + [False, True]])
    prediction = DurationPrediction(jnp.array([logits]), jnp.array([frames]))
    found = DurationModel(max_frames=10).round(prediction, mask)
    assert found.tolist() == [[0, 1, 3, 4, 10, 0, 0]]
    assert found.dtype == jnp.int32


@pytest.mark.parametrize("threshold", [0.2, 0.9])
def test_threshold_of_the_zero_head(threshold):
    probabilities = np.array([[0.1, 0.19, 0.21, 0.5, 0.89, 0.91]])
    logits = jnp.array(np.log(probabilities / (1 - probabilities)), jnp.float32)
    prediction = DurationPrediction(logits, jnp.full(logits.shape, 2.4))
    found = DurationModel(zero_threshold=threshold).round(prediction, jnp.ones(logits.shape, bool))
    np.testing.assert_array_equal(found, np.where(probabilities > threshold, 2, 0))


def test_durations_that_are_not_rounded_have_a_gradient_where_they_are_not_clipped():
    logits = jnp.array([[1.0, 1.0, 1.0, -1.0, 1.0]])
    frames = jnp.array([[0.5, 3.4, 12.0, 4.0, 4.0]])
    mask = jnp.array([[True, True, True, True, False]])
    module = DurationModel(max_frames=10)

    def durations(logits, frames):
        return module.durations(DurationPrediction(logits, frames), mask)

    found, pull = jax.vjp(durations, logits, frames)
    np.testing.assert_allclose(found, [[1.0, 3.4, 10.0, 0.0, 0.0]])
    of_logits, of_frames = pull(jnp.ones_like(found))
    np.testing.assert_array_equal(of_frames, [[0.0, 1.0, 0.0, 0.0, 0.0]])
    assert not np.any(of_logits)
    # Rounding them gives the whole durations.
    whole = module.round(DurationPrediction(logits, frames), mask)
    np.testing.assert_array_equal(whole, np.round(found))


@pytest.mark.parametrize("setting", [{"zero_threshold": 1.0}, {"max_frames": 0}])
def test_settings_without_meaning_are_refused(setting):
    with pytest.raises(ValueError, match=next(iter(setting))):
        DurationModel(**setting)


def test_model_does_not_see_padding_and_copes_with_absent_rows():
    module = DurationModel(blocks=2, heads=2)
    x = np.random.default_rng(0).normal(size=(2, 4, 8)).astype(np.float32)
    lengths = jnp.array([4, 0])
    mask = length_mask(lengths, 4)
    variables = nn.unbox(jax.jit(module.init)(jax.random.key(0), x, mask))
    variables = jax.tree.map(lambda p: p + 0.1, variables)
    alone = jax.jit(module.apply)(variables, x, mask)
    assert np.all(alone.frames > 0)
    longer = np.concatenate([x, 10 * x[:, :3]], axis=1)
    padded = jax.jit(module.apply)(variables, longer, length_mask(lengths, 7))
    np.testing.assert_allclose(padded.frames[0, :4], alone.frames[0], atol=1e-5)
    np.testing.assert_allclose(padded.nonzero_logit[0, :4], alone.nonzero_logit[0], atol=1e-5)
    assert not np.any(module.round(padded, length_mask(lengths, 7))[1])

    def loss(variables):
        prediction = module.apply(variables, x, mask)
        return jnp.sum(prediction.frames) + jnp.sum(prediction.nonzero_logit)

    gradient = jax.jit(jax.grad(loss))(variables)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradient))

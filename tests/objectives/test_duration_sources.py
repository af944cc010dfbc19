"""Where durations of unspoken text come from: what each source draws, and that keys decide."""

from __future__ import annotations

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maestro_jax.errors import UserError
from maestro_jax.modules.duration import DurationModel, DurationPrediction, SubwordDurations
from maestro_jax.modules.resampler import GaussianUpsampling, Resampler
from maestro_jax.objectives.duration_sources import (
    FixedRepetition,
    Learned,
    RandomRepetition,
    SubwordGaussian,
)

TOKENS = jnp.tile(jnp.array([[1, 2, 3, 4]], jnp.int32), (2000, 1))
MASK = jnp.tile(jnp.array([[True, True, True, False]]), (2000, 1))
# Silent, 0.3 and 3.4 frames, and padding.
PREDICTED = DurationPrediction(
    nonzero_logit=jnp.tile(jnp.array([[-1.0, 1.0, 1.0, 1.0]]), (2000, 1)),
    frames=jnp.tile(jnp.array([[5.0, 0.3, 3.4, 7.0]]), (2000, 1)),
)
GAUSSIANS = SubwordDurations(vocab_size=5)
FACTORS = np.log([[1.0, 1.0], [0.5, 0.01], [2.0, 1.0], [1.0, 0.5], [1.0, 1.0]]).astype(np.float32)
VARIABLES = {"params": {"common": np.log(np.float32([2.0, 1.0])), "own": FACTORS}}


MODEL = types.SimpleNamespace(
    predict_durations=lambda *_, **__: PREDICTED,
    round_durations=DurationModel(max_frames=10).round,
    continuous_durations=DurationModel(max_frames=10).durations,
    subword_gaussians=lambda tokens: GAUSSIANS.apply(VARIABLES, tokens),
)
"""A bound model that predicts these durations."""


def draw(source, seed=0):
    embedded = jnp.zeros((*TOKENS.shape, 8))
    return source.durations(jax.random.key(seed), MODEL, embedded, TOKENS, MASK, deterministic=True)


SOURCES = (
    Learned(),
    Learned(jitter=0.3),
    Learned(continuous=True),
    FixedRepetition(),
    RandomRepetition(),
    SubwordGaussian(),
)


@pytest.mark.parametrize("source", SOURCES, ids=repr)
def test_equal_keys_give_equal_durations_and_padding_has_none(source):
    found = draw(source)
    assert found.shape == TOKENS.shape
    assert found.dtype == (jnp.float32 if source.trained_through else jnp.int32)
    np.testing.assert_array_equal(found, draw(source))
    assert not np.any(found[:, 3])
    random = source in (Learned(jitter=0.3), RandomRepetition(), SubwordGaussian())
    assert np.any(found != draw(source, seed=1)) == random


def test_learned_durations_are_the_rounded_predictions():
    np.testing.assert_array_equal(draw(Learned())[0], [0, 1, 3, 0])
    np.testing.assert_array_equal(draw(Learned(min_frames=2))[0], [0, 2, 3, 0])
    np.testing.assert_allclose(draw(Learned(continuous=True))[0], [0, 1, 3.4, 0])


def test_jitter_is_a_frame_either_way_and_never_below_the_minimum():
    found = np.asarray(draw(Learned(jitter=0.4)))
    assert not np.any(found[:, 0])
    shares = np.bincount(found[:, 2], minlength=5)[2:5] / 2000
    np.testing.assert_allclose(shares, [0.2, 0.6, 0.2], atol=0.03)
    shares = np.bincount(found[:, 1], minlength=3)[:3] / 2000
    np.testing.assert_allclose(shares, [0.0, 0.8, 0.2], atol=0.03)


def test_repetitions():
    np.testing.assert_array_equal(draw(FixedRepetition(frames=3))[0], [3, 3, 3, 0])
    found = np.asarray(draw(RandomRepetition(low=2, high=4)))[:, :3]
    shares = np.bincount(found.ravel(), minlength=6) / found.size
    np.testing.assert_allclose(shares, [0, 0, 1 / 3, 1 / 3, 1 / 3, 0], atol=0.03)
    # Tokens of a text are drawn apart from each other.
    assert abs(np.corrcoef(found[:, 0], found[:, 1])[0, 1]) < 0.1


def test_gaussians_have_their_token_s_mean_and_deviation():
    """Means 4 x (0.5, 2, 1); deviations 1 x (0.01, 1, 0.5), and what rounding adds, twice."""
    found = np.asarray(draw(SubwordGaussian()), np.float64)[:, :3]
    np.testing.assert_allclose(found.mean(0), [2.0, 8.0, 4.0], atol=0.1)
    expected = np.sqrt(np.square([0.01, 1.0, 0.5]) + 2 / 12)
    np.testing.assert_allclose(found.std(0)[1:], expected[1:], rtol=0.05)
    assert found[:, 0].std() < 0.5
    clipped = np.asarray(draw(SubwordGaussian(min_frames=3, max_frames=7)))[:, :3]
    assert clipped.min() == 3 and clipped.max() == 7


def test_what_a_model_must_have():
    def model(resampler, gaussians=None):
        return types.SimpleNamespace(resampler=resampler, subword_durations=gaussians)

    for source in SOURCES[:2] + SOURCES[3:5]:
        source.check(model(Resampler()))
    with pytest.raises(UserError, match="GaussianUpsampling"):
        Learned(continuous=True).check(model(Resampler()))
    Learned(continuous=True).check(model(GaussianUpsampling()))
    with pytest.raises(UserError, match="subword_durations"):
        SubwordGaussian().check(model(Resampler()))
    SubwordGaussian().check(model(Resampler(), GAUSSIANS))


@pytest.mark.parametrize(
    ("source", "settings"),
    [
        (Learned, {"jitter": 1.5}),
        (Learned, {"min_frames": 0}),
        (FixedRepetition, {"frames": 0}),
        (RandomRepetition, {"low": 4}),
        (SubwordGaussian, {"max_frames": 0}),
        (SubwordDurations, {"vocab_size": 3, "initial_mean": 0.0}),
    ],
)
def test_settings_without_meaning_are_refused(source, settings):
    name, value = list(settings.items())[-1]
    with pytest.raises(ValueError, match=f"{name}.*{value}"):
        source(**settings)

"""Contrastive, diversity, masked prediction, matching and duration losses against plain loops."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from maestro_jax.losses.contrastive import contrastive_loss, diversity_loss, sample_distractors
from maestro_jax.losses.cross_entropy import masked_prediction_loss
from maestro_jax.losses.duration import duration_loss
from maestro_jax.losses.matching import matching_loss
from maestro_jax.losses.reduction import mean

RNG = np.random.default_rng(0)
MASKED = RNG.random((3, 20)) < 0.5


def test_distractors_are_other_masked_frames_of_the_utterance() -> None:
    chosen = np.asarray(sample_distractors(jax.random.key(0), jnp.asarray(MASKED), 200))
    for row, frame in zip(*np.nonzero(MASKED), strict=True):
        found = set(chosen[row, frame].tolist())
        assert found == set(np.nonzero(MASKED[row])[0].tolist()) - {frame}


def test_contrastive_loss_against_a_loop() -> None:
    context, codes = RNG.normal(size=(2, 3, 20, 4))
    key = jax.random.key(1)
    chosen = np.asarray(sample_distractors(key, jnp.asarray(MASKED), 5))
    loss, accuracy = contrastive_loss(
        key,
        jnp.asarray(context),
        jnp.asarray(codes),
        np.arange(60).reshape(3, 20),
        jnp.asarray(MASKED),
        distractors=5,
    )

    def cosine(a: np.ndarray, b: np.ndarray) -> float:
        return a @ b / np.sqrt((a @ a) * (b @ b))

    losses, correct = [], []
    for row, frame in zip(*np.nonzero(MASKED), strict=True):
        candidates = [frame, *chosen[row, frame]]
        scores = np.array([cosine(context[row, frame], codes[row, c]) / 0.1 for c in candidates])
        losses.append(np.log(np.exp(scores).sum()) - scores[0])
        correct.append(scores[0] > scores[1:].max())
    np.testing.assert_allclose(loss, (np.sum(losses), len(losses)), rtol=1e-4)
    np.testing.assert_allclose(accuracy, (np.sum(correct), len(correct)))


def test_diversity_is_least_where_all_codes_are_used_alike() -> None:
    mask = np.ones((2, 4), bool)
    uniform, perplexity = diversity_loss(jnp.full((2, 4, 8), 1 / 8), mask)
    np.testing.assert_allclose((uniform, perplexity), (0.0, 8.0), atol=1e-4)
    single, perplexity = diversity_loss(jax.nn.one_hot(jnp.zeros((2, 4), int), 8), mask)
    np.testing.assert_allclose((single, perplexity), (1 - 1 / 8, 1.0), atol=1e-4)


def test_masked_prediction_is_cross_entropy_over_the_masked() -> None:
    logits, targets = RNG.normal(size=(3, 20, 6)), RNG.integers(0, 6, (3, 20))
    loss, accuracy = masked_prediction_loss(jnp.asarray(logits), targets, jnp.asarray(MASKED))
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    picked = np.take_along_axis(probabilities, targets[..., None], -1)[..., 0]
    np.testing.assert_allclose(loss, (-np.log(picked[MASKED]).sum(), MASKED.sum()), rtol=1e-5)
    np.testing.assert_allclose(accuracy[0], (logits.argmax(-1) == targets)[MASKED].sum())


def test_matching_ignores_scale_and_trains_the_text_side_alone() -> None:
    speech, text = (jnp.asarray(RNG.normal(size=(3, 20, 6)), jnp.float32) for _ in range(2))
    plain = mean(matching_loss(speech, text, MASKED))
    np.testing.assert_allclose(mean(matching_loss(5 * speech, 3 * text, MASKED)), plain, rtol=1e-3)
    np.testing.assert_allclose(mean(matching_loss(speech, speech, MASKED)), 0.0, atol=1e-6)

    def loss(pair: tuple[jax.Array, jax.Array]) -> jax.Array:
        return mean(matching_loss(*pair, MASKED))

    of_speech, of_text = jax.grad(loss)((speech, text))
    assert not np.asarray(of_speech).any() and np.asarray(of_text)[MASKED].any()
    assert not np.asarray(of_text)[~MASKED].any()


def test_duration_loss_against_numpy() -> None:
    logit, frames = RNG.normal(size=(3, 20)), RNG.random((3, 20)) * 5
    targets = RNG.integers(0, 4, (3, 20))
    loss, error = duration_loss(jnp.asarray(logit), jnp.asarray(frames), targets, MASKED)
    probability = 1 / (1 + np.exp(-logit))
    presence = -np.log(np.where(targets > 0, probability, 1 - probability))
    expected = presence + np.where(targets > 0, np.abs(frames - targets), 0)
    np.testing.assert_allclose(loss, (expected[MASKED].sum(), MASKED.sum()), rtol=1e-5)
    rounded = np.where(logit > 0, np.maximum(np.round(frames), 1), 0)
    np.testing.assert_allclose(error[0], np.abs(rounded - targets)[MASKED].sum(), rtol=1e-6)


def test_nothing_valid_gives_zero_and_a_finite_gradient() -> None:
    nothing = jnp.zeros((3, 20), bool)
    x = jnp.asarray(RNG.normal(size=(3, 20, 4)), jnp.float32)

    def total(x: jax.Array) -> jax.Array:
        key = jax.random.key(0)
        return (
            mean(contrastive_loss(key, x, 2 * x, jnp.zeros((3, 20), int), nothing)[0])
            + mean(masked_prediction_loss(x, jnp.zeros((3, 20), int), nothing)[0])
            + mean(matching_loss(x, x + 1, nothing))
            + diversity_loss(jax.nn.softmax(x), nothing)[0]
        )

    value, gradient = jax.value_and_grad(total)(x)
    assert float(value) == 0.0
    assert np.isfinite(gradient).all() and not np.asarray(gradient).any()

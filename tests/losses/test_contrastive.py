"""The contrastive loss against a slow loop; the diversity loss at its extremes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rounded_products import with_rounded_products

from maestro_jax.losses.contrastive import (
    contrastive_chance,
    contrastive_loss,
    diversity_loss,
    perplexity,
    sample_distractors,
)
from maestro_jax.losses.reduction import mean

# Six masked frames, one, none, two.
MASKED = np.array(
    [
        [1, 1, 0, 1, 1, 0, 1, 1],
        [0, 0, 0, 1, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 0, 0],
        [1, 0, 0, 0, 0, 0, 0, 1],
    ],
    bool,
)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_distractors_are_other_masked_frames_evenly():
    chosen = np.asarray(sample_distractors(jax.random.key(0), jnp.asarray(MASKED), 3000))
    for b in (0, 3):
        masked = np.flatnonzero(MASKED[b])
        for t in masked:
            counts = np.bincount(chosen[b, t], minlength=8)
            others = masked[masked != t]
            assert set(np.flatnonzero(counts)) == set(others)
            np.testing.assert_allclose(counts[others] / 3000, 1 / len(others), atol=0.03)


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_loss_is_that_of_a_loop(temperature):
    rng = jax.random.key(4)
    context, codes = normal(4, 8, 5), normal(4, 8, 5, seed=1)
    codes[0, 1] = codes[0, 0]  # A distractor that equals the positive is left out.
    ids = np.arange(32).reshape(4, 8)
    ids[0, 1] = ids[0, 0]
    (total, count), (correct, correct_count) = contrastive_loss(
        rng, context, codes, ids, jnp.asarray(MASKED), distractors=3, temperature=temperature
    )
    chosen = np.asarray(sample_distractors(rng, jnp.asarray(MASKED), 3))

    def cosine(a, b):
        a, b = a.astype(np.float64), b.astype(np.float64)
        return a @ b / np.sqrt((a @ a) * (b @ b))

    expected, hits, frames = 0.0, 0, 0
    for b, t in zip(*np.nonzero(MASKED), strict=True):
        negatives = [
            cosine(context[b, t], codes[b, s]) / temperature
            for s in chosen[b, t]
            if not np.array_equal(codes[b, s], codes[b, t])
        ]
        if not negatives:
            continue
        positive = cosine(context[b, t], codes[b, t]) / temperature
        expected -= np.log(np.exp(positive) / (np.exp(positive) + np.exp(negatives).sum()))
        hits += positive > max(negatives)
        frames += 1
    assert frames >= 6
    assert float(count) == float(correct_count) == frames
    assert float(correct) == hits
    np.testing.assert_allclose(total, expected, rtol=1e-4)


def test_chance_is_one_of_what_there_is_to_choose_from():
    ids = np.array([[0, 0, 9, 1, 2, 9, 1, 3], [0] * 8, [0] * 8, [5] * 8])
    # Six masked frames of the first row: codes 0 0 1 2 1 3; of the last two, equal, no choice.
    expected = sum(1 / (1 + others) for others in (4, 4, 4, 5, 4, 5))
    found = contrastive_chance(jnp.asarray(ids), jnp.asarray(MASKED), 100)
    np.testing.assert_allclose(found, (expected, 6), rtol=1e-6)
    found = contrastive_chance(jnp.asarray(ids), jnp.asarray(MASKED), 1)
    np.testing.assert_allclose(found, (3.0, 6), rtol=1e-6)


@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_nothing_masked_is_zero_with_finite_gradients(scale):
    context, codes = scale * normal(2, 4, 3), scale * normal(2, 4, 3, seed=1)
    ids = np.arange(8).reshape(2, 4)

    def loss(context, codes, masked):
        return mean(contrastive_loss(jax.random.key(0), context, codes, ids, masked)[0])

    value, gradients = jax.value_and_grad(loss, (0, 1))(context, codes, jnp.zeros((2, 4), bool))
    assert float(value) == 0.0
    assert not any(np.any(g) for g in gradients)
    for gradient in jax.grad(loss, (0, 1))(context, codes, jnp.ones((2, 4), bool)):
        assert np.all(np.isfinite(gradient))


def test_diversity_at_its_extremes():
    mask = jnp.array([[True, True, False]])
    uniform = jnp.full((1, 3, 8), 1 / 8)
    loss, effective_codes = diversity_loss(uniform, mask)
    np.testing.assert_allclose([loss, effective_codes], [0.0, 8.0], atol=1e-5)
    single = jnp.broadcast_to(jax.nn.one_hot(2, 8), (1, 3, 8))
    loss, effective_codes = diversity_loss(single, mask)
    np.testing.assert_allclose([loss, effective_codes], [1 - 1 / 8, 1.0], atol=1e-5)
    # Two codes, each sure of itself; the third frame does not count.
    two = jax.nn.one_hot(jnp.array([[0, 1, 5]]), 8)
    loss, effective_codes = diversity_loss(two, mask)
    np.testing.assert_allclose([loss, effective_codes], [1 - 2 / 8, 2.0], atol=1e-5)


def test_diversity_of_nothing_is_zero_with_finite_gradients():
    def loss(probabilities):
        return diversity_loss(probabilities, jnp.zeros((1, 3), bool))[0]

    value, gradient = jax.value_and_grad(loss)(jnp.full((1, 3, 8), 1 / 8))
    assert float(value) == 0.0
    assert np.all(np.isfinite(gradient))


def test_a_perfect_network_is_perfect_on_a_tpu_too():
    """100 masked frames of 60 codes in use: four in ten distractors may equal the positive."""
    codebook = np.random.default_rng(0).uniform(size=(60, 256)).astype(np.float32)
    # Unrelated directions, as learned codes have; uniform numbers alone share a mean.
    codebook -= codebook.mean()
    ids = np.random.default_rng(1).integers(0, 60, (4, 100))
    codes, masked, rng = codebook[ids], jnp.ones((4, 100), bool), jax.random.key(0)

    def loss(context, codes):
        (total, count), (correct, _) = contrastive_loss(rng, context, codes, ids, masked)
        return total / count, correct / count, count

    found, accuracy, count = with_rounded_products(loss)(3.0 * codes, codes)
    chosen = np.asarray(sample_distractors(rng, masked, 100))
    units = codebook.astype(np.float64)
    units /= np.linalg.norm(units, axis=-1, keepdims=True)
    cosines = (units @ units.T)[ids[:, :, None], ids[np.arange(4)[:, None, None], chosen]]
    others = ids[:, :, None] != ids[np.arange(4)[:, None, None], chosen]
    expected = np.log1p((others * np.exp((cosines - 1.0) / 0.1)).sum(-1)).mean()
    assert expected < 0.02 and float(count) == 400
    np.testing.assert_allclose(found, expected, rtol=1e-3)
    assert float(accuracy) == 1.0


def test_perplexity_is_the_number_of_codes_that_are_evenly_used():
    frequencies = jnp.asarray([[0.25, 0.25, 0.25, 0.25, 0.0], [1.0, 0.0, 0.0, 0.0, 0.0]])
    np.testing.assert_allclose(perplexity(frequencies), [4.0, 1.0], rtol=1e-6)

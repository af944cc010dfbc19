"""Posteriors of emission frames against the enumeration of all paths, in float64."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maestro_jax.losses.transducer_alignment import alignment_entropy, emission_posterior

FRAMES, LABELS = 5, 3


def enumerated(log_blank, log_label, frames, labels, one_label_per_frame):
    """The posterior `[frames, labels]` of one example."""
    choose = (
        itertools.combinations if one_label_per_frame else (itertools.combinations_with_replacement)
    )
    posterior, total = np.zeros((FRAMES, LABELS)), 0.0
    for emissions in choose(range(frames), labels):
        score = sum(log_label[frame, u] for u, frame in enumerate(emissions))
        for frame in range(frames):
            if not (one_label_per_frame and frame in emissions):
                score += log_blank[frame, sum(emission <= frame for emission in emissions)]
        probability = np.exp(score)
        total += probability
        for u, frame in enumerate(emissions):
            posterior[frame, u] += probability
    return posterior / total if total else posterior


@pytest.mark.extended
@pytest.mark.parametrize("one_label_per_frame", [False, True])
def test_against_all_paths(one_label_per_frame):
    rng = np.random.default_rng(3)
    sizes = np.array([(5, 3), (4, 2), (1, 1), (5, 0), (0, 2), (2, 2), (0, 0), (2, 3)])
    blank = rng.uniform(-4, 0, (len(sizes), FRAMES, LABELS + 1))
    label = rng.uniform(-4, 0, (len(sizes), FRAMES, LABELS))
    lengths = jnp.asarray(sizes, jnp.int32)
    arguments = (
        jnp.asarray(blank, jnp.float32),
        jnp.asarray(label, jnp.float32),
        lengths[:, 0],
        lengths[:, 1],
    )
    options = {"one_label_per_frame": one_label_per_frame}
    found = jax.jit(lambda *a: emission_posterior(*a, **options))(*arguments)
    expected = np.stack(
        [
            enumerated(blank[row], label[row], frames, labels, one_label_per_frame)
            for row, (frames, labels) in enumerate(sizes)
        ]
    )
    np.testing.assert_allclose(found, expected, atol=2e-6)

    total, count = alignment_entropy(*arguments, **options)
    there = expected[expected > 0]
    assert float(total) == pytest.approx(-np.sum(there * np.log(there)), rel=1e-4)
    assert float(count) == np.sum(expected.sum(axis=1) > 0.5)


def test_any_frame_is_as_likely():
    """A label that may stand in each of the frames with equal probability: log(frames)."""
    blank = jnp.full((1, 7, 2), -0.7)
    label = jnp.full((1, 7, 1), -0.7)
    one = jnp.ones((1,), jnp.int32)
    total, count = alignment_entropy(blank, label, 7 * one, one)
    assert float(total) == pytest.approx(np.log(7.0), rel=1e-5)
    assert float(count) == 1.0

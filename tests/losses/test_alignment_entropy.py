"""The posterior of emission frames, and its entropy, against a sum over all enumerated paths."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maestro_jax.losses.transducer_alignment import alignment_entropy, emission_posterior

FRAMES, LABELS = 5, 3
SIZES = [(5, 3), (4, 2), (1, 1), (5, 0), (0, 2), (2, 3)]


def enumerated_posterior(log_blank, log_label, frames, labels, one_label_per_frame):
    """Probability of emitting each label on each frame [frames, labels], float64; None: no path."""
    choose = (
        itertools.combinations if one_label_per_frame else itertools.combinations_with_replacement
    )
    total, posterior = 0.0, np.zeros((FRAMES, LABELS))
    for emissions in choose(range(frames), labels):
        score = sum(float(log_label[frame, u]) for u, frame in enumerate(emissions))
        for frame in range(frames):
            if one_label_per_frame and frame in emissions:
                continue  # the label took the place of this frame's blank
            score += float(log_blank[frame, sum(emission <= frame for emission in emissions)])
        total += np.exp(score)
        for u, frame in enumerate(emissions):
            posterior[frame, u] += np.exp(score)
    return posterior / total if frames and total else None


@pytest.mark.parametrize("one_label_per_frame", [False, True])
def test_posterior_and_entropy_of_enumerated_paths(one_label_per_frame):
    rng = np.random.default_rng(0)
    blank = rng.uniform(-6, 0, (len(SIZES), FRAMES, LABELS + 1))
    label = rng.uniform(-6, 0, (len(SIZES), FRAMES, LABELS))
    frame_lengths, label_lengths = (jnp.asarray(column) for column in zip(*SIZES, strict=True))
    with jax.enable_x64(True):
        arguments = (jnp.asarray(blank), jnp.asarray(label), frame_lengths, label_lengths)
        found = np.asarray(emission_posterior(*arguments, one_label_per_frame=one_label_per_frame))
        entropy = alignment_entropy(*arguments, one_label_per_frame=one_label_per_frame)
        total, count = map(np.asarray, entropy)
    nats, labels_with_path = 0.0, 0
    for row, (frames, labels) in enumerate(SIZES):
        expected = enumerated_posterior(blank[row], label[row], frames, labels, one_label_per_frame)
        if expected is None:
            assert not found[row].any()
            continue
        np.testing.assert_allclose(found[row], expected, atol=1e-12)
        positive = expected[expected > 0]
        nats -= float(np.sum(positive * np.log(positive)))
        labels_with_path += labels
    assert found.dtype == total.dtype == np.float64
    np.testing.assert_allclose(total, nats, rtol=1e-12)
    assert count == labels_with_path


def test_certain_and_clueless_lattices():
    """One path of certainty has no entropy; with one label and equal arcs, all frames are alike."""
    frames, certain = 40, 17
    label = np.full((1, frames, 1), -200.0, np.float32)
    label[0, certain] = 0.0
    lengths = jnp.asarray([frames]), jnp.asarray([1])
    entropy = jax.jit(alignment_entropy)
    total, count = entropy(jnp.zeros((1, frames, 2)), jnp.asarray(label), *lengths)
    assert total == pytest.approx(0.0, abs=1e-6) and count == 1
    total, _ = entropy(jnp.full((1, frames, 2), -1.0), jnp.full((1, frames, 1), -2.0), *lengths)
    assert total == pytest.approx(np.log(frames), rel=1e-5)


def test_values_that_are_not_finite_count_for_nothing():
    lengths = jnp.asarray([4]), jnp.asarray([2])
    for value in (np.nan, -np.inf):
        total, count = alignment_entropy(
            jnp.full((1, 4, 3), value), jnp.full((1, 4, 2), value), *lengths
        )
        assert total == 0 and count == 0


def test_no_gradient_flows():
    lengths = jnp.asarray([4]), jnp.asarray([2])

    def total(blank, label):
        return alignment_entropy(blank, label, *lengths)[0]

    rng = np.random.default_rng(1)
    arcs = (jnp.asarray(rng.normal(size=shape)) for shape in ((1, 4, 3), (1, 4, 2)))
    gradients = jax.grad(total, argnums=(0, 1))(*arcs)
    assert not any(np.any(gradient) for gradient in gradients)

"""The transducer's expected distance against the enumeration of its paths, in float64."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maestro_jax.losses.expected_distance import expected_distance
from maestro_jax.losses.transducer_alignment import emission_posterior

FRAMES, LABELS, FEATURES = 5, 3, 4
LENGTHS = np.array([(5, 3), (4, 2), (1, 1), (5, 0), (0, 2), (2, 3), (0, 0)])


def arrays():
    rng = np.random.default_rng(4)
    rows = len(LENGTHS)
    speech = rng.normal(size=(rows, FRAMES, FEATURES))
    text = rng.normal(size=(rows, LABELS, FEATURES))
    blank = rng.uniform(-4, 0, (rows, FRAMES, LABELS + 1))
    label = rng.uniform(-4, 0, (rows, FRAMES, LABELS))
    return speech, text, blank, label


def alignments(blank, label, frames, labels, one_label_per_frame):
    """Every alignment of one example: its emission frames and its log-probability."""
    choose = (
        itertools.combinations if one_label_per_frame else itertools.combinations_with_replacement
    )
    for emissions in choose(range(frames), labels):
        score = sum(label[frame, u] for u, frame in enumerate(emissions))
        for frame in range(frames):
            if not (one_label_per_frame and frame in emissions):
                score += blank[frame, sum(emission <= frame for emission in emissions)]
        yield emissions, score


@pytest.mark.parametrize("one_label_per_frame", [False, True])
def test_value_and_gradient_against_all_alignments(one_label_per_frame):
    speech, text, blank, label = arrays()
    expected, to_speech, to_text = 0.0, np.zeros_like(speech), np.zeros_like(text)
    for row, (frames, labels) in enumerate(LENGTHS):
        found = list(alignments(blank[row], label[row], frames, labels, one_label_per_frame))
        total = sum(np.exp(score) for _, score in found)
        for emissions, score in found:
            for u, frame in enumerate(emissions):
                difference = speech[row, frame] - text[row, u]
                probability = np.exp(score) / total
                expected += probability * np.abs(difference).mean()
                to_speech[row, frame] += probability * np.sign(difference) / FEATURES
                to_text[row, u] -= probability * np.sign(difference) / FEATURES
    with jax.enable_x64(True):
        lengths = jnp.asarray(LENGTHS.T, jnp.int32)
        posterior = emission_posterior(
            jnp.asarray(blank),
            jnp.asarray(label),
            *lengths,
            one_label_per_frame=one_label_per_frame,
        )

        def loss(speech, text):
            return expected_distance(speech, text, posterior, *lengths)

        compiled = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
        (total, count), gradients = compiled(jnp.asarray(speech), jnp.asarray(text))
    # Posteriors are float32.
    assert float(total) == pytest.approx(expected, rel=1e-6)
    np.testing.assert_allclose(gradients[0], to_speech, atol=1e-6)
    np.testing.assert_allclose(gradients[1], to_text, atol=1e-6)
    assert float(count) == sum(labels for frames, labels in LENGTHS if frames)


def test_it_is_an_rnn_t_loss_whose_label_arcs_are_weighted():
    """Differentiating log P, enumerated, with arcs `y + s d` by `s` gives the expectation."""
    speech, text, blank, label = (array[:2] for array in arrays())
    costs = np.abs(speech[:, :, None] - text[:, None]).mean(-1)  # [2, frames, labels]

    def log_likelihood(s):
        values = []
        for row, (frames, labels) in enumerate(LENGTHS[:2]):
            weighted = label[row] + s * costs[row]
            found = alignments(blank[row], weighted, frames, labels, False)
            values.append(jax.nn.logsumexp(jnp.stack([score for _, score in found])))
        return sum(values)

    lengths = jnp.asarray(LENGTHS[:2].T, jnp.int32)
    with jax.enable_x64(True):
        expected = jax.grad(log_likelihood)(0.0)
        posterior = emission_posterior(jnp.asarray(blank), jnp.asarray(label), *lengths)
        found, _ = expected_distance(jnp.asarray(speech), jnp.asarray(text), posterior, *lengths)
    assert float(found) == pytest.approx(float(expected), rel=1e-6)


def test_no_gradient_reaches_the_transducer():
    speech, text, blank, label = (jnp.asarray(array, jnp.float32) for array in arrays())
    lengths = jnp.asarray(LENGTHS.T, jnp.int32)

    def loss(blank, label):
        posterior = emission_posterior(blank, label, *lengths)
        return expected_distance(speech, text, posterior, *lengths)[0]

    gradients = jax.jit(jax.grad(loss, (0, 1)))(blank, label)
    assert not any(np.any(gradient) for gradient in gradients)


@pytest.mark.parametrize("form", ["mse", "mae", "cosine"])
def test_memory_is_that_of_the_lattice(form):
    """`[batch, frames, labels, features]` would be 256 MiB."""
    batch, frames, labels, features = 4, 256, 128, 512
    floats = [(batch, frames, features), (batch, labels, features), (batch, frames, labels)]
    arguments = [jax.ShapeDtypeStruct(shape, np.float32) for shape in floats]
    arguments += [jax.ShapeDtypeStruct((batch,), np.int32)] * 2

    def loss(*arguments):
        return expected_distance(*arguments, form=form)[0]

    memory = jax.jit(jax.grad(loss, (0, 1))).lower(*arguments).compile().memory_analysis()
    sides = batch * (frames + labels) * features * 4
    lattice = batch * frames * labels * 4
    assert memory.temp_size_in_bytes < 8 * sides + 8 * lattice
    assert 16 * sides < batch * frames * labels * features * 4

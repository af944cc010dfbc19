"""One label a frame, HAT, FastEmit and the delay penalty, against enumeration and definitions."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maestro_jax.losses.transducer import (
    NO_PATH,
    transducer_loss,
    transducer_loss_from_lattices,
)
from maestro_jax.losses.transducer_alignment import transducer_alignment
from maestro_jax.losses.transducer_arcs import lattices_from_logits, log_probabilities

FRAMES, LABELS, VOCAB = 4, 4, 5

monotonic = jax.jit(functools.partial(transducer_loss_from_lattices, one_label_per_frame=True))
monotonic_alignment = jax.jit(functools.partial(transducer_alignment, one_label_per_frame=True))


def random_lattices(seed, batch=1, frames=FRAMES, labels=LABELS):
    rng = np.random.default_rng(seed)
    blank = np.log(rng.uniform(0.01, 1, (batch, frames, labels + 1)))
    label = np.log(rng.uniform(0.01, 1, (batch, frames, labels)))
    return blank.astype(np.float32), label.astype(np.float32)


def monotonic_paths(log_blank, log_label, frames, labels):
    """Every choice of distinct emission frames, with its score in float64."""
    for emissions in itertools.combinations(range(frames), labels):
        score = sum(float(log_label[frame, u]) for u, frame in enumerate(emissions))
        for frame in set(range(frames)) - set(emissions):
            score += float(log_blank[frame, sum(e < frame for e in emissions)])
        yield emissions, score


@given(
    seed=st.integers(0, 2**31),
    coarse=st.booleans(),
    sizes=st.lists(
        st.tuples(st.integers(0, FRAMES), st.integers(0, LABELS)), min_size=3, max_size=3
    ),
)
def test_one_label_a_frame(seed, coarse, sizes):
    blank, label = random_lattices(seed, batch=3)
    if coarse:  # many ties, and exact sums
        blank, label = np.round(blank), np.round(label)
    frame_lengths, label_lengths = (jnp.asarray(c) for c in zip(*sizes, strict=True))
    loss = monotonic(blank, label, frame_lengths, label_lengths)
    gradients = monotonic_gradients(blank, label, frame_lengths, label_lengths)
    found = monotonic_alignment(blank, label, frame_lengths, label_lengths)
    for row, (frames, labels) in enumerate(sizes):
        of_blank, of_label = (np.asarray(g[row]) for g in gradients)
        assert np.isfinite(of_blank).all() and np.isfinite(of_label).all()
        assert not of_blank[frames:].any() and not of_blank[:, labels + 1 :].any()
        assert not of_label[frames:].any() and not of_label[:, labels:].any()
        durations = np.asarray(found.durations[row])
        assert durations.sum() == (frames if labels else 0) and (durations >= 0).all()
        if frames == 0:
            assert loss[row] == 0.0 and not of_blank.any() and not of_label.any()
        elif labels > frames:
            assert NO_PATH < loss[row] < np.inf and not of_blank.any() and not of_label.any()
            assert found.scores[row] < -NO_PATH
        else:
            paths = list(monotonic_paths(blank[row], label[row], frames, labels))
            expected = -np.logaddexp.reduce([score for _, score in paths])
            np.testing.assert_allclose(loss[row], expected, rtol=1e-5, atol=1e-6)
            # Each frame is left by exactly one arc.
            used = of_blank.sum(1)[:frames] + of_label.sum(1)[:frames]
            np.testing.assert_allclose(-used, 1.0, atol=1e-5)
            best = max(score for _, score in paths)
            # Of equals the earliest at every label; sums of whole numbers are exact.
            winner = np.min([path for path, score in paths if score == best], axis=0)
            if coarse or len([score for _, score in paths if score > best - 1e-5]) == 1:
                assert found.frames[row, :labels].tolist() == list(winner)
                starts = [0, *winner[1:].astype(int), frames] if labels else []
                assert durations[:labels].tolist() == np.diff(starts).tolist()
                np.testing.assert_allclose(found.scores[row], best, rtol=1e-5)
                scores = [label[row, frame, u] for u, frame in enumerate(winner.astype(int))]
                np.testing.assert_array_equal(found.label_scores[row, :labels], scores)
            assert not np.any(found.label_scores[row, labels:])


@jax.jit
def monotonic_gradients(blank, label, frame_lengths, label_lengths):
    return jax.grad(
        lambda b, y: monotonic(b, y, frame_lengths, label_lengths).sum(), argnums=(0, 1)
    )(blank, label)


def test_one_label_a_frame_by_finite_differences_in_float64():
    with jax.enable_x64(True):
        blank, label = (jnp.asarray(x, jnp.float64) for x in random_lattices(1, batch=2))
        sizes = jnp.asarray([4, 3]), jnp.asarray([2, 3])
        gradients = monotonic_gradients(blank, label, *sizes)
        rng = np.random.default_rng(0)
        for index, lattice in enumerate((blank, label)):
            step = 1e-6 * rng.normal(size=lattice.shape)
            ahead, behind = [blank, label], [blank, label]
            ahead[index], behind[index] = lattice + step, lattice - step
            numeric = (monotonic(*ahead, *sizes) - monotonic(*behind, *sizes)).sum() / 2
            np.testing.assert_allclose(np.vdot(gradients[index], step), numeric, rtol=1e-6)


def test_alignment_scores_of_the_lattice_with_many_labels_a_frame():
    blank, label = random_lattices(2, batch=2)
    frames, labels = [4, 3], [3, 4]
    found = jax.jit(transducer_alignment)(blank, label, jnp.asarray(frames), jnp.asarray(labels))
    for row in range(2):
        path = np.asarray(found.frames[row, : labels[row]])
        scores = [label[row, frame, u] for u, frame in enumerate(path)]
        np.testing.assert_array_equal(found.label_scores[row, : labels[row]], scores)
        total = sum(scores) + sum(
            blank[row, frame, np.sum(path <= frame)] for frame in range(frames[row])
        )
        np.testing.assert_allclose(found.scores[row], total, rtol=1e-6)


def hat_by_definition(logits, blank_id):
    """Float64 log-probabilities: a sigmoid, and a softmax over everything else."""
    x = np.asarray(logits, np.float64)
    others = np.delete(np.arange(x.shape[-1]), blank_id)
    blank = 1 / (1 + np.exp(-x[..., blank_id]))
    exponentials = np.exp(x[..., others])
    found = np.zeros_like(x)
    found[..., blank_id] = np.log(blank)
    shares = exponentials / exponentials.sum(-1, keepdims=True)
    found[..., others] = np.log((1 - blank)[..., None] * shares)
    return found


@pytest.mark.parametrize("blank_id", [0, 3, VOCAB - 1])
def test_hat_is_its_definition(blank_id):
    rng = np.random.default_rng(3)
    logits = rng.normal(size=(2, 3, 4, VOCAB)).astype(np.float32)
    labels = np.asarray([[0, 1, 2], [4, 2, 1]])
    labels = np.where(labels == blank_id, (blank_id + 1) % VOCAB, labels)
    expected = hat_by_definition(logits, blank_id)
    found = log_probabilities(logits, blank_id=blank_id, hat=True)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(np.exp(found).sum(-1), 1.0, atol=1e-5)
    log_blank, log_label = lattices_from_logits(logits, labels, blank_id, hat=True)
    np.testing.assert_allclose(log_blank, expected[..., blank_id], atol=1e-5)
    chosen = np.take_along_axis(expected[:, :, :-1], labels[:, None, :, None], -1)[..., 0]
    np.testing.assert_allclose(log_label, chosen, atol=1e-5)


@pytest.mark.parametrize("blank_id", [0, 3])
def test_gradient_of_hat_by_finite_differences_in_float64(blank_id):
    rng = np.random.default_rng(4)
    with jax.enable_x64(True):
        logits = jnp.asarray(rng.normal(size=(2, FRAMES, LABELS + 1, VOCAB)))
        labels = jnp.asarray(rng.integers(blank_id + 1, VOCAB, (2, LABELS)))
        sizes = jnp.asarray([4, 2]), jnp.asarray([3, 4])
        value = jax.jit(
            lambda x: transducer_loss(x, labels, *sizes, blank_id=blank_id, hat=True).sum()
        )
        gradient = jax.jit(jax.grad(value))(logits)
        direction = rng.normal(size=logits.shape)
        numeric = (value(logits + 1e-5 * direction) - value(logits - 1e-5 * direction)) / 2e-5
        np.testing.assert_allclose(np.vdot(gradient, direction), numeric, rtol=1e-7)


def test_confident_hat_has_finite_gradients():
    logits = 1e4 * np.random.default_rng(5).normal(size=(2, 4, 3, VOCAB)).astype(np.float32)
    labels, sizes = jnp.ones((2, 2), jnp.int32), (jnp.asarray([4, 3]), jnp.asarray([2, 2]))
    loss, gradient = jax.value_and_grad(
        lambda x: transducer_loss(x, labels, *sizes, hat=True).sum()
    )(logits)
    assert np.isfinite(loss) and np.isfinite(gradient).all()


@pytest.mark.extended
@pytest.mark.parametrize("one_label_per_frame", [False, True])
def test_fastemit_scales_the_gradient_of_label_arcs_alone(one_label_per_frame):
    blank, label = random_lattices(6)
    sizes = jnp.asarray([4]), jnp.asarray([3])

    def run(weight):
        def total(b, y):
            return transducer_loss_from_lattices(
                b, y, *sizes, fastemit=weight, one_label_per_frame=one_label_per_frame
            ).sum()

        return jax.value_and_grad(total, (0, 1))(blank, label)

    plain_value, plain = run(0.0)
    value, scaled = run(0.25)
    assert value == plain_value
    np.testing.assert_array_equal(scaled[0], plain[0])
    np.testing.assert_allclose(scaled[1], 1.25 * plain[1], rtol=1e-6)
    assert np.abs(plain[1]).max() > 0.1


def test_delay_penalty_is_that_of_every_path():
    """Each path's score gains the penalty times how early its labels come, over its own frames."""
    blank, label = random_lattices(7, batch=2)
    frames, labels, penalty = [4, 3], [2, 4], 0.3
    loss = transducer_loss_from_lattices(
        blank, label, jnp.asarray(frames), jnp.asarray(labels), delay_penalty=penalty
    )
    for row in range(2):
        scores = []
        for path in itertools.combinations_with_replacement(range(frames[row]), labels[row]):
            score = sum(float(label[row, frame, u]) for u, frame in enumerate(path))
            score += sum(penalty * ((frames[row] - 1) / 2 - frame) for frame in path)
            for frame in range(frames[row]):
                score += float(blank[row, frame, sum(e <= frame for e in path)])
            scores.append(score)
        np.testing.assert_allclose(loss[row], -np.logaddexp.reduce(scores), rtol=1e-5)


def test_delay_penalty_draws_the_best_path_forward():
    """Descending the penalised loss moves the emissions of a flat lattice to the first frames."""
    sizes = jnp.asarray([FRAMES]), jnp.asarray([2])
    labels = jnp.asarray([[1, 2]])

    def mean_frame(penalty):
        logits = jnp.zeros((1, FRAMES, 3, 3))
        step = jax.jit(
            jax.grad(lambda x: transducer_loss(x, labels, *sizes, delay_penalty=penalty).sum())
        )
        for _ in range(60):
            logits = logits - step(logits)
        found = transducer_alignment(*lattices_from_logits(logits, labels), *sizes)
        return float(found.frames.mean())

    assert mean_frame(1.0) < mean_frame(-1.0)


def test_very_long_inputs():
    """Two minutes at 40 ms and 600 labels: finite, and every label is emitted once."""
    rng = np.random.default_rng(8)
    blank = rng.uniform(-8, 0, (1, 3000, 601)).astype(np.float32)
    label = rng.uniform(-8, 0, (1, 3000, 600)).astype(np.float32)
    sizes = jnp.asarray([3000]), jnp.asarray([600])
    for loss in (transducer_loss_from_lattices, monotonic):
        value, (of_blank, of_label) = jax.jit(
            jax.value_and_grad(lambda b, y, loss=loss: loss(b, y, *sizes).sum(), (0, 1))
        )(blank, label)
        assert np.isfinite(value)
        assert np.isfinite(of_blank).all()
        np.testing.assert_allclose(-of_label.sum((0, 1)), 1.0, atol=1e-3)

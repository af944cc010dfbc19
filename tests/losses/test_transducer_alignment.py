"""The best path against the best of all enumerated paths."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maestro_jax.losses.transducer_alignment import transducer_alignment

FRAMES, LABELS = 5, 4

align = jax.jit(transducer_alignment)


def enumerated_best_path(log_blank, log_label, frames, labels):
    """Emission frames of the best path, float64; of several, the earliest at every label."""
    best, winners = -np.inf, []
    for emissions in itertools.combinations_with_replacement(range(frames), labels):
        score = sum(float(log_label[frame, u]) for u, frame in enumerate(emissions))
        for frame in range(frames):
            emitted = sum(emission <= frame for emission in emissions)
            score += float(log_blank[frame, emitted])
        if score > best:
            best, winners = score, [emissions]
        elif score == best:
            winners.append(emissions)
    return np.min(winners, axis=0).astype(int).tolist()


def durations_of(emissions, frames):
    """Counts for every frame the label that owns it: the last one emitted, or else the first."""
    durations = [0] * len(emissions)
    for frame in range(frames if emissions else 0):
        emitted = sum(emission <= frame for emission in emissions)
        durations[max(emitted - 1, 0)] += 1
    return durations


def lengths(*values):
    return jnp.asarray(values, jnp.int32)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    coarse=st.booleans(),
    sizes=st.lists(
        st.tuples(st.integers(0, FRAMES), st.integers(0, LABELS)), min_size=3, max_size=3
    ),
)
def test_best_of_enumerated_paths(seed, coarse, sizes):
    rng = np.random.default_rng(seed)
    blank = rng.uniform(-4, 0, (3, FRAMES, LABELS + 1)).astype(np.float32)
    label = rng.uniform(-4, 0, (3, FRAMES, LABELS)).astype(np.float32)
    if coarse:  # small whole numbers: many ties, and exact sums
        blank, label = np.round(blank / 2), np.round(label / 2)
    frame_lengths, label_lengths = (lengths(*column) for column in zip(*sizes, strict=True))
    found = align(jnp.asarray(blank), jnp.asarray(label), frame_lengths, label_lengths)
    assert found.frames.dtype == found.durations.dtype == jnp.int32
    for i, (frames, labels) in enumerate(sizes):
        padding = [0] * (LABELS - labels)
        if frames == 0:
            emissions, durations = [0] * labels, [0] * labels
        else:
            emissions = enumerated_best_path(blank[i], label[i], frames, labels)
            durations = durations_of(emissions, frames)
            assert sum(durations) == (frames if labels else 0)
        assert found.frames[i].tolist() == emissions + padding
        assert found.durations[i].tolist() == durations + padding


def test_ties_emit_early():
    found = align(
        jnp.zeros((2, FRAMES, LABELS + 1)),
        jnp.zeros((2, FRAMES, LABELS)),
        lengths(5, 3),
        lengths(4, 2),
    )
    assert found.frames.tolist() == [[0, 0, 0, 0], [0, 0, 0, 0]]
    assert found.durations.tolist() == [[0, 0, 0, 5], [0, 3, 0, 0]]


def test_ownership_of_frames():
    """Emissions on frames 1, 1 and 3 of 5: the first label owns frame 0, the second shares."""
    log_label = np.full((1, 5, 3), -9.0)
    for u, frame in enumerate([1, 1, 3]):
        log_label[0, frame, u] = 0.0
    found = align(jnp.zeros((1, 5, 4)), jnp.asarray(log_label), lengths(5), lengths(3))
    assert found.frames.tolist() == [[1, 1, 3]]
    assert found.durations.tolist() == [[1, 2, 2]]


def test_a_planted_path_in_a_long_lattice():
    rng = np.random.default_rng(0)
    emissions = np.sort(rng.integers(0, 300, (4, 40)), axis=1)
    log_label = rng.uniform(-9, -5, (4, 300, 40))
    np.put_along_axis(log_label, emissions[:, None], -0.1, axis=1)
    log_blank = rng.uniform(-9, -5, (4, 300, 41))
    emitted = (emissions[:, None] <= np.arange(300)[:, None]).sum(-1, keepdims=True)
    np.put_along_axis(log_blank, emitted, -0.1, axis=2)
    found = align(jnp.asarray(log_blank), jnp.asarray(log_label), jnp.full(4, 300), jnp.full(4, 40))
    np.testing.assert_array_equal(found.frames, emissions)
    np.testing.assert_array_equal(found.durations.sum(1), np.full(4, 300))


def test_a_batch_is_its_examples():
    rng = np.random.default_rng(1)
    blank = jnp.asarray(rng.normal(size=(3, FRAMES, LABELS + 1)))
    label = jnp.asarray(rng.normal(size=(3, FRAMES, LABELS)))
    sizes = lengths(5, 1, 3), lengths(2, 4, 3)
    whole = align(blank, label, *sizes)
    for i in range(3):
        row = slice(i, i + 1)
        alone = align(blank[row], label[row], sizes[0][row], sizes[1][row])
        np.testing.assert_array_equal(whole.frames[i], alone.frames[0])
        np.testing.assert_array_equal(whole.durations[i], alone.durations[0])


@pytest.mark.parametrize("value", [-np.inf, np.nan])
def test_durations_stay_legal_without_a_path(value):
    blank = jnp.full((1, FRAMES, LABELS + 1), value)
    label = jnp.full((1, FRAMES, LABELS), value)
    found = align(blank, label, lengths(4), lengths(3))
    assert np.all(np.diff(found.frames[0, :3]) >= 0) and np.all(found.frames[0] < 4)
    assert np.all(np.asarray(found.durations) >= 0)
    assert int(found.durations.sum()) == 4


def test_no_gradient_flows():
    def total(blank, label):
        return transducer_alignment(blank, label, lengths(4), lengths(2)).durations.sum() * 1.0

    blank, label = jnp.zeros((1, 4, 3)), jnp.zeros((1, 4, 2))
    assert not np.any(jax.grad(total)(blank, label))


def test_no_labels_on_the_static_axis_and_bfloat16():
    found = align(
        jnp.zeros((1, 3, 1), jnp.bfloat16),
        jnp.zeros((1, 3, 0), jnp.bfloat16),
        lengths(3),
        lengths(0),
    )
    assert found.frames.shape == found.durations.shape == (1, 0)


def test_shapes_that_do_not_belong_together():
    with pytest.raises(ValueError, match="log_label beside log_blank"):
        transducer_alignment(jnp.zeros((1, 3, 3)), jnp.zeros((1, 3, 3)), lengths(3), lengths(2))

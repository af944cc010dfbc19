"""Gaussian upsampling against loops in float64, and its limit, which is the hard resampler."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maestro_jax.modules.resampler import (
    GaussianUpsampling,
    Resampler,
    gaussian_weights,
    whole_durations,
)

# Zeros inside and as padding, a row that overflows, an empty row.
DURATIONS = np.array(
    [[2.3, 0.0, 1.1, 3.7, 0.0], [0.0, 4.2, 9.5, 1.0, 2.0], [0.0] * 5, [0.4, 0.4, 0.4, 0.4, 6.0]],
    np.float32,
)
WHOLE = np.array([[2, 0, 1, 4, 0], [0, 4, 9, 1, 2], [0] * 5, [1, 9, 0, 1, 1]], np.int32)
FRAMES, FEATURES = 12, 6


def embedded(features=FEATURES):
    return np.random.default_rng(0).normal(size=(4, 5, features)).astype(np.float32)


def run(module, variables, x, durations):
    apply = jax.jit(module.apply, static_argnums=3)
    return apply(variables, x, durations, FRAMES)


def parameters(seed=4):
    """Of either resampler, and of which none is zero."""
    rng = np.random.default_rng(seed)

    def dense(inputs, outputs):
        kernel, bias = rng.normal(size=(inputs, outputs)), rng.normal(size=outputs)
        return {"kernel": 0.3 * np.float32(kernel), "bias": 0.3 * np.float32(bias)}

    position, ranges = dense(2 * FEATURES + 1, FEATURES), dense(FEATURES + 1, 1)
    return {"params": {"position": position, "range": ranges}}


def weights_by_definition(durations, ranges):
    durations, ranges = durations.astype(np.float64), ranges.astype(np.float64)
    weights = np.zeros((len(durations), FRAMES, durations.shape[1]))
    for b, row in enumerate(durations):
        for t in range(FRAMES):
            start = 0.0
            for u, duration in enumerate(row):
                if duration > 0:
                    sigma, centre = ranges[b, u] * duration, start + duration / 2
                    density = np.exp(-(((t + 0.5 - centre) / sigma) ** 2) / 2) / sigma
                    weights[b, t, u] = density
                start += duration
            total = weights[b, t].sum()
            weights[b, t] /= total if total else 1.0
    return weights


def test_weights_are_those_of_the_definition():
    ranges = np.random.default_rng(1).uniform(0.4, 2.0, DURATIONS.shape).astype(np.float32)
    compiled = jax.jit(gaussian_weights, static_argnums=2)
    found = np.asarray(compiled(DURATIONS, ranges, FRAMES))
    expected = weights_by_definition(DURATIONS, ranges)
    there = [0, 1, 3]
    np.testing.assert_allclose(found[there], expected[there], atol=1e-5)
    assert np.all(np.isfinite(found))


def test_frames_are_mixtures_and_their_places():
    """A position kernel that picks one input shows each of the three places in a token."""
    module = GaussianUpsampling(fixed_range=0.7)
    x = embedded()
    durations = jnp.array(DURATIONS)
    weights = weights_by_definition(DURATIONS, np.full(DURATIONS.shape, 0.7))
    valid = np.array([7, 12, 0, 8])  # 7.1, more than 12, nothing, 7.6
    still = jax.tree.map(np.zeros_like, parameters())
    mixed, index = run(module, still, x, durations)
    assert index.lengths.tolist() == valid.tolist()
    assert index.overflow.tolist() == [0, 5, 0, 0]
    ends = np.cumsum(DURATIONS.astype(np.float64), axis=1)
    for b, frames in enumerate(valid):
        np.testing.assert_allclose(mixed[b, :frames], weights[b, :frames] @ x[b], atol=1e-5)
        assert not np.any(mixed[b, frames:])
        for t in range(frames):
            assert index.token[b, t] == np.flatnonzero(t + 0.5 < ends[b])[0]
    still["params"]["position"]["kernel"][-1] = 1.0
    added = run(module, still, 0 * x, durations)[0][..., 0]
    for b, frames in enumerate(valid):
        for t in range(frames):
            expected = sum(
                weights[b, t, u] * (t + 0.5 - ends[b, u] + d) / d
                for u, d in enumerate(DURATIONS[b].astype(np.float64))
                if d > 0
            )
            np.testing.assert_allclose(added[b, t], expected, atol=2e-5)


def test_whole_durations():
    """Frames whose centres lie within a token's bounds; whole numbers stay."""
    np.testing.assert_array_equal(whole_durations(jnp.array(WHOLE)), WHOLE)
    np.testing.assert_array_equal(whole_durations(jnp.array(WHOLE, jnp.float32)), WHOLE)
    rows = np.random.default_rng(2).uniform(0, 3, (20, 8)).astype(np.float32)
    found = np.asarray(whole_durations(jnp.array(rows)))
    ends = np.cumsum(rows, axis=1, dtype=np.float64)
    for row, end in zip(found, ends, strict=True):
        centres = np.arange(30) + 0.5
        expected = np.diff([np.sum(centres < e) for e in end], prepend=0)
        np.testing.assert_array_equal(row, expected)


def test_a_narrow_range_is_the_hard_resampler():
    """Whole durations put every frame's centre inside a token, half a frame from its bounds.

    A short token beside a long one (1 and 9 frames) has the nearest centre for frames that are
    not its own.
    """
    x, durations = embedded(), jnp.array(WHOLE)
    expected, expected_index = run(Resampler(), parameters(), x, durations)
    found, index = run(GaussianUpsampling(fixed_range=0.02), parameters(), x, durations)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    jax.tree.map(np.testing.assert_array_equal, index, expected_index)
    # And a wide one is not.
    wide, _ = run(GaussianUpsampling(fixed_range=1.0), parameters(), x, durations)
    assert np.abs(wide - expected).max() > 0.1


def test_gradient_of_durations_is_that_of_finite_differences():
    module = GaussianUpsampling()
    x = embedded()
    probe = np.random.default_rng(3).normal(size=(4, FRAMES, FEATURES)).astype(np.float32)

    @jax.jit
    @functools.partial(jax.value_and_grad, argnums=(0, 1))
    def loss(durations, variables):
        return jnp.sum(module.apply(variables, x, durations, FRAMES)[0] * probe)

    variables = parameters()
    _, (gradient, of_variables) = loss(DURATIONS, variables)
    assert np.all(np.isfinite(gradient))
    assert all(np.any(leaf) for leaf in jax.tree.leaves(of_variables))
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(of_variables))
    step = 1e-2
    for b, u in [(0, 0), (0, 3), (1, 1), (3, 2), (3, 4)]:
        up, down = DURATIONS.copy(), DURATIONS.copy()
        up[b, u] += step
        down[b, u] -= step
        slope = (loss(up, variables)[0] - loss(down, variables)[0]) / (2 * step)
        np.testing.assert_allclose(gradient[b, u], slope, rtol=2e-2, atol=2e-2)
    assert not np.any(gradient[2])


def test_padding_is_not_seen():
    module = GaussianUpsampling()
    x, durations = embedded(), jnp.array(DURATIONS)
    longer = np.concatenate([x, 100 + x], axis=1)
    padded = jnp.pad(durations, ((0, 0), (0, 5)))
    expected, _ = run(module, parameters(), x, durations)
    found, _ = run(module, parameters(), longer, padded)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_range_that_is_not_positive_is_refused():
    with pytest.raises(ValueError, match="fixed_range is 0"):
        GaussianUpsampling(fixed_range=0.0)


def test_parameters_are_those_the_tests_give():
    module = GaussianUpsampling()
    made = jax.eval_shape(
        functools.partial(module.init, frames=FRAMES), jax.random.key(0), embedded(), DURATIONS
    )
    made, given = jax.tree.map(np.shape, (nn.unbox(made), parameters()))
    assert made == given

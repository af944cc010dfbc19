"""Two recordings of one text: which frames and outputs correspond, and how far they differ."""

from __future__ import annotations

import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats

from maestro_jax.losses.consistency import corresponding_frames, output_divergence
from maestro_jax.modules.resampler import frame_index


def test_frames_correspond_by_the_fraction_of_their_token():
    rng = np.random.default_rng(0)
    durations, others = rng.integers(0, 5, (2, 30, 6))
    frames = int(durations.sum(axis=1).max())
    index = frame_index(jnp.asarray(durations), frames)
    found, valid = corresponding_frames(
        index.token, index.position, index.duration, jnp.asarray(others)
    )
    seen = 0
    for row in range(len(durations)):
        frame = 0
        for token, duration in enumerate(durations[row].tolist()):
            begin, length = int(others[row, :token].sum()), int(others[row, token])
            for position in range(duration):
                assert bool(valid[row, frame]) == (length > 0)
                if length:
                    passed = Fraction(2 * position + 1, 2 * duration)
                    assert int(found[row, frame]) == begin + math.floor(passed * length)
                    seen += 1
                frame += 1
        assert not np.asarray(valid)[row, frame:].any()
    assert seen > 300


def test_equal_durations_give_the_frames_themselves():
    durations = jnp.asarray([[2, 0, 3, 1]])
    index = frame_index(durations, 8)
    found, valid = corresponding_frames(index.token, index.position, index.duration, durations)
    np.testing.assert_array_equal(found[0, :6], np.arange(6))
    np.testing.assert_array_equal(valid[0], [True] * 6 + [False] * 2)


def test_divergence_is_that_of_scipy_and_leaves_the_target_alone():
    rng = np.random.default_rng(1)
    target, output = (jax.nn.log_softmax(rng.normal(size=(2, 3, 5))) for _ in range(2))
    mask = np.array([[True, True, False], [True, False, False]])
    total, count = output_divergence(target, output, jnp.asarray(mask))
    expected = scipy.stats.entropy(np.exp(target), np.exp(output), axis=-1)[mask].sum()
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    assert count == 3

    def loss(target, output):
        return output_divergence(target, output, jnp.asarray(mask))[0]

    by_target, by_output = jax.grad(loss, (0, 1))(target, output)
    assert not np.asarray(by_target).any()
    # d KL(p || q) / d log q = -p.
    np.testing.assert_allclose(by_output, -np.exp(target) * mask[..., None], rtol=1e-5)

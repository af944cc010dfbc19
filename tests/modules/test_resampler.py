"""The frame index against NumPy's repeat."""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from maestro_jax.modules.resampler import Resampler, frame_index

DURATIONS = st.lists(st.integers(0, 4), min_size=5, max_size=5)


def check(rows, frames):
    index = frame_index(jnp.array(rows, jnp.int32), frames)
    for b, row in enumerate(rows):
        tokens = np.repeat(np.arange(len(row)), row)
        positions = np.concatenate([np.arange(d) for d in row])
        count = min(len(tokens), frames)
        assert index.lengths[b] == count
        assert index.overflow[b] == len(tokens) - count
        np.testing.assert_array_equal(index.mask[b], np.arange(frames) < count)
        np.testing.assert_array_equal(index.token[b, :count], tokens[:count])
        np.testing.assert_array_equal(index.position[b, :count], positions[:count])
        np.testing.assert_array_equal(index.duration[b, :count], np.repeat(row, row)[:count])
        assert not np.any(index.position[b, count:]) and not np.any(index.duration[b, count:])
    assert np.all(np.asarray(index.token) < len(rows[0]))


def test_zeros_anywhere_exact_fit_and_overflow():
    check([[0, 2, 0, 0, 3, 0], [0] * 6, [3, 1, 0, 2, 1, 4], [8, 0, 0, 0, 0, 0]], 8)


@given(first=DURATIONS, second=DURATIONS)
def test_frame_index_is_repeat(first, second):
    check([first, second], 9)


def test_resampler_copies_embeddings_and_adds_the_place():
    embedded = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    durations = jnp.array([[2, 0, 3], [0, 0, 0]], jnp.int32)
    module = Resampler()
    variables = nn.unbox(module.init(jax.random.key(0), embedded, durations, 6))
    still = jax.tree.map(jnp.zeros_like, variables)
    copied, index = module.apply(still, embedded, durations, 6)
    np.testing.assert_array_equal(copied[0, :5], np.repeat(embedded[0], [2, 0, 3], axis=0))
    assert not np.any(copied[0, 5:]) and not np.any(copied[1])
    assert index.lengths.tolist() == [5, 0]
    # A kernel that passes on the last input alone adds the fraction of the token that has passed.
    kernel = still["params"]["position"]["kernel"].at[-1].set(1.0)
    fraction = {"params": {"position": {**still["params"]["position"], "kernel": kernel}}}
    added = module.apply(fraction, 0 * embedded, durations, 6)[0][0, :, 0]
    np.testing.assert_allclose(added, [1 / 4, 3 / 4, 1 / 6, 3 / 6, 5 / 6, 0], rtol=1e-6)
    gradient = jax.grad(lambda v: jnp.sum(module.apply(v, embedded, durations, 6)[0] ** 2))(
        variables
    )
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradient))


def test_the_place_in_the_token_is_that_of_a_loop():
    """Sinusoids of the frame's index and of the duration, and the fraction passed, through a map.

    Zeros in front and inside, a row that overflows, an empty row.
    """
    rows, frames, features = [[0, 2, 0, 3], [4, 0, 1, 9], [0, 0, 0, 0]], 7, 4
    rng = np.random.default_rng(3)
    embedded = rng.normal(size=(3, 4, features)).astype(np.float32)
    kernel = rng.normal(size=(2 * features + 1, features)).astype(np.float32)
    bias = rng.normal(size=features).astype(np.float32)
    variables = {"params": {"position": {"kernel": kernel, "bias": bias}}}
    found, _ = jax.jit(Resampler().apply, static_argnums=3)(
        variables, embedded, jnp.array(rows, jnp.int32), frames
    )

    def sinusoid(number):
        rates = [10_000.0 ** (-i / (features // 2 - 1)) for i in range(features // 2)]
        return [math.sin(number * r) for r in rates] + [math.cos(number * r) for r in rates]

    expected = np.zeros((3, frames, features))
    for b, row in enumerate(rows):
        t = 0
        for u, duration in enumerate(row):
            for position in range(duration):
                if t < frames:
                    fraction = (position + 0.5) / duration
                    place = [*sinusoid(position), *sinusoid(duration), fraction]
                    expected[b, t] = embedded[b, u] + np.array(place) @ kernel + bias
                t += 1
    np.testing.assert_allclose(found, expected, atol=1e-5)

"""Masks against their definitions and the shares they promise."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from maestro_jax.layers.masking import (
    block_mask,
    length_mask,
    share_mask,
    span_mask,
    zero_padding,
)


def test_length_mask_and_zero_padding():
    mask = length_mask(jnp.array([0, 2, 3]), 3)
    assert mask.tolist() == [[False] * 3, [True, True, False], [True] * 3]
    x = jnp.full((3, 3, 2), jnp.nan).at[1, :2].set(1.0).at[2].set(2.0)
    padded = np.asarray(zero_padding(x, mask))
    assert padded[:, :, 0].tolist() == [[0, 0, 0], [1, 1, 0], [2, 2, 2]]


def test_span_mask_covers_about_half():
    lengths = jnp.tile(jnp.array([1000, 0, 600, 20]), 25)
    valid = length_mask(lengths, 1000)
    mask = span_mask(jax.random.key(0), valid, start_probability=0.065, span=10)
    assert not np.any(mask & ~valid)
    # 1 - 0.935**10 = 0.4894: the chance that none of the ten possible starts happened.
    share = float(jnp.sum(mask)) / float(jnp.sum(valid))
    assert abs(share - 0.4894) < 0.015


def test_span_mask_is_made_of_whole_spans():
    valid = jnp.ones((200, 40), bool)
    mask = np.asarray(span_mask(jax.random.key(1), valid, start_probability=0.02, span=5))
    for row in mask:
        edges = np.flatnonzero(np.diff(np.concatenate([[0], row.astype(int), [0]])))
        for begin, end in zip(edges[::2], edges[1::2], strict=True):
            assert end - begin >= 5 or end == 40


def test_span_mask_extremes():
    valid = length_mask(jnp.array([3, 0]), 5)
    none = span_mask(jax.random.key(0), valid, start_probability=0.0, span=10)
    every = span_mask(jax.random.key(0), valid, start_probability=1.0, span=3)
    assert not np.any(none)
    np.testing.assert_array_equal(every, valid)


def test_share_mask_hides_every_position_equally_often():
    """The first too, even with spans that are longer than the texts."""
    lengths = jnp.tile(jnp.array([12, 0, 30, 5]), 2000)
    valid = np.asarray(length_mask(lengths, 30))
    for share, span in ((0.15, 5), (0.5, 20), (0.15, 1)):
        mask = np.asarray(share_mask(jax.random.key(0), jnp.asarray(valid), share=share, span=span))
        assert not np.any(mask & ~valid)
        # 2000 draws or more of each position: a standard error of 0.011 at most.
        shares = mask.sum(axis=0) / valid.sum(axis=0)
        np.testing.assert_allclose(shares, share, atol=0.045)
        # Positions beside each other are hidden by the same span: P(both) = 1 - 2 q + q_both.
        none = (1 - share) ** ((span + 1) / span)
        both = np.mean(mask[2::4, 4:20] & mask[2::4, 5:21])
        assert abs(both - (1 - 2 * (1 - share) + none)) < 0.02


def test_share_mask_extremes():
    valid = length_mask(jnp.array([3, 0]), 5)
    assert not np.any(share_mask(jax.random.key(0), valid, share=0.0, span=10))
    np.testing.assert_array_equal(share_mask(jax.random.key(0), valid, share=1.0, span=3), valid)


def test_block_mask_stays_within_extent_and_width():
    sizes = jnp.tile(jnp.array([0, 4, 20, 30]), 100)
    widest = jnp.tile(jnp.array([3, 9, 5, 0]), 100)
    mask = np.asarray(block_mask(jax.random.key(0), sizes, 30, blocks=1, max_width=widest)).reshape(
        100, 4, 30
    )
    assert not mask[:, 0].any() and not mask[:, 3].any()
    assert not mask[:, 1, 4:].any() and not mask[:, 2, 20:].any()
    # Every width up to the limit, and every place, occurs.
    assert set(mask[:, 1].sum(-1)) == {0, 1, 2, 3, 4}
    assert set(mask[:, 2].sum(-1)) == {0, 1, 2, 3, 4, 5}
    assert mask[:, 2, 0].any() and mask[:, 2, 19].any()
    for row in mask[:, 2]:
        assert np.abs(np.diff(row.astype(int), prepend=0, append=0)).sum() in (0, 2)

"""Validity masks from lengths, and the random masks that make reconstruction a task."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def length_mask(lengths: jax.Array, size: int) -> jax.Array:
    """Returns True where a position holds data.

    Args:
        lengths: `[batch]`, number of valid positions.
        size: Number of positions.

    Returns:
        `[batch, size]` bool.
    """
    return jnp.arange(size)[None, :] < lengths[:, None]


def zero_padding(x: jax.Array, mask: jax.Array) -> jax.Array:
    """Sets `x` `[batch, frames, features]` to zero where `mask` `[batch, frames]` is False."""
    return jnp.where(mask[:, :, None], x, jnp.zeros((), x.dtype))


def span_mask(
    rng: jax.Array, valid: jax.Array, *, start_probability: float, span: int
) -> jax.Array:
    """Draws spans that start anywhere with a probability and may overlap (w2v-BERT, section 3).

    With a start probability of 0.065 and spans of 10 about 49% of the frames are masked.

    Args:
        rng: Random key.
        valid: `[batch, frames]` bool, where there is data.
        start_probability: Chance that a span starts in a frame.
        span: Frames a span covers.

    Returns:
        `[batch, frames]` bool, True = masked; never True outside `valid`.
    """
    # Starts in the padding mask nothing: spans reach to the right, and `valid` cuts them.
    starts = jax.random.bernoulli(rng, start_probability, valid.shape)
    covered = starts
    for offset in range(1, min(span, valid.shape[1])):
        # A frame is masked if a span began at most span - 1 frames before it.
        covered = covered | jnp.pad(starts[:, :-offset], ((0, 0), (offset, 0)))
    return covered & valid


def share_mask(rng: jax.Array, valid: jax.Array, *, share: float, span: int) -> jax.Array:
    """Draws spans that hide a share of the positions, each of them equally often.

    Spans may begin before the first position. `span_mask` hides the first positions less often,
    which matters where a sequence is hardly longer than a span.

    Args:
        rng: Random key.
        valid: `[batch, positions]` bool, where there is data.
        share: Chance of a position to be masked, in [0, 1].
        span: Positions that a span covers.

    Returns:
        `[batch, positions]` bool, True = masked; never True outside `valid`.
    """
    # A position is left if none of the spans that reach it begins: 1 - share = (1 - start)^span.
    start_probability = 1.0 - (1.0 - share) ** (1.0 / span)
    before = jnp.ones((valid.shape[0], span - 1), bool)
    padded = jnp.concatenate([before, valid], axis=1)
    masked = span_mask(rng, padded, start_probability=start_probability, span=span)
    return masked[:, span - 1 :]


def block_mask(
    rng: jax.Array, sizes: jax.Array, length: int, *, blocks: int, max_width: jax.Array | int
) -> jax.Array:
    """Draws blocks of random width at random positions (SpecAugment, section 2).

    Args:
        rng: Random key.
        sizes: `[batch]`, the extent within which blocks are placed.
        length: Size of the axis to mask.
        blocks: How many blocks.
        max_width: Largest width of a block, an integer or `[batch]`.

    Returns:
        `[batch, length]` bool, True = masked.
    """
    batch = sizes.shape[0]
    width_rng, start_rng = jax.random.split(rng)
    limit = jnp.minimum(jnp.broadcast_to(jnp.asarray(max_width), (batch,)), sizes)
    # Widths 0 ... limit and starts 0 ... size - width, all equally likely; [batch, blocks].
    widths = jnp.floor(
        jax.random.uniform(width_rng, (batch, blocks)) * (limit[:, None] + 1).astype(jnp.float32)
    )
    starts = jnp.floor(
        jax.random.uniform(start_rng, (batch, blocks)) * (sizes[:, None] - widths + 1)
    )
    positions = jnp.arange(length, dtype=jnp.float32)[None, None, :]
    # [batch, blocks, length]
    inside = (positions >= starts[:, :, None]) & (positions < (starts + widths)[:, :, None])
    return jnp.any(inside, axis=1)

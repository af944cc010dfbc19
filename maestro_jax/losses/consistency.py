"""Compares two recordings of one text, whose lengths differ, by their transducer alignments.

Frames correspond by the token that owns them and by the fraction of it that has passed; outputs of
the decoder correspond by the label that they emit. The latter is the consistency of Google's
streaming models (US patent 11929060): a divergence at every output step of a valid alignment.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from maestro_jax.losses.reduction import Weighted, masked_sum


def corresponding_frames(
    token: jax.Array, position: jax.Array, duration: jax.Array, other_durations: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Finds the frame of another recording that corresponds to each frame of this one.

    Args:
        token: `[batch, frames]` int32, the token that owns each frame of this recording.
        position: `[batch, frames]` int32, index of the frame within its token.
        duration: `[batch, frames]` int32, frames of its token.
        other_durations: `[batch, tokens]` int32, frames of each token in the other recording.

    Returns:
        `[batch, frames]` int32, the other recording's frame at the same fraction of the same token;
        and bool of the same shape, False where the token has no frame there or the frame no token.
    """
    begins = jnp.cumsum(other_durations, axis=1) - other_durations
    begin = jnp.take_along_axis(begins, token, axis=1)
    length = jnp.take_along_axis(other_durations, token, axis=1)
    # The centre of the frame, (position + 1/2) / duration, in whole numbers: no rounding error
    # moves it over the border of a frame.
    offset = (2 * position + 1) * length // jnp.maximum(2 * duration, 1)
    valid = (length > 0) & (duration > 0)
    return jnp.where(valid, begin + offset, 0), valid


def output_divergence(target: jax.Array, output: jax.Array, mask: jax.Array) -> Weighted:
    """Computes KL(target || output) at each label; no gradient reaches the target.

    Args:
        target: `[batch, labels, vocab]` log-probabilities, of the blank and the labels.
        output: `[batch, labels, vocab]` log-probabilities.
        mask: `[batch, labels]` bool, the labels that count.

    Returns:
        Total in nats, and the number of labels.
    """
    target = jax.lax.stop_gradient(target)
    return masked_sum(jnp.sum(jnp.exp(target) * (target - output), axis=-1), mask)

"""Metrics that tell whether an encoder still hears."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from maestro_jax.losses.reduction import Weighted


def frame_variation(encoded: jax.Array, mask: jax.Array) -> Weighted:
    """How much the frames of an utterance differ from each other.

    The variance over the frames of an utterance as a share of the mean square: near 1 for an
    encoder that tells frames apart, near 0 for one that gives every frame the same vector. That is
    how an RNN-T ends that has become a language model.

    Args:
        encoded: `[batch, frames, features]`.
        mask: `[batch, frames]` bool, True = valid.

    Returns:
        Total variance and total mean square, whose quotient is the metric; no gradient.
    """
    encoded = jax.lax.stop_gradient(encoded.astype(jnp.float32))
    weight = mask.astype(jnp.float32)[:, :, None]
    count = jnp.maximum(jnp.sum(weight, axis=1, keepdims=True), 1.0)
    average = jnp.sum(encoded * weight, axis=1, keepdims=True) / count
    variance = jnp.sum(jnp.square(encoded - average) * weight)
    return variance, jnp.sum(jnp.square(encoded) * weight)

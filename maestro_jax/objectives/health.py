"""Metrics that tell whether an encoder still hears, and whether its alignments mean something."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from maestro_jax.losses.reduction import Weighted, masked_sum
from maestro_jax.losses.transducer_alignment import Alignment
from maestro_jax.objectives.base import Metrics


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


def alignment_health(
    path: Alignment, entropy: Weighted, labels: jax.Array, frames: jax.Array
) -> Metrics:
    """Whether alignments have collapsed, as those of an untrained RNN-T do.

    Args:
        path: The best paths.
        entropy: Of the emission frames, in nats, and the number of labels.
        labels: `[batch, labels]` bool, True = valid.
        frames: `[batch, frames]` bool, True = valid.

    Returns:
        `paired/alignment_entropy` in nats a label: 0 where all paths agree on its frame;
        `paired/first_label_share` and `paired/last_label_share`: the share of an utterance's frames
        that its first and its last label own, near 1 when all labels stand in one place.
    """
    there = jnp.any(frames, axis=1)[:, None] & labels
    first = jnp.arange(labels.shape[1])[None, :] == 0
    following = jnp.pad(labels[:, 1:], ((0, 0), (0, 1)))
    count = jnp.sum((frames & jnp.any(labels, axis=1)[:, None]).astype(jnp.float32))
    return {
        "paired/alignment_entropy": entropy,
        "paired/first_label_share": (masked_sum(path.durations, there & first)[0], count),
        "paired/last_label_share": (masked_sum(path.durations, there & ~following)[0], count),
    }

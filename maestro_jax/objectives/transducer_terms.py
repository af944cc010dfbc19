"""RNN-T terms that several objectives share."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from maestro_jax.losses.reduction import Weighted
from maestro_jax.losses.transducer import lattices_from_logits, transducer_loss
from maestro_jax.losses.transducer_alignment import Alignment, transducer_alignment
from maestro_jax.objectives.base import Parts


def transducer_term(
    parts: Parts,
    encoded: jax.Array,
    mask: jax.Array,
    labels: jax.Array,
    label_lengths: jax.Array,
    target_language: jax.Array | None = None,
) -> Weighted:
    """-log P(labels | shared encoder of what is given), in nats a label.

    Dividing by labels rather than by utterances keeps the term at the scale of the frame-wise
    losses that it is added to, whatever the length of the texts.

    Args:
        parts: The model.
        encoded: `[batch, frames, features]`, e_s or the masked ê_t.
        mask: `[batch, frames]` bool; an example without frames does not count.
        labels: `[batch, labels]` int32.
        label_lengths: `[batch]`.
        target_language: `[batch]`, for translation.

    Returns:
        Total in nats, and number of labels of the examples that have frames.
    """
    context = parts(
        "encode_shared", encoded, mask, target_language, deterministic=parts.deterministic
    )
    logits = parts("lattice_logits", context, labels, deterministic=parts.deterministic)
    frame_lengths = jnp.sum(mask, axis=1).astype(jnp.int32)
    losses = transducer_loss(logits, labels, frame_lengths, label_lengths)
    there = frame_lengths > 0
    return (
        jnp.sum(jnp.where(there, losses, 0.0)),
        jnp.sum(jnp.where(there, label_lengths, 0)).astype(jnp.float32),
    )


def best_path(
    parts: Parts,
    encoded: jax.Array,
    mask: jax.Array,
    labels: jax.Array,
    label_lengths: jax.Array,
) -> Alignment:
    """The paper's Align_RNNT(e_s, t): the most likely path through the shared encoder's lattice.

    Args:
        parts: The model, usually with moving-average weights.
        encoded: `[batch, frames, features]`, e_s.
        mask: `[batch, frames]` bool.
        labels: `[batch, labels]` int32.
        label_lengths: `[batch]`.

    Returns:
        Emission frames and durations; no gradient.
    """
    context = parts("encode_shared", encoded, mask, None, deterministic=True)
    logits = parts("lattice_logits", context, labels, deterministic=True)
    log_blank, log_label = lattices_from_logits(logits, labels, 0)
    return transducer_alignment(
        jax.lax.stop_gradient(log_blank),
        jax.lax.stop_gradient(log_label),
        jnp.sum(mask, axis=1).astype(jnp.int32),
        label_lengths,
    )

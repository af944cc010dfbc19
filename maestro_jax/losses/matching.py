"""Modality matching: the distance between speech frames and resampled, refined text frames.

    mse      |e_s - ê_t|^2 / features
    cosine   1 - cos(e_s, ê_t)
    infonce  (L(e_s, ê_t) + L(ê_t, e_s)) / 2, with for frame j of a and the frames k of b
             L(a, b) = -log  exp(cos(a_j, b_j) / tau) / sum over k of exp(cos(a_j, b_k) / tau)

Source: `mse` is MAESTRO's L_MM (section 2.2). Which side learns is open there; USM (section 2.7)
trains only the text side, and so is the default. Layer normalisation of both sides before the
comparison keeps the loss from falling by shrinking the features. `infonce` is the frame-contrastive
loss of VQ-CTAP (arXiv 2408.05758): frames of the same token are no negatives of each other.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from maestro_jax.losses.reduction import Weighted, masked_sum
from maestro_jax.precision import EXACT

FORMS = ("mse", "cosine", "infonce")
STOPPED = ("speech", "text", "none")
NEGATIVES = ("utterance", "batch")


def standardize(x: jax.Array) -> jax.Array:
    """Zero mean and unit variance over the features of `[batch, frames, features]`, in float32."""
    x = x.astype(jnp.float32)
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    return centred * jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + 1e-5)


def cosine_similarity(a: jax.Array, b: jax.Array) -> jax.Array:
    """Cosine of the angle between vectors along the last axis, in float32."""
    a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    product = jnp.sum(a * b, axis=-1)
    squares = jnp.sum(a * a, axis=-1) * jnp.sum(b * b, axis=-1)
    return product * jax.lax.rsqrt(squares + 1e-8)


def matching_loss(
    speech: jax.Array,
    text: jax.Array,
    mask: jax.Array,
    *,
    form: str = "mse",
    stop_gradient: str = "speech",
    normalize: bool = True,
    temperature: float = 0.1,
    negatives: str = "utterance",
    labels: jax.Array | None = None,
) -> Weighted:
    """Distance between the two representations of an utterance, frame by frame.

    Args:
        speech: `[batch, frames, features]`, e_s.
        text: `[batch, frames, features]`, ê_t, resampled by the alignment to the same frames.
        mask: `[batch, frames]` bool, the frames that count.
        form: `mse` (mean over features), `cosine` (one minus the cosine) or `infonce` (nats).
        stop_gradient: The side that is a target and does not learn: `speech`, `text` or `none`.
        normalize: Standardise both sides over features first. The cosine is then the correlation
            of the features.
        temperature: tau of `infonce`.
        negatives: Where `infonce` takes the other frames from: the same `utterance`, or the whole
            `batch`. The latter holds (batch x frames)^2 similarities, split over the devices by
            rows.
        labels: `[batch, frames]` int32, for `infonce`: frames of equal labels are no negatives of
            each other. None: all others are.

    Returns:
        Total over the frames and their count. For `infonce` a frame without any negative does not
        count.

    Raises:
        ValueError: An unknown choice.
    """
    for value, choices in (
        (form, FORMS),
        (stop_gradient, STOPPED),
        (negatives, NEGATIVES),
    ):
        if value not in choices:
            raise ValueError(f"Unknown matching choice {value!r}; choose one of {choices}.")
    if stop_gradient == "speech":
        speech = jax.lax.stop_gradient(speech)
    elif stop_gradient == "text":
        text = jax.lax.stop_gradient(text)
    if normalize:
        speech, text = standardize(speech), standardize(text)
    if form == "mse":
        difference = speech.astype(jnp.float32) - text.astype(jnp.float32)
        return masked_sum(jnp.mean(jnp.square(difference), axis=-1), mask)
    if form == "cosine":
        return masked_sum(1.0 - cosine_similarity(speech, text), mask)
    if negatives == "batch":
        # One long row of all frames; a device compares its part of the speech with all texts.
        size = mask.size
        speech = nn.with_logical_constraint(speech.reshape(1, size, -1), (None, "batch", None))
        text = nn.with_logical_constraint(text.reshape(1, size, -1), (None, None, None))
        mask = mask.reshape(1, size)
        labels = None if labels is None else labels.reshape(1, size)
    return _frame_contrastive(speech, text, mask, labels, temperature)


def _frame_contrastive(
    speech: jax.Array,
    text: jax.Array,
    mask: jax.Array,
    labels: jax.Array | None,
    temperature: float,
) -> Weighted:
    """InfoNCE in both directions within each row."""
    frames = mask.shape[1]
    similarity = jnp.einsum("bsd,btd->bst", _unit(speech), _unit(text), precision=EXACT)
    similarity = similarity / temperature
    own = jnp.eye(frames, dtype=bool)[None]
    others = mask[:, :, None] & mask[:, None, :] & ~own
    if labels is not None:
        others = others & (labels[:, :, None] != labels[:, None, :])
    # One's own frame stays even in padding, so that no sum is empty.
    similarity = jnp.where(others | own, similarity, -jnp.inf)
    positive = jnp.einsum("bss->bs", jnp.where(own, similarity, 0.0))
    to_text = jax.nn.logsumexp(similarity, axis=2) - positive
    to_speech = jax.nn.logsumexp(similarity, axis=1) - positive
    return masked_sum(0.5 * (to_text + to_speech), mask & jnp.any(others, axis=2))


def _unit(x: jax.Array) -> jax.Array:
    """Vectors of length one along the last axis, in float32."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + 1e-8)

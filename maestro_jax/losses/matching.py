"""Modality matching: the distance between speech frames and resampled, refined text frames.

    L_MM = MSE(e_s, ê_t)

Source: MAESTRO, section 2.2. Which side learns is open there; USM (section 2.7) trains only the
text side, and so is the default. Layer normalisation of both sides before the comparison keeps the
loss from falling by shrinking the features.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from maestro_jax.losses.reduction import Weighted, masked_sum

FORMS = ("mse", "cosine")


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
    stop_speech_gradient: bool = True,
    normalize: bool = True,
) -> Weighted:
    """Distance between the two representations of an utterance, frame by frame.

    Args:
        speech: `[batch, frames, features]`, e_s.
        text: `[batch, frames, features]`, ê_t, resampled by the alignment to the same frames.
        mask: `[batch, frames]` bool, the frames that count.
        form: `mse` (mean over features) or `cosine` (one minus the cosine).
        stop_speech_gradient: Whether only the text side learns.
        normalize: Standardise both sides over features first (`mse` only).

    Returns:
        Total over the frames and their count.

    Raises:
        ValueError: The form is unknown.
    """
    if stop_speech_gradient:
        speech = jax.lax.stop_gradient(speech)
    if form == "cosine":
        distance = 1.0 - cosine_similarity(speech, text)
    elif form == "mse":
        if normalize:
            speech, text = standardize(speech), standardize(text)
        difference = speech.astype(jnp.float32) - text.astype(jnp.float32)
        distance = jnp.mean(jnp.square(difference), axis=-1)
    else:
        raise ValueError(f"Unknown matching form {form!r}; choose one of {FORMS}.")
    return masked_sum(distance, mask)

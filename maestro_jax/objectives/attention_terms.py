"""The terms of a Transformer decoder: cross entropy of a translation, token by token."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from maestro_jax.errors import UserError
from maestro_jax.losses.cross_entropy import CrossEntropy, smoothed_cross_entropy
from maestro_jax.objectives.base import Parts
from maestro_jax.objectives.joining import groups_of_equal, join, split
from maestro_jax.objectives.transducer_terms import Frames, Labels
from maestro_jax.vocabularies.vocabulary import EOS_ID, PAD_ID


def with_ends(labels: Labels) -> tuple[jax.Array, jax.Array, jax.Array]:
    """What the decoder reads and what it is to say: streams carry no end of sequence.

    Args:
        labels: The texts, `[batch, labels]`.

    Returns:
        Inputs `[batch, labels + 1]`, padding (0) in front; targets of the same shape, the end of
        sequence (1) behind; and which targets count, bool of the same shape.
    """
    index = jnp.arange(labels.tokens.shape[1] + 1)
    inside = index < labels.lengths[:, None]
    behind = jnp.pad(labels.tokens, ((0, 0), (0, 1)))
    at_end = index == labels.lengths[:, None]
    targets = jnp.where(at_end, EOS_ID, jnp.where(inside, behind, PAD_ID))
    inputs = jnp.pad(labels.tokens, ((0, 0), (1, 0)), constant_values=PAD_ID)
    return inputs, targets, inside | at_end


def attention_losses(
    parts: Parts,
    contexts: Mapping[str, jax.Array],
    frames: Mapping[str, Frames],
    labels: Mapping[str, Labels],
    *,
    smoothing: float,
) -> dict[str, CrossEntropy]:
    """Cross entropy of each stream's translation, in nats a token, its end counted.

    Args:
        parts: The model.
        contexts: `[batch, frames, features]` by stream, from the shared encoder.
        frames: What entered there: which frames are valid, and the language to write.
        labels: The translations; one without frames does not count.
        smoothing: Label smoothing.

    Returns:
        By stream.

    Raises:
        UserError: The model has no translation decoder.
        ValueError: A stream has no language to write.
    """
    if parts.model.translation_decoder is None:
        raise UserError(
            "SpeechTranslation.decoder is 'attention', but the model has no such decoder: set "
            "Maestro.translation_decoder (add models/heads/attention.gin to the gin files), or "
            "choose 'transducer'."
        )
    languages: dict[str, jax.Array] = {}
    for name in labels:
        language = frames[name].target_language
        if language is None:
            raise ValueError(f"The frames of stream {name!r} have no target_language; give one.")
        languages[name] = language
    found: dict[str, CrossEntropy] = {}
    shapes = {
        name: (contexts[name].shape[1], each.tokens.shape[1]) for name, each in labels.items()
    }
    for group in groups_of_equal(shapes):
        rows = [len(contexts[name]) for name in group]
        masks = join(frames[name].mask for name in group)
        texts = Labels(
            join(labels[name].tokens for name in group),
            join(labels[name].lengths for name in group),
        )
        inputs, targets, counts = with_ends(texts)
        counts = counts & jnp.any(masks, axis=1)[:, None]
        logits = parts(
            "translation_logits",
            inputs,
            join(contexts[name] for name in group),
            masks,
            join(languages[name] for name in group),
            deterministic=parts.deterministic,
        )
        columns = [split(array, rows) for array in (logits, targets, counts)]
        for name, *each in zip(group, *columns, strict=True):
            found[name] = smoothed_cross_entropy(*each, smoothing=smoothing)
    return found

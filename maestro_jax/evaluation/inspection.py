"""Look inside a pretrained model: alignment, durations, and whether speech and text have met."""

from __future__ import annotations

import functools
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp

from maestro_jax.losses.matching import cosine_similarity
from maestro_jax.losses.transducer_alignment import transducer_alignment
from maestro_jax.modules.masking import length_mask


@flax.struct.dataclass
class Inspection:
    """Paired utterances seen from both sides.

    Attributes:
        emission_frames: `[batch, labels]` int32, the frame in which the best path emits a label.
        aligned: `[batch, labels]` int32, durations by that path, in frames.
        predicted: `[batch, labels]` int32, durations by the duration model, in frames.
        label_mask: `[batch, labels]` bool.
        frame_lengths: `[batch]` int32.
        similarity: `[batch, frames, frames]`, cosine of e_s (rows) and ê_t (columns).
        frame_mask: `[batch, frames]` bool, frames that both sides have.
    """

    emission_frames: jax.Array
    aligned: jax.Array
    predicted: jax.Array
    label_mask: jax.Array
    frame_lengths: jax.Array
    similarity: jax.Array
    frame_mask: jax.Array


def inspect_pairs(
    model: nn.Module,
    params: Any,
    audio: jax.Array,
    audio_length: jax.Array,
    text: jax.Array,
    text_length: jax.Array,
    language: jax.Array,
) -> Inspection:
    """Align, predict durations, resample and compare, without augmentation or dropout.

    Args:
        model: A `Maestro`.
        params: Its parameters.
        audio: `[batch, samples]` int16.
        audio_length: `[batch]`.
        text: `[batch, labels]` int32.
        text_length: `[batch]`.
        language: `[batch]` ids.

    Returns:
        What there is to see.
    """
    call = functools.partial(model.apply, {"params": params})
    features, mask = call(audio, audio_length, method="features")
    speech = call(features, mask, method="encode_speech")
    context = call(speech, mask, method="encode_shared")
    frame_lengths = jnp.sum(mask, axis=1).astype(jnp.int32)
    log_blank, log_label = call(context, text, method="lattices")
    path = transducer_alignment(
        log_blank,
        log_label,
        frame_lengths,
        text_length,
        one_label_per_frame=model.decoder.one_label_per_frame,
    )
    label_mask = length_mask(text_length, text.shape[1])
    embedded = call(text, label_mask, language, method="encode_text")
    predicted = call(
        call(embedded, label_mask, method="predict_durations"), label_mask, method="round_durations"
    )
    refined, index = call(embedded, path.durations, mask.shape[1], method="upsample")
    return Inspection(
        emission_frames=path.frames,
        aligned=path.durations,
        predicted=predicted,
        label_mask=label_mask,
        frame_lengths=frame_lengths,
        similarity=cosine_similarity(speech[:, :, None, :], refined[:, None, :, :]),
        frame_mask=mask & index.mask,
    )

"""From a batch of audio to token hypotheses: the encoders and the greedy search in one program."""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from maestro_jax.decoding.greedy import Hypotheses, greedy_decode


def decode_speech(
    model: nn.Module,
    params: Any,
    audio: jax.Array,
    audio_length: jax.Array,
    target_language: jax.Array | None = None,
    *,
    max_labels: int,
    max_symbols_per_frame: int = 4,
) -> Hypotheses:
    """Decode greedily; compiled once for a shape under `jax.jit`.

    Args:
        model: A `Maestro`.
        params: Its parameters.
        audio: `[batch, samples]` int16, 16 kHz.
        audio_length: `[batch]` valid samples; 0 gives an empty hypothesis.
        target_language: `[batch]` language to translate into; None transcribes.
        max_labels: Room for the tokens of a hypothesis.
        max_symbols_per_frame: Tokens that one frame of 40 ms may emit.

    Returns:
        The hypotheses; times are in encoder frames.
    """
    call = functools.partial(model.apply, {"params": params})
    features, mask = call(audio, audio_length, method="features")
    encoded = call(features, mask, method="encode_speech")
    context = call(encoded, mask, target_language, method="encode_shared")
    frames = call(context, method="project_frames")

    def predict(state: Any, labels: jax.Array) -> tuple[jax.Array, Any]:
        outputs, state = call(labels[:, None], state, method="predict_labels")
        return outputs[:, 0], state

    def joint(frame: jax.Array, outputs: jax.Array) -> jax.Array:
        return call(frame, outputs, method="joint")

    return greedy_decode(
        predict,
        joint,
        call(audio.shape[0], method="decoder_state"),
        frames,
        jnp.sum(mask, axis=1).astype(jnp.int32),
        max_labels=max_labels,
        max_symbols_per_frame=max_symbols_per_frame,
    )

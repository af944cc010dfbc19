"""From a batch of audio to token hypotheses: the encoders and a search in one program."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax

from maestro_jax.decoding.beam import beam_decode
from maestro_jax.decoding.fusion import Fusion
from maestro_jax.decoding.greedy import greedy_decode
from maestro_jax.decoding.hypotheses import Hypotheses
from maestro_jax.modules.maestro import Maestro


def decode_speech(
    model: Maestro,
    params: Any,
    audio: jax.Array,
    audio_length: jax.Array,
    target_language: jax.Array | None = None,
    *,
    max_labels: int,
    max_symbols_per_frame: int = 4,
    beam_size: int = 1,
    fusion: Fusion | None = None,
) -> Hypotheses:
    """Encode and decode; compiled once for a shape under `jax.jit`.

    Args:
        model: Its decoder says which factorisation and which lattice it was trained
            with.
        params: Its parameters.
        audio: `[batch, samples]` int16, 16 kHz.
        audio_length: `[batch]` valid samples; 0 gives an empty hypothesis.
        target_language: `[batch]` language to translate into; None transcribes.
        max_labels: Room for the tokens of a hypothesis.
        max_symbols_per_frame: Tokens that one frame of 40 ms may emit.
        beam_size: Hypotheses in the beam; 1 without fusion is the greedy search.
        fusion: A language model to rank hypotheses with.

    Returns:
        The hypotheses, `[batch, beam_size, ...]`, best first; times are in encoder frames.

    Raises:
        ValueError: If `beam_size` or a cap is below 1.
    """
    call: Callable[..., Any] = functools.partial(model.apply, {"params": params})
    features, mask = call(audio, audio_length, method="features")
    encoded = call(features, mask, method="encode_speech")
    context = call(encoded, mask, target_language, method="encode_shared")
    frames = call(context, method="project_frames")

    def predict(state: Any, labels: jax.Array) -> tuple[jax.Array, Any]:
        outputs, state = call(labels[:, None], state, method="predict_labels")
        return outputs[:, 0], state

    def joint(frame: jax.Array, outputs: jax.Array) -> jax.Array:
        return call(frame, outputs, method="joint")

    arguments = (
        predict,
        joint,
        call(audio.shape[0], method="decoder_state"),
        frames,
        mask.sum(axis=1, dtype="int32"),
    )
    options: dict[str, Any] = {
        "max_labels": max_labels,
        "max_symbols_per_frame": max_symbols_per_frame,
        "hat": model.decoder.hat,
        "one_label_per_frame": model.decoder.one_label_per_frame,
    }
    if beam_size == 1 and fusion is None:
        found = greedy_decode(*arguments, **options)
        return jax.tree.map(lambda x: x[:, None], found)
    return beam_decode(*arguments, beam_size=beam_size, fusion=fusion, **options)

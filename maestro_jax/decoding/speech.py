"""Decodes batches of audio or text to token hypotheses: encoders and search in one program."""

from __future__ import annotations

from typing import Any, Required, TypedDict, Unpack

import jax
import jax.numpy as jnp

from maestro_jax.decoding.attention import attention_decode
from maestro_jax.decoding.beam import beam_decode
from maestro_jax.decoding.constraints import constrain_logits
from maestro_jax.decoding.ctc import ctc_beam_search, ctc_greedy
from maestro_jax.decoding.fusion import Fusion
from maestro_jax.decoding.greedy import greedy_decode
from maestro_jax.decoding.hypotheses import Hypotheses, add_beam_dim
from maestro_jax.layers.masking import length_mask
from maestro_jax.modules.duration import predicted_durations
from maestro_jax.modules.maestro import Maestro
from maestro_jax.text.vocabularies import EOS_ID, PAD_ID

DECODERS = ("transducer", "ctc", "attention")


class SearchOptions(TypedDict, total=False):
    """The options of a search.

    Attributes:
        max_labels: Room for the tokens of a hypothesis.
        max_symbols_per_frame: Largest number of tokens per frame of 40 ms, of a transducer; 4.
        beam_size: Number of hypotheses in the beam; 1, which without fusion is greedy search.
        fusion: Language model and further terms that rank hypotheses; None.
        decoder: `transducer`, `ctc` or `attention`, which the model must have; `transducer`.
        length_alpha: Exponent of the attention decoder's length normalisation; 0.6.
        blank_penalty: Nats that are subtracted from the logit of the blank; 0. An attention decoder
            has no blank.
    """

    max_labels: Required[int]
    max_symbols_per_frame: int
    beam_size: int
    fusion: Fusion | None
    decoder: str
    length_alpha: float
    blank_penalty: float


def decode_speech(
    model: Maestro,
    params: Any,
    audio: jax.Array,
    audio_length: jax.Array,
    target_language: jax.Array | None = None,
    language: jax.Array | None = None,
    allowed: jax.Array | None = None,
    **options: Unpack[SearchOptions],
) -> Hypotheses:
    """Encodes and decodes a batch of audio.

    Args:
        model: The model. Its decoder knows which factorisation and which lattice it was trained
            with.
        params: The model's parameters.
        audio: `[batch, samples]` int16, 16 kHz.
        audio_length: `[batch]` valid samples; 0 gives the empty hypothesis.
        target_language: `[batch]` ids of the language to translate into; None transcribes.
        language: `[batch]` ids of the spoken language, for a model that `needs_language`.
        allowed: Bool `[batch, vocab]`, the tokens that each hypothesis may have; None for all.
        **options: Options of the search.

    Returns:
        The hypotheses, `[batch, beam_size, ...]`, best first; times are in encoder frames, and 0
        with the attention decoder.

    Raises:
        ValueError: If `beam_size` or a limit is below 1, the decoder is unknown, or a language is
            needed and not given.
    """
    bound = model.bind({"params": params})
    features, mask = bound.features(audio, audio_length)
    encoded = bound.encode_speech(features, mask, language)
    return decode_encoded(
        model,
        params,
        encoded,
        mask,
        target_language,
        language,
        allowed,
        **options,
    )


def decode_text(
    model: Maestro,
    params: Any,
    text: jax.Array,
    text_length: jax.Array,
    language: jax.Array,
    target_language: jax.Array | None = None,
    allowed: jax.Array | None = None,
    *,
    max_text_frames: int,
    **options: Unpack[SearchOptions],
) -> Hypotheses:
    """Translates a batch of text: resampled by predicted durations, it replaces speech.

    Args:
        model: As for `decode_speech`, like all arguments of the same names.
        params: The model's parameters.
        text: `[batch, tokens]` int32.
        text_length: `[batch]` valid tokens; 0 gives the empty hypothesis.
        language: `[batch]` language ids of the text.
        target_language: `[batch]` ids of the language to translate into; None reproduces the text.
        allowed: As for `decode_speech`.
        max_text_frames: Room for the resampled text; further frames are cut off.
        **options: Options of the search.

    Returns:
        The hypotheses, `[batch, beam_size, ...]`, best first.

    Raises:
        ValueError: As `decode_speech`.
    """
    bound = model.bind({"params": params})
    mask = length_mask(text_length, text.shape[1])
    embedded = bound.encode_text(text, mask, language)
    durations = predicted_durations(model, params, text, mask, language)
    refined, index = bound.upsample(embedded, durations, max_text_frames)
    return decode_encoded(
        model,
        params,
        refined,
        index.mask,
        target_language,
        language,
        allowed,
        **options,
    )


def decode_encoded(
    model: Maestro,
    params: Any,
    encoded: jax.Array,
    mask: jax.Array,
    target_language: jax.Array | None = None,
    language: jax.Array | None = None,
    allowed: jax.Array | None = None,
    *,
    max_labels: int,
    max_symbols_per_frame: int = 4,
    beam_size: int = 1,
    fusion: Fusion | None = None,
    decoder: str = "transducer",
    length_alpha: float = 0.6,
    blank_penalty: float = 0.0,
) -> Hypotheses:
    """Applies the shared encoder, and the search that belongs to the decoder.

    Args:
        model: As for `decode_speech`, like all arguments of the same names.
        params: The model's parameters.
        encoded: `[batch, frames, features]`, e_s or ê_t.
        mask: `[batch, frames]` bool, True = valid.
        target_language: `[batch]` ids of the language to translate into; None transcribes.
        language: `[batch]` ids of the spoken or written language.
        allowed: As for `decode_speech`; padding and the end of text are always allowed.
        max_labels: Room for the tokens of a hypothesis.
        max_symbols_per_frame: Tokens that one frame may emit, with the transducer.
        beam_size: Number of hypotheses in the beam.
        fusion: Language model and further terms that rank hypotheses.
        decoder: `transducer`, `ctc` or `attention`.
        length_alpha: Exponent of the attention decoder's length normalisation.
        blank_penalty: Nats that are subtracted from the logit of the blank.

    Returns:
        The hypotheses, `[batch, beam_size, ...]`, best first. Their scores are log-probabilities
        under the decoder as it is constrained.

    Raises:
        ValueError: As `decode_speech`.
    """
    if allowed is not None:
        allowed = allowed | jnp.isin(jnp.arange(allowed.shape[-1]), jnp.array([PAD_ID, EOS_ID]))

    def constrained(logits: jax.Array) -> jax.Array:
        return constrain_logits(logits, blank_penalty=blank_penalty, allowed=allowed)

    def bound() -> Maestro:
        # A bound module cannot be carried into the body of a loop, so each call binds anew.
        return model.bind({"params": params})

    context = bound().encode_shared(encoded, mask, target_language, language)
    if decoder == "attention":
        cache = bound().start_translation(
            context, mask, target_language, beam=beam_size, length=max_labels + 1
        )

        def step(tokens: jax.Array, position: jax.Array, past: Any) -> tuple[jax.Array, Any]:
            updated = cache._replace(past=past)
            logits, updated = bound().step_translation(tokens, position, updated)
            return constrain_logits(logits, allowed=allowed), updated.past

        return attention_decode(
            step,
            cache.past,
            jnp.any(mask, axis=1),
            beam_size=beam_size,
            max_labels=max_labels,
            length_alpha=length_alpha,
            fusion=fusion,
        )
    # Valid frames come first, so that their number is where they end.
    frame_lengths = mask.sum(axis=1, dtype="int32")
    if decoder == "ctc":
        log_probs = jax.nn.log_softmax(constrained(bound().ctc_logits(context)), axis=-1)
        if beam_size == 1 and fusion is None:
            best = ctc_greedy(log_probs, frame_lengths, max_labels=max_labels)
            return add_beam_dim(best, 1)
        return ctc_beam_search(
            log_probs, frame_lengths, beam_size=beam_size, max_labels=max_labels, fusion=fusion
        )
    if decoder != "transducer":
        raise ValueError(f"decoder is {decoder!r}; choose one of {DECODERS}.")
    frames = bound().project_frames(context)

    def predict(state: Any, labels: jax.Array) -> tuple[jax.Array, Any]:
        outputs, state = bound().prediction_step(labels[:, None], state)
        return outputs[:, 0], state

    def joint(frame: jax.Array, outputs: jax.Array) -> jax.Array:
        return constrained(bound().joint(frame, outputs))

    state = bound().decoder_state(len(context))
    arguments = (predict, joint, state, frames, frame_lengths)
    options: dict[str, Any] = {
        "max_labels": max_labels,
        "max_symbols_per_frame": max_symbols_per_frame,
        "hat": model.decoder.hat,
        "one_label_per_frame": model.decoder.one_label_per_frame,
    }
    if beam_size == 1 and fusion is None:
        return add_beam_dim(greedy_decode(*arguments, **options), 1)
    return beam_decode(*arguments, beam_size=beam_size, fusion=fusion, **options)

"""What a model makes of held-out pairs: alignments, durations, how near speech and text are, codes.

Nothing here is trained. Everything is computed without augmentation or dropout, so that numbers of
different steps are of the same speech and compare.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp

from maestro_jax.layers.masking import length_mask
from maestro_jax.losses.reduction import Weighted, masked_sum
from maestro_jax.losses.similarity import cosine_similarity, l2_normalize, retrieval_accuracy
from maestro_jax.losses.transducer import NO_PATH, transducer_loss_from_lattices
from maestro_jax.losses.transducer_alignment import (
    emission_posterior,
    posterior_entropy,
    transducer_alignment,
)
from maestro_jax.modules.held_durations import predicted_durations
from maestro_jax.precision import EXACT


@flax.struct.dataclass
class Probe:
    """Paired utterances seen from both sides.

    Attributes:
        metrics: Total and count by name. At the entrance of the shared encoder (e_s against ê_t)
            and, with `top_` before the last part of the name, at its top: `cosine` of matched
            frames, `cosine_elsewhere` of frames of an utterance that do not belong together,
            `retrieval/speech_to_text`, `retrieval/text_to_speech` and `retrieval/chance` (frames),
            `retrieval/token_...` (any frame of the token is right). Of durations, in frames:
            `duration_error` of the duration model, and `duration_error_constant` of giving every
            label of an utterance the same; `duration_ratio` of predicted to aligned frames.
            `alignment_entropy` and `transducer_loss` in nats a label.
        label_mask: `[batch, labels]` bool, the labels that have been aligned.
        aligned: `[batch, labels]` int32, durations by the best path, in frames.
        predicted: `[batch, labels]` int32, durations by the duration model, in frames.
        code_counts: `[codebooks, codes]` int32, how many frames each code stands for.
        frame_lengths: `[batch]` int32.
        emission_frames: `[labels]` int32, the frame on which the best path of one chosen utterance
            emits each label.
        posterior: `[frames, labels]`, the probability over all its paths that it does so there.
        similarity: `[frames, frames]`, cosine of its e_s (rows) and ê_t (columns).
        top_similarity: `[frames, frames]`, the same at the top of the shared encoder.
        mel: `[mel frames, bins]`, its log-mel energies.
    """

    metrics: dict[str, Weighted]
    label_mask: jax.Array
    aligned: jax.Array
    predicted: jax.Array
    code_counts: jax.Array
    frame_lengths: jax.Array
    emission_frames: jax.Array
    posterior: jax.Array
    similarity: jax.Array
    top_similarity: jax.Array
    mel: jax.Array


def probe_pairs(
    model: nn.Module, params: Any, paired: Mapping[str, jax.Array], row: jax.Array | int = 0
) -> Probe:
    """Align, predict durations, resample, and compare both sides below and above the shared layers.

    Args:
        model: A `Maestro`.
        params: Its parameters.
        paired: A paired stream: `audio`, `audio_length`, `text`, `text_length`, `language`. Rows
            without audio count for nothing.
        row: The utterance that is shown in full.

    Returns:
        What there is to see.
    """
    call: Callable[..., Any] = functools.partial(model.apply, {"params": params})
    text, text_length, language = paired["text"], paired["text_length"], paired["language"]
    features, mask = call(paired["audio"], paired["audio_length"], method="features")
    frame_lengths = jnp.sum(mask, axis=1).astype(jnp.int32)
    language = paired["language"]
    speech = call(features, mask, language, method="encode_speech")
    context = call(speech, mask, None, language, method="encode_shared")

    # The lattice: its likelihood, its best path, and how sure it is of that path.
    lattice = (*call(context, text, method="lattices"), frame_lengths, text_length)
    one_label = model.decoder.one_label_per_frame
    path = transducer_alignment(*lattice, one_label_per_frame=one_label)
    posterior = emission_posterior(*lattice, one_label_per_frame=one_label)
    losses = transducer_loss_from_lattices(*lattice, one_label_per_frame=one_label)
    there = (frame_lengths > 0) & ~(losses > NO_PATH)
    written = length_mask(text_length, text.shape[1])
    label_mask = written & there[:, None]

    # The text side, resampled by that path.
    embedded = call(text, written, language, method="encode_text")
    predicted = predicted_durations(model, params, text, written, language)
    refined, index = call(embedded, path.durations, mask.shape[1], method="upsample")
    text_context = call(refined, index.mask, None, language, method="encode_shared")
    both = mask & index.mask

    metrics: dict[str, Weighted] = {
        "transducer_loss": (
            jnp.sum(jnp.where(there, losses, 0.0)),
            jnp.sum(label_mask.astype(jnp.float32)),
        ),
        "alignment_entropy": posterior_entropy(posterior),
        **_duration_errors(path.durations, predicted, label_mask),
        **_nearness(speech, refined, index.token, both, ""),
        **_nearness(context, text_context, index.token, both, "top_"),
    }
    if hasattr(model.quantizer, "codebooks"):
        # The codes of BEST-RQ are those of log-mel features, not of subsampled ones.
        codes = call(
            call(paired["audio"], paired["audio_length"], method="log_mel")[0],
            method="random_codes",
        )
    else:
        codes = call(features, method="quantize").ids[..., None]
    return Probe(
        metrics=metrics,
        label_mask=label_mask,
        aligned=path.durations,
        predicted=predicted,
        code_counts=_counts(codes, mask, model.quantizer.codes),
        frame_lengths=frame_lengths,
        emission_frames=path.frames[row],
        posterior=posterior[row],
        similarity=_similarities(speech[row], refined[row]),
        top_similarity=_similarities(context[row], text_context[row]),
        mel=model.frontend.apply({}, paired["audio"][row][None], paired["audio_length"][row][None])[
            0
        ][0],
    )


def _duration_errors(
    aligned: jax.Array, predicted: jax.Array, mask: jax.Array
) -> dict[str, Weighted]:
    """Mean absolute errors in frames, beside that of knowing nothing but the utterance's length."""
    labels = jnp.maximum(jnp.sum(mask, axis=1, keepdims=True), 1)
    total = jnp.sum(jnp.where(mask, aligned, 0), axis=1, keepdims=True)
    constant = total / labels
    return {
        "duration_error": masked_sum(jnp.abs(predicted - aligned), mask),
        "duration_error_constant": masked_sum(jnp.abs(constant - aligned), mask),
        "duration_ratio": (masked_sum(predicted, mask)[0], masked_sum(aligned, mask)[0]),
    }


def _nearness(
    speech: jax.Array, text: jax.Array, token: jax.Array, mask: jax.Array, prefix: str
) -> dict[str, Weighted]:
    """Cosines and retrieval of matched frames, `[batch, frames, features]` each."""
    matched = masked_sum(cosine_similarity(speech, text), mask)
    # The sum over all pairs of an utterance is the product of the sums of unit vectors.
    sums = [
        jnp.sum(jnp.where(mask[..., None], l2_normalize(side), 0.0), axis=1)
        for side in (speech, text)
    ]
    frames = jnp.sum(mask.astype(jnp.float32), axis=1)
    pairs = jnp.sum(sums[0] * sums[1]) - matched[0]
    found = retrieval_accuracy(speech, text, token, mask)
    return {
        f"{prefix}cosine": matched,
        f"{prefix}cosine_elsewhere": (pairs, jnp.sum(frames * (frames - 1.0))),
        f"retrieval/{prefix}speech_to_text": found.frame_speech_to_text,
        f"retrieval/{prefix}text_to_speech": found.frame_text_to_speech,
        f"retrieval/{prefix}chance": found.frame_chance,
        f"retrieval/{prefix}token_speech_to_text": found.token_speech_to_text,
        f"retrieval/{prefix}token_text_to_speech": found.token_text_to_speech,
        f"retrieval/{prefix}token_chance": found.token_chance,
    }


def _similarities(speech: jax.Array, text: jax.Array) -> jax.Array:
    """Cosine of every frame with every frame, from `[frames, features]` twice."""
    return jnp.matmul(l2_normalize(speech), l2_normalize(text).T, precision=EXACT)


def _counts(ids: jax.Array, mask: jax.Array, codes: int) -> jax.Array:
    """How often each code is chosen, `[codebooks, codes]`, from `[batch, frames, codebooks]`."""
    weights = jnp.broadcast_to(mask[..., None], ids.shape).astype(jnp.int32)

    def count(book: jax.Array, valid: jax.Array) -> jax.Array:
        return jnp.zeros((codes,), jnp.int32).at[book.ravel()].add(valid.ravel())

    return jax.vmap(count, in_axes=-1)(ids, weights)

"""Metrics that say whether encoders, alignments, durations and codes mean something.

`frame_variance_ratio` and `alignment_collapse` are computed in each training step. `probe_pairs`
looks at held-out pairs, without augmentation or dropout, so that numbers of different steps are of
the same speech. Nothing here has a gradient.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax
import jax
import jax.numpy as jnp

from maestro_jax.layers.masking import length_mask
from maestro_jax.losses.contrastive import code_counts
from maestro_jax.losses.reduction import Weighted, masked_sum
from maestro_jax.losses.similarity import cosine_similarity, l2_normalize, retrieval_accuracy
from maestro_jax.losses.transducer import NO_PATH, transducer_loss_from_lattices
from maestro_jax.losses.transducer_alignment import (
    Alignment,
    emission_posterior,
    posterior_entropy,
    transducer_alignment,
)
from maestro_jax.modules.duration import predicted_durations
from maestro_jax.modules.maestro import Maestro
from maestro_jax.modules.quantizer import RandomProjectionQuantizer
from maestro_jax.modules.resampler import FrameIndex, frame_index
from maestro_jax.objectives.base import Metrics, bind
from maestro_jax.objectives.duration_sources import DurationSource
from maestro_jax.precision import EXACT


def frame_variance_ratio(encoded: jax.Array, mask: jax.Array) -> Weighted:
    """Computes how much the frames of an utterance differ from each other.

    The variance over the frames of an utterance divided by the mean square: near 1 for an encoder
    that tells frames apart, near 0 for one that gives every frame the same vector, as that of an
    RNN-T which ignores the speech and has become a language model.

    Args:
        encoded: `[batch, frames, features]`.
        mask: `[batch, frames]` bool, True = valid.

    Returns:
        Total variance and total mean square, whose quotient is the metric.
    """
    encoded = jax.lax.stop_gradient(encoded.astype(jnp.float32))
    weight = mask.astype(jnp.float32)[:, :, None]
    count = jnp.maximum(jnp.sum(weight, axis=1, keepdims=True), 1.0)
    average = jnp.sum(encoded * weight, axis=1, keepdims=True) / count  # [batch, 1, features]
    # Summed over the batch before the division: long utterances count by their frames.
    variance = jnp.sum(jnp.square(encoded - average) * weight)
    return variance, jnp.sum(jnp.square(encoded) * weight)


def alignment_collapse(
    path: Alignment, entropy: Weighted, labels: jax.Array, frames: jax.Array
) -> Metrics:
    """Computes whether alignments have collapsed, as those of an untrained RNN-T do.

    Args:
        path: The best paths.
        entropy: Entropy of the emission frames in nats, and the number of labels.
        labels: `[batch, labels]` bool, True = valid.
        frames: `[batch, frames]` bool, True = valid.

    Returns:
        `paired/alignment_entropy` in nats per label: 0 where all paths agree on its frame;
        `paired/first_label_fraction` and `paired/last_label_fraction`: the fraction of an
        utterance's frames that its first and its last label own, near 1 when all labels are emitted
        in one place.
    """
    valid = jnp.any(frames, axis=1)[:, None] & labels
    first = jnp.arange(labels.shape[1])[None, :] == 0
    followed = jnp.pad(labels[:, 1:], ((0, 0), (0, 1)))
    # Frames of the utterances that have labels, which their durations add up to.
    count = jnp.sum((frames & jnp.any(labels, axis=1)[:, None]).astype(jnp.float32))
    return {
        "paired/alignment_entropy": entropy,
        "paired/first_label_fraction": (masked_sum(path.durations, valid & first)[0], count),
        "paired/last_label_fraction": (masked_sum(path.durations, valid & ~followed)[0], count),
    }


def at_speech_frames(
    text: jax.Array, durations: jax.Array, aligned: jax.Array, frames: int
) -> tuple[jax.Array, FrameIndex]:
    """Looks up, for each frame of the speech, the text vector of the token that is spoken there.

    Args:
        text: `[batch, positions, features]`, a text at a rate of its own.
        durations: `[batch, tokens]` int32, how many positions each token has.
        aligned: `[batch, tokens]` int32, how many frames of the speech it has.
        frames: Static number of frames of the speech.

    Returns:
        `[batch, frames, features]`, the vector at the first position of the frame's token, and the
        frames' tokens.
    """
    index = frame_index(aligned, frames)
    first = jnp.cumsum(durations, axis=1) - durations  # [batch, tokens]
    position = jnp.take_along_axis(first, index.token, axis=1)
    position = jnp.minimum(position, text.shape[1] - 1)
    return jnp.take_along_axis(text, position[:, :, None], axis=1), index


@flax.struct.dataclass
class Probe:
    """Metrics of held-out pairs, and the arrays of one of them.

    Attributes:
        metrics: Total and count by name. At the entrance of the shared encoder (e_s against ê_t)
            and, with `top_` before the last part of the name, at its top: `cosine` of matched
            frames, `cosine_unmatched` of frames of an utterance that do not belong together,
            `retrieval/speech_to_text`, `retrieval/text_to_speech` and `retrieval/chance` (frames),
            `retrieval/token_...` (any frame of the token is right). Of durations, in frames:
            `duration_error` of the duration model, and `duration_error_constant` of giving every
            label of an utterance the same; `duration_ratio` of predicted to aligned frames.
            `alignment_entropy` and `transducer_loss` in nats per label.
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
    model: Maestro,
    params: Any,
    paired: Mapping[str, jax.Array],
    row: jax.Array | int = 0,
    *,
    durations: DurationSource | None = None,
) -> Probe:
    """Aligns, predicts durations, resamples, and compares speech with text on held-out pairs.

    Args:
        model: The Linen module.
        params: Its parameters.
        paired: A paired stream: `audio`, `audio_length`, `text`, `text_length`, `language`, each
            `[batch, ...]`. Rows without audio count for nothing.
        row: The utterance that is shown in full.
        durations: What the text is resampled by before the best path compares it with the speech;
            None: by that path. Of a source, `max_token_frames` must be known.

    Returns:
        Metrics of all rows, and the arrays of one.
    """
    bound = bind(model, params)
    audio, audio_length = paired["audio"], paired["audio_length"]
    text, text_length, language = paired["text"], paired["text_length"], paired["language"]
    features, mask = bound.features(audio, audio_length)
    frame_lengths = jnp.sum(mask, axis=1).astype(jnp.int32)
    speech = bound.encode_speech(features, mask, language)
    context = bound.encode_shared(speech, mask, None, language)

    # The lattice: its likelihood, its best path, and how sure it is of that path.
    lattice = (*bound.joint_log_probs(context, text), frame_lengths, text_length)
    one_label = model.decoder.one_label_per_frame
    path = transducer_alignment(*lattice, one_label_per_frame=one_label)
    posterior = emission_posterior(*lattice, one_label_per_frame=one_label)
    losses = transducer_loss_from_lattices(*lattice, one_label_per_frame=one_label)
    feasible = (frame_lengths > 0) & ~(losses > NO_PATH)
    text_mask = length_mask(text_length, text.shape[1])
    label_mask = text_mask & feasible[:, None]

    # The text side, resampled by that path, or at a rate of its own and looked up by that path.
    embedded = bound.encode_text(text, text_mask, language)
    predicted = predicted_durations(model, params, text, text_mask, language)
    if durations is None:
        refined, index = bound.upsample(embedded, path.durations, mask.shape[1])
        text_context = bound.encode_shared(refined, index.mask, None, language)
    else:
        own = durations.durations(
            jax.random.key(0), bound, embedded, text, text_mask, deterministic=True
        )
        refined, index = bound.upsample(
            embedded, own, (durations.max_token_frames or 1) * text.shape[1]
        )
        text_context = bound.encode_shared(refined, index.mask, None, language)
        text_context, _ = at_speech_frames(text_context, own, path.durations, mask.shape[1])
        refined, index = at_speech_frames(refined, own, path.durations, mask.shape[1])
    both = mask & index.mask

    metrics: dict[str, Weighted] = {
        "transducer_loss": (
            jnp.sum(jnp.where(feasible, losses, 0.0)),
            jnp.sum(label_mask.astype(jnp.float32)),
        ),
        "alignment_entropy": posterior_entropy(posterior),
        **_duration_errors(path.durations, predicted, label_mask),
        **_similarity_metrics(speech, refined, index.token, both, ""),
        **_similarity_metrics(context, text_context, index.token, both, "top_"),
    }
    mel, _ = bound.log_mel(audio, audio_length)
    if isinstance(model.quantizer, RandomProjectionQuantizer):
        # The codes of BEST-RQ are those of log-mel features, not of subsampled ones.
        codes = bound.random_codes(mel)
    else:
        codes = bound.quantize(features).ids[..., None]
    return Probe(
        metrics=metrics,
        label_mask=label_mask,
        aligned=path.durations,
        predicted=predicted,
        code_counts=code_counts(codes, mask, model.quantizer.codes).astype(jnp.int32),
        frame_lengths=frame_lengths,
        emission_frames=path.frames[row],
        posterior=posterior[row],
        similarity=_cosine_matrix(speech[row], refined[row]),
        top_similarity=_cosine_matrix(context[row], text_context[row]),
        mel=mel[row],
    )


def _duration_errors(
    aligned: jax.Array, predicted: jax.Array, mask: jax.Array
) -> dict[str, Weighted]:
    """Computes mean absolute errors in frames, `[batch, labels]` each.

    `duration_error_constant` is the error of knowing nothing but the utterance's length.
    """
    labels = jnp.maximum(jnp.sum(mask, axis=1, keepdims=True), 1)
    total = jnp.sum(jnp.where(mask, aligned, 0), axis=1, keepdims=True)
    # [batch, 1]: the mean duration of the utterance's own labels.
    constant = total / labels
    return {
        "duration_error": masked_sum(jnp.abs(predicted - aligned), mask),
        "duration_error_constant": masked_sum(jnp.abs(constant - aligned), mask),
        "duration_ratio": (masked_sum(predicted, mask)[0], masked_sum(aligned, mask)[0]),
    }


def _similarity_metrics(
    speech: jax.Array, text: jax.Array, token: jax.Array, mask: jax.Array, prefix: str
) -> dict[str, Weighted]:
    """Computes cosines and retrieval of matched frames, `[batch, frames, features]` each."""
    matched = masked_sum(cosine_similarity(speech, text), mask)
    # The sum over all pairs of an utterance is the product of the sums of unit vectors.
    sums = [
        jnp.sum(jnp.where(mask[..., None], l2_normalize(side), 0.0), axis=1)
        for side in (speech, text)
    ]
    frames = jnp.sum(mask.astype(jnp.float32), axis=1)
    # Less the pairs that belong together: of frames^2 pairs, frames * (frames - 1) are left.
    pairs = jnp.sum(sums[0] * sums[1]) - matched[0]
    retrieval = retrieval_accuracy(speech, text, token, mask)
    return {
        f"{prefix}cosine": matched,
        f"{prefix}cosine_unmatched": (pairs, jnp.sum(frames * (frames - 1.0))),
        f"retrieval/{prefix}speech_to_text": retrieval.frame_speech_to_text,
        f"retrieval/{prefix}text_to_speech": retrieval.frame_text_to_speech,
        f"retrieval/{prefix}chance": retrieval.frame_chance,
        f"retrieval/{prefix}token_speech_to_text": retrieval.token_speech_to_text,
        f"retrieval/{prefix}token_text_to_speech": retrieval.token_text_to_speech,
        f"retrieval/{prefix}token_chance": retrieval.token_chance,
    }


def _cosine_matrix(speech: jax.Array, text: jax.Array) -> jax.Array:
    """Computes the cosine of every frame with every frame, from `[frames, features]` twice."""
    return jnp.matmul(l2_normalize(speech), l2_normalize(text).T, precision=EXACT)

"""RNN-T terms that several objectives share."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from maestro_jax.losses.reduction import Weighted
from maestro_jax.losses.transducer import transducer_loss_from_lattices
from maestro_jax.losses.transducer_alignment import (
    Alignment,
    alignment_entropy,
    transducer_alignment,
)
from maestro_jax.objectives.base import Metrics, Parts
from maestro_jax.objectives.joining import groups_of_equal, join, split

NO_LANGUAGE = -1
"""The target language of rows that are transcribed and not translated; a language not known."""


@dataclasses.dataclass(frozen=True)
class Frames:
    """What enters the shared encoder for one stream.

    Attributes:
        values: `[batch, frames, features]`, e_s or the masked ê_t.
        mask: `[batch, frames]` bool.
        target_language: `[batch]` ids for translation; None to write the language that is spoken.
        language: `[batch]` ids of what is spoken or written, for encoders that want to know.
    """

    values: jax.Array
    mask: jax.Array
    target_language: jax.Array | None = None
    language: jax.Array | None = None


@dataclasses.dataclass(frozen=True)
class Labels:
    """What the transducer is to write.

    Attributes:
        tokens: `[batch, labels]` int32.
        lengths: `[batch]` int32.
    """

    tokens: jax.Array
    lengths: jax.Array


def encode_shared(parts: Parts, frames: Mapping[str, Frames]) -> dict[str, jax.Array]:
    """The output of the shared encoder by stream; see `encode_shared_with_tap`."""
    return {name: context for name, (context, _) in encode_shared_with_tap(parts, frames).items()}


def encode_shared_with_tap(
    parts: Parts, frames: Mapping[str, Frames]
) -> dict[str, tuple[jax.Array, jax.Array]]:
    """The shared encoder over all streams, in as few passes as their lengths allow.

    Args:
        parts: The model.
        frames: Its input by stream.

    Returns:
        By stream, its output and that of the layer that the contrastive loss taps (its own again
        if it taps elsewhere), both `[batch, frames, features]`.
    """
    contexts: dict[str, tuple[jax.Array, jax.Array]] = {}
    for group in groups_of_equal({name: f.values.shape[1] for name, f in frames.items()}):
        members = [frames[name] for name in group]
        rows = [len(member.values) for member in members]
        context, tapped = parts(
            "encode_shared_with_tap",
            join(member.values for member in members),
            join(member.mask for member in members),
            _ids([member.target_language for member in members], rows),
            _ids([member.language for member in members], rows),
            deterministic=parts.deterministic,
        )
        for name, *both in zip(group, split(context, rows), split(tapped, rows), strict=True):
            contexts[name] = (both[0], both[1])
    return contexts


def _ids(members: Sequence[jax.Array | None], rows: Sequence[int]) -> jax.Array | None:
    """Language ids of all rows; None if no member has any."""
    if all(member is None for member in members):
        return None
    return join(
        jnp.full((count,), NO_LANGUAGE, jnp.int32) if member is None else member
        for member, count in zip(members, rows, strict=True)
    )


def transducer_losses(
    parts: Parts,
    contexts: Mapping[str, jax.Array],
    masks: Mapping[str, jax.Array],
    labels: Mapping[str, Labels],
    *,
    fastemit: float = 0.0,
    delay_penalty: float = 0.0,
) -> dict[str, Weighted]:
    """-log P(labels | context) of each stream, in nats a label.

    Dividing by labels rather than by utterances keeps the term at the scale of the frame-wise
    losses that it is added to, whatever the length of the texts.

    Args:
        parts: The model.
        contexts: `[batch, frames, features]` by stream, from the shared encoder.
        masks: `[batch, frames]` bool by stream; an example without frames does not count.
        labels: Which streams to score, and what they are to say.
        fastemit: Extra weight of the gradient of label arcs.
        delay_penalty: Nats a frame by which later labels cost more.

    Returns:
        By stream, the total in nats and the number of labels of the examples that have frames, and
        a path: with one label a frame, an example with more labels than frames has none.
    """
    terms: dict[str, Weighted] = {}
    predictions = _predictions(parts, labels)
    shapes = {
        name: (contexts[name].shape[1], each.tokens.shape[1]) for name, each in labels.items()
    }
    for group in groups_of_equal(shapes):
        tokens = join(labels[name].tokens for name in group)
        label_lengths = join(labels[name].lengths for name in group)
        log_blank, log_label = parts(
            "lattices",
            join(contexts[name] for name in group),
            tokens,
            join(predictions[name] for name in group),
            deterministic=parts.deterministic,
        )
        frame_lengths = jnp.sum(join(masks[name] for name in group), axis=1).astype(jnp.int32)
        losses = transducer_loss_from_lattices(
            log_blank,
            log_label,
            frame_lengths,
            label_lengths,
            one_label_per_frame=parts.model.decoder.one_label_per_frame,
            fastemit=fastemit,
            delay_penalty=delay_penalty,
        )
        # By lengths and not by `losses`: what is counted must not wait for a network.
        there = frame_lengths > 0
        if parts.model.decoder.one_label_per_frame:
            there &= label_lengths <= frame_lengths
        losses = jnp.where(there, losses, 0.0)
        counts = jnp.where(there, label_lengths, 0).astype(jnp.float32)
        rows = [len(contexts[name]) for name in group]
        for name, total, count in zip(group, split(losses, rows), split(counts, rows), strict=True):
            terms[name] = (jnp.sum(total), jnp.sum(count))
    return terms


def _predictions(parts: Parts, labels: Mapping[str, Labels]) -> dict[str, jax.Array]:
    """The prediction network's output by stream.

    It steps through labels one by one whatever the number of texts, so that texts of one length go
    together even where their frames do not.
    """
    found: dict[str, jax.Array] = {}
    for group in groups_of_equal({name: each.tokens.shape[1] for name, each in labels.items()}):
        tokens = [labels[name].tokens for name in group]
        predicted = parts("predict_texts", join(tokens), deterministic=parts.deterministic)
        found.update(zip(group, split(predicted, list(map(len, tokens))), strict=True))
    return found


def without_path(
    parts: Parts, masks: Mapping[str, jax.Array], labels: Mapping[str, Labels]
) -> Metrics:
    """How many examples have more labels than frames, where a label consumes one.

    `transducer_losses` leaves them out; no other example lacks a path.

    Args:
        parts: The model.
        masks: `[batch, frames]` bool by stream.
        labels: As for `transducer_losses`.

    Returns:
        A metric a stream, none where labels may share a frame.
    """
    if not parts.model.decoder.one_label_per_frame:
        return {}
    metrics: Metrics = {}
    for name, each in labels.items():
        frames = jnp.sum(masks[name], axis=1)
        lacking = (frames > 0) & (each.lengths > frames)
        metrics[f"{name}/without_path"] = (
            jnp.sum(lacking.astype(jnp.float32)),
            jnp.ones(()),
        )
    return metrics


def best_path(
    aligner: Parts,
    encoded: jax.Array,
    mask: jax.Array,
    labels: Labels,
    language: jax.Array | None = None,
) -> tuple[Alignment, Weighted]:
    """The paper's Align_RNNT(e_s, t): the most likely path through the shared encoder's lattice.

    Args:
        aligner: The model, usually with moving-average weights.
        encoded: `[batch, frames, features]`, e_s.
        mask: `[batch, frames]` bool.
        labels: The transcripts.
        language: `[batch]` ids of the language spoken.

    Returns:
        Emission frames and durations, and the entropy of the emission frames over all paths (total
        in nats, labels); no gradient.
    """
    context = aligner("encode_shared", encoded, mask, None, language, deterministic=True)
    log_blank, log_label = aligner("lattices", context, labels.tokens, deterministic=True)
    lattice = (
        log_blank,
        log_label,
        jnp.sum(mask, axis=1).astype(jnp.int32),
        labels.lengths,
    )
    one_label_per_frame = aligner.model.decoder.one_label_per_frame
    return (
        transducer_alignment(*lattice, one_label_per_frame=one_label_per_frame),
        alignment_entropy(*lattice, one_label_per_frame=one_label_per_frame),
    )

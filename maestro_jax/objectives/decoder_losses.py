"""The losses of the three decoders over several streams: RNN-T, CTC, and attention.

Streams of equal static shape share a call, as in `maestro_jax.objectives.forward`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from maestro_jax.errors import UserError
from maestro_jax.losses.cross_entropy import CrossEntropy, smoothed_cross_entropy
from maestro_jax.losses.ctc import ctc_loss
from maestro_jax.losses.reduction import Weighted
from maestro_jax.losses.transducer import transducer_loss_from_lattices
from maestro_jax.losses.transducer_alignment import (
    Alignment,
    emission_posterior,
    posterior_entropy,
    transducer_alignment,
)
from maestro_jax.modules.maestro import Maestro
from maestro_jax.objectives.base import Metrics, PerStep, per_step
from maestro_jax.objectives.forward import (
    EncoderInput,
    group_by_shape,
    interleave_rows,
    split_rows,
)
from maestro_jax.text.vocabularies import EOS_ID, PAD_ID


@dataclasses.dataclass(frozen=True)
class TargetLabels:
    """The labels that a decoder learns to write.

    Attributes:
        tokens: `[batch, labels]` int32.
        lengths: `[batch]` int32.
    """

    tokens: jax.Array
    lengths: jax.Array


@dataclasses.dataclass(frozen=True)
class Lattice:
    """The RNN-T's lattice of a stream, and what it says of when labels are emitted.

    Attributes:
        log_blank: `[batch, frames, labels + 1]`, log-probabilities of blank arcs.
        log_label: `[batch, frames, labels]`, log-probabilities of label arcs.
        frame_lengths: `[batch]` int32.
        label_lengths: `[batch]` int32.
        one_label_per_frame: Whether a label consumes its frame.
    """

    log_blank: jax.Array
    log_label: jax.Array
    frame_lengths: jax.Array
    label_lengths: jax.Array
    one_label_per_frame: bool

    @property
    def feasible(self) -> jax.Array:
        """Returns the examples that have frames and a path, `[batch]` bool, by their lengths."""
        feasible = self.frame_lengths > 0
        # With one label per frame, more labels than frames have no path.
        if self.one_label_per_frame:
            feasible &= self.label_lengths <= self.frame_lengths
        return feasible

    def best_path(self) -> Alignment:
        """Finds the likeliest alignment; no gradient."""
        return transducer_alignment(
            self.log_blank,
            self.log_label,
            self.frame_lengths,
            self.label_lengths,
            one_label_per_frame=self.one_label_per_frame,
        )

    @functools.cached_property
    def posterior(self) -> jax.Array:
        """Computes posteriors of emission frames `[batch, frames, labels]`; no gradient."""
        return emission_posterior(
            self.log_blank,
            self.log_label,
            self.frame_lengths,
            self.label_lengths,
            one_label_per_frame=self.one_label_per_frame,
        )


def transducer_losses(
    model: Maestro,
    contexts: Mapping[str, jax.Array],
    masks: Mapping[str, jax.Array],
    labels: Mapping[str, TargetLabels],
    *,
    fastemit: float = 0.0,
    delay_penalty: float = 0.0,
    deterministic: bool,
) -> dict[str, Weighted]:
    """Computes -log P(labels | context) of the RNN-T for each stream, in nats per label.

    Dividing by labels rather than by utterances keeps the term at the scale of the frame-wise
    losses that it is added to, whatever the length of the texts.

    Args:
        model: The model, bound.
        contexts: `[batch, frames, features]` by stream, from the shared encoder.
        masks: `[batch, frames]` bool by stream; an example without frames does not count.
        labels: The streams to score, and their labels.
        fastemit: Extra weight of the gradient of label arcs.
        delay_penalty: Nats per frame by which later labels cost more.
        deterministic: No dropout.

    Returns:
        By stream, the total in nats and the number of labels, of the examples that have frames and
        a path: with one label per frame, an example with more labels than frames has none.
    """
    return transducer_losses_and_lattices(
        model,
        contexts,
        masks,
        labels,
        fastemit=fastemit,
        delay_penalty=delay_penalty,
        deterministic=deterministic,
    )[0]


def transducer_losses_and_lattices(
    model: Maestro,
    contexts: Mapping[str, jax.Array],
    masks: Mapping[str, jax.Array],
    labels: Mapping[str, TargetLabels],
    *,
    fastemit: float = 0.0,
    delay_penalty: float = 0.0,
    deterministic: bool,
) -> tuple[dict[str, Weighted], dict[str, Lattice]]:
    """Computes the losses of `transducer_losses`, and returns the lattices beside them."""
    one_label_per_frame = model.decoder.one_label_per_frame
    terms: dict[str, Weighted] = {}
    lattices: dict[str, Lattice] = {}
    predictions = _predictions(model, labels, deterministic=deterministic)
    shapes = {
        name: (contexts[name].shape[1], each.tokens.shape[1]) for name, each in labels.items()
    }
    for group in group_by_shape(shapes):
        tokens = interleave_rows(labels[name].tokens for name in group)
        label_lengths = interleave_rows(labels[name].lengths for name in group)
        # [rows, frames, labels + 1] and [rows, frames, labels]
        log_blank, log_label = model.joint_log_probs(
            interleave_rows(contexts[name] for name in group),
            tokens,
            interleave_rows(predictions[name] for name in group),
            deterministic=deterministic,
        )
        mask = interleave_rows(masks[name] for name in group)
        frame_lengths = jnp.sum(mask, axis=1).astype(jnp.int32)
        losses = transducer_loss_from_lattices(
            log_blank,
            log_label,
            frame_lengths,
            label_lengths,
            one_label_per_frame=one_label_per_frame,
            fastemit=fastemit,
            delay_penalty=delay_penalty,
        )
        rows = [len(contexts[name]) for name in group]
        columns = [
            split_rows(array, rows)
            for array in (losses, log_blank, log_label, frame_lengths, label_lengths)
        ]
        for name, stream_losses, blank, label, frames, texts in zip(group, *columns, strict=True):
            lattice = Lattice(blank, label, frames, texts, one_label_per_frame)
            lattices[name] = lattice
            # By lengths and not by losses: the counts of a batch that is taken in parts are
            # computed first, and must not wait for a network.
            counts = jnp.where(lattice.feasible, texts, 0).astype(jnp.float32)
            # Without a path a loss is about 1e30, whose gradient is 0 already.
            total = jnp.sum(jnp.where(lattice.feasible, stream_losses, 0.0))
            terms[name] = (total, jnp.sum(counts))
    return terms, lattices


def _predictions(
    model: Maestro, labels: Mapping[str, TargetLabels], *, deterministic: bool
) -> dict[str, jax.Array]:
    """Computes the prediction network's output `[batch, labels + 1, joint_features]` by stream.

    It steps through labels one by one whatever the number of texts, so that texts of one length go
    together even where their frames do not.
    """
    predictions: dict[str, jax.Array] = {}
    for group in group_by_shape({name: each.tokens.shape[1] for name, each in labels.items()}):
        tokens = [labels[name].tokens for name in group]
        predicted = model.prediction_network(interleave_rows(tokens), deterministic=deterministic)
        columns = split_rows(predicted, [len(each) for each in tokens])
        predictions.update(zip(group, columns, strict=True))
    return predictions


def infeasible_metrics(
    model: Maestro, masks: Mapping[str, jax.Array], labels: Mapping[str, TargetLabels]
) -> Metrics:
    """Counts the examples with more labels than frames, where a label consumes a frame.

    `transducer_losses` leaves them out; no other example lacks a path.

    Args:
        model: The model, bound.
        masks: `[batch, frames]` bool by stream.
        labels: As for `transducer_losses`.

    Returns:
        `<stream>/num_infeasible`, per step; nothing where labels may share a frame.
    """
    if not model.decoder.one_label_per_frame:
        return {}
    metrics: Metrics = {}
    for name, each in labels.items():
        frames = jnp.sum(masks[name], axis=1)
        infeasible = (frames > 0) & (each.lengths > frames)
        metrics[f"{name}/num_infeasible"] = per_step(jnp.sum(infeasible))
    return metrics


def best_path(
    model: Maestro,
    encoded: jax.Array,
    mask: jax.Array,
    labels: TargetLabels,
    language: jax.Array | None = None,
) -> tuple[Alignment, Weighted]:
    """Computes the paper's Align_RNNT(e_s, t): the most likely path through the RNN-T lattice.

    Args:
        model: The model, bound, usually to moving-average weights; there is no dropout.
        encoded: `[batch, frames, features]`, e_s.
        mask: `[batch, frames]` bool.
        labels: The transcripts.
        language: `[batch]` ids of the language spoken.

    Returns:
        Emission frames and durations, and the entropy of the emission frames over all paths (total
        in nats, labels); no gradient.
    """
    context = model.encode_shared(encoded, mask, None, language)
    log_blank, log_label = model.joint_log_probs(context, labels.tokens)
    frame_lengths = jnp.sum(mask, axis=1).astype(jnp.int32)
    lattice = Lattice(
        log_blank, log_label, frame_lengths, labels.lengths, model.decoder.one_label_per_frame
    )
    return lattice.best_path(), posterior_entropy(lattice.posterior)


def ctc_term(
    model: Maestro,
    context: jax.Array,
    mask: jax.Array,
    labels: TargetLabels,
    *,
    deterministic: bool,
) -> tuple[Weighted, PerStep]:
    """Computes -log P(labels | context) of the CTC head, in nats per label.

    Args:
        model: The model, bound.
        context: `[batch, frames, features]` from the shared encoder.
        mask: `[batch, frames]` bool; an example without frames does not count.
        labels: The transcripts.
        deterministic: No dropout.

    Returns:
        The total in nats and the number of labels of the examples that have a path; and the number
        of examples per step that have none.

    Raises:
        UserError: The model has no CTC head.
    """
    if model.ctc_head is None:
        raise UserError(
            "ctc_weight is above 0, but the model has no CTC head: set Maestro.ctc_head (add "
            "models/heads/ctc.gin to the gin files), or set ctc_weight to 0."
        )
    logits = model.ctc_logits(context, deterministic=deterministic)
    frame_lengths = jnp.sum(mask, axis=1).astype(jnp.int32)
    loss, infeasible = ctc_loss(logits, labels.tokens, frame_lengths, labels.lengths)
    return loss, per_step(infeasible[0])


def attention_losses(
    model: Maestro,
    contexts: Mapping[str, jax.Array],
    inputs: Mapping[str, EncoderInput],
    labels: Mapping[str, TargetLabels],
    *,
    smoothing: float,
    deterministic: bool,
) -> dict[str, CrossEntropy]:
    """Computes the cross entropy of each stream's translation, in nats per token, its end counted.

    Args:
        model: The model, bound.
        contexts: `[batch, frames, features]` by stream, from the shared encoder.
        inputs: The shared encoder's input: which frames are valid, and the language to write.
        labels: The translations; one without frames does not count.
        smoothing: Label smoothing.
        deterministic: No dropout.

    Returns:
        By stream.

    Raises:
        UserError: The model has no translation decoder.
        ValueError: A stream has no language to write.
    """
    if model.translation_decoder is None:
        raise UserError(
            "SpeechTranslation.decoder is 'attention', but the model has no such decoder: set "
            "Maestro.translation_decoder (add models/heads/attention.gin to the gin files), or "
            "choose 'transducer'."
        )
    languages: dict[str, jax.Array] = {}
    for name in labels:
        language = inputs[name].target_language
        if language is None:
            raise ValueError(f"The frames of stream {name!r} have no target_language; give one.")
        languages[name] = language
    losses: dict[str, CrossEntropy] = {}
    shapes = {
        name: (contexts[name].shape[1], each.tokens.shape[1]) for name, each in labels.items()
    }
    for group in group_by_shape(shapes):
        rows = [len(contexts[name]) for name in group]
        masks = interleave_rows(inputs[name].mask for name in group)
        decoder_inputs, targets, counts = shift_right(
            TargetLabels(
                interleave_rows(labels[name].tokens for name in group),
                interleave_rows(labels[name].lengths for name in group),
            )
        )
        # Without frames not even the end of the text counts, which is a target of the empty one.
        counts = counts & jnp.any(masks, axis=1)[:, None]
        logits = model.translation_logits(
            decoder_inputs,
            interleave_rows(contexts[name] for name in group),
            masks,
            interleave_rows(languages[name] for name in group),
            deterministic=deterministic,
        )
        columns = [split_rows(array, rows) for array in (logits, targets, counts)]
        for name, *arrays in zip(group, *columns, strict=True):
            losses[name] = smoothed_cross_entropy(*arrays, smoothing=smoothing)
    return losses


def shift_right(labels: TargetLabels) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Makes the decoder's inputs and targets of texts, which carry no end of sequence.

    Args:
        labels: The texts, `[batch, labels]`.

    Returns:
        Inputs `[batch, labels + 1]`, with padding (0) in front; targets of the same shape, with the
        end of sequence (1) behind; and which targets count, bool of the same shape.
    """
    # Of the labels a b: inputs 0 a b, targets a b 1. Behind them the inputs hold padding, which no
    # valid position sees, as the decoder is causal.
    index = jnp.arange(labels.tokens.shape[1] + 1)
    inside = index < labels.lengths[:, None]
    padded = jnp.pad(labels.tokens, ((0, 0), (0, 1)))
    at_end = index == labels.lengths[:, None]
    targets = jnp.where(at_end, EOS_ID, jnp.where(inside, padded, PAD_ID))
    inputs = jnp.pad(labels.tokens, ((0, 0), (1, 0)), constant_values=PAD_ID)
    return inputs, targets, inside | at_end

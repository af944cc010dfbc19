"""Beam search for transducers, a whole batch at once, which adds up the alignments of a hypothesis.

The search is synchronous in the length of the alignment (Saon et al. 2020, "Alignment-length
synchronous decoding for RNN transducer"): after n steps every hypothesis has taken n arcs, a blank
or a label each. Two paths with the same labels then stand on the same frame, so that adding up
their probabilities is the forward recursion of the loss, and not an approximation of it:

    alpha(n + 1, y) = alpha(n, y) P(blank | y) + alpha(n, y without its last label) P(last | ...)

Both terms come from hypotheses of the beam. They are added **before** the beam is pruned: a
hypothesis lives by the probability of its labels and not by that of its best path, and never takes
two places. A beam that holds every hypothesis gives exact log-likelihoods. Equality of labels is
tested on the labels themselves. With one label a frame every arc consumes a frame, and the same
recursion is synchronous in frames.

All arrays have the batch in front and every operation stays within its row: a batch that is split
over devices stays split, and the only communication is the question whether any row is unfinished.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from maestro_jax.decoding.fusion import Fusion
from maestro_jax.decoding.hypotheses import (
    Hypotheses,
    Joint,
    Predict,
    State,
    check_arguments,
    where_rows,
)
from maestro_jax.decoding.selection import NONE, parents, take, top
from maestro_jax.losses.transducer_arcs import NEG, check_blank, log_probabilities


class _Context(NamedTuple):
    """What networks know of the labels so far; every array is `[batch, beam, ...]`."""

    outputs: jax.Array  # of the prediction network
    state: State
    guide: jax.Array  # [batch, beam, vocab] of the language model; no vocab without one
    lm_state: State


class _Beam(NamedTuple):
    """What the loop carries of hypotheses that are not finished, `[batch, beam, ...]`."""

    found: Hypotheses
    extra: jax.Array  # what fusion has added so far
    path: jax.Array  # log-probability of the likeliest alignment, whose frames `found` has
    frame: jax.Array  # the next frame to read
    symbols: jax.Array  # labels that the likeliest alignment has emitted on that frame
    context: _Context


class _Choice(NamedTuple):
    """How each place of the next beam comes about, `[batch, beam]`."""

    source: jax.Array  # the hypothesis that has its labels, but for a new one
    is_label: jax.Array  # whether there is a new one
    token: jax.Array  # which
    aligned: jax.Array  # the hypothesis whose best path it continues
    appends: jax.Array  # whether that path continues by a label, and not by the blank
    arc: jax.Array  # that arc's score
    score: jax.Array
    extra: jax.Array
    fused: jax.Array


def beam_decode(
    predict: Predict,
    joint: Joint,
    initial_state: State,
    encoded: jax.Array,
    frame_lengths: jax.Array,
    *,
    beam_size: int,
    max_labels: int,
    blank_id: int = 0,
    max_symbols_per_frame: int = 4,
    hat: bool = False,
    one_label_per_frame: bool = False,
    fusion: Fusion | None = None,
) -> Hypotheses:
    """Finds the `beam_size` likeliest label sequences that a beam of this size meets.

    Ties go to the blank before a label, then to the hypothesis that ranked higher, then to the
    lower token id; a likeliest path of two to the one that emitted earlier. A beam of 1 without
    fusion takes the path of the greedy search. A batch gives what its examples give alone.

    `max_symbols_per_frame` counts along the likeliest path of a hypothesis, so where it binds,
    scores lack the paths that would exceed it.

    Args:
        predict: The prediction network; sees rows of `batch * beam_size`.
        joint: The joint network; sees as many.
        initial_state: State of the prediction network before the first call, for `batch` rows.
        encoded: Encoder output, `[batch, frames, features]`.
        frame_lengths: Valid frames of each example, `[batch]`; zero gives one hypothesis, the
            empty one with score 0.
        beam_size: Hypotheses kept at a step, and returned.
        max_labels: Room for tokens; who wants more gets blanks and is marked `truncated`.
        blank_id: The token id of the blank.
        max_symbols_per_frame: At most so many labels on one frame.
        hat: The factorisation that the model was trained with (see `losses.transducer_arcs`).
        one_label_per_frame: A label consumes its frame, as the blank does.
        fusion: A language model and what else shall rank hypotheses.

    Returns:
        The hypotheses, `[batch, beam_size, ...]`, in the order of their fused scores.

    Raises:
        ValueError: If a number is below 1, or the shapes do not belong together.
    """
    check_arguments(encoded, frame_lengths, max_labels, max_symbols_per_frame)
    if beam_size < 1:
        raise ValueError(f"beam_size must be at least 1, not {beam_size}")
    fusion = fusion or Fusion()
    lm = fusion.lm if fusion.weight else None
    batch, frames, _ = encoded.shape
    frame_lengths = jnp.minimum(frame_lengths, frames)[:, None]
    # What the internal language model has in the place of every frame.
    no_speech = jnp.zeros_like(encoded[:, :1])
    if fusion.internal_encoder == "mean":
        heard = (jnp.arange(frames) < frame_lengths)[..., None]
        total = jnp.sum(jnp.where(heard, encoded.astype(jnp.float32), 0.0), axis=1, keepdims=True)
        no_speech = total / jnp.maximum(frame_lengths, 1)[..., None]
    no_speech = jnp.repeat(no_speech.astype(encoded.dtype), beam_size, axis=1)
    slots = jnp.arange(max_labels)

    def rows(tree: Any) -> Any:
        return jax.tree.map(lambda x: x.reshape(batch * beam_size, *x.shape[2:]), tree)

    def beams(tree: Any) -> Any:
        return jax.tree.map(lambda x: x.reshape(batch, beam_size, *x.shape[1:]), tree)

    def read(labels: jax.Array, state: State, lm_state: State) -> _Context:
        """What the networks say after a label, `[batch, beam]`, more."""
        labels = rows(labels)
        outputs, state = predict(rows(state), labels)
        guide = jnp.zeros((batch * beam_size, 0), jnp.float32)
        if lm is not None:
            guide, lm_state = lm.score(rows(lm_state), labels)
            guide, lm_state = fusion.weight * guide.astype(jnp.float32), beams(lm_state)
        return _Context(beams(outputs), beams(state), beams(guide), lm_state)

    def score_arcs(beam: _Beam) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Blank `[batch, beam]`; labels and what is added to them, `[batch, beam, vocab]`."""
        index = jnp.minimum(beam.frame, frames - 1)
        encoded_frames = rows(jnp.take_along_axis(encoded, index[..., None], axis=1))
        logits = joint(encoded_frames, rows(beam.context.outputs))
        check_blank(blank_id, logits.shape[-1])
        is_blank = jnp.arange(logits.shape[-1]) == blank_id
        scores = beams(log_probabilities(logits, blank_id=blank_id, hat=hat))
        # An empty place may have read padding, and padding may be anything.
        scores = jnp.where(_alive(beam)[..., None], scores, NONE)
        added = beam.context.guide if lm is not None else jnp.zeros(())
        added = added + fusion.length_bonus
        if fusion.internal_weight:
            silent = joint(rows(no_speech), rows(beam.context.outputs))
            internal = jax.nn.log_softmax(jnp.where(is_blank, NEG, silent.astype(jnp.float32)))
            added = added - fusion.internal_weight * beams(internal)
        added = jnp.broadcast_to(added, scores.shape)
        return scores[..., blank_id], jnp.where(is_blank, NONE, scores), added

    def choose(beam: _Beam) -> tuple[_Choice, jax.Array]:
        """Extends, adds up and only then prunes; and which hypotheses wanted room in vain."""
        found = beam.found
        blank, label, added = score_arcs(beam)
        label = jnp.where((beam.symbols < max_symbols_per_frame)[..., None], label, NONE)
        full = found.lengths >= max_labels
        overflows = full & (jnp.max(label + added, axis=-1) > blank)
        label = jnp.where(full[..., None], NONE, label)

        parent = parents(found.tokens, found.lengths, _alive(beam))  # [batch, parent, child]
        last = jnp.sum(jnp.where(slots == found.lengths[..., None] - 1, found.tokens, 0), axis=-1)
        to_child = jnp.broadcast_to(last[:, None, :], parent.shape)
        arcs = jnp.where(parent, jnp.take_along_axis(label, to_child, axis=2), NONE)
        # A child has one parent at most, as no two hypotheses of a beam are equal.
        parent_of = jnp.argmax(parent, axis=1)
        arc = jnp.max(arcs, axis=1)
        inflow = jnp.max(found.scores[..., None] + arcs, axis=1)
        inflow_path = jnp.max(beam.path[..., None] + arcs, axis=1)
        stay = jnp.logaddexp(found.scores + blank, inflow)
        appends = inflow_path > beam.path + blank
        vocabulary = jnp.arange(label.shape[-1])
        joined = jnp.any(parent[..., None] & (vocabulary == to_child[..., None]), axis=2)
        label = jnp.where(joined, NONE, label)

        wide = min(beam_size, label.shape[-1])
        grown = found.scores[..., None] + label
        flat = (batch, beam_size * wide)
        fused, token = top(grown + (beam.extra[..., None] + added), wide)
        picked = jnp.take_along_axis(label, token, axis=2)
        score = jnp.take_along_axis(grown, token, axis=2).reshape(flat)
        extra = beam.extra[..., None] + jnp.take_along_axis(added, token, axis=2)
        score = jnp.concatenate([stay, score], axis=1)
        extra = jnp.concatenate([beam.extra, extra.reshape(flat)], axis=1)
        fused = jnp.concatenate([stay + beam.extra, fused.reshape(flat)], axis=1)

        fused, chosen = top(fused, beam_size)
        is_label = chosen >= beam_size
        place = jnp.maximum(chosen - beam_size, 0)
        source = jnp.where(is_label, place // wide, jnp.minimum(chosen, beam_size - 1))
        via_parent = take(appends, source) & ~is_label
        label_arc = take(picked.reshape(flat), place)
        choice = _Choice(
            source=source,
            is_label=is_label,
            token=take(token.reshape(flat), place),
            aligned=jnp.where(via_parent, take(parent_of, source), source),
            appends=is_label | via_parent,
            arc=jnp.where(is_label, label_arc, take(jnp.where(appends, arc, blank), source)),
            # A label that the language model excludes takes a place from nobody.
            score=jnp.where(fused > NONE, take(score, chosen), NONE),
            extra=take(extra, chosen),
            fused=fused,
        )
        return choice, overflows

    def step(carry: tuple[_Beam, Hypotheses]) -> tuple[_Beam, Hypotheses]:
        beam, finished = carry
        choice, overflows = choose(beam)
        found = beam.found
        lengths = take(found.lengths, choice.source)
        tokens = take(found.tokens, choice.source)
        end = slots == lengths[..., None]
        # A path that arrives by its last label emits it now: the hypothesis is no longer for it.
        emitted = jnp.where(choice.is_label, lengths, lengths - 1)[..., None] == slots
        emitted &= choice.appends[..., None]
        on_frame = take(beam.frame, choice.aligned)
        consumes = one_label_per_frame | ~choice.appends
        found = Hypotheses(
            tokens=jnp.where(end & choice.is_label[..., None], choice.token[..., None], tokens),
            lengths=lengths + choice.is_label,
            frames=jnp.where(emitted, on_frame[..., None], take(found.frames, choice.aligned)),
            token_scores=jnp.where(
                emitted, choice.arc[..., None], take(found.token_scores, choice.aligned)
            ),
            scores=choice.score,
            fused_scores=choice.fused,
            truncated=take(found.truncated | overflows, choice.source),
        )
        kept = jax.tree.map(lambda x: take(x, choice.source), beam.context)
        context = read(choice.token, kept.state, kept.lm_state)
        symbols = jnp.where(consumes, 0, take(beam.symbols, choice.aligned) + 1)
        beam = _Beam(
            found=found,
            extra=choice.extra,
            path=take(beam.path, choice.aligned) + choice.arc,
            frame=on_frame + consumes,
            symbols=symbols,
            context=where_rows(choice.is_label, context, kept),
        )
        return park(beam, finished)

    def park(beam: _Beam, finished: Hypotheses) -> tuple[_Beam, Hypotheses]:
        """Moves hypotheses that have read every frame out of the way of the others."""
        found = beam.found
        done = _alive(beam) & (beam.frame >= frame_lengths)
        ending = beam.context.guide[..., blank_id] if lm is not None else 0.0
        final = jnp.where(done, found.fused_scores + ending, NONE)
        both = jax.tree.map(
            lambda x, y: jnp.concatenate([x, y], axis=1),
            finished,
            found._replace(fused_scores=final),
        )
        ranked, chosen = top(both.fused_scores, beam_size)
        finished = jax.tree.map(lambda x: take(x, chosen), both)._replace(fused_scores=ranked)
        left = jnp.where(done, NONE, found.scores)
        if fusion.only_lowers:
            # All that the unfinished can still become, together, is no more than they are now.
            hope = jax.nn.logsumexp(jnp.where(done, NONE, found.fused_scores), axis=1)
            left = jnp.where((hope <= ranked[:, -1])[:, None], NONE, left)
        found = found._replace(
            scores=left, fused_scores=jnp.where(left > NONE, found.fused_scores, NONE)
        )
        return beam._replace(found=found), finished

    def spread(tree: State) -> State:
        return jax.tree.map(
            lambda x: jnp.broadcast_to(x[:, None], (batch, beam_size, *x.shape[1:])), tree
        )

    shape = (batch, beam_size)
    empty = Hypotheses(
        tokens=jnp.full((*shape, max_labels), blank_id, jnp.int32),
        lengths=jnp.zeros(shape, jnp.int32),
        frames=jnp.zeros((*shape, max_labels), jnp.int32),
        token_scores=jnp.zeros((*shape, max_labels), jnp.float32),
        scores=jnp.full(shape, NONE, jnp.float32),
        fused_scores=jnp.full(shape, NONE, jnp.float32),
        truncated=jnp.zeros(shape, bool),
    )
    first = jnp.broadcast_to(jnp.where(jnp.arange(beam_size) == 0, 0.0, NONE), shape)
    begin = jnp.full(shape, blank_id, jnp.int32)
    start = _Beam(
        found=empty._replace(scores=first, fused_scores=first),
        extra=jnp.zeros(shape, jnp.float32),
        path=jnp.zeros(shape, jnp.float32),
        frame=jnp.zeros(shape, jnp.int32),
        symbols=jnp.zeros(shape, jnp.int32),
        context=read(
            begin, spread(initial_state), () if lm is None else spread(lm.initial_state(batch))
        ),
    )
    _, finished = jax.lax.while_loop(
        lambda carry: jnp.any(_alive(carry[0])), step, park(start, empty)
    )
    missing = finished.fused_scores == NONE
    return where_rows(missing, empty, finished)


def _alive(beam: _Beam) -> jax.Array:
    return beam.found.scores > NONE

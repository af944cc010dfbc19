"""CTC decoding, batched: the best path, and prefix beam search.

The beam search is that of Hannun et al. 2014 (arXiv 1408.2873, algorithm 1). A hypothesis is a
sequence of labels with two probabilities: that of its alignments that end in a blank, and that of
those that end in its last label. Only after a blank can the same label come again. Alignments with
the same labels are added up before the beam is pruned, so that a beam that holds every hypothesis
gives exact log-likelihoods. Times are those of the likeliest alignment of each result.

All arrays have a leading batch axis and every operation stays within its row.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from maestro_jax.decoding.fusion import Fusion
from maestro_jax.decoding.hypotheses import (
    NEG_INF,
    Hypotheses,
    State,
    check_arguments,
    gather_beams,
    last_tokens,
    no_hypotheses,
    parents,
    top_k,
    where_rows,
)
from maestro_jax.losses.ctc import BLANK_ID, ctc_alignment


class _Beam(NamedTuple):
    """The hypotheses that the loop carries, `[batch, beam, ...]`."""

    tokens: jax.Array  # [batch, beam, max_labels]
    lengths: jax.Array
    blank: jax.Array  # Log-probability of the alignments that end in a blank.
    label: jax.Array  # Log-probability of those that end in the last label.
    fused: jax.Array  # Sum of the terms that fusion has added.
    truncated: jax.Array
    lm_scores: jax.Array  # Of language model and phrases, [batch, beam, vocab]; vocab 0 without.
    lm_state: State

    @property
    def scores(self) -> jax.Array:
        """Returns the log-probability of all alignments, `[batch, beam]`."""
        return jnp.logaddexp(self.blank, self.label)


class _Extended(NamedTuple):
    """Hypotheses after one more frame, before pruning."""

    blank: jax.Array  # The same labels, ending in a blank, [batch, beam].
    label: jax.Array  # The same labels, ending in the last one, [batch, beam].
    grown: jax.Array  # With one more label, [batch, beam, vocab].
    truncated: jax.Array


def ctc_greedy(log_probs: jax.Array, frame_lengths: jax.Array, *, max_labels: int) -> Hypotheses:
    """Takes the likeliest symbol of every frame, merges repetitions and removes blanks.

    Of equally likely symbols the one with the lower id wins. Without room for more tokens, blanks
    are taken.

    Args:
        log_probs: `[batch, frames, vocab]` natural log-probabilities; the blank is 0.
        frame_lengths: Valid frames of each example, `[batch]`; zero gives an empty hypothesis.
        max_labels: Room for tokens.

    Returns:
        One hypothesis per example, `[batch, ...]`, with the scores of its path.

    Raises:
        ValueError: If `max_labels` is below 1 or the shapes do not belong together.
    """
    check_arguments(log_probs, frame_lengths, max_labels, 1)
    frames = log_probs.shape[1]
    valid = jnp.arange(frames) < frame_lengths[:, None]
    log_probs = jnp.where(valid[:, :, None], log_probs.astype(jnp.float32), 0.0)
    path = jnp.where(valid, jnp.argmax(log_probs, axis=-1), BLANK_ID).astype(jnp.int32)
    best = jnp.max(log_probs, axis=-1)
    # The symbol of the frame before; a blank before the first frame, so that it begins a token.
    previous = jnp.pad(path, ((0, 0), (1, 0)), constant_values=BLANK_ID)[:, :-1]
    # A token begins where the symbol changes to a label; a blank between equal labels separates
    # them.
    begins = (path != BLANK_ID) & (path != previous)
    count = jnp.cumsum(begins, axis=1)  # Tokens up to each frame, [batch, frames].
    # Masked sums in place of scatters leave a sharded batch sharded: [batch, frames, max_labels].
    place = begins[:, :, None] & (count[:, :, None] == 1 + jnp.arange(max_labels))
    beyond = count > max_labels

    def collect(x: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(place, x[:, :, None], 0), axis=1)

    # Where there is no room the blank is taken, whose score is then the path's; frames of the
    # padding add 0.
    scores = jnp.sum(jnp.where(beyond, log_probs[:, :, BLANK_ID], best), axis=1)
    return Hypotheses(
        tokens=collect(path),
        lengths=jnp.minimum(count[:, -1], max_labels).astype(jnp.int32),
        frames=collect(jnp.broadcast_to(jnp.arange(frames, dtype=jnp.int32), path.shape)),
        token_scores=collect(best),
        scores=scores,
        fused_scores=scores,
        truncated=count[:, -1] > max_labels,
    )


def ctc_beam_search(
    log_probs: jax.Array,
    frame_lengths: jax.Array,
    *,
    beam_size: int,
    max_labels: int,
    fusion: Fusion | None = None,
) -> Hypotheses:
    """Searches for the `beam_size` likeliest label sequences.

    Ties go to the hypothesis that keeps its labels before one that grows, then to the one that
    ranked higher, then to the lower token id. The result of an example does not depend on the rest
    of its batch.

    Args:
        log_probs: `[batch, frames, vocab]` natural log-probabilities; the blank is 0.
        frame_lengths: Valid frames of each example, `[batch]`. An example of zero frames has one
            hypothesis, the empty one with score 0.
        beam_size: Number of hypotheses kept at each frame and returned.
        max_labels: Room for tokens. A hypothesis that needs more keeps its tokens and is marked
            `truncated`.
        fusion: Language model and further terms that rank hypotheses.

    Returns:
        The hypotheses, `[batch, beam_size, ...]`, in the order of their fused scores; frames and
        token scores are those of the likeliest alignment.

    Raises:
        ValueError: If a number is below 1, the shapes do not belong together, or `fusion`
            subtracts an internal language model.
    """
    check_arguments(log_probs, frame_lengths, max_labels, 1)
    if beam_size < 1:
        raise ValueError(f"beam_size must be at least 1, not {beam_size}")
    fusion = fusion or Fusion()
    if fusion.subtracts_internal:
        raise ValueError("CTC has no internal language model to subtract")
    log_probs = log_probs.astype(jnp.float32)
    batch, frames, _ = log_probs.shape
    frame_lengths = jnp.minimum(frame_lengths, frames)
    shape = (batch, beam_size)

    def step(carry: tuple[jax.Array, _Beam]) -> tuple[jax.Array, _Beam]:
        frame, beam = carry
        present = frame < frame_lengths
        frame_log_probs = jax.lax.dynamic_index_in_dim(log_probs, frame, axis=1, keepdims=False)
        # Padding may hold anything.
        frame_log_probs = jnp.where(present[:, None], frame_log_probs, 0.0)[
            :, None, :
        ]  # [batch, 1, vocab]
        added = jnp.zeros((*shape, frame_log_probs.shape[-1]))
        if fusion.scores_labels:
            added = beam.lm_scores
        added = fusion.length_bonus + added
        beam_after = _prune(beam, _extend(beam, frame_log_probs, added), added, fusion)
        return frame + 1, where_rows(present, beam_after, beam)

    lm_scores, lm_state = fusion.score_next(
        fusion.initial_state(shape), jnp.full(shape, BLANK_ID, jnp.int32)
    )
    empty = no_hypotheses(shape, max_labels, BLANK_ID)
    first = jnp.where(jnp.arange(beam_size) == 0, 0.0, NEG_INF).astype(jnp.float32)
    start = _Beam(
        tokens=empty.tokens,
        lengths=empty.lengths,
        # The empty hypothesis counts as ending in a blank: it has no last label to repeat.
        blank=jnp.broadcast_to(first, shape),
        label=empty.scores,
        fused=jnp.zeros(shape, jnp.float32),
        truncated=empty.truncated,
        lm_scores=lm_scores,
        lm_state=lm_state,
    )
    longest = jnp.max(frame_lengths)
    _, beam = jax.lax.while_loop(
        lambda carry: carry[0] < longest, step, (jnp.zeros((), jnp.int32), start)
    )
    # What the language model and the phrases add at the end of the text.
    ending = beam.lm_scores[..., BLANK_ID] if fusion.scores_labels else 0.0
    fused_scores, order = top_k(beam.scores + beam.fused + ending, beam_size)
    beam, scores = gather_beams((beam, beam.scores), order)
    exists = fused_scores > NEG_INF
    tokens = jnp.where(exists[..., None], beam.tokens, BLANK_ID)
    lengths = jnp.where(exists, beam.lengths, 0)
    # The search adds alignments up and keeps none: the likeliest is found afterwards, for the
    # results alone.
    path = jax.vmap(ctc_alignment, in_axes=(None, 1, None, 1), out_axes=1)(
        log_probs, tokens, frame_lengths, lengths
    )
    return Hypotheses(
        tokens=tokens,
        lengths=lengths,
        frames=path.frames,
        token_scores=path.label_scores,
        scores=jnp.where(exists, scores, NEG_INF),
        fused_scores=fused_scores,
        truncated=beam.truncated & exists,
    )


def _extend(beam: _Beam, frame_log_probs: jax.Array, added: jax.Array) -> _Extended:
    """Reads a frame: every hypothesis stays, or grows by any label.

    Args:
        beam: The hypotheses.
        frame_log_probs: Log-probabilities of the frame, `[batch, 1, vocab]`.
        added: What fusion adds to each label, `[batch, beam, vocab]`.
    """
    vocabulary = jnp.arange(frame_log_probs.shape[-1])
    last = last_tokens(beam.tokens, beam.lengths)
    is_last = (vocabulary == last[..., None]) & (beam.lengths > 0)[..., None]
    # Hannun et al. 2014, algorithm 1: p_b and p_nb of the same labels after this frame.
    stay_blank = beam.scores + frame_log_probs[..., BLANK_ID]
    repeated = jnp.take_along_axis(
        jnp.broadcast_to(frame_log_probs, added.shape), last[..., None], axis=2
    )
    stay_label = jnp.where(beam.lengths > 0, beam.label + repeated[..., 0], NEG_INF)
    # The last label comes again only after a blank: otherwise the two would be merged.
    grown = jnp.where(is_last, beam.blank[..., None], beam.scores[..., None]) + frame_log_probs
    grown = jnp.where(vocabulary == BLANK_ID, NEG_INF, grown)
    is_full = beam.lengths >= beam.tokens.shape[-1]
    label_is_likelier = jnp.max(grown + added, axis=-1) > jnp.logaddexp(stay_blank, stay_label)
    truncated = beam.truncated | (is_full & label_is_likelier)
    grown = jnp.where(is_full[..., None], NEG_INF, grown)

    # A hypothesis that grows into another one of the beam adds to that one's probability. It must
    # not also make a new hypothesis, which would have the same labels.
    is_parent = parents(beam.tokens, beam.lengths, beam.scores > NEG_INF)  # [batch, parent, child]
    to_child = jnp.broadcast_to(last[:, None, :], is_parent.shape)
    inflow = jnp.where(is_parent, jnp.take_along_axis(grown, to_child, axis=2), NEG_INF)
    # A maximum over parents picks the only one: no two hypotheses of a beam are equal.
    stay_label = jnp.logaddexp(stay_label, jnp.max(inflow, axis=1))
    is_used = jnp.any(is_parent[..., None] & (vocabulary == to_child[..., None]), axis=2)
    grown = jnp.where(is_used, NEG_INF, grown)
    return _Extended(stay_blank, stay_label, grown, truncated)


def _prune(beam: _Beam, extended: _Extended, added: jax.Array, fusion: Fusion) -> _Beam:
    """Keeps the best hypotheses, and feeds their new labels to the language model."""
    batch, beam_size = beam.lengths.shape
    # The best `width` labels of each hypothesis are enough for the beam.
    width = min(beam_size, added.shape[-1])
    candidates = (batch, beam_size * width)
    fused_score, token = top_k(extended.grown + (beam.fused[..., None] + added), width)
    new_score = jnp.take_along_axis(extended.grown, token, axis=2).reshape(candidates)
    new_fused = beam.fused[..., None] + jnp.take_along_axis(added, token, axis=2)
    staying = jnp.logaddexp(extended.blank, extended.label) + beam.fused
    # [batch, beam + beam * width]: those that stay come first and win ties.
    fused_score, kept = top_k(
        jnp.concatenate([staying, fused_score.reshape(candidates)], axis=1), beam_size
    )

    is_new = kept >= beam_size
    place = jnp.maximum(kept - beam_size, 0)
    # Candidate i of `kept` is hypothesis i, and candidate beam + h * width + k the k-th label of h.
    source = jnp.where(is_new, place // width, jnp.minimum(kept, beam_size - 1))
    token = gather_beams(token.reshape(candidates), place)
    old: _Beam = gather_beams(beam, source)
    stay_blank, stay_label, truncated = gather_beams(
        (extended.blank, extended.label, extended.truncated), source
    )
    label = jnp.where(is_new, gather_beams(new_score, place), stay_label)
    new_fused = gather_beams(new_fused.reshape(candidates), place)
    appended = jnp.arange(beam.tokens.shape[-1]) == old.lengths[..., None]
    exists = fused_score > NEG_INF
    context = where_rows(
        is_new, fusion.score_next(old.lm_state, token), (old.lm_scores, old.lm_state)
    )
    return _Beam(
        tokens=jnp.where(appended & is_new[..., None], token[..., None], old.tokens),
        lengths=old.lengths + is_new,
        # What has just grown ends in its new label, not in a blank.
        blank=jnp.where(exists & ~is_new, stay_blank, NEG_INF),
        label=jnp.where(exists, label, NEG_INF),
        fused=jnp.where(is_new, new_fused, old.fused),
        truncated=truncated,
        lm_scores=context[0],
        lm_state=context[1],
    )

"""CTC decoding: the best path, and prefix beam search, for a whole batch at once.

The beam search is that of Hannun et al. 2014 (arXiv 1408.2873, algorithm 1): a hypothesis is a
sequence of labels with two probabilities, of its alignments that end in a blank and of those that
end in its last label, since only the former lets the same label come again. Alignments of equal
labels are added up before the beam is pruned; a beam that holds every hypothesis gives exact
log-likelihoods. Times come afterwards from the likeliest alignment of what was found.

All arrays have the batch in front and every operation stays within its row.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from maestro_jax.decoding.fusion import Fusion
from maestro_jax.decoding.hypotheses import Hypotheses, State, check_arguments, where_rows
from maestro_jax.decoding.selection import NONE, parents, take, top
from maestro_jax.losses.ctc import BLANK_ID, ctc_alignment


class _Beam(NamedTuple):
    """What the loop carries, `[batch, beam, ...]`."""

    tokens: jax.Array  # [batch, beam, max_labels]
    lengths: jax.Array
    blank: jax.Array  # log-probability of the alignments that end in a blank
    label: jax.Array  # and of those that end in the last label
    extra: jax.Array  # what fusion has added
    truncated: jax.Array
    guide: jax.Array  # [batch, beam, vocab] of the language model; no vocab without one
    lm_state: State

    @property
    def scores(self) -> jax.Array:
        """Log-probability of all alignments."""
        return jnp.logaddexp(self.blank, self.label)


def ctc_greedy(log_probs: jax.Array, frame_lengths: jax.Array, *, max_labels: int) -> Hypotheses:
    """Takes the likeliest symbol of every frame, merges repetitions and removes blanks.

    Of equally likely symbols the one with the lower id wins. Where there is no more room, blanks
    are taken.

    Args:
        log_probs: `[batch, frames, vocab]` natural log-probabilities; the blank is 0.
        frame_lengths: Valid frames of each example, `[batch]`; zero gives an empty hypothesis.
        max_labels: Room for tokens.

    Returns:
        One hypothesis an example, `[batch, ...]`; scores are those of the path.

    Raises:
        ValueError: If `max_labels` is below 1 or the shapes do not belong together.
    """
    check_arguments(log_probs, frame_lengths, max_labels, 1)
    frames = log_probs.shape[1]
    valid = jnp.arange(frames) < frame_lengths[:, None]
    log_probs = jnp.where(valid[:, :, None], log_probs.astype(jnp.float32), 0.0)
    path = jnp.where(valid, jnp.argmax(log_probs, axis=-1), BLANK_ID).astype(jnp.int32)
    best = jnp.max(log_probs, axis=-1)
    before = jnp.pad(path, ((0, 0), (1, 0)), constant_values=BLANK_ID)[:, :-1]
    begins = (path != BLANK_ID) & (path != before)
    count = jnp.cumsum(begins, axis=1)
    # Masked sums, not scatters: the batch stays where it is.
    place = begins[:, :, None] & (count[:, :, None] == 1 + jnp.arange(max_labels))
    beyond = count > max_labels

    def collect(x: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(place, x[:, :, None], 0), axis=1)

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
    """Finds the `beam_size` likeliest label sequences that a beam of this size meets.

    Ties go to the hypothesis that is there before one that grows, then to the one that ranked
    higher, then to the lower token id. A batch gives what its examples give alone.

    Args:
        log_probs: `[batch, frames, vocab]` natural log-probabilities; the blank is 0.
        frame_lengths: Valid frames of each example, `[batch]`; zero gives one hypothesis, the
            empty one with score 0.
        beam_size: Hypotheses kept at a frame, and returned.
        max_labels: Room for tokens; who wants more stays as it is and is marked `truncated`.
        fusion: A language model and what else shall rank hypotheses.

    Returns:
        The hypotheses, `[batch, beam_size, ...]`, in the order of their fused scores; frames and
        token scores are those of the likeliest alignment.

    Raises:
        ValueError: If a number is below 1, the shapes do not belong together, or an internal
            language model shall be subtracted.
    """
    check_arguments(log_probs, frame_lengths, max_labels, 1)
    if beam_size < 1:
        raise ValueError(f"beam_size must be at least 1, not {beam_size}")
    fusion = fusion or Fusion()
    if fusion.internal_weight:
        raise ValueError("CTC has no internal language model to subtract")
    lm = fusion.lm if fusion.weight else None
    log_probs = log_probs.astype(jnp.float32)
    batch, frames, vocab = log_probs.shape
    frame_lengths = jnp.minimum(frame_lengths, frames)
    shape = (batch, beam_size)
    slots = jnp.arange(max_labels)
    vocabulary = jnp.arange(vocab)
    wide = min(beam_size, vocab)

    def read(labels: jax.Array, lm_state: State) -> tuple[jax.Array, State]:
        """What the language model says after a label, `[batch, beam]`."""
        if lm is None:
            return jnp.zeros((*shape, 0), jnp.float32), lm_state
        flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), lm_state)
        guide, flat = lm.score(flat, labels.reshape(-1))
        guide, lm_state = jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), (guide, flat))
        return fusion.weight * guide.astype(jnp.float32), lm_state

    def step(carry: tuple[jax.Array, _Beam]) -> tuple[jax.Array, _Beam]:
        frame, beam = carry
        now = jax.lax.dynamic_index_in_dim(log_probs, frame, axis=1, keepdims=False)
        # What is behind the last frame may be anything.
        now = jnp.where((frame < frame_lengths)[:, None], now, 0.0)[:, None, :]
        last = jnp.sum(jnp.where(slots == beam.lengths[..., None] - 1, beam.tokens, 0), axis=-1)
        is_last = (vocabulary == last[..., None]) & (beam.lengths > 0)[..., None]
        added = fusion.length_bonus + (beam.guide if lm is not None else jnp.zeros((*shape, vocab)))

        stay_blank = beam.scores + now[..., BLANK_ID]
        said = jnp.take_along_axis(jnp.broadcast_to(now, (*shape, vocab)), last[..., None], axis=2)
        stay_label = jnp.where(beam.lengths > 0, beam.label + said[..., 0], NONE)
        grown = jnp.where(is_last, beam.blank[..., None], beam.scores[..., None]) + now
        grown = jnp.where(vocabulary == BLANK_ID, NONE, grown)
        full = beam.lengths >= max_labels
        wanted = jnp.max(grown + added, axis=-1) > jnp.logaddexp(stay_blank, stay_label)
        truncated = beam.truncated | (full & wanted)
        grown = jnp.where(full[..., None], NONE, grown)

        # Where a hypothesis grows into another one of the beam, that one takes it in.
        parent = parents(beam.tokens, beam.lengths, beam.scores > NONE)  # [batch, parent, child]
        to_child = jnp.broadcast_to(last[:, None, :], parent.shape)
        inflow = jnp.where(parent, jnp.take_along_axis(grown, to_child, axis=2), NONE)
        stay_label = jnp.logaddexp(stay_label, jnp.max(inflow, axis=1))
        joined = jnp.any(parent[..., None] & (vocabulary == to_child[..., None]), axis=2)
        grown = jnp.where(joined, NONE, grown)

        fused, token = top(grown + (beam.extra[..., None] + added), wide)
        flat = (batch, beam_size * wide)
        score = jnp.take_along_axis(grown, token, axis=2).reshape(flat)
        extra = beam.extra[..., None] + jnp.take_along_axis(added, token, axis=2)
        staying = jnp.logaddexp(stay_blank, stay_label) + beam.extra
        fused, chosen = top(jnp.concatenate([staying, fused.reshape(flat)], axis=1), beam_size)

        is_new = chosen >= beam_size
        place = jnp.maximum(chosen - beam_size, 0)
        source = jnp.where(is_new, place // wide, jnp.minimum(chosen, beam_size - 1))
        token = take(token.reshape(flat), place)
        lengths = take(beam.lengths, source)
        end = (slots == lengths[..., None]) & is_new[..., None]
        kept = jax.tree.map(lambda x: take(x, source), (beam.guide, beam.lm_state))
        alive = fused > NONE
        new = _Beam(
            tokens=jnp.where(end, token[..., None], take(beam.tokens, source)),
            lengths=lengths + is_new,
            blank=jnp.where(alive & ~is_new, take(stay_blank, source), NONE),
            label=jnp.where(
                alive, jnp.where(is_new, take(score, place), take(stay_label, source)), NONE
            ),
            extra=jnp.where(is_new, take(extra.reshape(flat), place), take(beam.extra, source)),
            truncated=take(truncated, source),
            guide=kept[0],
            lm_state=kept[1],
        )
        guide, lm_state = where_rows(is_new, read(token, new.lm_state), kept)
        new = new._replace(guide=guide, lm_state=lm_state)
        return frame + 1, where_rows(frame < frame_lengths, new, beam)

    lm_state = () if lm is None else lm.initial_state(batch)
    lm_state = jax.tree.map(
        lambda x: jnp.broadcast_to(x[:, None], (*shape, *x.shape[1:])), lm_state
    )
    guide, lm_state = read(jnp.full(shape, BLANK_ID, jnp.int32), lm_state)
    first = jnp.where(jnp.arange(beam_size) == 0, 0.0, NONE).astype(jnp.float32)
    start = _Beam(
        tokens=jnp.full((*shape, max_labels), BLANK_ID, jnp.int32),
        lengths=jnp.zeros(shape, jnp.int32),
        blank=jnp.broadcast_to(first, shape),
        label=jnp.full(shape, NONE, jnp.float32),
        extra=jnp.zeros(shape, jnp.float32),
        truncated=jnp.zeros(shape, bool),
        guide=guide,
        lm_state=lm_state,
    )
    longest = jnp.max(frame_lengths)
    _, beam = jax.lax.while_loop(
        lambda carry: carry[0] < longest, step, (jnp.zeros((), jnp.int32), start)
    )
    ending = beam.guide[..., BLANK_ID] if lm is not None else 0.0
    fused, order = top(beam.scores + beam.extra + ending, beam_size)
    beam, scores = jax.tree.map(lambda x: take(x, order), (beam, beam.scores))
    there = fused > NONE
    tokens = jnp.where(there[..., None], beam.tokens, BLANK_ID)
    lengths = jnp.where(there, beam.lengths, 0)
    path = jax.vmap(ctc_alignment, in_axes=(None, 1, None, 1), out_axes=1)(
        log_probs, tokens, frame_lengths, lengths
    )
    return Hypotheses(
        tokens=tokens,
        lengths=lengths,
        frames=path.frames,
        token_scores=path.label_scores,
        scores=jnp.where(there, scores, NONE),
        fused_scores=fused,
        truncated=beam.truncated & there,
    )

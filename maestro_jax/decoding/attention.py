"""Beam search for a decoder that attends to its input, a whole batch at once.

Hypotheses grow by a token a step, all at once, and end where they choose the end of sequence. They
are ranked by their log-probability over a function of their length (Wu et al. 2016, arXiv
1609.08144, equation 14, without coverage):

    rank = log P(tokens, end) / ((5 + n) / 6) ** length_alpha,    n tokens, the end counted

since without it every token costs and short translations win. An end counts if it is among the
likeliest `beam_size` continuations of its step; a beam that holds every hypothesis is exhaustive.

All arrays have the batch in front and every operation stays within its row: a batch that is split
over devices stays split, and the only communication is the question whether any row is unfinished.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from maestro_jax.decoding.fusion import Fusion
from maestro_jax.decoding.hypotheses import Hypotheses, State, where_rows
from maestro_jax.decoding.selection import NONE, take, top
from maestro_jax.vocabularies.vocabulary import EOS_ID, PAD_ID

Step = Callable[[jax.Array, jax.Array, State], tuple[jax.Array, State]]
"""`(tokens [batch, beam], position, past) -> (logits [batch, beam, vocab], new past)`.

`past` is a pytree of `[batch, beam, ...]` arrays: what is known of the tokens before.
"""


class _Beam(NamedTuple):
    """What the loop carries of hypotheses that have not ended, `[batch, beam, ...]`."""

    tokens: jax.Array
    token_scores: jax.Array
    scores: jax.Array
    extra: jax.Array  # what fusion has added
    past: State
    lm_state: State


def attention_decode(
    step: Step,
    past: State,
    present: jax.Array,
    *,
    beam_size: int,
    max_labels: int,
    length_alpha: float = 0.6,
    fusion: Fusion | None = None,
) -> Hypotheses:
    """Finds the `beam_size` best translations that a beam of this size meets.

    A row stops where nothing that still grows can rank before the `beam_size` that have ended; with
    a beam of 1 at the first end, so that it is the greedy search. Ties go to the hypothesis that
    ranked higher, then to the lower token id. A batch gives what its examples give alone.

    Args:
        step: The decoder; sees the padding id 0 first and then every token. It never writes 0.
        past: What it knows before the first token, `[batch, beam_size, ...]`.
        present: Which examples are there, `[batch]` bool; the others get one hypothesis, the empty
            one with score 0.
        beam_size: Hypotheses kept at a step, and returned.
        max_labels: Room for tokens; after so many the end is taken, and scored, whatever else is
            likelier, and the hypothesis is marked `truncated`.
        length_alpha: Exponent of the length normalisation; 0 for none.
        fusion: A language model and what else shall rank hypotheses.

    Returns:
        The hypotheses, `[batch, beam_size, ...]`, in the order of their fused scores: normalised by
        length, a language model included. `scores` are log-probabilities under the decoder, the end
        included. There is no alignment: `frames` are 0.

    Raises:
        ValueError: If a number is out of its range, or an internal language model shall be
            subtracted.
    """
    if beam_size < 1 or max_labels < 1 or length_alpha < 0:
        raise ValueError(
            "beam_size and max_labels must be at least 1 and length_alpha at least 0, not "
            f"{beam_size}, {max_labels} and {length_alpha}"
        )
    fusion = fusion or Fusion()
    if fusion.internal_weight:
        raise ValueError("an attention decoder has no internal language model to subtract")
    lm = fusion.lm if fusion.weight else None
    batch = len(present)
    shape = (batch, beam_size)
    slots = jnp.arange(max_labels)

    def normalised(score: jax.Array, length: jax.Array | int) -> jax.Array:
        return score / ((5.0 + length) / 6.0) ** length_alpha

    def guide_of(last: jax.Array, lm_state: State, vocab: int) -> tuple[jax.Array, State]:
        """What is added to each continuation, `[batch, beam, vocab]`."""
        is_end = jnp.arange(vocab) == EOS_ID
        bonus = jnp.where(is_end, 0.0, fusion.length_bonus)
        if lm is None:
            return jnp.broadcast_to(bonus, (*shape, vocab)), lm_state
        flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), lm_state)
        guide, flat = lm.score(flat, last.reshape(-1))
        guide, lm_state = jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), (guide, flat))
        # At id 0 it says how likely the text is to end.
        guide = jnp.where(is_end, guide[..., :1], guide)
        return fusion.weight * guide.astype(jnp.float32) + bonus, lm_state

    def grow(carry: tuple[jax.Array, _Beam, Hypotheses]) -> tuple[jax.Array, _Beam, Hypotheses]:
        position, beam, ended = carry
        before = jnp.sum(jnp.where(slots == position - 1, beam.tokens, 0), axis=-1)
        logits, past = step(before, position, beam.past)
        vocab = logits.shape[-1]
        arcs = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
        added, lm_state = guide_of(before, beam.lm_state, vocab)
        ids = jnp.arange(vocab)
        arcs = jnp.where(ids == PAD_ID, NONE, arcs)
        arcs = jnp.where((beam.scores > NONE)[..., None], arcs, NONE)
        wishes = jnp.where(ids == EOS_ID, NONE, arcs + added)
        cut = (position == max_labels) & (
            jnp.max(wishes, axis=-1) > arcs[..., EOS_ID] + added[..., EOS_ID]
        )
        arcs = jnp.where((position == max_labels) & (ids != EOS_ID), NONE, arcs)

        scores = beam.scores[..., None] + arcs
        extra = beam.extra[..., None] + added
        # Twice the beam: however many of them end, as many as the beam holds go on.
        flat = (batch, beam_size * vocab)
        fused, chosen = top((scores + extra).reshape(flat), min(2 * beam_size, flat[1]))
        source, token = chosen // vocab, chosen % vocab
        score, extra, arc = (take(x.reshape(flat), chosen) for x in (scores, extra, arcs))
        ends = (token == EOS_ID) & (jnp.arange(fused.shape[1]) < beam_size) & (fused > NONE)

        length = jnp.full(source.shape, position, jnp.int32)
        ending = Hypotheses(
            tokens=take(beam.tokens, source),
            lengths=length,
            frames=jnp.zeros((*source.shape, max_labels), jnp.int32),
            token_scores=take(beam.token_scores, source),
            scores=score,
            fused_scores=jnp.where(ends, normalised(fused, position + 1), NONE),
            truncated=take(cut, source),
        )
        both = jax.tree.map(lambda x, y: jnp.concatenate([x, y], axis=1), ended, ending)
        ranked, best = top(both.fused_scores, beam_size)
        ended = jax.tree.map(lambda x: take(x, best), both)._replace(fused_scores=ranked)

        left, going = top(jnp.where(token == EOS_ID, NONE, fused), beam_size)
        source, token, score, extra, arc = (
            take(x, going) for x in (source, token, score, extra, arc)
        )
        here = slots == position
        gain = max(fusion.length_bonus, 0.0) * (max_labels - 1 - position)
        hope = jnp.max(left, axis=1) + gain
        hope = jnp.maximum(normalised(hope, max_labels + 1), normalised(hope, position + 2))
        full = ranked[:, -1] > NONE
        done = full & ((hope <= ranked[:, -1]) | (beam_size == 1))
        alive = (left > NONE) & ~done[:, None]
        past, lm_state = jax.tree.map(lambda x: take(x, source), (past, lm_state))
        beam = _Beam(
            tokens=jnp.where(here, token[..., None], take(beam.tokens, source)),
            token_scores=jnp.where(here, arc[..., None], take(beam.token_scores, source)),
            scores=jnp.where(alive, score, NONE),
            extra=jnp.where(alive, extra, 0.0),
            past=past,
            lm_state=lm_state,
        )
        return position + 1, beam, ended

    lm_state = () if lm is None else lm.initial_state(batch)
    lm_state = jax.tree.map(
        lambda x: jnp.broadcast_to(x[:, None], (*shape, *x.shape[1:])), lm_state
    )
    is_first = jnp.arange(beam_size) == 0
    empty = Hypotheses(
        tokens=jnp.full((*shape, max_labels), PAD_ID, jnp.int32),
        lengths=jnp.zeros(shape, jnp.int32),
        frames=jnp.zeros((*shape, max_labels), jnp.int32),
        token_scores=jnp.zeros((*shape, max_labels), jnp.float32),
        scores=jnp.full(shape, NONE, jnp.float32),
        fused_scores=jnp.full(shape, NONE, jnp.float32),
        truncated=jnp.zeros(shape, bool),
    )
    absent = jnp.where(~present[:, None] & is_first, 0.0, NONE).astype(jnp.float32)
    begin = jnp.where(present[:, None] & is_first, 0.0, NONE).astype(jnp.float32)
    beam = _Beam(
        tokens=empty.tokens,
        token_scores=empty.token_scores,
        scores=begin,
        extra=jnp.zeros(shape, jnp.float32),
        past=past,
        lm_state=lm_state,
    )
    _, _, ended = jax.lax.while_loop(
        lambda carry: (carry[0] <= max_labels) & jnp.any(carry[1].scores > NONE),
        grow,
        (jnp.zeros((), jnp.int32), beam, empty._replace(scores=absent, fused_scores=absent)),
    )
    return where_rows(ended.fused_scores == NONE, empty, ended)

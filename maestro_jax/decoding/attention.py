"""Beam search for an attention decoder, batched.

All live hypotheses of a row grow by one token per step, and a hypothesis is finished by the end of
sequence. Hypotheses are ranked by their log-probability, normalised by their length (Wu et al.
2016, arXiv 1609.08144, equation 14, without coverage):

    rank = log P(tokens, end) / ((5 + n) / 6) ** length_alpha,    n tokens, the end included

Without normalisation every token costs probability, and short translations win. An end of sequence
counts if it is among the `beam_size` likeliest continuations of its step. A beam that holds every
hypothesis is exhaustive.

All arrays have a leading batch axis and every operation stays within its row: a batch that is split
over devices stays split, and the only communication is the test whether any row is unfinished.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from maestro_jax.decoding.fusion import Fusion
from maestro_jax.decoding.hypotheses import (
    NEG_INF,
    Hypotheses,
    State,
    gather_beams,
    no_hypotheses,
    top_k,
    where_rows,
)
from maestro_jax.text.vocabularies import EOS_ID, PAD_ID

Step = Callable[[jax.Array, jax.Array, State], tuple[jax.Array, State]]
"""`(tokens [batch, beam], position, past) -> (logits [batch, beam, vocab], new past)`.

`past` is a pytree of `[batch, beam, ...]` arrays: the decoder's state after the tokens before.
"""


class _Beam(NamedTuple):
    """The live hypotheses that the loop carries, `[batch, beam, ...]`."""

    tokens: jax.Array
    token_scores: jax.Array
    scores: jax.Array
    fused: jax.Array  # Sum of the terms that fusion has added.
    past: State
    lm_state: State


class _Candidates(NamedTuple):
    """The best continuations of a row, `[batch, 2 * beam]`, best first."""

    source: jax.Array  # The hypothesis that is continued.
    token: jax.Array
    arc: jax.Array  # Log-probability of the token.
    score: jax.Array
    fused: jax.Array
    fused_score: jax.Array
    is_cut: jax.Array  # Whether the hypothesis had no room for a likelier token than the end.


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
    """Searches for the `beam_size` best token sequences.

    A row stops when no live hypothesis can outrank the `beam_size` finished ones; with a beam of 1
    at the first end of sequence, which is greedy search. Ties go to the hypothesis that ranked
    higher, then to the lower token id. The result of an example does not depend on the rest of its
    batch.

    Args:
        step: The decoder. It reads the padding id 0 first and then every token; it never emits 0.
        past: Its state before the first token, `[batch, beam_size, ...]`.
        present: Bool `[batch]`, False for absent examples, which have one hypothesis, the empty
            one with score 0.
        beam_size: Number of hypotheses kept at each step and returned.
        max_labels: Room for tokens. A hypothesis of that length takes the end of sequence, and is
            marked `truncated` if another token was likelier.
        length_alpha: Exponent of the length normalisation; 0 for none.
        fusion: Language model and further terms that rank hypotheses.

    Returns:
        The hypotheses, `[batch, beam_size, ...]`, in the order of their fused scores, which are
        normalised by length and include the language model. `scores` are log-probabilities under
        the decoder, the end of sequence included. There is no alignment: `frames` are 0.

    Raises:
        ValueError: If a number is out of its range, or `fusion` subtracts an internal language
            model.
    """
    if beam_size < 1 or max_labels < 1 or length_alpha < 0:
        raise ValueError(
            "beam_size and max_labels must be at least 1 and length_alpha at least 0, not "
            f"{beam_size}, {max_labels} and {length_alpha}"
        )
    fusion = fusion or Fusion()
    if fusion.subtracts_internal:
        raise ValueError("an attention decoder has no internal language model to subtract")
    shape = (len(present), beam_size)
    search = _AttentionBeamSearch(
        step=step,
        shape=shape,
        max_labels=max_labels,
        length_alpha=length_alpha,
        fusion=fusion,
    )
    empty = no_hypotheses(shape, max_labels, PAD_ID)
    is_first = jnp.arange(beam_size) == 0
    absent = jnp.where(~present[:, None] & is_first, 0.0, NEG_INF).astype(jnp.float32)
    beam = _Beam(
        tokens=empty.tokens,
        token_scores=empty.token_scores,
        # One live hypothesis, the empty one: with equal copies the beam would hold the same texts
        # again and again.
        scores=jnp.where(present[:, None] & is_first, 0.0, NEG_INF).astype(jnp.float32),
        fused=jnp.zeros(shape, jnp.float32),
        past=past,
        lm_state=fusion.initial_state(shape),
    )
    _, _, finished = jax.lax.while_loop(
        # Step max_labels is for the ends of hypotheses without room: max_labels + 1 steps in all.
        lambda carry: (carry[0] <= max_labels) & jnp.any(carry[1].scores > NEG_INF),
        lambda carry: search.grow(*carry),
        (jnp.zeros((), jnp.int32), beam, empty._replace(scores=absent, fused_scores=absent)),
    )
    return where_rows(finished.fused_scores == NEG_INF, empty, finished)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _AttentionBeamSearch:
    """The steps of the search over one batch; see `attention_decode` for the attributes."""

    step: Step
    shape: tuple[int, int]  # Batch and beam.
    max_labels: int
    length_alpha: float
    fusion: Fusion

    def grow(
        self, position: jax.Array, beam: _Beam, finished: Hypotheses
    ) -> tuple[jax.Array, _Beam, Hypotheses]:
        """Continues every live hypothesis, of `position` tokens, by a token or the end."""
        candidates, past, lm_state = self._continuations(position, beam)
        finished = self._finish(position, beam, candidates, finished)

        # The best that do not end stay live.
        fused_score, kept = top_k(
            jnp.where(candidates.token == EOS_ID, NEG_INF, candidates.fused_score), self.shape[1]
        )
        live: _Candidates = gather_beams(candidates, kept)
        is_done = self._is_done(position, fused_score, finished)
        alive = (fused_score > NEG_INF) & ~is_done[:, None]
        # No slot matches in the last step, in which nothing but ends is left.
        appended = jnp.arange(self.max_labels) == position
        old_tokens, old_token_scores, past, lm_state = gather_beams(
            (beam.tokens, beam.token_scores, past, lm_state), live.source
        )
        beam = _Beam(
            tokens=jnp.where(appended, live.token[..., None], old_tokens),
            token_scores=jnp.where(appended, live.arc[..., None], old_token_scores),
            scores=jnp.where(alive, live.score, NEG_INF),
            fused=jnp.where(alive, live.fused, 0.0),
            past=past,
            lm_state=lm_state,
        )
        return position + 1, beam, finished

    def _continuations(self, position: jax.Array, beam: _Beam) -> tuple[_Candidates, State, State]:
        """Ranks all continuations; returns the best, and the new states of decoder and model."""
        slots = jnp.arange(self.max_labels)
        # [batch, beam]. At position 0 no slot matches, and the sum is 0: the id that begins a text.
        previous = jnp.sum(jnp.where(slots == position - 1, beam.tokens, 0), axis=-1)
        logits, past = self.step(previous, position, beam.past)
        vocab = logits.shape[-1]
        ids = jnp.arange(vocab)
        arcs = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)  # [batch, beam, vocab]
        added, lm_state = self._fused(previous, beam.lm_state, vocab)
        arcs = jnp.where(ids == PAD_ID, NEG_INF, arcs)
        arcs = jnp.where((beam.scores > NEG_INF)[..., None], arcs, NEG_INF)
        # Without room for another token only the end is left.
        is_full = position == self.max_labels
        best_token = jnp.max(jnp.where(ids == EOS_ID, NEG_INF, arcs + added), axis=-1)
        is_cut = is_full & (best_token > arcs[..., EOS_ID] + added[..., EOS_ID])
        arcs = jnp.where(is_full & (ids != EOS_ID), NEG_INF, arcs)

        scores = beam.scores[..., None] + arcs
        fused = beam.fused[..., None] + added
        # Twice the beam: at most `beam_size` of them end, so that as many can stay live.
        flat = (self.shape[0], self.shape[1] * vocab)
        fused_score, kept = top_k((scores + fused).reshape(flat), min(2 * self.shape[1], flat[1]))
        source, token = kept // vocab, kept % vocab
        score, fused, arc = gather_beams(
            (scores.reshape(flat), fused.reshape(flat), arcs.reshape(flat)), kept
        )
        candidates = _Candidates(
            source, token, arc, score, fused, fused_score, gather_beams(is_cut, source)
        )
        return candidates, past, lm_state

    def _fused(self, previous: jax.Array, lm_state: State, vocab: int) -> tuple[jax.Array, State]:
        """Computes what fusion adds to each continuation, `[batch, beam, vocab]`."""
        is_end = jnp.arange(vocab) == EOS_ID
        bonus = jnp.where(is_end, 0.0, self.fusion.length_bonus)
        if not self.fusion.scores_labels:
            return jnp.broadcast_to(bonus, (*self.shape, vocab)), lm_state
        scores, lm_state = self.fusion.score_next(lm_state, previous)
        # Fusion has the end of text at id 0, the decoder at EOS_ID.
        return jnp.where(is_end, scores[..., :1], scores) + bonus, lm_state

    def _finish(
        self, position: jax.Array, beam: _Beam, candidates: _Candidates, finished: Hypotheses
    ) -> Hypotheses:
        """Adds the candidates that end to the finished hypotheses, and keeps the best."""
        source, fused_score = candidates.source, candidates.fused_score
        ends = (candidates.token == EOS_ID) & (fused_score > NEG_INF)
        # An end counts among the first `beam_size` candidates alone, as in a beam that is not twice
        # as wide.
        ends &= jnp.arange(fused_score.shape[1]) < self.shape[1]
        tokens, token_scores = gather_beams((beam.tokens, beam.token_scores), source)
        ending = Hypotheses(
            tokens=tokens,
            lengths=jnp.full(source.shape, position, jnp.int32),
            frames=jnp.zeros((*source.shape, self.max_labels), jnp.int32),
            token_scores=token_scores,
            scores=candidates.score,
            fused_scores=jnp.where(ends, self._normalised(fused_score, position + 1), NEG_INF),
            truncated=candidates.is_cut,
        )
        # Earlier ones first: they win ties.
        both = jax.tree.map(lambda x, y: jnp.concatenate([x, y], axis=1), finished, ending)
        ranked, kept = top_k(both.fused_scores, self.shape[1])
        return gather_beams(both, kept)._replace(fused_scores=ranked)

    def _is_done(
        self, position: jax.Array, fused_score: jax.Array, finished: Hypotheses
    ) -> jax.Array:
        """Tells which rows have no live hypothesis that can still outrank a finished one.

        A score can rise by what fusion adds to the tokens to come, and its normalised value is
        highest either at the shortest or at the longest length.
        """
        # An end can complete a phrase as a token can, but has no length bonus.
        end = self.fusion.largest_gain - jnp.maximum(self.fusion.length_bonus, 0.0)
        gain = end + self.fusion.largest_gain * (self.max_labels - 1 - position)
        bound = jnp.max(fused_score, axis=1) + gain
        bound = jnp.maximum(
            self._normalised(bound, self.max_labels + 1), self._normalised(bound, position + 2)
        )
        # -inf until as many have finished as the beam holds.
        worst = finished.fused_scores[:, -1]
        return (worst > NEG_INF) & ((bound <= worst) | (self.shape[1] == 1))

    def _normalised(self, score: jax.Array, length: jax.Array | int) -> jax.Array:
        return score / ((5.0 + length) / 6.0) ** self.length_alpha

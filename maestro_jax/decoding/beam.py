"""Beam search for transducers, batched, which sums over the alignments of each hypothesis.

The search is synchronous in the length of the alignment (Saon et al. 2020, "Alignment-length
synchronous decoding for RNN transducer"): after n steps every hypothesis has taken n arcs, each a
blank or a label. Two paths with the same labels are then on the same frame, so that the sum of
their probabilities is exactly the forward recursion of the loss:

    alpha(n + 1, y) = alpha(n, y) P(blank | y) + alpha(n, y without its last label) P(last | ...)

Both terms come from hypotheses of the beam, and they are added **before** the beam is pruned: a
hypothesis is ranked by the probability of its labels, not of its best path, and never takes two
places. A beam that holds every hypothesis gives exact log-likelihoods. Labels are compared as they
are, not by hashes. With one label per frame every arc consumes a frame, and the same recursion is
synchronous in frames.

All arrays have a leading batch axis and every operation stays within its row: a batch that is split
over devices stays split, and the only communication is the test whether any row is unfinished.

A step extends the beam by one arc::

    _score_arcs -> _join_parents -> _prune -> _advance -> _retire
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from maestro_jax.decoding.fusion import Fusion
from maestro_jax.decoding.hypotheses import (
    NEG_INF,
    Hypotheses,
    Joint,
    Predict,
    State,
    add_beam_dim,
    check_arguments,
    flatten_beam_dim,
    gather_beams,
    last_tokens,
    no_hypotheses,
    parents,
    top_k,
    unflatten_beam_dim,
    where_rows,
)
from maestro_jax.losses.transducer_arcs import NEG, check_blank, log_probabilities


class _Context(NamedTuple):
    """The networks after the labels so far, `[batch, beam, ...]`."""

    outputs: jax.Array  # Outputs of the prediction network.
    state: State  # State of the prediction network.
    lm_scores: jax.Array  # Of language model and phrases, [batch, beam, vocab]; vocab 0 without.
    lm_state: State


class _Beam(NamedTuple):
    """The unfinished hypotheses that the loop carries, `[batch, beam, ...]`.

    A hypothesis has a score over all of its alignments (`live.scores`), and it remembers the
    likeliest one, whose emission frames are `live.frames`.
    """

    live: Hypotheses
    fused: jax.Array  # Sum of the terms that fusion has added.
    path: jax.Array  # Log-probability of the likeliest alignment.
    frame: jax.Array  # The frame that the next arc reads.
    symbols: jax.Array  # Labels that the likeliest alignment has emitted on that frame.
    context: _Context

    @property
    def alive(self) -> jax.Array:
        """Returns bool `[batch, beam]`, False for empty places."""
        return self.live.scores > NEG_INF


class _Arcs(NamedTuple):
    """The arcs that leave each hypothesis."""

    blank: jax.Array  # Log-probability, [batch, beam].
    label: jax.Array  # Log-probabilities, [batch, beam, vocab]; minus infinity at the blank.
    fused: jax.Array  # What fusion adds to each label, [batch, beam, vocab].


class _Joined(NamedTuple):
    """Hypotheses after a step without a new label: by a blank, or by their last label.

    A hypothesis gains its last label from its parent, if the beam has one: the hypothesis without
    that label. All are `[batch, beam]`.
    """

    score: jax.Array  # Log-probability over both ways.
    by_label: jax.Array  # Whether the likeliest alignment comes from the parent.
    parent: jax.Array  # The parent's place.
    arc: jax.Array  # Log-probability of the parent's label arc.


class _Choice(NamedTuple):
    """The origin of each place of the next beam, `[batch, beam]`."""

    source: jax.Array  # The hypothesis with the same labels, apart from a new one.
    is_new: jax.Array  # Whether there is a new label.
    token: jax.Array  # The new label.
    aligned: jax.Array  # The hypothesis whose likeliest alignment is continued.
    emits: jax.Array  # Whether that alignment is continued by a label.
    arc: jax.Array  # Log-probability of the arc that continues it.
    score: jax.Array
    fused: jax.Array
    fused_score: jax.Array


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
    """Searches for the `beam_size` likeliest label sequences.

    Ties go to the blank before a label, then to the hypothesis that ranked higher, then to the
    lower token id; of equally likely alignments of a hypothesis, to the one that emits earlier. A
    beam of 1 without fusion takes the path of greedy search. The result of an example does not
    depend on the rest of its batch.

    `max_symbols_per_frame` counts labels of the likeliest alignment of a hypothesis; where the
    limit binds, scores lack the alignments that would exceed it.

    Args:
        predict: The prediction network; called with `batch * beam_size` rows.
        joint: The joint network; called with as many rows.
        initial_state: State of the prediction network before the first call, for `batch` rows.
        encoded: Encoder output, `[batch, frames, features]`.
        frame_lengths: Valid frames of each example, `[batch]`. An example of zero frames has one
            hypothesis, the empty one with score 0.
        beam_size: Number of hypotheses kept at each step and returned.
        max_labels: Room for tokens. A hypothesis that needs more takes blanks and is marked
            `truncated`.
        blank_id: Token id of the blank.
        max_symbols_per_frame: Largest number of labels on one frame.
        hat: Whether the model was trained with the hybrid autoregressive factorisation (see
            `losses.transducer_arcs`).
        one_label_per_frame: Whether a label consumes its frame, as the blank does.
        fusion: Language model and further terms that rank hypotheses.

    Returns:
        The hypotheses, `[batch, beam_size, ...]`, in the order of their fused scores.

    Raises:
        ValueError: If a number is below 1, or the shapes do not belong together.
    """
    check_arguments(encoded, frame_lengths, max_labels, max_symbols_per_frame)
    if beam_size < 1:
        raise ValueError(f"beam_size must be at least 1, not {beam_size}")
    fusion = fusion or Fusion()
    batch, frames, _ = encoded.shape
    frame_lengths = jnp.minimum(frame_lengths, frames)[:, None]
    search = _TransducerBeamSearch(
        predict=predict,
        joint=joint,
        encoded=encoded,
        frame_lengths=frame_lengths,
        internal_encoded=_internal_encoded(fusion, encoded, frame_lengths, beam_size),
        shape=(batch, beam_size),
        max_labels=max_labels,
        blank_id=blank_id,
        max_symbols_per_frame=max_symbols_per_frame,
        hat=hat,
        one_label_per_frame=one_label_per_frame,
        fusion=fusion,
    )
    empty = no_hypotheses(search.shape, max_labels, blank_id)
    _, finished = jax.lax.while_loop(
        lambda carry: jnp.any(carry[0].alive),
        lambda carry: search.step(*carry),
        search.start(initial_state, empty),
    )
    return where_rows(finished.fused_scores == NEG_INF, empty, finished)


def _internal_encoded(
    fusion: Fusion, encoded: jax.Array, frame_lengths: jax.Array, beam_size: int
) -> jax.Array:
    """Computes what replaces a frame for the internal language model, `[batch, beam, features]`."""
    replacement = jnp.zeros_like(encoded[:, :1])
    if fusion.internal_encoder == "mean":
        valid = (jnp.arange(encoded.shape[1]) < frame_lengths)[..., None]
        total = jnp.sum(jnp.where(valid, encoded.astype(jnp.float32), 0.0), axis=1, keepdims=True)
        # Float32 sums: an utterance has thousands of frames. An absent example has a mean of 0.
        replacement = total / jnp.maximum(frame_lengths, 1)[..., None]
    return jnp.repeat(replacement.astype(encoded.dtype), beam_size, axis=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _TransducerBeamSearch:
    """The steps of the search over one batch; see `beam_decode` for the attributes."""

    predict: Predict
    joint: Joint
    encoded: jax.Array
    frame_lengths: jax.Array  # [batch, 1]
    internal_encoded: jax.Array  # [batch, beam, features]
    shape: tuple[int, int]  # Batch and beam.
    max_labels: int
    blank_id: int
    max_symbols_per_frame: int
    hat: bool
    one_label_per_frame: bool
    fusion: Fusion

    def start(self, initial_state: State, empty: Hypotheses) -> tuple[_Beam, Hypotheses]:
        """Returns a beam of the empty hypothesis alone, and the finished hypotheses."""
        batch, beam_size = self.shape
        # Places 1 and on are empty, with -inf and not with NEG: -inf plus anything stays -inf, so
        # that no arc brings an empty place to life, and a comparison tells it.
        score = jnp.where(jnp.arange(beam_size) == 0, 0.0, NEG_INF)
        score = jnp.broadcast_to(score, self.shape)
        beam = _Beam(
            live=empty._replace(scores=score, fused_scores=score),
            fused=jnp.zeros(self.shape, jnp.float32),
            path=jnp.zeros(self.shape, jnp.float32),
            frame=jnp.zeros(self.shape, jnp.int32),
            symbols=jnp.zeros(self.shape, jnp.int32),
            # The blank stands for the beginning of text.
            context=self._read(
                jnp.full(self.shape, self.blank_id, jnp.int32),
                add_beam_dim(initial_state, beam_size),
                self.fusion.initial_state(self.shape),
            ),
        )
        # Examples without frames are finished at once.
        return self._retire(beam, empty)

    def step(self, beam: _Beam, finished: Hypotheses) -> tuple[_Beam, Hypotheses]:
        """Extends every hypothesis by one arc."""
        arcs = self._score_arcs(beam)
        # A hypothesis at the limit of labels on its frame takes the blank.
        is_capped = beam.symbols >= self.max_symbols_per_frame
        arcs = arcs._replace(label=jnp.where(is_capped[..., None], NEG_INF, arcs.label))
        # So does one without room for more labels, which is truncated if a label was likelier.
        is_full = beam.live.lengths >= self.max_labels
        overflows = is_full & (jnp.max(arcs.label + arcs.fused, axis=-1) > arcs.blank)
        arcs = arcs._replace(label=jnp.where(is_full[..., None], NEG_INF, arcs.label))
        joined, arcs = self._join_parents(beam, arcs)
        choice = self._prune(beam, arcs, joined)
        return self._retire(self._advance(beam, choice, overflows), finished)

    def _read(self, labels: jax.Array, state: State, lm_state: State) -> _Context:
        """Feeds one label per hypothesis, `[batch, beam]`, to the networks."""
        outputs, state = self.predict(flatten_beam_dim(state), labels.reshape(-1))
        outputs, state = unflatten_beam_dim((outputs, state), self.shape)
        lm_scores, lm_state = self.fusion.score_next(lm_state, labels)
        return _Context(outputs, state, lm_scores, lm_state)

    def _score_arcs(self, beam: _Beam) -> _Arcs:
        """Applies the joint network to the frame and the context of each hypothesis."""
        # Finished hypotheses point behind the last frame; they are no longer alive, and what they
        # read is discarded below.
        index = jnp.minimum(beam.frame, self.encoded.shape[1] - 1)
        # [batch, beam, features]: hypotheses of one row may be on different frames, as labels
        # consume none.
        encoded = jnp.take_along_axis(self.encoded, index[..., None], axis=1)
        outputs = flatten_beam_dim(beam.context.outputs)
        logits = self.joint(flatten_beam_dim(encoded), outputs)
        check_blank(self.blank_id, logits.shape[-1])
        is_blank = jnp.arange(logits.shape[-1]) == self.blank_id
        scores = log_probabilities(logits, blank_id=self.blank_id, hat=self.hat)
        scores = unflatten_beam_dim(scores, self.shape)
        # An empty place may have read padding, which may hold anything.
        scores = jnp.where(beam.alive[..., None], scores, NEG_INF)
        fused = beam.context.lm_scores if self.fusion.scores_labels else jnp.zeros(())
        fused = fused + self.fusion.length_bonus
        if self.fusion.subtracts_internal:
            internal = self.joint(flatten_beam_dim(self.internal_encoded), outputs)
            # The label softmax without the blank, also for a model that was trained with one
            # softmax over both.
            internal = jnp.where(is_blank, NEG, internal.astype(jnp.float32))
            internal = unflatten_beam_dim(jax.nn.log_softmax(internal), self.shape)
            # What is excluded has no internal probability either, and minus infinity twice is no
            # number.
            internal = jnp.where(scores > NEG_INF, internal, 0.0)
            fused = fused - self.fusion.internal_weight * internal
        return _Arcs(
            blank=scores[..., self.blank_id],
            label=jnp.where(is_blank, NEG_INF, scores),
            fused=jnp.broadcast_to(fused, scores.shape),
        )

    def _join_parents(self, beam: _Beam, arcs: _Arcs) -> tuple[_Joined, _Arcs]:
        """Adds up both ways to keep the labels of a hypothesis; takes those arcs off the parents.

        The parent's arc to a hypothesis of the beam must not also make a new hypothesis, which
        would have the same labels.
        """
        live, label = beam.live, arcs.label
        is_parent = parents(live.tokens, live.lengths, beam.alive)  # [batch, parent, child]
        last = last_tokens(live.tokens, live.lengths)
        to_child = jnp.broadcast_to(last[:, None, :], is_parent.shape)
        label_arcs = jnp.where(is_parent, jnp.take_along_axis(label, to_child, axis=2), NEG_INF)
        # Maxima over parents: no two hypotheses of a beam are equal, so a child has at most one.
        inflow = jnp.max(live.scores[..., None] + label_arcs, axis=1)
        inflow_path = jnp.max(beam.path[..., None] + label_arcs, axis=1)
        # alpha(n + 1, y): the sum over both ways in. The likeliest alignment, for the times, is a
        # maximum beside it.
        joined = _Joined(
            score=jnp.logaddexp(live.scores + arcs.blank, inflow),
            # A tie goes to the blank: the alignment that emitted the label earlier.
            by_label=inflow_path > beam.path + arcs.blank,
            parent=jnp.argmax(is_parent, axis=1),
            arc=jnp.max(label_arcs, axis=1),
        )
        vocabulary = jnp.arange(label.shape[-1])
        # [batch, parent, vocab]
        is_used = jnp.any(is_parent[..., None] & (vocabulary == to_child[..., None]), axis=2)
        return joined, arcs._replace(label=jnp.where(is_used, NEG_INF, label))

    def _prune(self, beam: _Beam, arcs: _Arcs, joined: _Joined) -> _Choice:
        """Ranks hypotheses with their old labels and with one more, and keeps the best."""
        batch, beam_size = self.shape
        # The best `width` labels of each hypothesis are enough for the beam.
        width = min(beam_size, arcs.label.shape[-1])
        candidates = (batch, beam_size * width)
        grown = beam.live.scores[..., None] + arcs.label  # [batch, beam, vocab]
        fused_score, token = top_k(grown + (beam.fused[..., None] + arcs.fused), width)
        new_arc = jnp.take_along_axis(arcs.label, token, axis=2).reshape(candidates)
        new_score = jnp.take_along_axis(grown, token, axis=2).reshape(candidates)
        new_fused = beam.fused[..., None] + jnp.take_along_axis(arcs.fused, token, axis=2)

        # [batch, beam + beam * width]: old labels first, so that they win ties.
        score = jnp.concatenate([joined.score, new_score], axis=1)
        fused = jnp.concatenate([beam.fused, new_fused.reshape(candidates)], axis=1)
        fused_score = jnp.concatenate(
            [joined.score + beam.fused, fused_score.reshape(candidates)], axis=1
        )
        fused_score, kept = top_k(fused_score, beam_size)

        is_new = kept >= beam_size
        place = jnp.maximum(kept - beam_size, 0)
        # Candidate i of `kept` is hypothesis i, and candidate beam + h * width + k the k-th label
        # of h.
        source = jnp.where(is_new, place // width, jnp.minimum(kept, beam_size - 1))
        from_parent = gather_beams(joined.by_label, source) & ~is_new
        old_arc = gather_beams(jnp.where(joined.by_label, joined.arc, arcs.blank), source)
        return _Choice(
            source=source,
            is_new=is_new,
            token=gather_beams(token.reshape(candidates), place),
            aligned=jnp.where(from_parent, gather_beams(joined.parent, source), source),
            emits=is_new | from_parent,
            arc=jnp.where(is_new, gather_beams(new_arc, place), old_arc),
            # Not what the language model excludes: it would fill a place with no hypothesis.
            score=jnp.where(fused_score > NEG_INF, gather_beams(score, kept), NEG_INF),
            fused=gather_beams(fused, kept),
            fused_score=fused_score,
        )

    def _advance(self, beam: _Beam, choice: _Choice, overflows: jax.Array) -> _Beam:
        """Builds the chosen hypotheses, and feeds new labels to the networks."""
        # Labels and contexts come from `source`, the likeliest alignment from `aligned`.
        source: Hypotheses = gather_beams(
            beam.live._replace(truncated=beam.live.truncated | overflows), choice.source
        )
        # The likeliest alignment decides over `symbols`: paths with the same labels after the same
        # number of arcs are on the same frame, but may have emitted more or fewer of them there.
        path, frame, symbols, frames, token_scores = gather_beams(
            (beam.path, beam.frame, beam.symbols, beam.live.frames, beam.live.token_scores),
            choice.aligned,
        )
        slots = jnp.arange(self.max_labels)
        appended = (slots == source.lengths[..., None]) & choice.is_new[..., None]
        # An alignment that joins from the parent emits the last label now; the hypothesis had it.
        emitted = jnp.where(choice.is_new, source.lengths, source.lengths - 1)[..., None] == slots
        emitted &= choice.emits[..., None]
        consumes = self.one_label_per_frame | ~choice.emits
        live = Hypotheses(
            tokens=jnp.where(appended, choice.token[..., None], source.tokens),
            lengths=source.lengths + choice.is_new,
            frames=jnp.where(emitted, frame[..., None], frames),
            token_scores=jnp.where(emitted, choice.arc[..., None], token_scores),
            scores=choice.score,
            fused_scores=choice.fused_score,
            truncated=source.truncated,
        )
        # All places feed the networks, as shapes are static; those without a new label keep what
        # they had.
        old = gather_beams(beam.context, choice.source)
        new = self._read(choice.token, old.state, old.lm_state)
        return _Beam(
            live=live,
            fused=choice.fused,
            path=path + choice.arc,
            frame=frame + consumes,
            symbols=jnp.where(consumes, 0, symbols + 1),
            context=where_rows(choice.is_new, new, old),
        )

    def _retire(self, beam: _Beam, finished: Hypotheses) -> tuple[_Beam, Hypotheses]:
        """Moves hypotheses that have consumed every frame from the beam to the finished ones."""
        live = beam.live
        is_done = beam.alive & (beam.frame >= self.frame_lengths)
        # What the language model and the phrases add at the end of the text.
        ending = jnp.zeros(())
        if self.fusion.scores_labels:
            ending = beam.context.lm_scores[..., self.blank_id]
        final = jnp.where(is_done, live.fused_scores + ending, NEG_INF)
        candidates = jax.tree.map(
            lambda old, new: jnp.concatenate([old, new], axis=1),
            finished,
            live._replace(fused_scores=final),
        )
        ranked, kept = top_k(candidates.fused_scores, self.shape[1])
        finished = gather_beams(candidates, kept)._replace(fused_scores=ranked)
        scores = jnp.where(is_done, NEG_INF, live.scores)
        if self.fusion.only_lowers:
            # Hypotheses can join, but all together cannot exceed the sum of the unfinished ones.
            bound = jax.nn.logsumexp(jnp.where(is_done, NEG_INF, live.fused_scores), axis=1)
            scores = jnp.where((bound <= ranked[:, -1])[:, None], NEG_INF, scores)
        live = live._replace(
            scores=scores,
            fused_scores=jnp.where(scores > NEG_INF, live.fused_scores, NEG_INF),
        )
        return beam._replace(live=live), finished

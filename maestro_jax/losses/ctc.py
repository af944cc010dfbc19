"""Computes the connectionist temporal classification (CTC) loss and its best path.

    loss = -log sum over paths of prod_t P(symbol_t | frame t)

A path is a sequence of one symbol per frame that becomes the labels when repetitions are merged and
blanks removed (Graves et al. 2006, equations 5-8). Unlike in a transducer, frames are independent
given the encoder. Equal neighbouring labels need a blank between them, so that labels have a path
only if ``labels + repetitions <= frames``.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from maestro_jax.losses.reduction import Weighted, masked_sum
from maestro_jax.losses.transducer_alignment import Alignment, durations_from_emissions
from maestro_jax.losses.transducer_arcs import NEG, check_blank

BLANK_ID = 0


def has_path(labels: jax.Array, frame_lengths: jax.Array, label_lengths: jax.Array) -> jax.Array:
    """Tells whether the frames suffice for the labels and a blank between equal neighbours.

    Args:
        labels: `[batch, labels]` int32.
        frame_lengths: `[batch]` valid frames.
        label_lengths: `[batch]` valid labels.

    Returns:
        `[batch]` bool; True for zero labels.
    """
    # Label n repeats label n - 1; both must be valid.
    inside = jnp.arange(1, labels.shape[1]) < label_lengths[:, None]
    repeated = jnp.sum((labels[:, 1:] == labels[:, :-1]) & inside, axis=1)
    return label_lengths + repeated <= frame_lengths


def ctc_loss(
    logits: jax.Array,
    labels: jax.Array,
    frame_lengths: jax.Array,
    label_lengths: jax.Array,
) -> tuple[Weighted, Weighted]:
    """Computes -log P(labels), in nats per label.

    Args:
        logits: `[batch, frames, vocab]` of any float type; the blank is 0.
        labels: `[batch, labels]` int32; ids after an example's length are ignored.
        frame_lengths: `[batch]` valid frames, at most `frames`; 0 means an absent example.
        label_lengths: `[batch]` valid labels, at most `labels`.

    Returns:
        The total in nats and the number of labels, over examples that have frames and a path; and
        the number of examples that have frames and no path, which are left out of the loss, with a
        count of one, so that the metric is a sum.

    Raises:
        ValueError: If the shapes do not belong together.
    """
    _check(logits, labels, frame_lengths, label_lengths)
    present = frame_lengths > 0
    scored = present & has_path(labels, frame_lengths, label_lengths)
    frame_padding = jnp.arange(logits.shape[1]) >= frame_lengths[:, None]
    label_padding = jnp.arange(labels.shape[1]) >= label_lengths[:, None]
    # optax multiplies padding by 0, and padding may hold infinities.
    logits = jnp.where(frame_padding[:, :, None], 0.0, logits.astype(jnp.float32))
    nats = optax.ctc_loss(
        logits,
        frame_padding.astype(jnp.float32),
        jnp.where(label_padding, BLANK_ID, labels),
        label_padding.astype(jnp.float32),
        blank_id=BLANK_ID,
        # The default log(0) of -1e5 is a score that a long recording can reach.
        log_epsilon=NEG,
    )
    total, _ = masked_sum(nats, scored)
    count = jnp.sum(jnp.where(scored, label_lengths, 0).astype(jnp.float32))
    infeasible = jnp.sum((present & ~scored).astype(jnp.float32))
    return (total, count), (infeasible, jnp.ones(()))


def ctc_alignment(
    log_probs: jax.Array,
    labels: jax.Array,
    frame_lengths: jax.Array,
    label_lengths: jax.Array,
) -> Alignment:
    """Finds the likeliest path that becomes the labels, by the loss's recursion with `max`.

    A label is emitted on the first frame of its state, and owns the frames from there up to the
    emission of the next label, as in `transducer_alignment`; durations sum to the frames.

    Args:
        log_probs: `[batch, frames, vocab]`, natural log-probabilities; the blank is 0.
        labels: `[batch, labels]` int32.
        frame_lengths: `[batch]` valid frames.
        label_lengths: `[batch]` valid labels.

    Returns:
        The alignment; scores of about -1e30 where there is no path. No gradient.

    Raises:
        ValueError: If the shapes do not belong together.
    """
    _check(log_probs, labels, frame_lengths, label_lengths)
    dtype = jnp.promote_types(log_probs.dtype, jnp.float32)
    log_probs = jax.lax.stop_gradient(log_probs).astype(dtype)
    batch, frames, _ = log_probs.shape
    size = labels.shape[1]
    # State 2n is the blank after n labels and state 2n + 1 is label n: blank, label 0, blank, ...
    states = 2 * size + 1
    label_log_probs = jnp.take_along_axis(log_probs, labels[:, None, :], axis=2)
    emissions = jnp.repeat(label_log_probs, 2, axis=2).at[:, :, ::2].set(log_probs[:, :, :1])
    emissions = jnp.concatenate([emissions, log_probs[:, :, :1]], axis=2)  # [batch, frames, states]
    # A label may follow another one directly, over the blank between them, unless they are equal.
    can_skip = jnp.pad(labels[:, 1:] != labels[:, :-1], ((0, 0), (1, 0)))[:, :size]
    can_skip = jnp.stack([jnp.zeros_like(can_skip), can_skip], axis=2).reshape(batch, 2 * size)
    can_skip = jnp.pad(can_skip, ((0, 0), (0, 1)))  # [batch, states]

    def from_state(scores: jax.Array, back: int) -> jax.Array:
        """Moves the score of state `s - back` to state `s`."""
        return jnp.pad(scores, ((0, 0), (back, 0)), constant_values=NEG)[:, :states]

    def forward(
        score: jax.Array, emission: jax.Array
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        # Graves et al. 2006, equations 6 and 7, with max in place of the sum.
        stay, step = score, from_state(score, 1)
        skip = jnp.where(can_skip, from_state(score, 2), NEG)
        best = jnp.maximum(jnp.maximum(stay, step), skip)
        # States moved by the best arc. A tie goes to the smallest move into this state, that is, to
        # the predecessor that is further on: labels are emitted early.
        move = jnp.where(stay == best, 0, jnp.where(step == best, 1, 2)).astype(jnp.int32)
        score = best + emission
        return score, (move, score)

    # Before frame 0 a path is on the first blank: frame 0 then stays there or steps to label 0.
    start = jnp.where(jnp.arange(states) == 0, 0.0, NEG).astype(dtype)
    start = jnp.broadcast_to(start, (batch, states))
    _, (moves, scores) = jax.lax.scan(forward, start, jnp.swapaxes(emissions, 0, 1))

    def at(x: jax.Array, state: jax.Array) -> jax.Array:
        """Picks `[batch]` from `[batch, states]`."""
        # A masked sum in place of a gather leaves a sharded batch sharded.
        return jnp.sum(jnp.where(jnp.arange(states) == state[:, None], x, 0), axis=-1)

    # A path ends on the last label or on the blank after it.
    on_last = (jnp.arange(frames)[:, None] == frame_lengths - 1)[:, :, None]  # [frames, batch, 1]
    final = jnp.sum(jnp.where(on_last, scores, 0.0), axis=0)  # [batch, states]
    last_label = jnp.maximum(2 * label_lengths - 1, 0)
    ends_on_label = at(final, last_label) >= at(final, 2 * label_lengths)
    last = jnp.where(ends_on_label & (label_lengths > 0), last_label, 2 * label_lengths)
    last = last.astype(jnp.int32)

    def backward(
        state: jax.Array, inputs: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        frame, move = inputs
        # Frames of the padding come first in this direction, and leave the state as it is.
        moved = jnp.where(frame < frame_lengths, at(move, state), 0)
        return state - moved, state

    _, path = jax.lax.scan(backward, last, (jnp.arange(frames), moves), reverse=True)

    # The first frame of label n is the number of frames on states before 2n + 1.
    index = jnp.arange(size)
    present = frame_lengths > 0
    valid = (index < label_lengths[:, None]) & present[:, None]
    first = jnp.sum(path[:, :, None] < 2 * index + 1, axis=0)  # [batch, labels]
    first = jnp.where(valid, jnp.minimum(first, frame_lengths[:, None] - 1), 0).astype(jnp.int32)
    emitted = (jnp.arange(frames)[:, None] == first[:, None, :]) & valid[:, None, :]
    return Alignment(
        frames=first,
        durations=durations_from_emissions(first, frame_lengths, label_lengths),
        label_scores=jnp.sum(jnp.where(emitted, label_log_probs, 0.0), axis=1),
        scores=jnp.where(present, at(final, last), 0.0),
    )


def _check(
    scores: jax.Array, labels: jax.Array, frame_lengths: jax.Array, label_lengths: jax.Array
) -> None:
    batch = scores.shape[:1]
    if (
        scores.ndim != 3
        or labels.ndim != 2
        or not labels.shape[:1] == frame_lengths.shape == label_lengths.shape == batch
    ):
        raise ValueError(
            "logits must be [batch, frames, vocab], labels [batch, labels] and both lengths "
            f"[batch], not {scores.shape}, {labels.shape}, {frame_lengths.shape} and "
            f"{label_lengths.shape}"
        )
    check_blank(BLANK_ID, scores.shape[2])

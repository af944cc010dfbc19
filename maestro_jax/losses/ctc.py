"""Connectionist temporal classification: labels without an alignment, one symbol a frame.

    loss = -log sum over paths of prod_t P(symbol_t | frame t)

over all sequences of one symbol a frame that become the labels when repetitions are merged and
blanks removed (Graves et al. 2006, equations 5-8). Frames are independent given the encoder, which
is what sets it apart from the transducer; a label that is repeated needs a blank between, so that a
text has paths only if ``labels + repetitions <= frames``.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from maestro_jax.losses.reduction import Weighted, masked_sum
from maestro_jax.losses.transducer_alignment import Alignment
from maestro_jax.losses.transducer_arcs import NEG, check_blank

BLANK_ID = 0


def has_path(labels: jax.Array, frame_lengths: jax.Array, label_lengths: jax.Array) -> jax.Array:
    """Whether there are frames enough for the labels and a blank between equal neighbours.

    Args:
        labels: `[batch, labels]` int32.
        frame_lengths: `[batch]` valid frames.
        label_lengths: `[batch]` valid labels.

    Returns:
        `[batch]` bool; True for an empty text.
    """
    inside = jnp.arange(1, labels.shape[1]) < label_lengths[:, None]
    repeated = jnp.sum((labels[:, 1:] == labels[:, :-1]) & inside, axis=1)
    return label_lengths + repeated <= frame_lengths


def ctc_loss(
    logits: jax.Array,
    labels: jax.Array,
    frame_lengths: jax.Array,
    label_lengths: jax.Array,
) -> tuple[Weighted, Weighted]:
    """-log P(labels), in nats a label.

    Args:
        logits: `[batch, frames, vocab]` of any float type; the blank is 0.
        labels: `[batch, labels]` int32; what lies after an example's length is ignored.
        frame_lengths: `[batch]` valid frames, at most `frames`; 0 = the example is absent.
        label_lengths: `[batch]` valid labels, at most `labels`.

    Returns:
        The total in nats and the number of labels of the examples that have frames and a path; and
        how many have frames and no path, which are left out, as a metric that is summed.

    Raises:
        ValueError: If the shapes do not belong together.
    """
    _check(logits, labels, frame_lengths, label_lengths)
    there = frame_lengths > 0
    scored = there & has_path(labels, frame_lengths, label_lengths)
    frame_padding = jnp.arange(logits.shape[1]) >= frame_lengths[:, None]
    label_padding = jnp.arange(labels.shape[1]) >= label_lengths[:, None]
    # The recursion multiplies padding by 0, and padding may hold anything.
    logits = jnp.where(frame_padding[:, :, None], 0.0, logits.astype(jnp.float32))
    nats = optax.ctc_loss(
        logits,
        frame_padding.astype(jnp.float32),
        jnp.where(label_padding, BLANK_ID, labels),
        label_padding.astype(jnp.float32),
        blank_id=BLANK_ID,
        # The default of -1e5 is a price that a long recording can reach.
        log_epsilon=NEG,
    )
    total, _ = masked_sum(nats, scored)
    count = jnp.sum(jnp.where(scored, label_lengths, 0).astype(jnp.float32))
    lacking = jnp.sum((there & ~scored).astype(jnp.float32))
    return (total, count), (lacking, jnp.ones(()))


def ctc_alignment(
    log_probs: jax.Array,
    labels: jax.Array,
    frame_lengths: jax.Array,
    label_lengths: jax.Array,
) -> Alignment:
    """The likeliest path that becomes the labels (the recursion of the loss, with `max`).

    A label is emitted on the first frame that its path gives to it, and owns the frames from there
    up to the next label's, as in `transducer_alignment`; so durations sum to the frames.

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
    said = jnp.take_along_axis(log_probs, labels[:, None, :], axis=2)
    # States 2n are the blank after n labels, states 2n + 1 the label n.
    emissions = jnp.repeat(said, 2, axis=2).at[:, :, ::2].set(log_probs[:, :, :1])
    emissions = jnp.concatenate([emissions, log_probs[:, :, :1]], axis=2)
    states = 2 * size + 1
    skips = jnp.pad(labels[:, 1:] != labels[:, :-1], ((0, 0), (1, 0)))[:, :size]
    skips = jnp.stack([jnp.zeros_like(skips), skips], axis=2).reshape(batch, 2 * size)
    skips = jnp.pad(skips, ((0, 0), (0, 1)))

    def later(x: jax.Array, by: int) -> jax.Array:
        return jnp.pad(x, ((0, 0), (by, 0)), constant_values=NEG)[:, :states]

    def forward(
        score: jax.Array, emission: jax.Array
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        stay, step, skip = score, later(score, 1), jnp.where(skips, later(score, 2), NEG)
        best = jnp.maximum(jnp.maximum(stay, step), skip)
        # Of equals the one that is further: labels are emitted early.
        came = jnp.where(stay == best, 0, jnp.where(step == best, 1, 2)).astype(jnp.int32)
        score = best + emission
        return score, (came, score)

    start = jnp.where(jnp.arange(states) == 0, 0.0, NEG).astype(dtype)
    start = jnp.broadcast_to(start, (batch, states))
    _, (came, scores) = jax.lax.scan(forward, start, jnp.swapaxes(emissions, 0, 1))

    def at(x: jax.Array, state: jax.Array) -> jax.Array:
        # A masked sum, not a gather: the batch stays where it is.
        return jnp.sum(jnp.where(jnp.arange(states) == state[:, None], x, 0), axis=-1)

    on_last = (jnp.arange(frames)[:, None] == frame_lengths - 1)[:, :, None]
    final = jnp.sum(jnp.where(on_last, scores, 0.0), axis=0)
    label_end = jnp.maximum(2 * label_lengths - 1, 0)
    by_label = at(final, label_end) >= at(final, 2 * label_lengths)
    last = jnp.where(by_label & (label_lengths > 0), label_end, 2 * label_lengths)
    last = last.astype(jnp.int32)

    def backward(
        state: jax.Array, inputs: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        frame, back = inputs
        moved = jnp.where(frame < frame_lengths, at(back, state), 0)
        return state - moved, state

    _, path = jax.lax.scan(backward, last, (jnp.arange(frames), came), reverse=True)

    index = jnp.arange(size)
    there = frame_lengths > 0
    valid = (index < label_lengths[:, None]) & there[:, None]
    first = jnp.sum(path[:, :, None] < 2 * index + 1, axis=0)
    first = jnp.where(valid, jnp.minimum(first, frame_lengths[:, None] - 1), 0).astype(jnp.int32)
    starts = jnp.where(index == 0, 0, first)
    following = jnp.concatenate([starts[:, 1:], jnp.zeros_like(starts[:, :1])], axis=-1)
    ends = jnp.where(index == label_lengths[:, None] - 1, frame_lengths[:, None], following)
    on_path = (jnp.arange(frames)[:, None] == first[:, None, :]) & valid[:, None, :]
    return Alignment(
        frames=first,
        durations=jnp.where(valid, ends - starts, 0).astype(jnp.int32),
        label_scores=jnp.sum(jnp.where(on_path, said, 0.0), axis=1),
        scores=jnp.where(there, at(final, last), 0.0),
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

"""The best path of a transducer lattice: when each label is emitted, and for how long it lasts.

MAESTRO, section 2.2, resamples text with the durations of the RNN-T's best alignment. The
recursion is that of `maestro_jax.losses.transducer_lattice` with `max` in place of `logaddexp`::

    score[t, u] = max(score[t - 1, u] + b[t - 1, u], score[t, u - 1] + y[t, u - 1])

(or its form for one label a frame) followed by a walk back from the last node.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from maestro_jax.losses.transducer_lattice import (
    check_lattices,
    initial_row,
    lay_out,
    shift_right,
)


class Alignment(NamedTuple):
    """Where the best path puts the labels.

    Attributes:
        frames: The frame on which each label is emitted, int32 `[batch, labels]`, not decreasing
            along an example's labels; 0 in the padding.
        durations: The frames that each label owns, int32 `[batch, labels]`; 0 in the padding.
        label_scores: Log-probability of each label's arc on the path, nats, `[batch, labels]`; 0
            in the padding.
        scores: Log-probability of the whole path, blanks included, nats, `[batch]`; 0 without
            frames, and about -1e30 where there is no path.
    """

    frames: jax.Array
    durations: jax.Array
    label_scores: jax.Array
    scores: jax.Array


def transducer_alignment(
    log_blank: jax.Array,
    log_label: jax.Array,
    frame_lengths: jax.Array,
    label_lengths: jax.Array,
    *,
    one_label_per_frame: bool = False,
) -> Alignment:
    """The likeliest alignment, as emission frames and durations.

    A label owns the frames from its emission up to the emission of the next label. Frames before
    the first emission belong to the first label and the last label lasts to the end, so that the
    durations of an example with labels sum to its frames. A duration may be zero: labels emitted
    on one frame share it, and the last of them owns it (with one label a frame no duration is
    zero). An example without labels has durations of zero, and so has one without frames.

    Of equally likely paths, the one that emits every label earliest is taken: on a tie, a node
    prefers to be entered by a blank. No gradient flows through the result.

    Args:
        log_blank: Log-probability of the blank at each node, `[batch, frames, labels + 1]`.
        log_label: Log-probability of the next label at each node, `[batch, frames, labels]`.
        frame_lengths: Valid frames of each example, `[batch]`, at most `frames`.
        label_lengths: Valid labels of each example, `[batch]`, at most `labels`.
        one_label_per_frame: A label consumes its frame. With more labels than frames there is no
            path: durations then still sum to the frames, but mean nothing.

    Returns:
        The alignment.

    Raises:
        ValueError: If the shapes do not belong together.
    """
    check_lattices(log_blank, log_label, frame_lengths, label_lengths)
    dtype = jnp.promote_types(jnp.promote_types(log_blank.dtype, log_label.dtype), jnp.float32)
    log_blank = jax.lax.stop_gradient(log_blank).astype(dtype)
    log_label = jax.lax.stop_gradient(log_label).astype(dtype)
    rows = lay_out(log_blank, log_label, frame_lengths, label_lengths, one_label_per_frame)
    labels = log_label.shape[-1]

    def forward(
        score: jax.Array, arcs: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        by_blank = score + arcs[0]
        by_label = shift_right(score + arcs[1])
        score = jnp.maximum(by_blank, by_label)
        return score, (by_label > by_blank, score)

    start = initial_row(rows.blank[0])
    _, (entered_by_label, scores) = jax.lax.scan(forward, start, (rows.blank, rows.label))

    # Walk back: positions[n - 1] is the number of labels emitted after n arcs. Beyond the end of an
    # example the position stays at its last label. Where no label is out only blanks lead in; where
    # as many labels are out as arcs were taken only labels do, even when a row is so unlikely that
    # the scores no longer tell.
    def backward(
        position: jax.Array, inputs: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        taken, by_label = inputs
        chosen = jnp.take_along_axis(by_label, position[:, None], axis=-1)[:, 0]
        chosen = (chosen | (position == taken)) & (position > 0) & (taken <= rows.steps)
        return position - chosen.astype(position.dtype), position

    taken = jnp.arange(1, entered_by_label.shape[0] + 1)
    _, positions = jax.lax.scan(
        backward, label_lengths.astype(jnp.int32), (taken, entered_by_label), reverse=True
    )

    # Label u leaves the last row on which at most u labels are out. Row 0 is not in `positions`,
    # and it always counts. That row is the frame, plus the labels out so far if they take no frame.
    index = jnp.arange(labels)
    row = jnp.sum(positions[:, :, None] <= index, axis=0, dtype=jnp.int32)
    valid = (index < label_lengths[:, None]) & (frame_lengths > 0)[:, None]
    latest = frame_lengths[:, None] - 1  # binds only where no path is possible
    frames = row if one_label_per_frame else row - index
    frames = jnp.where(valid, jnp.minimum(frames, latest), 0).astype(jnp.int32)

    starts = jnp.where(index == 0, 0, frames)
    following = jnp.concatenate([starts[:, 1:], jnp.zeros_like(starts[:, :1])], axis=-1)
    ends = jnp.where(index == label_lengths[:, None] - 1, frame_lengths[:, None], following)
    durations = jnp.where(valid, ends - starts, 0).astype(jnp.int32)

    on_path = (jnp.arange(log_label.shape[1])[:, None] == frames[:, None, :]) & valid[:, None, :]
    at_end = (jnp.arange(len(scores))[:, None] == rows.steps - 1)[:, :, None] & (
        jnp.arange(labels + 1) == label_lengths[:, None]
    )
    # Masked sums, not gathers: the batch stays where it is.
    return Alignment(
        frames,
        durations,
        label_scores=jnp.sum(jnp.where(on_path, log_label, 0.0), axis=1),
        scores=jnp.where(
            frame_lengths > 0, jnp.sum(jnp.where(at_end, scores, 0.0), axis=(0, 2)), 0.0
        ),
    )

"""The best path of a transducer lattice: when each label is emitted, and for how long it lasts.

MAESTRO, section 2.2, resamples text with the durations of the RNN-T's best alignment. The
recursion is that of `maestro_jax.losses.transducer` with `max` in place of `logaddexp`::

    score[t, u] = max(score[t - 1, u] + b[t - 1, u], score[t, u - 1] + y[t, u - 1])

followed by a walk back from the last node.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from maestro_jax.losses.transducer import (
    check_lattices,
    initial_row,
    shift_right,
    skew_lattices,
)


class Alignment(NamedTuple):
    """Where the best path puts the labels.

    Attributes:
        frames: The frame on which each label is emitted, int32 `[batch, labels]`, not decreasing
            along an example's labels; 0 in the padding.
        durations: The frames that each label owns, int32 `[batch, labels]`; 0 in the padding.
    """

    frames: jax.Array
    durations: jax.Array


def transducer_alignment(
    log_blank: jax.Array,
    log_label: jax.Array,
    frame_lengths: jax.Array,
    label_lengths: jax.Array,
) -> Alignment:
    """The likeliest alignment, as emission frames and durations.

    A label owns the frames from its emission up to the emission of the next label. Frames before
    the first emission belong to the first label and the last label lasts to the end, so that the
    durations of an example with labels sum to its frames. A duration may be zero: labels emitted
    on one frame share it, and the last of them owns it. An example without labels has durations of
    zero, and so has one without frames.

    Of equally likely paths, the one that emits every label earliest is taken: on a tie, a node
    prefers to be entered by a blank. No gradient flows through the result.

    Args:
        log_blank: Log-probability of the blank at each node, `[batch, frames, labels + 1]`.
        log_label: Log-probability of the next label at each node, `[batch, frames, labels]`.
        frame_lengths: Valid frames of each example, `[batch]`, at most `frames`.
        label_lengths: Valid labels of each example, `[batch]`, at most `labels`.

    Returns:
        The alignment.

    Raises:
        ValueError: If the shapes do not belong together.
    """
    check_lattices(log_blank, log_label, frame_lengths, label_lengths)
    dtype = jnp.promote_types(jnp.promote_types(log_blank.dtype, log_label.dtype), jnp.float32)
    log_blank = jax.lax.stop_gradient(log_blank).astype(dtype)
    log_label = jax.lax.stop_gradient(log_label).astype(dtype)
    blank, label = skew_lattices(log_blank, log_label, frame_lengths, label_lengths)
    labels = log_label.shape[-1]

    def forward(score: jax.Array, arcs: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        by_blank = score + arcs[0]
        by_label = shift_right(score + arcs[1])
        return jnp.maximum(by_blank, by_label), by_label > by_blank

    _, entered_by_label = jax.lax.scan(forward, initial_row(blank[0]), (blank, label))

    # Walk back: position[n] is the number of labels emitted when the path is on diagonal n.
    # Beyond the end of an example the position stays at its last label. Where u = 0 is reached
    # only blanks lead in; where t = 0 is reached only labels do (u = n), even when a row is so
    # unlikely that the scores no longer tell.
    last = frame_lengths + label_lengths

    def backward(
        position: jax.Array, inputs: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        diagonal, by_label = inputs
        chosen = jnp.take_along_axis(by_label, position[:, None], axis=-1)[:, 0]
        chosen = (chosen | (position == diagonal)) & (position > 0) & (diagonal <= last)
        return position - chosen.astype(position.dtype), position

    diagonals = jnp.arange(1, entered_by_label.shape[0] + 1)
    _, positions = jax.lax.scan(
        backward, label_lengths.astype(jnp.int32), (diagonals, entered_by_label), reverse=True
    )

    # Label u leaves the last diagonal n on which at most u labels are out, at frame n - u.
    # Diagonal 0 is not in `positions`, and it always counts.
    index = jnp.arange(labels)
    reached = jnp.sum(positions[:, :, None] <= index, axis=0, dtype=jnp.int32)
    valid = (index < label_lengths[:, None]) & (frame_lengths > 0)[:, None]
    latest = frame_lengths[:, None] - 1  # binds only where no path is possible
    frames = jnp.where(valid, jnp.minimum(reached - index, latest), 0).astype(jnp.int32)

    starts = jnp.where(index == 0, 0, frames)
    following = jnp.concatenate([starts[:, 1:], jnp.zeros_like(starts[:, :1])], axis=-1)
    ends = jnp.where(index == label_lengths[:, None] - 1, frame_lengths[:, None], following)
    durations = jnp.where(valid, ends - starts, 0).astype(jnp.int32)
    return Alignment(frames, durations)

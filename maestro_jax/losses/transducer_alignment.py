"""Computes when a transducer emits each label: on the best path, and over all paths.

MAESTRO, section 2.2, resamples text with the durations of the RNN-T's best alignment
(`transducer_alignment`). The recursion is that of `maestro_jax.losses.transducer_lattice` with
`max` in place of `logaddexp`::

    score[t, u] = max(score[t - 1, u] + b[t - 1, u], score[t, u - 1] + y[t, u - 1])

(or its form for one label per frame), followed by a walk back from the last node.

The posterior that label u is emitted in frame t (`emission_posterior`) is the probability of all
paths through its arc, which is the derivative of the log-likelihood with respect to the arc::

    gamma[t, u] = d log P(labels) / d y[t, u],    sum over t of gamma[t, u] = 1

Its entropy (`alignment_entropy`) tells how far the durations of the best path can be trusted.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from maestro_jax.losses.reduction import Weighted, masked_sum
from maestro_jax.losses.transducer import NO_PATH, transducer_loss_from_lattices
from maestro_jax.losses.transducer_lattice import (
    check_lattices,
    initial_scores,
    scan_wavefronts,
    shift_right,
    to_wavefronts,
)


class Alignment(NamedTuple):
    """The emissions of the best path.

    Attributes:
        frames: Frame that emits each label, int32 `[batch, labels]`, not decreasing
            along an example's labels; 0 in the padding.
        durations: Frames that each label owns, int32 `[batch, labels]`; 0 in the padding.
        label_scores: Log-probability of each label's arc on the path, in nats, `[batch, labels]`; 0
            in the padding.
        scores: Log-probability of the whole path, blanks included, in nats, `[batch]`; 0 for an
            example without frames, and about -1e30 where there is no path.
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
    """Finds the likeliest alignment, as emission frames and durations.

    A label owns the frames from its emission up to the emission of the next label. Frames before
    the first emission belong to the first label and the last label lasts to the end, so that the
    durations of an example with labels sum to its frames. A duration may be zero: of labels emitted
    on one frame, the last owns it (with one label per frame no duration is zero). An example
    without labels has durations of zero, and so has one without frames.

    Of equally likely paths the one that emits every label earliest is taken: on a tie, a node is
    entered by a blank. No gradient flows through the result.

    Args:
        log_blank: Log-probability of the blank at each node, `[batch, frames, labels + 1]`.
        log_label: Log-probability of the next label at each node, `[batch, frames, labels]`.
        frame_lengths: Valid frames of each example, `[batch]`, at most `frames`.
        label_lengths: Valid labels of each example, `[batch]`, at most `labels`.
        one_label_per_frame: Whether a label consumes its frame. With more labels than frames there
            is then no path: durations still sum to the frames, but mean nothing.

    Returns:
        The alignment.

    Raises:
        ValueError: If the shapes do not belong together.
    """
    check_lattices(log_blank, log_label, frame_lengths, label_lengths)
    dtype = jnp.promote_types(jnp.promote_types(log_blank.dtype, log_label.dtype), jnp.float32)
    # An alignment is a target. Without tangents JAX does not differentiate the scans below, which
    # would keep every wavefront.
    log_blank = jax.lax.stop_gradient(log_blank).astype(dtype)
    log_label = jax.lax.stop_gradient(log_label).astype(dtype)
    wavefronts = to_wavefronts(
        log_blank, log_label, frame_lengths, label_lengths, one_label_per_frame
    )
    labels = log_label.shape[-1]

    def forward(
        score: jax.Array, arcs: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        by_blank = score + arcs[0]  # [batch, labels + 1]
        by_label = shift_right(score + arcs[1])  # arrives with one label more
        score = jnp.maximum(by_blank, by_label)
        # Strictly greater: on a tie the node is entered by the blank. The walk back then meets
        # every label as late as it can, which emits each as early as possible.
        return score, (by_label > by_blank, score)

    start = initial_scores(wavefronts.blank[0])
    # Both [arcs, batch, labels + 1]; entry n describes the nodes that n + 1 arcs lead to.
    _, (entered_by_label, scores) = scan_wavefronts(
        forward, start, (wavefronts.blank, wavefronts.label)
    )

    # Walk back. positions[n - 1], `[batch]`, is the number of labels emitted after n arcs; after
    # the end of an example it stays at its number of labels. A node without emitted labels is
    # entered by a blank and one with as many labels as arcs by a label: this must not depend on
    # scores, which are all equal on a wavefront that is impossible.
    def backward(
        position: jax.Array, inputs: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        arcs_taken, by_label = inputs
        is_label = jnp.take_along_axis(by_label, position[:, None], axis=-1)[:, 0]
        is_label = is_label | (position == arcs_taken)
        is_label = is_label & (position > 0) & (arcs_taken <= wavefronts.steps)
        return position - is_label.astype(position.dtype), position

    # Entry n of the scores was computed after arc n + 1, hence the count from 1.
    arcs_taken = jnp.arange(1, entered_by_label.shape[0] + 1)
    _, positions = scan_wavefronts(
        backward,
        label_lengths.astype(jnp.int32),
        (arcs_taken, entered_by_label),
        reverse=True,
    )

    # Label u is emitted by the arc that leaves the last wavefront with at most u labels emitted.
    # The start node is not in `positions` and has no labels, so the number of entries with at most
    # u labels is the index of that wavefront: the frame, plus u where labels consume no frame.
    index = jnp.arange(labels)
    wavefront = jnp.sum(positions[:, :, None] <= index, axis=0, dtype=jnp.int32)  # [batch, labels]
    valid = (index < label_lengths[:, None]) & (frame_lengths > 0)[:, None]
    last_frame = frame_lengths[:, None] - 1  # Binds only where there is no path.
    frames = wavefront if one_label_per_frame else wavefront - index
    frames = jnp.where(valid, jnp.minimum(frames, last_frame), 0).astype(jnp.int32)

    # [batch, frames, labels]: the one frame of each label. No label of the padding has one.
    emitted = (jnp.arange(log_label.shape[1])[:, None] == frames[:, None, :]) & valid[:, None, :]
    # [arcs, batch, labels + 1]: the node that the last arc of each example leads to.
    at_end = (jnp.arange(len(scores))[:, None] == wavefronts.steps - 1)[:, :, None] & (
        jnp.arange(labels + 1) == label_lengths[:, None]
    )
    # Masked sums in place of gathers leave a sharded batch sharded.
    return Alignment(
        frames,
        durations_from_emissions(frames, frame_lengths, label_lengths),
        label_scores=jnp.sum(jnp.where(emitted, log_label, 0.0), axis=1),
        scores=jnp.where(
            frame_lengths > 0, jnp.sum(jnp.where(at_end, scores, 0.0), axis=(0, 2)), 0.0
        ),
    )


def durations_from_emissions(
    frames: jax.Array, frame_lengths: jax.Array, label_lengths: jax.Array
) -> jax.Array:
    """Computes how many frames each label owns: from its emission up to the next label's.

    Frames before the first emission belong to the first label, and the last label lasts to the end.

    Args:
        frames: Frame that emits each label, int32 `[batch, labels]`.
        frame_lengths: Valid frames, `[batch]`.
        label_lengths: Valid labels, `[batch]`.

    Returns:
        int32 `[batch, labels]`; 0 in the padding and for examples without frames.
    """
    index = jnp.arange(frames.shape[1])
    valid = (index < label_lengths[:, None]) & (frame_lengths > 0)[:, None]
    # The first label owns the frames before its emission too.
    starts = jnp.where(index == 0, 0, frames)
    following = jnp.concatenate([starts[:, 1:], jnp.zeros_like(starts[:, :1])], axis=-1)
    # The label after the last valid one is padding, whose emission of 0 is not an end.
    ends = jnp.where(index == label_lengths[:, None] - 1, frame_lengths[:, None], following)
    return jnp.where(valid, ends - starts, 0).astype(jnp.int32)


def emission_posterior(
    log_blank: jax.Array,
    log_label: jax.Array,
    frame_lengths: jax.Array,
    label_lengths: jax.Array,
    *,
    one_label_per_frame: bool = False,
) -> jax.Array:
    """Computes the probability that a label is emitted in a frame, given the labels.

    Args:
        log_blank: Log-probability of the blank at each node, `[batch, frames, labels + 1]`.
        log_label: Log-probability of the next label at each node, `[batch, frames, labels]`.
        frame_lengths: Valid frames of each example, `[batch]`.
        label_lengths: Valid labels of each example, `[batch]`.
        one_label_per_frame: Whether a label consumes its frame.

    Returns:
        float32 `[batch, frames, labels]`. The sum over frames is 1 for a valid label, and 0 in the
        padding and where there is no path. No gradient flows through it.
    """

    def negative_log_likelihood(label: jax.Array) -> jax.Array:
        losses = transducer_loss_from_lattices(
            jax.lax.stop_gradient(log_blank),
            label,
            frame_lengths,
            label_lengths,
            one_label_per_frame=one_label_per_frame,
        )
        # Without a path there is no posterior: a constant in place of its loss sends no gradient.
        return jnp.sum(jnp.where(losses > NO_PATH, 0.0, losses))

    # gamma = d log P / d y, and the loss is -log P: hence the sign. The gradient of the loss is
    # that of its custom rule, which knows the posteriors without differentiating the scan.
    return -jax.grad(negative_log_likelihood)(jax.lax.stop_gradient(log_label)).astype(jnp.float32)


def posterior_entropy(posterior: jax.Array) -> Weighted:
    """Computes the entropy of emission frames: 0 for a certain frame, log(frames) for any of them.

    Args:
        posterior: `[batch, frames, labels]`, from `emission_posterior`.

    Returns:
        Total entropy in nats, and the number of labels that have a posterior.
    """
    # 0 log 0 counts as 0, and its logarithm must be finite, as 0 times minus infinity is NaN.
    log_posterior = jnp.log(jnp.maximum(posterior, 1e-30))
    entropy = -jnp.sum(jnp.where(posterior > 0, posterior * log_posterior, 0.0), axis=1)
    # A posterior sums to 1 for a valid label, up to rounding, and to exactly 0 in the padding.
    return masked_sum(entropy, jnp.sum(posterior, axis=1) > 0.5)


def alignment_entropy(
    log_blank: jax.Array,
    log_label: jax.Array,
    frame_lengths: jax.Array,
    label_lengths: jax.Array,
    *,
    one_label_per_frame: bool = False,
) -> Weighted:
    """Computes `posterior_entropy` of a lattice; arguments as for `emission_posterior`."""
    return posterior_entropy(
        emission_posterior(
            log_blank,
            log_label,
            frame_lengths,
            label_lengths,
            one_label_per_frame=one_label_per_frame,
        )
    )

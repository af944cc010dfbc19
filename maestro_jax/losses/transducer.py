"""Computes the transducer (RNN-T) loss: -log P(labels), summed over all alignments.

Three functions compute the same loss from different inputs: `transducer_loss` from logits,
`transducer_loss_from_lattices` from the log-probabilities of the two arcs that leave each node, and
`joint_transducer_loss` from the inputs of the joint network, without ever holding the logits of the
whole lattice. `transducer_arcs` computes the arcs from logits, `transducer_joint` computes them
chunk by chunk, `transducer_lattice` sums over the paths.

Conventions. The frame axis comes first: a lattice is `[batch, frames, labels + 1]`, and at node
`[t, u]` `t` frames have been consumed and `u` labels emitted. The loss is in nats, one number per
example, and not normalised by length. All three functions take the same options:

one_label_per_frame
    A label consumes its frame as a blank does (RNA, monotonic RNN-T): no frame has two labels, and
    there must be at least as many frames as labels.
fastemit
    The gradient of label arcs is multiplied by `1 + fastemit` and that of blank arcs is not (Yu et
    al. 2021, arXiv 2010.11148, section 3.2), which draws emissions forward. The value stays -log P:
    the scaled gradient is not that of any function of the lattice, and a value multiplied by
    `1 + fastemit`, as other implementations report it, is not its integral.
delay_penalty
    `delay_penalty * ((frames - 1) / 2 - t)` is added to the label arcs of frame `t` (Kang et al.
    2023, arXiv 2211.00490), which prefers early emission. Unlike FastEmit this changes the
    objective, and the value includes the penalty.
hat
    Hybrid autoregressive factorisation of blank and labels; see `transducer_arcs`.

Edge cases. An example of zero frames is absent: its loss and its gradient are 0. Zero labels leave
the path of blanks alone. More labels than frames are legal, except with one label per frame. An
example without any path has a finite loss of about 1e30, above `NO_PATH`, and a gradient of zero.
The gradient in the padding is exactly zero, whatever values stand there.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from maestro_jax.losses.transducer_arcs import NEG, lattices_from_logits
from maestro_jax.losses.transducer_joint import Constrain, joint_lattices, unconstrained
from maestro_jax.losses.transducer_lattice import lattice_loss

NO_PATH = -NEG / 2
"""Losses above this mean that the lattice has no path."""


def transducer_loss(
    logits: jax.Array,
    labels: jax.Array,
    frame_lengths: jax.Array,
    label_lengths: jax.Array,
    *,
    blank_id: int = 0,
    hat: bool = False,
    one_label_per_frame: bool = False,
    fastemit: float = 0.0,
    delay_penalty: float = 0.0,
) -> jax.Array:
    """Computes the loss from logits.

    Args:
        logits: Unnormalised scores of any float type, `[batch, frames, labels + 1, vocab]`; entry
            `u` of the third axis is the distribution after the first `u` labels.
        labels: Token ids, `[batch, labels]`; ids after an example's length are ignored.
        frame_lengths: Valid frames of each example, `[batch]`, at most `frames`.
        label_lengths: Valid labels of each example, `[batch]`, at most `labels`.
        blank_id: Token id of the blank.
        hat: Whether blank and labels are factorised.
        one_label_per_frame: Whether a label consumes its frame.
        fastemit: Weight of FastEmit.
        delay_penalty: Nats per frame by which later labels cost more.

    Returns:
        Nats, float32 (float64 for float64 logits), `[batch]`.

    Raises:
        ValueError: If the shapes do not belong together.
    """
    log_blank, log_label = lattices_from_logits(logits, labels, blank_id, hat=hat)
    return transducer_loss_from_lattices(
        log_blank,
        log_label,
        frame_lengths,
        label_lengths,
        one_label_per_frame=one_label_per_frame,
        fastemit=fastemit,
        delay_penalty=delay_penalty,
    )


def transducer_loss_from_lattices(
    log_blank: jax.Array,
    log_label: jax.Array,
    frame_lengths: jax.Array,
    label_lengths: jax.Array,
    *,
    one_label_per_frame: bool = False,
    fastemit: float = 0.0,
    delay_penalty: float = 0.0,
) -> jax.Array:
    """Computes the loss from the log-probabilities of the arcs.

    An arc of minus infinity is forbidden, so that a mask can keep paths near a given alignment. The
    gradient is analytic, from alpha and beta: reverse mode only, first order only.

    Args:
        log_blank: Log-probability of the blank at each node, `[batch, frames, labels + 1]`.
        log_label: Log-probability of the next label at each node, `[batch, frames, labels]`.
        frame_lengths: Valid frames of each example, `[batch]`, at most `frames`.
        label_lengths: Valid labels of each example, `[batch]`, at most `labels`.
        one_label_per_frame: Whether a label consumes its frame.
        fastemit: Weight of FastEmit.
        delay_penalty: Nats per frame by which later labels cost more.

    Returns:
        Nats, `[batch]`, as in `transducer_loss`.

    Raises:
        ValueError: If the shapes do not belong together.
    """
    if delay_penalty:
        # The gain of frame t is `delay_penalty * ((T - 1) / 2 - t)`, with T the frames of the
        # example and not of the batch. Its average over the frames is 0: a model that emits
        # anywhere with equal probability neither gains nor loses.
        middle = (frame_lengths[:, None].astype(log_label.dtype) - 1.0) / 2.0
        gain = delay_penalty * (middle - jnp.arange(log_label.shape[1]))  # [batch, frames]
        # All label arcs of a frame share its gain. Frames of the padding get one too, which nobody
        # reads: their arcs become NEG in the lattice.
        log_label = log_label + gain[:, :, None].astype(log_label.dtype)
    return lattice_loss(
        log_blank,
        log_label,
        frame_lengths,
        label_lengths,
        one_label_per_frame=one_label_per_frame,
        fastemit=fastemit,
    )


def joint_transducer_loss(
    frames: jax.Array,
    predictions: jax.Array,
    kernel: jax.Array,
    bias: jax.Array,
    labels: jax.Array,
    frame_lengths: jax.Array,
    label_lengths: jax.Array,
    *,
    blank_id: int = 0,
    hat: bool = False,
    one_label_per_frame: bool = False,
    fastemit: float = 0.0,
    delay_penalty: float = 0.0,
    chunk_frames: int | None = None,
    constrain: Constrain = unconstrained,
) -> jax.Array:
    """Computes joint network and loss, without an array of frames times labels times vocabulary.

    The joint network is ``tanh(frames[t] + predictions[u]) @ kernel + bias``.

    Args:
        frames: Encoder output, projected, `[batch, frames, joint]`.
        predictions: Prediction network output, projected, `[batch, labels + 1, joint]`.
        kernel: `[joint, vocab]`.
        bias: `[vocab]`.
        labels: Token ids, `[batch, labels]`.
        frame_lengths: Valid frames of each example, `[batch]`, at most `frames`.
        label_lengths: Valid labels of each example, `[batch]`, at most `labels`.
        blank_id: Token id of the blank.
        hat: Whether blank and labels are factorised.
        one_label_per_frame: Whether a label consumes its frame.
        fastemit: Weight of FastEmit.
        delay_penalty: Nats per frame by which later labels cost more.
        chunk_frames: Frames whose logits are held at once; None takes `chunk_rule`.
        constrain: As in `joint_lattices`.

    Returns:
        Nats, `[batch]`, as in `transducer_loss`.

    Raises:
        ValueError: If the shapes do not belong together.
    """
    log_blank, log_label = joint_lattices(
        frames,
        predictions,
        kernel,
        bias,
        labels,
        blank_id=blank_id,
        hat=hat,
        chunk_frames=chunk_frames,
        constrain=constrain,
    )
    return transducer_loss_from_lattices(
        log_blank,
        log_label,
        frame_lengths,
        label_lengths,
        one_label_per_frame=one_label_per_frame,
        fastemit=fastemit,
        delay_penalty=delay_penalty,
    )

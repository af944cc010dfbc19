"""The transducer (RNN-T) loss: the negative log-likelihood of labels, over every alignment.

Three entrances, one loss: `transducer_loss` from logits, `transducer_loss_from_lattices` from the
log-probabilities of the two arcs that leave each node, and `joint_transducer_loss` from what enters
the joint network, which never holds the logits of the whole lattice. `transducer_arcs` makes arcs
from logits, `transducer_joint` makes them chunk by chunk, `transducer_lattice` sums over the paths.

Conventions. Frames first: a lattice is `[batch, frames, labels + 1]`, its node `[t, u]` has read
`t` frames and written `u` labels. The loss is in nats, one number an example, not divided by
anything: reductions are the caller's. Options, the same at every entrance:

one_label_per_frame
    A label consumes its frame as a blank does (RNA, monotonic RNN-T): labels never bunch on a
    frame, and there must be as many frames as labels.
fastemit
    The gradient of label arcs is multiplied by `1 + fastemit` and that of blank arcs is not (Yu et
    al. 2021, arXiv 2010.11148, section 3.2), which draws emissions forward. The value stays -log P:
    the scaled gradient is not that of any function of the lattice, and a value multiplied by
    `1 + fastemit`, as other implementations report it, is not its integral.
delay_penalty
    `delay_penalty * ((frames - 1) / 2 - t)` is added to the label arcs of frame `t` (Kang et al.
    2023, arXiv 2211.00490): an objective proper, which prefers early emission. The value is that
    of the objective.
hat
    Hybrid autoregressive factorisation of blank and labels; see `transducer_arcs`.

Edges. Zero frames: the example counts as absent, loss 0 and gradient 0. Zero labels: blanks alone.
More labels than frames: legal, unless one label is allowed a frame. Where no path is left the loss
is finite, about 1e30, above `NO_PATH`, and its gradient is zero. Nodes in the padding get a
gradient of exactly zero, whatever stands there.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from maestro_jax.losses.transducer_arcs import NEG, lattices_from_logits
from maestro_jax.losses.transducer_joint import Constrain, joint_lattices, unconstrained
from maestro_jax.losses.transducer_lattice import lattice_loss

NO_PATH = -NEG / 2
"""A loss above this means that the lattice has no path."""


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
    """Negative log-likelihood of each example's labels, summed over alignments.

    Args:
        logits: Unnormalised scores of any float type `[batch, frames, labels + 1, vocab]`; row `u`
            follows the first `u` labels.
        labels: Token ids, `[batch, labels]`; what lies after an example's length is ignored.
        frame_lengths: Valid frames of each example, `[batch]`, at most `frames`.
        label_lengths: Valid labels of each example, `[batch]`, at most `labels`.
        blank_id: The token id of the blank.
        hat: Blank and labels factorised.
        one_label_per_frame: A label consumes its frame.
        fastemit: Weight of FastEmit.
        delay_penalty: Nats a frame by which later labels cost more.

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
    """Negative log-likelihood over a lattice whose arcs are given.

    Minus infinity (a forbidden arc) is legal: a mask keeps paths near a given alignment. The
    gradient is analytic, from alpha and beta: reverse mode only, once.

    Args:
        log_blank: Log-probability of the blank at each node, `[batch, frames, labels + 1]`.
        log_label: Log-probability of the next label at each node, `[batch, frames, labels]`.
        frame_lengths: Valid frames of each example, `[batch]`, at most `frames`.
        label_lengths: Valid labels of each example, `[batch]`, at most `labels`.
        one_label_per_frame: A label consumes its frame.
        fastemit: Weight of FastEmit.
        delay_penalty: Nats a frame by which later labels cost more.

    Returns:
        Nats, `[batch]`, as in `transducer_loss`.

    Raises:
        ValueError: If the shapes do not belong together.
    """
    if delay_penalty:
        middle = (frame_lengths[:, None].astype(log_label.dtype) - 1.0) / 2.0
        gain = delay_penalty * (middle - jnp.arange(log_label.shape[1]))
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
    """Joint network and loss in one, without an array of frames times labels times vocabulary.

    The joint network is ``tanh(frames[t] + predictions[u]) @ kernel + bias``.

    Args:
        frames: Encoder output, projected, `[batch, frames, joint]`.
        predictions: Prediction network output, projected, `[batch, labels + 1, joint]`.
        kernel: `[joint, vocab]`.
        bias: `[vocab]`.
        labels: Token ids, `[batch, labels]`.
        frame_lengths: Valid frames of each example, `[batch]`, at most `frames`.
        label_lengths: Valid labels of each example, `[batch]`, at most `labels`.
        blank_id: The token id of the blank.
        hat: Blank and labels factorised.
        one_label_per_frame: A label consumes its frame.
        fastemit: Weight of FastEmit.
        delay_penalty: Nats a frame by which later labels cost more.
        chunk_frames: Frames whose logits are held at once; None lets `chunk_rule` pick.
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

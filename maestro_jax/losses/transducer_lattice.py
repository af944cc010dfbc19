"""The recursion over a transducer lattice whose arcs are given, and its gradient.

A path starts at node ``(0, 0)`` of a lattice whose nodes are ``(frames consumed, labels emitted)``.
Each node is left by a blank arc with log-probability ``b`` and by a label arc with ``y``. Two
lattices are known here:

many labels a frame (RNN-T, Graves 2012)
    A blank consumes a frame, a label does not; the path ends with the blank that consumes the last
    frame. ``frames + labels`` arcs.
one label a frame (RNA, Sak et al. 2017; monotonic RNN-T, Tripathi et al. 2019)
    Both arcs consume a frame. ``frames`` arcs; without as many frames as labels there is no path.

With ``alpha`` the log-probability of reaching a node and ``beta`` that of ending from it::

    alpha[t, u] = logaddexp(alpha[t - 1, u] + b[t - 1, u], alpha[t', u - 1] + y[t', u - 1])
    beta[t, u]  = logaddexp(beta[t + 1, u] + b[t, u], beta[t'', u + 1] + y[t, u])
    loss        = -log P = -alpha[end] = -beta[0, 0]

    d loss / d b[t, u] = -exp(alpha[t, u] + b[t, u] + beta[t + 1, u] - log P)
    d loss / d y[t, u] = -exp(alpha[t, u] + y[t, u] + beta[t'', u + 1] - log P)

where ``t' = t, t'' = t`` (RNN-T; Graves 2012, equations 16-20) or ``t' = t - 1, t'' = t + 1`` (one
label a frame).

Nodes that are reached by equally many arcs do not depend on each other. They form a row: an
anti-diagonal ``t + u`` of the first lattice, a frame of the second. A scan walks over the rows, and
for the first lattice the arrays are skewed so that an anti-diagonal becomes one (Bagby et al.
2018, "Efficient implementation of recurrent neural network transducer in TensorFlow"). Every array
keeps its batch axis, and nothing mixes examples: sharding over the batch needs no communication.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from maestro_jax.losses.transducer_arcs import NEG


class Rows(NamedTuple):
    """A lattice laid out by the number of arcs that lead to a node.

    Attributes:
        blank: Blank arcs, `[rows, batch, labels + 1]`, indexed `[row, example, labels emitted]`;
            `NEG` outside an example's own lattice.
        label: Label arcs, laid out alike.
        steps: Arcs on each path of an example, `[batch]`.
    """

    blank: jax.Array
    label: jax.Array
    steps: jax.Array


def lattice_loss(
    log_blank: jax.Array,
    log_label: jax.Array,
    frame_lengths: jax.Array,
    label_lengths: jax.Array,
    *,
    one_label_per_frame: bool = False,
    fastemit: float = 0.0,
) -> jax.Array:
    """Negative log-likelihood over all paths; see `transducer.transducer_loss_from_lattices`."""
    check_lattices(log_blank, log_label, frame_lengths, label_lengths)
    dtype = jnp.promote_types(jnp.promote_types(log_blank.dtype, log_label.dtype), jnp.float32)
    return _lattice_loss(
        log_blank.astype(dtype),
        log_label.astype(dtype),
        frame_lengths,
        label_lengths,
        one_label_per_frame,
        fastemit,
    )


def check_lattices(
    log_blank: jax.Array,
    log_label: jax.Array,
    frame_lengths: jax.Array,
    label_lengths: jax.Array,
) -> None:
    """Raises a `ValueError` that names the shapes when two lattices do not belong together."""
    if log_blank.ndim != 3 or min(log_blank.shape[1:]) < 1:
        raise ValueError(f"log_blank must be [batch, frames, labels + 1], not {log_blank.shape}")
    batch, frames, width = log_blank.shape
    if log_label.shape != (batch, frames, width - 1):
        raise ValueError(
            f"log_label beside log_blank {log_blank.shape} must be {(batch, frames, width - 1)}, "
            f"not {log_label.shape}"
        )
    if frame_lengths.shape != (batch,) or label_lengths.shape != (batch,):
        raise ValueError(
            f"frame_lengths and label_lengths must be {(batch,)}, not {frame_lengths.shape} and "
            f"{label_lengths.shape}"
        )


def lay_out(
    log_blank: jax.Array,
    log_label: jax.Array,
    frame_lengths: jax.Array,
    label_lengths: jax.Array,
    one_label_per_frame: bool,
) -> Rows:
    """Lays the arcs out by rows; arcs outside an example's own lattice become `NEG`.

    Args:
        log_blank: Blank arcs, `[batch, frames, labels + 1]`.
        log_label: Label arcs, `[batch, frames, labels]`.
        frame_lengths: Valid frames, `[batch]`.
        label_lengths: Valid labels, `[batch]`.
        one_label_per_frame: Which lattice.

    Returns:
        The rows: `frames + labels` of them, or `frames` with one label a frame.
    """
    _, frames, width = log_blank.shape
    time = jnp.arange(frames)[None, :, None] < frame_lengths[:, None, None]
    position = jnp.arange(width)[None, None, :]
    end = label_lengths[:, None, None]
    log_label = jnp.pad(log_label, ((0, 0), (0, 0), (0, 1)), constant_values=NEG)
    blank = jnp.where(time & (position <= end), jnp.maximum(log_blank, NEG), NEG)
    label = jnp.where(time & (position < end), jnp.maximum(log_label, NEG), NEG)
    if one_label_per_frame:
        return Rows(blank.swapaxes(0, 1), label.swapaxes(0, 1), frame_lengths)
    return Rows(_skew(blank), _skew(label), frame_lengths + label_lengths)


def _lay_back(rows: jax.Array, frames: int, one_label_per_frame: bool) -> jax.Array:
    """`[rows, batch, width]` to `[batch, frames, width]`: undoes `lay_out` for what it kept."""
    return rows.swapaxes(0, 1) if one_label_per_frame else _unskew(rows, frames)


def _skew(lattice: jax.Array) -> jax.Array:
    """`[batch, frames, width]` to `[frames + width - 1, batch, width]`, by padding and reshaping.

    Row `u` of the transposed lattice is padded to one more than the number of diagonals, so that
    reading it back with rows of exactly that number shifts it by `u`.
    """
    batch, frames, width = lattice.shape
    diagonals = frames + width - 1
    rows = jnp.pad(
        lattice.transpose(0, 2, 1),
        ((0, 0), (0, 0), (0, diagonals + 1 - frames)),
        constant_values=NEG,
    )
    flat = rows.reshape(batch, width * (diagonals + 1))[:, : width * diagonals]
    return flat.reshape(batch, width, diagonals).transpose(2, 0, 1)


def _unskew(rows: jax.Array, frames: int) -> jax.Array:
    """The inverse of `_skew`: `[diagonals, batch, width]` to `[batch, frames, width]`."""
    diagonals, batch, width = rows.shape
    flat = rows.transpose(1, 2, 0).reshape(batch, width * diagonals)
    flat = jnp.pad(flat, ((0, 0), (0, width)))
    return flat.reshape(batch, width, diagonals + 1)[:, :, :frames].transpose(0, 2, 1)


def shift_right(row: jax.Array) -> jax.Array:
    """Moves entry `u` of `[..., width]` to `u + 1`; `NEG` enters at 0."""
    return jnp.concatenate([jnp.full_like(row[..., :1], NEG), row[..., :-1]], axis=-1)


def _shift_left(row: jax.Array) -> jax.Array:
    """Moves entry `u` of `[..., width]` to `u - 1`; `NEG` enters at the end."""
    return jnp.concatenate([row[..., 1:], jnp.full_like(row[..., :1], NEG)], axis=-1)


def _logaddexp(a: jax.Array, b: jax.Array) -> jax.Array:
    """`log(exp(a) + exp(b))` of finite numbers, without the branches for infinities."""
    return jnp.maximum(a, b) + jnp.log1p(jnp.exp(-jnp.abs(a - b)))


def initial_row(like: jax.Array) -> jax.Array:
    """Scores of the first row: 0 at the start node and `NEG` elsewhere."""
    start = jnp.arange(like.shape[-1]) == 0
    return jnp.where(start, 0.0, NEG).astype(like.dtype) + jnp.zeros_like(like)


def _rescale(row: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A row less its maximum, and the maximum, `[batch]`; an impossible row stays as it is.

    Along a path of a thousand nats float32 resolves 1e-4; relative to its own row, a score keeps
    the precision that the gradient needs.
    """
    top = jnp.max(row, axis=-1)
    top = jnp.where(top > NEG / 2, top, 0.0)
    return row - top[:, None], top


def _forward(rows: Rows, label_lengths: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Rescaled alphas, `[rows, batch, width]`, and log P, `[batch]`."""
    count, _, width = rows.blank.shape
    at_end = jnp.arange(width) == label_lengths[:, None]

    def step(
        alpha: jax.Array, arcs: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array, jax.Array]]:
        blank_row, label_row = arcs
        alpha, scale = _rescale(alpha)
        following = _logaddexp(alpha + blank_row, shift_right(alpha + label_row))
        # A masked sum instead of a gather: it costs nothing here and keeps the batch where it is.
        return following, (alpha, scale, jnp.sum(jnp.where(at_end, following, 0.0), axis=-1))

    start = initial_row(rows.blank[0])
    _, (alphas, scales, ends) = jax.lax.scan(step, start, (rows.blank, rows.label))
    row = jnp.arange(count)[:, None]
    log_likelihood = jnp.sum(
        jnp.where(row == rows.steps - 1, ends, 0.0) + jnp.where(row < rows.steps, scales, 0.0),
        axis=0,
    )
    return alphas, log_likelihood


def _loss_and_residuals(
    log_blank: jax.Array,
    log_label: jax.Array,
    frame_lengths: jax.Array,
    label_lengths: jax.Array,
    one_label_per_frame: bool,
    fastemit: float,
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """The loss, and what its gradient is made of."""
    del fastemit  # it acts on the gradient alone
    rows = lay_out(log_blank, log_label, frame_lengths, label_lengths, one_label_per_frame)
    alphas, log_likelihood = _forward(rows, label_lengths)
    loss = jnp.where(frame_lengths > 0, -log_likelihood, 0.0)
    return loss, (*rows, alphas, loss, frame_lengths, label_lengths)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _lattice_loss(
    log_blank: jax.Array,
    log_label: jax.Array,
    frame_lengths: jax.Array,
    label_lengths: jax.Array,
    one_label_per_frame: bool,
    fastemit: float,
) -> jax.Array:
    return _loss_and_residuals(
        log_blank, log_label, frame_lengths, label_lengths, one_label_per_frame, fastemit
    )[0]


def _backward(
    one_label_per_frame: bool,
    fastemit: float,
    residuals: tuple[jax.Array, ...],
    cotangent: jax.Array,
) -> tuple[jax.Array, jax.Array, None, None]:
    blank, label, steps, alphas, loss, frame_lengths, label_lengths = residuals
    count, _, width = blank.shape
    frames = count if one_label_per_frame else count + 1 - width
    row = jnp.arange(count)[:, None]
    at_end = jnp.arange(width) == label_lengths[:, None]

    def step(
        beta: jax.Array, inputs: tuple[jax.Array, jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        blank_row, label_row, is_last = inputs
        beta, _ = _rescale(beta)
        beta = jnp.where(is_last[:, None] & at_end, 0.0, beta)  # the node after the last arc
        return _logaddexp(beta + blank_row, _shift_left(beta) + label_row), beta

    beyond = jnp.full_like(blank[0], NEG)
    _, betas = jax.lax.scan(step, beyond, (blank, label, row == steps - 1), reverse=True)

    # betas[n] stands on the row that the arcs of alphas[n] lead to. Every path takes exactly one
    # arc out of each row, so the posteriors of those arcs are a softmax: neither the scales nor
    # log P enter, and no rounding adds up along the path.
    by_blank = alphas + blank + betas
    by_label = alphas + label + _shift_left(betas)
    top = jnp.max(jnp.maximum(by_blank, by_label), axis=-1, keepdims=True)
    by_blank, by_label = jnp.exp(by_blank - top), jnp.exp(by_label - top)
    total = jnp.sum(by_blank + by_label, axis=-1, keepdims=True)
    passed = (row < steps) & (frame_lengths > 0) & ~(loss > -NEG / 2)
    scale = jnp.where(passed, -cotangent, 0.0)[..., None] / total
    return (
        _lay_back(scale * by_blank, frames, one_label_per_frame),
        _lay_back((1.0 + fastemit) * scale * by_label, frames, one_label_per_frame)[..., :-1],
        None,
        None,
    )


_lattice_loss.defvjp(_loss_and_residuals, _backward)

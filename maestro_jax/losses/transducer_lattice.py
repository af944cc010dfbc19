"""Computes the loss of a transducer lattice with given arcs, and its gradient.

A node of the lattice is ``(frames consumed, labels emitted)``; every path starts at ``(0, 0)``.
From each node a blank arc with log-probability ``b`` and a label arc with log-probability ``y``
lead on. There are two kinds of lattice:

many labels per frame (RNN-T, Graves 2012)
    A blank consumes a frame, a label does not; the path ends with the blank that consumes the last
    frame. A path has ``frames + labels`` arcs.
one label per frame (RNA, Sak et al. 2017; monotonic RNN-T, Tripathi et al. 2019)
    Both arcs consume a frame. A path has ``frames`` arcs, and there is none if there are more
    labels than frames.

With ``alpha`` the log-probability of reaching a node and ``beta`` that of ending from it::

    alpha[t, u] = logaddexp(alpha[t - 1, u] + b[t - 1, u], alpha[t', u - 1] + y[t', u - 1])
    beta[t, u]  = logaddexp(beta[t + 1, u] + b[t, u], beta[t'', u + 1] + y[t, u])
    loss        = -log P = -alpha[end] = -beta[0, 0]

    d loss / d b[t, u] = -exp(alpha[t, u] + b[t, u] + beta[t + 1, u] - log P)
    d loss / d y[t, u] = -exp(alpha[t, u] + y[t, u] + beta[t'', u + 1] - log P)

where ``t' = t, t'' = t`` (RNN-T; Graves 2012, equations 16-20) or ``t' = t - 1, t'' = t + 1`` (one
label per frame).

Nodes that are the same number of arcs away from the start do not depend on each other. They form a
wavefront: an anti-diagonal ``t + u`` of the first kind of lattice, a frame of the second. A scan
runs over the wavefronts, several at each turn; for the first kind, the arrays are skewed so that an
anti-diagonal becomes a row (Bagby et al. 2018, "Efficient implementation of recurrent neural
network transducer in TensorFlow"). Every array keeps its batch axis and no operation mixes
examples, so that sharding over the batch needs no communication.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from maestro_jax.losses.transducer_arcs import NEG

TURNS = 8
"""Wavefronts per turn of a loop on a TPU. One wavefront is so little work that starting its
operations takes longer than computing them; several in a row become fewer operations, and share the
search for a scale. XLA for CPUs would compute a wavefront again for each use of it in the next."""


class Wavefronts(NamedTuple):
    """The arcs of a lattice, grouped by the number of arcs between the start and their node.

    Attributes:
        blank: Log-probabilities of blank arcs, `[wavefronts, batch, labels + 1]`, indexed
            `[wavefront, example, labels emitted]`; `NEG` outside an example's own lattice.
        label: Log-probabilities of label arcs, in the same layout.
        steps: Number of arcs on every path of an example, `[batch]`.
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
    """Computes the loss in nats, `[batch]`; see `transducer.transducer_loss_from_lattices`."""
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
    """Raises a `ValueError` with the shapes if they are not those of two lattices and lengths."""
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


def to_wavefronts(
    log_blank: jax.Array,
    log_label: jax.Array,
    frame_lengths: jax.Array,
    label_lengths: jax.Array,
    one_label_per_frame: bool,
) -> Wavefronts:
    """Groups arcs by wavefront; arcs outside an example's own lattice become `NEG`.

    Args:
        log_blank: Blank arcs, `[batch, frames, labels + 1]`.
        log_label: Label arcs, `[batch, frames, labels]`.
        frame_lengths: Valid frames, `[batch]`.
        label_lengths: Valid labels, `[batch]`.
        one_label_per_frame: Whether label arcs consume a frame.

    Returns:
        `frames + labels` wavefronts, or `frames` with one label per frame.
    """
    _, frames, width = log_blank.shape
    # Of U labels, blanks leave the nodes 0 ... U and labels the nodes 0 ... U - 1. Everything else
    # is NEG, so that no path passes the padding, whatever it holds.
    valid_frame = jnp.arange(frames)[None, :, None] < frame_lengths[:, None, None]
    position = jnp.arange(width)[None, None, :]
    end = label_lengths[:, None, None]
    # A column for node u = labels, from which no label arc leaves: both arrays get one shape.
    log_label = jnp.pad(log_label, ((0, 0), (0, 0), (0, 1)), constant_values=NEG)
    # The maximum turns arcs of minus infinity into NEG: no infinity enters the recursion.
    blank = jnp.where(valid_frame & (position <= end), jnp.maximum(log_blank, NEG), NEG)
    label = jnp.where(valid_frame & (position < end), jnp.maximum(log_label, NEG), NEG)
    if one_label_per_frame:
        return Wavefronts(blank.swapaxes(0, 1), label.swapaxes(0, 1), frame_lengths)
    return Wavefronts(skew(blank), skew(label), frame_lengths + label_lengths)


def _from_wavefronts(wavefronts: jax.Array, frames: int, one_label_per_frame: bool) -> jax.Array:
    """Converts `[wavefronts, batch, width]` back to `[batch, frames, width]`."""
    return wavefronts.swapaxes(0, 1) if one_label_per_frame else _unskew(wavefronts, frames)


def skew(lattice: jax.Array, fill: float = NEG) -> jax.Array:
    """Converts `[batch, frames, width]` to anti-diagonals, `[frames + width - 1, batch, width]`.

    Entry `[k, b, u]` is that of frame `k - u`, or `fill` where there is no such frame.

    A pad and a reshape, no gather: row `u` of the transposed lattice is padded to one entry more
    than there are diagonals, so that reading the same numbers in rows of exactly that many entries
    moves it to the right by `u`.
    """
    batch, frames, width = lattice.shape
    diagonals = frames + width - 1
    rows = jnp.pad(  # [batch, width, diagonals + 1]
        lattice.transpose(0, 2, 1),
        ((0, 0), (0, 0), (0, diagonals + 1 - frames)),
        constant_values=fill,
    )
    flat = rows.reshape(batch, width * (diagonals + 1))[:, : width * diagonals]
    return flat.reshape(batch, width, diagonals).transpose(2, 0, 1)


def _unskew(wavefronts: jax.Array, frames: int) -> jax.Array:
    """Inverts `skew`: converts `[diagonals, batch, width]` to `[batch, frames, width]`."""
    diagonals, batch, width = wavefronts.shape
    flat = wavefronts.transpose(1, 2, 0).reshape(batch, width * diagonals)
    # Read in rows that are one entry longer, row u begins at entry u of the old row u, which moves
    # its numbers to the left by u.
    flat = jnp.pad(flat, ((0, 0), (0, width)))
    return flat.reshape(batch, width, diagonals + 1)[:, :, :frames].transpose(0, 2, 1)


def shift_right(row: jax.Array) -> jax.Array:
    """Moves entry `u` of `[..., width]` to `u + 1` and puts `NEG` at 0."""
    return jnp.concatenate([jnp.full_like(row[..., :1], NEG), row[..., :-1]], axis=-1)


def _shift_left(row: jax.Array) -> jax.Array:
    """Moves entry `u` of `[..., width]` to `u - 1` and puts `NEG` at the end."""
    return jnp.concatenate([row[..., 1:], jnp.full_like(row[..., :1], NEG)], axis=-1)


def _logaddexp(a: jax.Array, b: jax.Array) -> jax.Array:
    """Computes `log(exp(a) + exp(b))` of finite numbers, without branches for infinities."""
    # exp of a number that is not positive cannot overflow. Of two impossible scores it is NEG
    # again: in float32, adding log 2 to -1e30 changes nothing.
    return jnp.maximum(a, b) + jnp.log1p(jnp.exp(-jnp.abs(a - b)))


def initial_scores(like: jax.Array) -> jax.Array:
    """Returns the scores of the first wavefront: 0 at the start node and `NEG` elsewhere."""
    start = jnp.arange(like.shape[-1]) == 0
    # [width], added to zeros [batch, width].
    return jnp.where(start, 0.0, NEG).astype(like.dtype) + jnp.zeros_like(like)


def _rescale(scores: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Subtracts the maximum of each example's wavefront, unless the wavefront is impossible.

    Along a path of a thousand nats float32 resolves 1e-4; relative to a wavefront close by, a score
    keeps the precision that the gradient needs.

    Args:
        scores: `[batch, width]`.

    Returns:
        The rescaled scores, `[batch, width]`, and what was subtracted, `[batch]`.
    """
    top = jnp.max(scores, axis=-1)
    # Subtracting NEG from an impossible wavefront would make its scores 0, that is, certain.
    top = jnp.where(top > NEG / 2, top, 0.0)
    return scores - top[:, None], top


def by_platform(function: Callable[..., Any], *arrays: Any) -> Any:
    """Calls a function with arrays and with the number of wavefronts per turn of the platform."""
    # The plan of a step names its parts by these scopes.
    with jax.named_scope("lattice"):
        return jax.lax.platform_dependent(
            *arrays,
            tpu=functools.partial(function, turns=TURNS),
            default=functools.partial(function, turns=1),
        )


def scan_wavefronts(
    step: Callable[[Any, Any], tuple[Any, Any]], start: Any, inputs: Any, *, reverse: bool = False
) -> tuple[Any, Any]:
    """Scans over wavefronts, several per turn on a TPU; as `jax.lax.scan`."""

    def scan(start: Any, inputs: Any, *, turns: int) -> tuple[Any, Any]:
        return jax.lax.scan(step, start, inputs, reverse=reverse, unroll=turns)

    return by_platform(scan, start, inputs)


def _chunked(wavefronts: jax.Array, turns: int, fill: float | bool) -> jax.Array:
    """Converts `[wavefronts, ...]` to `[chunks, turns, ...]`; what is missing becomes `fill`."""
    missing = ((0, -len(wavefronts) % turns), *((0, 0),) * (wavefronts.ndim - 1))
    padded = jnp.pad(wavefronts, missing, constant_values=fill)
    return padded.reshape(-1, turns, *wavefronts.shape[1:])


def _alphas(
    blank: jax.Array, label: jax.Array, steps: jax.Array, label_lengths: jax.Array, *, turns: int
) -> tuple[jax.Array, jax.Array]:
    """Computes rescaled alphas, `[wavefronts, batch, width]`, and log P, `[batch]`.

    The alphas of a wavefront are relative to a scale that it shares with those of its turn.
    """
    count, batch, width = blank.shape

    def following(alpha: jax.Array, blank: jax.Array, label: jax.Array) -> jax.Array:
        # The equation of alpha: a blank keeps u, a label adds one.
        return _logaddexp(alpha + blank, shift_right(alpha + label))

    def step(
        alpha: jax.Array, arcs: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        alpha, scale = _rescale(alpha)
        alphas = []
        for turn in range(turns):
            alphas.append(alpha)
            alpha = following(alpha, arcs[0][turn], arcs[1][turn])
        return alpha, (jnp.stack(alphas), scale)

    chunks = (_chunked(blank, turns, NEG), _chunked(label, turns, NEG))
    _, (alphas, scales) = jax.lax.scan(step, initial_scores(blank[0]), chunks)
    alphas = alphas.reshape(-1, batch, width)[:count]
    # log P is the score that the last arc of an example leads to, plus all that was subtracted
    # before it. A masked sum in place of a gather leaves a sharded batch sharded.
    is_last = (jnp.arange(count)[:, None] == steps - 1)[..., None]
    at_end = jnp.arange(width) == label_lengths[:, None]
    ends = jnp.where(is_last & at_end, following(alphas, blank, label), 0.0)
    begun = jnp.arange(len(scales))[:, None] * turns < steps
    return alphas, jnp.sum(ends, axis=(0, 2)) + jnp.sum(jnp.where(begun, scales, 0.0), axis=0)


def _betas(
    blank: jax.Array, label: jax.Array, steps: jax.Array, label_lengths: jax.Array, *, turns: int
) -> jax.Array:
    """Computes rescaled betas, `[wavefronts, batch, width]`, of what each wavefront leads to."""
    count, batch, width = blank.shape
    at_end = jnp.arange(width) == label_lengths[:, None]

    def step(
        beta: jax.Array, inputs: tuple[jax.Array, jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        blank_arcs, label_arcs, is_last = inputs
        # Before its end, all scores of an example are impossible, and nothing is subtracted.
        beta, _ = _rescale(beta)
        betas = []
        for turn in reversed(range(turns)):
            # The path of an example ends in the node that its last arc leads to.
            beta = jnp.where(is_last[turn][:, None] & at_end, 0.0, beta)
            betas.append(beta)
            # The equation of beta: the node behind a label arc is u + 1, hence the shift to the
            # left.
            beta = _logaddexp(beta + blank_arcs[turn], _shift_left(beta) + label_arcs[turn])
        return beta, jnp.stack(betas[::-1])

    is_last = jnp.arange(count)[:, None] == steps - 1
    chunks = (
        _chunked(blank, turns, NEG),
        _chunked(label, turns, NEG),
        _chunked(is_last, turns, False),
    )
    _, betas = jax.lax.scan(step, jnp.full_like(blank[0], NEG), chunks, reverse=True)
    return betas.reshape(-1, batch, width)[:count]


def _loss_and_residuals(
    log_blank: jax.Array,
    log_label: jax.Array,
    frame_lengths: jax.Array,
    label_lengths: jax.Array,
    one_label_per_frame: bool,
    fastemit: float,
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """Computes the loss and what `_backward` needs for its gradient."""
    del fastemit  # It acts on the gradient alone.
    wavefronts = to_wavefronts(
        log_blank, log_label, frame_lengths, label_lengths, one_label_per_frame
    )
    alphas, log_likelihood = by_platform(_alphas, *wavefronts, label_lengths)
    loss = jnp.where(frame_lengths > 0, -log_likelihood, 0.0)
    return loss, (*wavefronts, alphas, loss, frame_lengths, label_lengths)


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
    """Computes the gradient of both lattices from the stored alphas and a scan for the betas."""
    blank, label, steps, alphas, loss, frame_lengths, label_lengths = residuals
    count, _, width = blank.shape
    # A skewed lattice has frames + width - 1 wavefronts.
    frames = count if one_label_per_frame else count + 1 - width
    betas = by_platform(_betas, blank, label, steps, label_lengths)

    # betas[n] belongs to the wavefront that the arcs of alphas[n] lead to. Every path takes exactly
    # one arc from each wavefront to the next, so the posteriors of those arcs are a softmax:
    # neither the scales nor log P enter, and no rounding accumulates along the path.
    by_blank = alphas + blank + betas  # [wavefronts, batch, width]
    by_label = alphas + label + _shift_left(betas)
    top = jnp.max(jnp.maximum(by_blank, by_label), axis=-1, keepdims=True)
    by_blank, by_label = jnp.exp(by_blank - top), jnp.exp(by_label - top)
    total = jnp.sum(by_blank + by_label, axis=-1, keepdims=True)
    index = jnp.arange(count)[:, None]
    # No gradient beyond the example's end, for absent examples, and where there is no path.
    # Not `loss <= -NEG / 2`: a loss of NaN must show in the gradient too.
    has_gradient = (index < steps) & (frame_lengths > 0) & ~(loss > -NEG / 2)
    scale = jnp.where(has_gradient, -cotangent, 0.0)[..., None] / total
    return (
        _from_wavefronts(scale * by_blank, frames, one_label_per_frame),
        # FastEmit (Yu et al. 2021): label arcs alone get 1 + lambda of their gradient. The column
        # that stands for no label arc is cut off.
        _from_wavefronts((1.0 + fastemit) * scale * by_label, frames, one_label_per_frame)[
            ..., :-1
        ],
        None,
        None,
    )


_lattice_loss.defvjp(_loss_and_residuals, _backward)

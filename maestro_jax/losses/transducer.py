"""The transducer (RNN-T) loss: the negative log-likelihood of labels, over every alignment.

A path starts at node ``(0, 0)`` of a lattice whose nodes are ``(frames consumed, labels emitted)``.
A blank arc consumes a frame and a label arc emits the next label without consuming one; the path
ends with the blank that consumes the last frame. With ``b`` and ``y`` the log-probabilities of the
blank and of the next label (Graves 2012, "Sequence Transduction with Recurrent Neural Networks",
equations 16-20)::

    alpha[t, u] = logaddexp(alpha[t - 1, u] + b[t - 1, u], alpha[t, u - 1] + y[t, u - 1])
    beta[t, u]  = logaddexp(beta[t + 1, u] + b[t, u], beta[t, u + 1] + y[t, u])
    loss        = -log P = -alpha[frames, labels] = -beta[0, 0]

    d loss / d b[t, u] = -exp(alpha[t, u] + b[t, u] + beta[t + 1, u] - log P)
    d loss / d y[t, u] = -exp(alpha[t, u] + y[t, u] + beta[t, u + 1] - log P)

The nodes of one anti-diagonal ``t + u`` do not depend on each other. The lattices are therefore
skewed, so that an anti-diagonal becomes a row, and a scan of ``frames + labels`` steps walks over
the rows (Bagby et al. 2018, "Efficient implementation of recurrent neural network transducer in
TensorFlow"). Every array keeps its batch axis, and nothing mixes examples: sharding over the batch
needs no communication.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

NEG = -1e30
"""The log-probability of what cannot happen: finite, because infinities make NaN gradients."""


def transducer_loss(
    logits: jax.Array,
    labels: jax.Array,
    frame_lengths: jax.Array,
    label_lengths: jax.Array,
    *,
    blank_id: int = 0,
) -> jax.Array:
    """Negative log-likelihood of each example's labels, summed over alignments.

    The sum over a batch or a division by lengths is the caller's. An example with labels may have
    fewer frames than labels, since several labels can share a frame.

    Args:
        logits: Unnormalised scores of any float type `[batch, frames, labels + 1, vocab]`; row `u`
            follows the first `u` labels.
        labels: Token ids, `[batch, labels]`; what lies after an example's length is ignored.
        frame_lengths: Valid frames of each example, `[batch]`, at most `frames`.
        label_lengths: Valid labels of each example, `[batch]`, at most `labels`.
        blank_id: The token id of the blank.

    Returns:
        Nats, float32 (float64 for float64 logits), `[batch]`. An example of zero frames counts as
        absent: its loss is 0 and so is its gradient, whatever its labels. Zero labels are legal:
        the loss is that of blanks alone.

    Raises:
        ValueError: If the shapes do not belong together.
    """
    log_blank, log_label = lattices_from_logits(logits, labels, blank_id)
    return transducer_loss_from_lattices(log_blank, log_label, frame_lengths, label_lengths)


def lattices_from_logits(
    logits: jax.Array, labels: jax.Array, blank_id: int = 0
) -> tuple[jax.Array, jax.Array]:
    """Log-probabilities of the blank and of the next label at every node.

    All that the loss needs of the vocabulary axis. The logits may be those of a few frames only,
    so that a caller can make them chunk by chunk under `jax.checkpoint`. The softmax is computed
    in float32; the gradient is written in one pass, without a scatter, in the logits' type.

    Args:
        logits: Unnormalised scores, `[batch, frames, labels + 1, vocab]`.
        labels: Token ids, `[batch, labels]`.
        blank_id: The token id of the blank.

    Returns:
        `log_blank`, `[batch, frames, labels + 1]`, and `log_label`, `[batch, frames, labels]`,
        float32 (float64 for float64 logits).

    Raises:
        ValueError: If the shapes do not belong together or the blank is not in the vocabulary.
    """
    if logits.ndim != 4 or labels.ndim != 2:
        raise ValueError(
            "logits must be [batch, frames, labels + 1, vocab] and labels [batch, labels], not "
            f"{logits.shape} and {labels.shape}"
        )
    expected = (logits.shape[0], logits.shape[2] - 1)
    if labels.shape != expected:
        raise ValueError(f"labels of logits {logits.shape} must be {expected}, not {labels.shape}")
    if not 0 <= blank_id < logits.shape[3]:
        raise ValueError(f"blank_id {blank_id} is not in a vocabulary of {logits.shape[3]}")
    return _lattices(logits, labels, blank_id)


def transducer_loss_from_lattices(
    log_blank: jax.Array,
    log_label: jax.Array,
    frame_lengths: jax.Array,
    label_lengths: jax.Array,
) -> jax.Array:
    """Negative log-likelihood over a lattice whose arcs are given.

    Minus infinity (a forbidden arc) is legal. Where no path is left the loss is about `-NEG` with
    a zero gradient. The gradient is analytic, from alpha and beta: reverse mode only, once.

    Args:
        log_blank: Log-probability of the blank at each node, `[batch, frames, labels + 1]`.
        log_label: Log-probability of the next label at each node, `[batch, frames, labels]`.
        frame_lengths: Valid frames of each example, `[batch]`, at most `frames`.
        label_lengths: Valid labels of each example, `[batch]`, at most `labels`.

    Returns:
        Nats, `[batch]`, as in `transducer_loss`. Nodes in the padding get a gradient of zero.

    Raises:
        ValueError: If the shapes do not belong together.
    """
    check_lattices(log_blank, log_label, frame_lengths, label_lengths)
    dtype = jnp.promote_types(jnp.promote_types(log_blank.dtype, log_label.dtype), jnp.float32)
    return _lattice_loss(
        log_blank.astype(dtype), log_label.astype(dtype), frame_lengths, label_lengths
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


def skew_lattices(
    log_blank: jax.Array,
    log_label: jax.Array,
    frame_lengths: jax.Array,
    label_lengths: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Lays the arcs out by anti-diagonals; arcs outside an example's own lattice become `NEG`.

    Args:
        log_blank: Blank arcs, `[batch, frames, labels + 1]`.
        log_label: Label arcs, `[batch, frames, labels]`.
        frame_lengths: Valid frames, `[batch]`.
        label_lengths: Valid labels, `[batch]`.

    Returns:
        Blank and label arcs that leave the nodes of anti-diagonal `n = t + u`, each
        `[frames + labels, batch, labels + 1]`, indexed `[n, example, u]`.
    """
    _, frames, width = log_blank.shape
    time = jnp.arange(frames)[None, :, None] < frame_lengths[:, None, None]
    position = jnp.arange(width)[None, None, :]
    end = label_lengths[:, None, None]
    log_label = jnp.pad(log_label, ((0, 0), (0, 0), (0, 1)), constant_values=NEG)
    blank = jnp.where(time & (position <= end), jnp.maximum(log_blank, NEG), NEG)
    label = jnp.where(time & (position < end), jnp.maximum(log_label, NEG), NEG)
    return _skew(blank), _skew(label)


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
    """Scores of the first anti-diagonal: 0 at the start node and `NEG` elsewhere."""
    start = jnp.arange(like.shape[-1]) == 0
    return jnp.where(start, 0.0, NEG).astype(like.dtype) + jnp.zeros_like(like)


def _last_node(diagonals: int, width: int, frames: jax.Array, labels: jax.Array) -> jax.Array:
    """Marks the node whose blank arc ends each path, `[diagonals, batch, width]`."""
    diagonal = jnp.arange(diagonals)[:, None, None] == (frames + labels - 1)[None, :, None]
    return diagonal & (jnp.arange(width) == labels[:, None])


def _rescale(row: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A row less its maximum, and the maximum, `[batch]`; an impossible row stays as it is.

    Along a path of a thousand nats float32 resolves 1e-4; relative to its own anti-diagonal, a
    score keeps the precision that the gradient needs.
    """
    top = jnp.max(row, axis=-1)
    top = jnp.where(top > NEG / 2, top, 0.0)
    return row - top[:, None], top


def _forward(
    blank: jax.Array, label: jax.Array, frame_lengths: jax.Array, label_lengths: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Rescaled alphas of skewed lattices, `[diagonals, batch, width]`, and log P, `[batch]`."""

    def step(
        alpha: jax.Array, arcs: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        blank_row, label_row = arcs
        alpha, scale = _rescale(alpha)
        return _logaddexp(alpha + blank_row, shift_right(alpha + label_row)), (alpha, scale)

    _, (alphas, scales) = jax.lax.scan(step, initial_row(blank[0]), (blank, label))
    # A masked sum instead of a gather: it costs nothing here and keeps the batch where it is.
    last = _last_node(blank.shape[0], blank.shape[2], frame_lengths, label_lengths)
    passed = jnp.arange(blank.shape[0])[:, None] < frame_lengths + label_lengths
    log_likelihood = jnp.sum(jnp.where(last, alphas + blank, 0.0), axis=(0, 2))
    return alphas, log_likelihood + jnp.sum(jnp.where(passed, scales, 0.0), axis=0)


def _lattice_loss_and_residuals(
    log_blank: jax.Array,
    log_label: jax.Array,
    frame_lengths: jax.Array,
    label_lengths: jax.Array,
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """The loss, and what its gradient is made of."""
    blank, label = skew_lattices(log_blank, log_label, frame_lengths, label_lengths)
    alphas, log_likelihood = _forward(blank, label, frame_lengths, label_lengths)
    loss = jnp.where(frame_lengths > 0, -log_likelihood, 0.0)
    return loss, (blank, label, alphas, loss, frame_lengths, label_lengths)


@jax.custom_vjp
def _lattice_loss(
    log_blank: jax.Array,
    log_label: jax.Array,
    frame_lengths: jax.Array,
    label_lengths: jax.Array,
) -> jax.Array:
    return _lattice_loss_and_residuals(log_blank, log_label, frame_lengths, label_lengths)[0]


def _lattice_loss_backward(
    residuals: tuple[jax.Array, ...], cotangent: jax.Array
) -> tuple[jax.Array, jax.Array, None, None]:
    blank, label, alphas, loss, frame_lengths, label_lengths = residuals
    diagonals, _, width = blank.shape
    frames = diagonals + 1 - width
    last = _last_node(diagonals, width, frame_lengths, label_lengths)

    def step(
        beta: jax.Array, arcs: tuple[jax.Array, jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        blank_row, label_row, last_row = arcs
        beta = jnp.where(last_row, 0.0, _rescale(beta)[0])  # 0 at the node after the last blank
        return _logaddexp(beta + blank_row, _shift_left(beta) + label_row), beta

    end = jnp.full_like(blank[0], NEG)
    _, betas = jax.lax.scan(step, end, (blank, label, last), reverse=True)

    # betas[n] stands on the diagonal that the arcs of alphas[n] lead to. Every path takes exactly
    # one arc out of each anti-diagonal, so the posteriors of those arcs are a softmax: neither the
    # scales nor log P enter, and no rounding adds up along the path.
    by_blank = alphas + blank + betas
    by_label = alphas + label + _shift_left(betas)
    top = jnp.max(jnp.maximum(by_blank, by_label), axis=-1, keepdims=True)
    by_blank, by_label = jnp.exp(by_blank - top), jnp.exp(by_label - top)
    total = jnp.sum(by_blank + by_label, axis=-1, keepdims=True)
    passed = jnp.arange(diagonals)[:, None] < frame_lengths + label_lengths
    passed &= (frame_lengths > 0) & ~(loss > -NEG / 2)
    scale = jnp.where(passed, -cotangent, 0.0)[..., None] / total
    return (
        _unskew(scale * by_blank, frames),
        _unskew(scale * by_label, frames)[..., :-1],
        None,
        None,
    )


_lattice_loss.defvjp(_lattice_loss_and_residuals, _lattice_loss_backward)


def _lattices_and_residuals(
    logits: jax.Array, labels: jax.Array, blank_id: int
) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, ...]]:
    """The lattices, and the normaliser that their gradient needs."""
    dtype = jnp.promote_types(logits.dtype, jnp.float32)
    normaliser = jax.nn.logsumexp(logits.astype(dtype), axis=-1)
    picked = jnp.take_along_axis(logits[:, :, :-1], labels[:, None, :, None], axis=-1)[..., 0]
    log_blank = logits[..., blank_id].astype(dtype) - normaliser
    log_label = picked.astype(dtype) - normaliser[..., :-1]
    return (log_blank, log_label), (logits, labels, normaliser)


def _lattices_primal(
    logits: jax.Array, labels: jax.Array, blank_id: int
) -> tuple[jax.Array, jax.Array]:
    return _lattices_and_residuals(logits, labels, blank_id)[0]


def _lattices_backward(
    blank_id: int,
    residuals: tuple[jax.Array, ...],
    cotangents: tuple[jax.Array, jax.Array],
) -> tuple[jax.Array, None]:
    """The gradient of two picks from a log-softmax: one pass over the vocabulary, no scatter."""
    logits, labels, normaliser = residuals
    blank, label = cotangents
    label = jnp.pad(label, ((0, 0), (0, 0), (0, 1)))
    labels = jnp.pad(labels, ((0, 0), (0, 1)))[:, None, :, None]
    total = (blank + label)[..., None]
    vocabulary = jnp.arange(logits.shape[-1])
    softmax = jnp.exp(logits.astype(normaliser.dtype) - normaliser[..., None])
    gradient = (
        jnp.where(vocabulary == blank_id, blank[..., None], 0.0)
        + jnp.where(vocabulary == labels, label[..., None], 0.0)
        # Not 0 * softmax: what stands in the padding may be infinite.
        - jnp.where(total == 0, 0.0, total * softmax)
    )
    return gradient.astype(logits.dtype), None


_lattices = jax.custom_vjp(_lattices_primal, nondiff_argnums=(2,))
_lattices.defvjp(_lattices_and_residuals, _lattices_backward)

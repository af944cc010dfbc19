"""Computes the log-probabilities of the two arcs that leave a transducer node, from logits.

Of the vocabulary axis a transducer needs two numbers at every node: the log-probability of the
blank and that of the one label that comes next. There are two factorisations of the distribution:

softmax
    One softmax over blank and labels (Graves 2012).
hat
    The blank is a Bernoulli variable of its own and the labels share a softmax (Variani et al.
    2020, "Hybrid Autoregressive Transducer", equations 5-7): with ``z`` the logits,
    ``log P(blank) = log sigmoid(z_blank)`` and
    ``log P(label) = log sigmoid(-z_blank) + log_softmax(z without blank)``. The label softmax
    alone is then an internal language model, which decoding can subtract.

The logits may be those of a few frames only, so that a caller can compute them chunk by chunk.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

NEG = -1e30
"""Log-probability of the impossible: finite, because infinities make gradients NaN."""


def log_probabilities(logits: jax.Array, *, blank_id: int = 0, hat: bool = False) -> jax.Array:
    """Computes the whole output distribution, for decoding.

    Args:
        logits: Unnormalised scores, `[..., vocab]`.
        blank_id: Token id of the blank.
        hat: Whether to use the hybrid autoregressive factorisation instead of one softmax.

    Returns:
        Natural log-probabilities, `[..., vocab]`, float32 (float64 for float64 logits).
    """
    x = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    if not hat:
        return jax.nn.log_softmax(x, axis=-1)
    is_blank = jnp.arange(x.shape[-1]) == blank_id
    blank = x[..., blank_id, None]
    # exp(NEG) is exactly 0, so that the blank is no part of the softmax of the labels.
    labels = jax.nn.log_softmax(jnp.where(is_blank, NEG, x), axis=-1)
    # log(1 - sigmoid(z)) as log sigmoid(-z): the difference would be 0, and its logarithm minus
    # infinity, where the blank is nearly certain.
    return jnp.where(is_blank, jax.nn.log_sigmoid(blank), jax.nn.log_sigmoid(-blank) + labels)


def lattices_from_logits(
    logits: jax.Array, labels: jax.Array, blank_id: int = 0, *, hat: bool = False
) -> tuple[jax.Array, jax.Array]:
    """Computes the log-probabilities of the blank and of the next label at every node.

    The softmax is computed in float32; the gradient is computed in one pass over the vocabulary,
    without a scatter, and has the logits' dtype.

    Args:
        logits: Unnormalised scores, `[batch, frames, labels + 1, vocab]`.
        labels: Token ids, `[batch, labels]`. An id that is not in the vocabulary has a logit of 0.
        blank_id: Token id of the blank.
        hat: Whether to use the hybrid autoregressive factorisation instead of one softmax.

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
    check_blank(blank_id, logits.shape[3])
    return _lattices(logits, labels, blank_id, hat)


def check_blank(blank_id: int, vocab: int) -> None:
    """Raises a `ValueError` if the blank is not in the vocabulary."""
    if not 0 <= blank_id < vocab:
        raise ValueError(f"blank_id {blank_id} is not in a vocabulary of {vocab}")


def blank_label_log_probs(
    logits: jax.Array, labels: jax.Array, blank_id: int, hat: bool
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Computes both arcs, and the normaliser that `blank_label_gradient` needs.

    Args:
        logits: `[batch, frames, labels + 1, vocab]`.
        labels: `[batch, labels]`.
        blank_id: Token id of the blank.
        hat: Whether blank and labels are factorised.

    Returns:
        `log_blank` `[batch, frames, labels + 1]`, `log_label` `[batch, frames, labels]`, and the
        log-sum-exp of the logits, `[batch, frames, labels + 1]`, of
        the labels' logits alone with `hat`.
    """
    dtype = jnp.promote_types(logits.dtype, jnp.float32)
    # With HAT the softmax is over the labels alone.
    summed = jnp.where(jnp.arange(logits.shape[-1]) == blank_id, NEG, logits) if hat else logits
    # [batch, frames, labels + 1]. Float32 also for logits of bfloat16, whose 8 bits could not hold
    # a sum of thousands of terms.
    normaliser = jax.nn.logsumexp(summed.astype(dtype), axis=-1)
    blank = logits[..., blank_id].astype(dtype)
    # Node u offers label u, and the last node none; its number may be any. A comparison with all
    # ids, added up, shares the pass over the vocabulary with the normaliser; a gather would want
    # the logits in another layout, and TPUs take longer to copy them than to compute them.
    offered = jnp.pad(labels, ((0, 0), (0, 1)))[:, None, :, None]
    chosen = jnp.where(jnp.arange(logits.shape[-1]) == offered, logits, 0)
    label_logits = jnp.sum(chosen.astype(dtype), axis=-1)[..., :-1]  # [batch, frames, labels]
    log_label = label_logits - normaliser[..., :-1]
    if hat:
        log_label = log_label + jax.nn.log_sigmoid(-blank[..., :-1])
        return jax.nn.log_sigmoid(blank), log_label, normaliser
    return blank - normaliser, log_label, normaliser


def blank_label_gradient(
    logits: jax.Array,
    labels: jax.Array,
    normaliser: jax.Array,
    blank: jax.Array,
    label: jax.Array,
    blank_id: int,
    hat: bool,
) -> jax.Array:
    """Computes the logits' gradient from those of both arcs, in one pass and without a scatter.

    With ``g_b`` and ``g_y`` the gradients of the two arcs, that of logit ``v`` is
    ``g_b [v = blank] + g_y [v = y] - (g_b + g_y) softmax_v``. For HAT the softmax is that of the
    labels with weight ``g_y``, and the blank's is ``g_b (1 - s) - g_y s``, where ``s`` is the
    sigmoid of the blank's logit.

    Args:
        logits: `[batch, frames, labels + 1, vocab]`.
        labels: `[batch, labels]`.
        normaliser: From `blank_label_log_probs`.
        blank: Gradient with respect to `log_blank`, `[batch, frames, labels + 1]`.
        label: Gradient with respect to `log_label`, `[batch, frames, labels]`.
        blank_id: Token id of the blank.
        hat: Whether blank and labels are factorised.

    Returns:
        `[batch, frames, labels + 1, vocab]`, in the logits' dtype.
    """
    vocabulary = jnp.arange(logits.shape[-1])
    is_blank = vocabulary == blank_id
    # No label arc leaves the last node: its gradient is 0, and any id may stand for its label.
    label = jnp.pad(label, ((0, 0), (0, 0), (0, 1)))  # [batch, frames, labels + 1]
    # [batch, 1, labels + 1, 1], compared below with the ids of the vocabulary.
    labels = jnp.pad(labels, ((0, 0), (0, 1)))[:, None, :, None]
    softmax = jnp.exp(logits.astype(normaliser.dtype) - normaliser[..., None])  # [..., vocab]
    total = blank + label
    if hat:
        # With s = sigmoid(z): d log s / dz = 1 - s and d log(1 - s) / dz = -s. Together they give
        # g_b (1 - s) - g_y s = g_b - (g_b + g_y) s.
        blank_probability = jax.nn.sigmoid(logits[..., blank_id].astype(normaliser.dtype))
        # A `where` in place of 0 * x, here and below: x may be infinite or NaN in the padding.
        at_blank = jnp.where(total == 0, 0.0, blank - total * blank_probability)
        softmax, total = jnp.where(is_blank, 0.0, softmax), label
    else:
        at_blank = blank
    # g_b [v = blank] + g_y [v = y] - total softmax_v, by comparison of ids in place of a scatter:
    # all of it is elementwise and fuses into one pass over the vocabulary.
    gradient = (
        jnp.where(is_blank, at_blank[..., None], 0.0)
        + jnp.where(vocabulary == labels, label[..., None], 0.0)
        - jnp.where(total[..., None] == 0, 0.0, total[..., None] * softmax)
    )
    return gradient.astype(logits.dtype)


def _lattices_and_residuals(
    logits: jax.Array, labels: jax.Array, blank_id: int, hat: bool
) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, ...]]:
    log_blank, log_label, normaliser = blank_label_log_probs(logits, labels, blank_id, hat)
    return (log_blank, log_label), (logits, labels, normaliser)


def _lattices_primal(
    logits: jax.Array, labels: jax.Array, blank_id: int, hat: bool
) -> tuple[jax.Array, jax.Array]:
    return _lattices_and_residuals(logits, labels, blank_id, hat)[0]


def _lattices_backward(
    blank_id: int,
    hat: bool,
    residuals: tuple[jax.Array, ...],
    cotangents: tuple[jax.Array, jax.Array],
) -> tuple[jax.Array, None]:
    logits, labels, normaliser = residuals
    return blank_label_gradient(logits, labels, normaliser, *cotangents, blank_id, hat), None


_lattices = jax.custom_vjp(_lattices_primal, nondiff_argnums=(2, 3))
_lattices.defvjp(_lattices_and_residuals, _lattices_backward)

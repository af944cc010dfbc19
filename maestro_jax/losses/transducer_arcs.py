"""From logits to the two arcs that leave a node of the transducer lattice.

All that a transducer needs of the vocabulary axis is, at every node, the log-probability of the
blank and that of the one label that comes next. Two factorisations of the output distribution:

softmax
    One softmax over blank and labels (Graves 2012).
hat
    The blank is a Bernoulli variable of its own and the labels share a softmax (Variani et al.
    2020, "Hybrid Autoregressive Transducer", equations 5-7): with ``z`` the logits,
    ``log P(blank) = log sigmoid(z_blank)`` and
    ``log P(label) = log sigmoid(-z_blank) + log_softmax(z without blank)``. The label softmax
    alone is then a model of the language that can be subtracted in decoding.

The logits may be those of a few frames only, so that a caller can make them chunk by chunk.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

NEG = -1e30
"""The log-probability of what cannot happen: finite, because infinities make NaN gradients."""


def log_probabilities(logits: jax.Array, *, blank_id: int = 0, hat: bool = False) -> jax.Array:
    """The whole output distribution, for decoding.

    Args:
        logits: Unnormalised scores, `[..., vocab]`.
        blank_id: The token id of the blank.
        hat: The hybrid autoregressive factorisation instead of one softmax.

    Returns:
        Natural log-probabilities, `[..., vocab]`, float32 (float64 for float64 logits).
    """
    x = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    if not hat:
        return jax.nn.log_softmax(x, axis=-1)
    is_blank = jnp.arange(x.shape[-1]) == blank_id
    blank = x[..., blank_id, None]
    labels = jax.nn.log_softmax(jnp.where(is_blank, NEG, x), axis=-1)
    return jnp.where(is_blank, jax.nn.log_sigmoid(blank), jax.nn.log_sigmoid(-blank) + labels)


def lattices_from_logits(
    logits: jax.Array, labels: jax.Array, blank_id: int = 0, *, hat: bool = False
) -> tuple[jax.Array, jax.Array]:
    """Log-probabilities of the blank and of the next label at every node.

    The softmax is computed in float32; the gradient is written in one pass, without a scatter, in
    the logits' type.

    Args:
        logits: Unnormalised scores, `[batch, frames, labels + 1, vocab]`.
        labels: Token ids, `[batch, labels]`. Those after an example's length must be in the
            vocabulary, or their arcs, which no path takes, are NaN.
        blank_id: The token id of the blank.
        hat: The hybrid autoregressive factorisation instead of one softmax.

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
    """Raises a `ValueError` when the blank is not in the vocabulary."""
    if not 0 <= blank_id < vocab:
        raise ValueError(f"blank_id {blank_id} is not in a vocabulary of {vocab}")


def arcs(
    logits: jax.Array, labels: jax.Array, blank_id: int, hat: bool
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The two arcs, and the normaliser that `arcs_gradient` wants back.

    Args:
        logits: `[batch, frames, labels + 1, vocab]`.
        labels: `[batch, labels]`.
        blank_id: The token id of the blank.
        hat: The factorisation.

    Returns:
        `log_blank` `[batch, frames, labels + 1]`, `log_label` `[batch, frames, labels]`, and the
        log-sum-exp of the logits, `[batch, frames, labels + 1]`, blank left out of it with `hat`.
    """
    dtype = jnp.promote_types(logits.dtype, jnp.float32)
    # Both factors of HAT see the blank through one column; the sum over labels must not.
    summed = jnp.where(jnp.arange(logits.shape[-1]) == blank_id, NEG, logits) if hat else logits
    normaliser = jax.nn.logsumexp(summed.astype(dtype), axis=-1)
    blank = logits[..., blank_id].astype(dtype)
    picked = jnp.take_along_axis(logits[:, :, :-1], labels[:, None, :, None], axis=-1)[..., 0]
    log_label = picked.astype(dtype) - normaliser[..., :-1]
    if hat:
        log_label = log_label + jax.nn.log_sigmoid(-blank[..., :-1])
        return jax.nn.log_sigmoid(blank), log_label, normaliser
    return blank - normaliser, log_label, normaliser


def arcs_gradient(
    logits: jax.Array,
    labels: jax.Array,
    normaliser: jax.Array,
    blank: jax.Array,
    label: jax.Array,
    blank_id: int,
    hat: bool,
) -> jax.Array:
    """The gradient of two picks from a distribution: one pass over the vocabulary, no scatter.

    With ``g_b`` and ``g_y`` the gradients of the two arcs, that of logit ``v`` is
    ``g_b [v = blank] + g_y [v = y] - (g_b + g_y) softmax_v``. For HAT the softmax is that of the
    labels with weight ``g_y``, and the blank's is ``g_b (1 - s) - g_y s``, where ``s`` is the
    sigmoid of the blank's logit.

    Args:
        logits: `[batch, frames, labels + 1, vocab]`.
        labels: `[batch, labels]`.
        normaliser: From `arcs`.
        blank: Gradient of `log_blank`, `[batch, frames, labels + 1]`.
        label: Gradient of `log_label`, `[batch, frames, labels]`.
        blank_id: The token id of the blank.
        hat: The factorisation.

    Returns:
        `[batch, frames, labels + 1, vocab]` in the logits' type.
    """
    vocabulary = jnp.arange(logits.shape[-1])
    is_blank = vocabulary == blank_id
    label = jnp.pad(label, ((0, 0), (0, 0), (0, 1)))
    labels = jnp.pad(labels, ((0, 0), (0, 1)))[:, None, :, None]
    softmax = jnp.exp(logits.astype(normaliser.dtype) - normaliser[..., None])
    total = blank + label
    if hat:
        share = jax.nn.sigmoid(logits[..., blank_id].astype(normaliser.dtype))
        # Not 0 * sigmoid, here and below: what stands in the padding may be infinite.
        at_blank = jnp.where(total == 0, 0.0, blank - total * share)
        softmax, total = jnp.where(is_blank, 0.0, softmax), label
    else:
        at_blank = blank
    gradient = (
        jnp.where(is_blank, at_blank[..., None], 0.0)
        + jnp.where(vocabulary == labels, label[..., None], 0.0)
        - jnp.where(total[..., None] == 0, 0.0, total[..., None] * softmax)
    )
    return gradient.astype(logits.dtype)


def _lattices_and_residuals(
    logits: jax.Array, labels: jax.Array, blank_id: int, hat: bool
) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, ...]]:
    log_blank, log_label, normaliser = arcs(logits, labels, blank_id, hat)
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
    return arcs_gradient(logits, labels, normaliser, *cotangents, blank_id, hat), None


_lattices = jax.custom_vjp(_lattices_primal, nondiff_argnums=(2, 3))
_lattices.defvjp(_lattices_and_residuals, _lattices_backward)

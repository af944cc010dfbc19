"""Computes cross entropies in float32: of an attention decoder, and of masked prediction.

With label smoothing (Szegedy et al. 2016, arXiv 1512.00567, section 7, uniform over all V ids)::

    q(v) = (1 - smoothing) [v = target] + smoothing / V,    loss = -sum_v q(v) log p(v)

Masked prediction of codes (w2v-BERT, section 3.3; BEST-RQ, section 3) is the cross entropy over the
masked frames j. Each of K codebooks has its own softmax, and their losses are averaged (USM,
section 2.2)::

    L_m = -1/K sum over k of log softmax(W_k h_j)[id_j,k]
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from maestro_jax.losses.reduction import Weighted, masked_sum


class CrossEntropy(NamedTuple):
    """Sums over the valid positions, each with their count.

    Attributes:
        loss: Cross entropy of the smoothed labels, in nats.
        nats: -log P of the targets, whose mean is the logarithm of the perplexity.
        accuracy: 1 where the target is the likeliest token.
    """

    loss: Weighted
    nats: Weighted
    accuracy: Weighted


def smoothed_cross_entropy(
    logits: jax.Array, targets: jax.Array, mask: jax.Array, *, smoothing: float = 0.0
) -> CrossEntropy:
    """Computes the cross entropy with label smoothing over the valid positions.

    Args:
        logits: `[batch, positions, vocab]`.
        targets: `[batch, positions]` int32.
        mask: `[batch, positions]` bool, True = valid.
        smoothing: Fraction of the target's mass that is spread over the vocabulary, in [0, 1).

    Returns:
        Loss, -log P and accuracy.

    Raises:
        ValueError: If `smoothing` is out of its range.
    """
    if not 0.0 <= smoothing < 1.0:
        raise ValueError(f"smoothing is {smoothing}; it must be at least 0 and below 1.")
    # Padding may hold anything: a gradient of 0 times infinity would be NaN.
    logits = jnp.where(mask[:, :, None], logits.astype(jnp.float32), 0.0)
    log_probabilities = jax.nn.log_softmax(logits, axis=-1)
    is_target = jnp.arange(logits.shape[-1]) == targets[:, :, None]
    # A masked sum in place of a gather, which would assemble a vocabulary split over devices.
    nats = -jnp.sum(jnp.where(is_target, log_probabilities, 0.0), axis=-1)
    loss = nats
    if smoothing:
        # -sum_v q(v) log p(v), where the uniform part is smoothing / V times a sum over V: a mean.
        loss = (1.0 - smoothing) * nats - smoothing * jnp.mean(log_probabilities, axis=-1)
    correct = jnp.argmax(logits, axis=-1) == targets
    return CrossEntropy(masked_sum(loss, mask), masked_sum(nats, mask), masked_sum(correct, mask))


def masked_prediction_loss(
    logits: jax.Array, targets: jax.Array, masked: jax.Array
) -> tuple[Weighted, Weighted]:
    """Computes the cross entropy and the accuracy of codes over the masked frames.

    Args:
        logits: `[batch, frames, codes]`, or `[batch, frames, codebooks, codes]`.
        targets: `[batch, frames]`, or `[batch, frames, codebooks]`, int32.
        masked: `[batch, frames]` bool, the masked valid frames.

    Returns:
        The loss in nats and the accuracy, averaged over codebooks, each as a total and the number
        of masked frames.
    """
    logits = logits.astype(jnp.float32)
    # -log softmax as a difference: no array of log-probabilities of all codes is made.
    target_logits = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    loss = jax.nn.logsumexp(logits, axis=-1) - target_logits
    correct = (jnp.argmax(logits, axis=-1) == targets).astype(jnp.float32)
    # The mean over codebooks, 1/K in the equation.
    if targets.ndim == 3:
        loss, correct = jnp.mean(loss, axis=-1), jnp.mean(correct, axis=-1)
    return masked_sum(loss, masked), masked_sum(correct, masked)

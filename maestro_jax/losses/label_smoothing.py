"""Cross entropy with smoothed labels: how a Transformer decoder is taught.

    q(v) = (1 - smoothing) [v = target] + smoothing / V,    loss = -sum_v q(v) log p(v)

Source: Szegedy et al. 2016 (arXiv 1512.00567), section 7, with the uniform prior over all V ids.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from maestro_jax.losses.reduction import Weighted, masked_sum


class CrossEntropy(NamedTuple):
    """Sums over the valid positions, each with their count.

    Attributes:
        loss: Against the smoothed labels, nats.
        nats: Against the labels alone: -log P, whose mean is the logarithm of the perplexity.
        accuracy: Where the target is the likeliest token.
    """

    loss: Weighted
    nats: Weighted
    accuracy: Weighted


def smoothed_cross_entropy(
    logits: jax.Array, targets: jax.Array, mask: jax.Array, *, smoothing: float = 0.0
) -> CrossEntropy:
    """Cross entropy over the valid positions, softmax in float32.

    Args:
        logits: `[batch, positions, vocab]`.
        targets: `[batch, positions]` int32.
        mask: `[batch, positions]` bool, True = valid.
        smoothing: Share of the target's mass that is spread over the vocabulary; at least 0,
            below 1.

    Returns:
        The sums.

    Raises:
        ValueError: The smoothing is out of its range.
    """
    if not 0.0 <= smoothing < 1.0:
        raise ValueError(f"smoothing is {smoothing}; it must be at least 0 and below 1.")
    # Padding may hold anything, and where it is infinite a gradient of 0 would be NaN.
    logits = jnp.where(mask[:, :, None], logits.astype(jnp.float32), 0.0)
    log_probabilities = jax.nn.log_softmax(logits, axis=-1)
    is_target = jnp.arange(logits.shape[-1]) == targets[:, :, None]
    # A masked sum, not a gather, which would bring a split vocabulary together.
    nats = -jnp.sum(jnp.where(is_target, log_probabilities, 0.0), axis=-1)
    loss = nats
    if smoothing:
        loss = (1.0 - smoothing) * nats - smoothing * jnp.mean(log_probabilities, axis=-1)
    correct = jnp.argmax(logits, axis=-1) == targets
    return CrossEntropy(masked_sum(loss, mask), masked_sum(nats, mask), masked_sum(correct, mask))

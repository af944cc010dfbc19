"""Masked prediction of codes: the second loss of w2v-BERT (section 3.3), in float32.

L_m = -log softmax(W h_j)[id_j]   over the masked frames j
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from maestro_jax.losses.reduction import Weighted, masked_sum


def masked_prediction_loss(
    logits: jax.Array, targets: jax.Array, masked: jax.Array
) -> tuple[Weighted, Weighted]:
    """Cross entropy and accuracy over the masked frames.

    Args:
        logits: `[batch, frames, codes]`.
        targets: `[batch, frames]` int32; no gradient goes to what made them.
        masked: `[batch, frames]` bool, the masked valid frames.

    Returns:
        The loss in nats and the accuracy, each as a total and a count.
    """
    log_probabilities = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    picked = jnp.take_along_axis(log_probabilities, targets[:, :, None], axis=-1)[..., 0]
    correct = jnp.argmax(logits, axis=-1) == targets
    return masked_sum(-picked, masked), masked_sum(correct, masked)

"""Masked prediction of codes, in float32: w2v-BERT, section 3.3; BEST-RQ, section 3.

L_m = -log softmax(W h_j)[id_j]   over the masked frames j

With several codebooks k, each has a softmax of its own, and their losses are averaged (USM, section
2.2):

L_m = -1/K sum over k of log softmax(W_k h_j)[id_j,k]
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
        logits: `[batch, frames, codes]`, or `[batch, frames, codebooks, codes]`.
        targets: `[batch, frames]`, or `[batch, frames, codebooks]`, int32; no gradient goes to what
            made them.
        masked: `[batch, frames]` bool, the masked valid frames.

    Returns:
        The loss in nats and the accuracy, each as a total and a count of masked frames; averages
        over codebooks.
    """
    logits = logits.astype(jnp.float32)
    picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    loss = jax.nn.logsumexp(logits, axis=-1) - picked
    correct = (jnp.argmax(logits, axis=-1) == targets).astype(jnp.float32)
    if targets.ndim == 3:
        loss, correct = jnp.mean(loss, axis=-1), jnp.mean(correct, axis=-1)
    return masked_sum(loss, masked), masked_sum(correct, masked)

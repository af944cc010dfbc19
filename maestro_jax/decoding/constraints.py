"""Constrains what a decoder may write, before its logits are normalised.

Both terms are applied to logits, so that the probabilities of what is left add up to one and every
search, its language models included, works as it does without them:

- a blank penalty is subtracted from the logit of the blank, against a decoder that leaves words
  out: the odds of a label against the blank rise by `exp(penalty)`, as in icefall and sherpa;
- tokens that are not allowed, such as those that a language never writes, are impossible.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from maestro_jax.decoding.hypotheses import NEG_INF


def constrain_logits(
    logits: jax.Array,
    *,
    blank_penalty: float | jax.Array = 0.0,
    allowed: jax.Array | None = None,
    blank_id: int = 0,
) -> jax.Array:
    """Applies a blank penalty, and excludes tokens.

    Args:
        logits: `[batch * n, ..., vocab]`, the `n` rows of one example one after the other.
        blank_penalty: Nats that are subtracted from the logit of the blank.
        allowed: Bool `[batch, vocab]`, the tokens of each example; the blank among them.
        blank_id: Token id of the blank.

    Returns:
        Logits of the same shape; float32 if there is something to constrain.
    """
    is_number = isinstance(blank_penalty, (int, float))
    if allowed is None and is_number and blank_penalty == 0:
        return logits
    # As float32: bfloat16 would round the penalty together with a large logit.
    logits = logits.astype(jnp.float32)
    is_blank = jnp.arange(logits.shape[-1]) == blank_id
    logits = logits - jnp.where(is_blank, blank_penalty, 0.0)
    if allowed is None:
        return logits
    repeated = jnp.repeat(allowed, len(logits) // len(allowed), axis=0)
    shape = (len(logits), *(1,) * (logits.ndim - 2), logits.shape[-1])
    return jnp.where(repeated.reshape(shape), logits, NEG_INF)

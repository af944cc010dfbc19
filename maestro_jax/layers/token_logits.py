"""The linear map from features to a score per token of the vocabulary."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from maestro_jax.layers.dropout import Dropout
from maestro_jax.layers.partitioned import Dense, constrain


class TokenLogits(nn.Module):
    """One linear map behind dropout.

    Attributes:
        vocab_size: Number of outputs; output 0 is the blank of CTC, or padding.
        dropout: Dropout rate on the input.
        dtype: Computation dtype; logits are float32.
    """

    vocab_size: int
    dropout: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, encoded: jax.Array, *, deterministic: bool = True) -> jax.Array:
        """Maps `[batch, positions, features]` to float32 logits `[batch, positions, vocab]`."""
        x = Dropout(self.dropout)(encoded, deterministic=deterministic)
        logits = Dense(self.vocab_size, ("embed", "vocab"), dtype=self.dtype, name="output")(x)
        return constrain(logits.astype(jnp.float32), "batch", "frames", "act_vocab")

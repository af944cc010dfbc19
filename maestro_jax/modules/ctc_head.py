"""The CTC head: one symbol per frame, read from the shared encoder's output.

Source: Graves et al. 2006 for the output layer. Beside the transducer it needs no prediction
network, so that nothing but the encoder can learn the text.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from maestro_jax.layers.dropout import Dropout
from maestro_jax.layers.partitioned import Dense, constrain


class CtcHead(nn.Module):
    """One linear map.

    Attributes:
        vocab_size: Number of outputs, blank (0) included.
        dropout: Dropout rate on the input.
        dtype: Computation dtype; logits are float32.
    """

    vocab_size: int
    dropout: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, encoded: jax.Array, *, deterministic: bool = True) -> jax.Array:
        """Maps `[batch, frames, features]` to float32 logits `[batch, frames, vocab]`."""
        x = Dropout(self.dropout)(encoded, deterministic=deterministic)
        logits = Dense(self.vocab_size, ("embed", "vocab"), dtype=self.dtype, name="output")(x)
        return constrain(logits.astype(jnp.float32), "batch", "frames", "act_vocab")

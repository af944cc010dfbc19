"""Multi-head self-attention over padded sequences."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from maestro_jax.modules.dropout import Dropout
from maestro_jax.modules.partitioned import Dense, constrain
from maestro_jax.modules.positions import rotate

LARGE_NEGATIVE = -1e9


class SelfAttention(nn.Module):
    """Self-attention over a whole sequence or a band of it; softmax in float32.

    Attributes:
        heads: Number of heads; divides the model size.
        dropout: Rate on the attention weights.
        rotary: Encode positions by rotating queries and keys.
        context: How many frames to each side a frame attends to; None for all.
        dtype: The type computed in.
    """

    heads: int
    dropout: float = 0.0
    rotary: bool = False
    context: int | None = None
    dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        """Refuse a context that means nothing before anything is built."""
        if self.context is not None and self.context < 0:
            raise ValueError(
                f"SelfAttention.context is {self.context}; give a number of frames, or None for a "
                "whole sequence."
            )
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array, *, deterministic: bool = True) -> jax.Array:
        """`[batch, frames, features]` with `[batch, frames]` validity to the same shape."""
        features = x.shape[-1]
        size = features // self.heads
        shape, axes = (self.heads, size), ("embed", "heads", "kv")
        query = Dense(shape, axes, dtype=self.dtype, name="query")(x)
        key = Dense(shape, axes, dtype=self.dtype, name="key")(x)
        value = Dense(shape, axes, dtype=self.dtype, name="value")(x)
        if self.rotary:
            query, key = rotate(query), rotate(key)
        query = constrain(query, "batch", "frames", "act_heads", None)
        key = constrain(key, "batch", "frames", "act_heads", None)
        value = constrain(value, "batch", "frames", "act_heads", None)
        logits = jnp.einsum("bqhd,bkhd->bhqk", query * size**-0.5, key).astype(jnp.float32)
        seen = mask[:, None, None, :]
        if self.context is not None:
            frames = jnp.arange(x.shape[1])
            seen = seen & (jnp.abs(frames[:, None] - frames[None, :]) <= self.context)
        logits = jnp.where(seen, logits, LARGE_NEGATIVE)
        weights = jax.nn.softmax(logits, axis=-1).astype(self.dtype)
        weights = Dropout(self.dropout)(weights, deterministic=deterministic)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", weights, value)
        return Dense(
            features, ("heads", "kv", "embed"), contracted=2, dtype=self.dtype, name="output"
        )(mixed)

"""Layer normalisation, and group normalisation over the valid frames of padded sequences."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from maestro_jax.layers.partitioned import ZERO_INIT, parameter


def layer_norm(*, dtype: Any = jnp.float32, name: str | None = None) -> nn.LayerNorm:
    """Returns a layer normalisation over the last axis; its statistics are float32."""
    return nn.LayerNorm(
        epsilon=1e-5,
        dtype=dtype,
        scale_init=nn.with_logical_partitioning(nn.initializers.ones_init(), ("embed",)),
        bias_init=nn.with_logical_partitioning(nn.initializers.zeros_init(), ("embed",)),
        name=name,
    )


class MaskedGroupNorm(nn.Module):
    """Statistics over the valid frames and the channels of a group, in float32.

    Flax's own divides by the number of valid frames, which is 0 for an absent example.
    Source: Wu and He 2018 (arXiv 1803.08494), equation 1.

    Attributes:
        groups: Number of groups; divides the channels.
        epsilon: Added to the variance.
        dtype: The type of the output.
    """

    groups: int
    epsilon: float = 1e-5
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        """Maps `[batch, frames, channels]` with mask `[batch, frames]` to the same shape."""
        channels = x.shape[-1]
        scale = parameter(self, "scale", nn.initializers.ones_init(), ("mlp",), (channels,))
        bias = parameter(self, "bias", ZERO_INIT, ("mlp",), (channels,))
        # [batch, frames, groups, channels / groups]; sums over thousands of numbers need float32.
        grouped = x.astype(jnp.float32).reshape(*x.shape[:2], self.groups, -1)
        weight = mask.astype(jnp.float32)[:, :, None, None]
        # 1 for an absent example, whose sums are 0: its frames are then normalised to finite
        # numbers.
        count = jnp.maximum(jnp.sum(weight, axis=1, keepdims=True) * grouped.shape[-1], 1.0)
        average = jnp.sum(grouped * weight, axis=(1, 3), keepdims=True) / count
        centred = grouped - average
        # In two passes: E[x^2] - E[x]^2 loses its digits where the average is large.
        variance = jnp.sum(jnp.square(centred) * weight, axis=(1, 3), keepdims=True) / count
        normalized = (centred * jax.lax.rsqrt(variance + self.epsilon)).reshape(x.shape)
        return (normalized * scale + bias).astype(self.dtype)

"""Convolutions along time: depthwise, and lightweight with the block built on it.

Source of lightweight convolution: Wu et al. 2019 (arXiv 1901.10430), equation 5: a depthwise
convolution whose kernel is normalised by a softmax over its width and shared by all channels of a
head. Used by MAESTRO's duration model (3x1) and refiner (17x1), after Parallel Tacotron.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from maestro_jax.layers.attention import check_heads
from maestro_jax.layers.dropout import Dropout
from maestro_jax.layers.masking import zero_padding
from maestro_jax.layers.normalization import layer_norm
from maestro_jax.layers.partitioned import Dense, parameter


def depthwise_convolution(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolves each channel with a centred kernel of its own, by shifting and adding.

    XLA's grouped convolution is slow on CPU, and for short kernels not better elsewhere.

    Args:
        x: `[batch, frames, channels]`, zero on padding.
        kernel: `[width, channels]`, width odd.

    Returns:
        `[batch, frames, channels]`.
    """
    width, frames = kernel.shape[0], x.shape[1]
    padded = jnp.pad(x, ((0, 0), (width // 2, width // 2), (0, 0)))
    # y[t] = sum over i of kernel[i] x[t + i - width // 2], with zeros beyond both ends.
    products = (padded[:, i : i + frames] * kernel[i] for i in range(width))
    return sum(products, jnp.zeros((), x.dtype))


class LightweightConv(nn.Module):
    """Depthwise convolution with softmax-normalised kernels, one per head.

    Attributes:
        heads: Number of kernels; divides the features.
        kernel_size: Odd width, in positions.
        dtype: Computation dtype.
    """

    heads: int
    kernel_size: int
    dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        """Refuses a kernel without a centre before anything is built."""
        if self.kernel_size < 1 or self.kernel_size % 2 == 0:
            raise ValueError(
                f"LightweightConv.kernel_size is {self.kernel_size}; choose an odd number, so that "
                "the kernel has a centre."
            )
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        """Maps `[batch, positions, features]` with mask `[batch, positions]` to the same shape.

        Raises:
            UserError: The heads do not divide the features.
        """
        check_heads(x.shape[-1], self.heads, "LightweightConv")
        init, shape = nn.initializers.normal(0.1), (self.kernel_size, self.heads)
        weights = parameter(self, "weights", init, ("kernel", "heads"), shape)
        # Wu et al. 2019, equation 5: each kernel sums to 1 over its width. The softmax is float32.
        kernel = jax.nn.softmax(weights, axis=0).astype(self.dtype)
        # Channel c belongs to head c // (features / heads).
        kernel = jnp.repeat(kernel, x.shape[-1] // self.heads, axis=1)
        return depthwise_convolution(zero_padding(x, mask), kernel)


class LightweightConvBlock(nn.Module):
    """Gated linear unit, lightweight convolution, residual; then a feed-forward residual.

    Attributes:
        heads: Kernels of the convolution.
        kernel_size: Width of the convolution.
        hidden: Size of the feed-forward layer; 0 leaves it out.
        dropout: Rate of each residual branch.
        dtype: Computation dtype.
    """

    heads: int
    kernel_size: int
    hidden: int = 0
    dropout: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array, *, deterministic: bool = True) -> jax.Array:
        """Maps `[batch, positions, features]` with mask `[batch, positions]` to the same shape."""
        features = x.shape[-1]
        drop = Dropout(self.dropout, deterministic=deterministic)
        y = layer_norm(dtype=self.dtype, name="norm")(x)
        value = Dense(features, ("embed", "mlp"), dtype=self.dtype, name="value")(y)
        gate = Dense(features, ("embed", "mlp"), dtype=self.dtype, name="gate")(y)
        y = value * nn.sigmoid(gate)
        y = LightweightConv(self.heads, self.kernel_size, self.dtype, name="convolution")(y, mask)
        y = Dense(features, ("mlp", "embed"), dtype=self.dtype, name="output")(y)
        x = x + drop(y)
        if self.hidden:
            y = layer_norm(dtype=self.dtype, name="feed_forward_norm")(x)
            y = nn.relu(Dense(self.hidden, ("embed", "mlp"), dtype=self.dtype, name="up")(y))
            y = Dense(features, ("mlp", "embed"), dtype=self.dtype, name="down")(drop(y))
            x = x + drop(y)
        return zero_padding(x, mask)

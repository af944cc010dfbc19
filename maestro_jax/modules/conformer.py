"""Conformer blocks, and the stacks that the speech encoder and the shared encoder are made of.

Source: Gulati et al. 2020 (arXiv 2005.08100), figure 1; sizes in w2v-BERT, table 1; group
normalisation instead of batch normalisation as in SLAM, section 4.1, because batches mix
modalities.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from maestro_jax.modules.attention import SelfAttention
from maestro_jax.modules.group_norm import MaskedGroupNorm
from maestro_jax.modules.masking import zero_padding
from maestro_jax.modules.partitioned import Dense, constrain, layer_norm
from maestro_jax.modules.positions import sinusoids


def depthwise_convolution(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Centred convolution of each channel with a kernel of its own, by shifting and adding.

    XLA's grouped convolution is slow on CPU, and for short kernels not better elsewhere.

    Args:
        x: `[batch, frames, channels]`, zero on padding.
        kernel: `[width, channels]`, width odd.

    Returns:
        `[batch, frames, channels]`.
    """
    width, frames = kernel.shape[0], x.shape[1]
    padded = jnp.pad(x, ((0, 0), (width // 2, width // 2), (0, 0)))
    return sum(padded[:, i : i + frames] * kernel[i] for i in range(width))


class FeedForward(nn.Module):
    """Pre-normalised position-wise network with swish.

    Attributes:
        hidden: Size of the hidden layer.
        dropout: Rate after each linear map.
        dtype: The type computed in.
    """

    hidden: int
    dropout: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, deterministic: bool = True) -> jax.Array:
        """`[batch, frames, features]` to the same shape, without the residual."""
        features = x.shape[-1]
        y = layer_norm(dtype=self.dtype, name="norm")(x)
        y = nn.swish(Dense(self.hidden, ("embed", "mlp"), dtype=self.dtype, name="up")(y))
        y = constrain(y, "batch", "frames", "act_mlp")
        y = nn.Dropout(self.dropout)(y, deterministic=deterministic)
        y = Dense(features, ("mlp", "embed"), dtype=self.dtype, name="down")(y)
        return nn.Dropout(self.dropout)(y, deterministic=deterministic)


class ConvolutionModule(nn.Module):
    """Gated pointwise, depthwise, normalised, swish, pointwise.

    Attributes:
        kernel_size: Odd width of the depthwise convolution, in frames.
        groups: Groups of the normalisation; 0 for layer normalisation.
        dropout: Rate at the output.
        dtype: The type computed in.
    """

    kernel_size: int = 5
    groups: int = 8
    dropout: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array, *, deterministic: bool = True) -> jax.Array:
        """`[batch, frames, features]`, `[batch, frames]` to the first's shape, no residual."""
        features = x.shape[-1]
        y = layer_norm(dtype=self.dtype, name="norm")(x)
        # Two maps instead of one that is split: the halves stay whole under tensor sharding.
        value = Dense(features, ("embed", "mlp"), dtype=self.dtype, name="value")(y)
        gate = Dense(features, ("embed", "mlp"), dtype=self.dtype, name="gate")(y)
        y = zero_padding(value * nn.sigmoid(gate), mask)
        kernel = self.param(
            "depthwise",
            nn.with_logical_partitioning(
                nn.initializers.normal(self.kernel_size**-0.5), ("kernel", "mlp")
            ),
            (self.kernel_size, features),
        )
        y = depthwise_convolution(y, kernel.astype(self.dtype))
        if self.groups:
            y = MaskedGroupNorm(self.groups, dtype=self.dtype, name="depthwise_norm")(y, mask)
        else:
            y = layer_norm(dtype=self.dtype, name="depthwise_norm")(y)
        y = Dense(features, ("mlp", "embed"), dtype=self.dtype, name="output")(nn.swish(y))
        return nn.Dropout(self.dropout)(y, deterministic=deterministic)


class ConformerBlock(nn.Module):
    """Half feed-forward, self-attention, convolution, half feed-forward, normalisation.

    Attributes:
        heads: Attention heads.
        hidden: Size of the feed-forward layers.
        kernel_size: Width of the depthwise convolution.
        groups: Groups of the convolution module's normalisation; 0 for layer normalisation.
        dropout: Rate of every residual branch.
        rotary: Rotary positions in the attention.
        dtype: The type computed in.
    """

    heads: int
    hidden: int
    kernel_size: int = 5
    groups: int = 8
    dropout: float = 0.0
    rotary: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array, *, deterministic: bool = True) -> jax.Array:
        """`[batch, frames, features]`, `[batch, frames]` to the first's shape."""
        common = {"dropout": self.dropout, "dtype": self.dtype}
        x = x + 0.5 * FeedForward(self.hidden, **common, name="feed_forward_in")(
            x, deterministic=deterministic
        )
        y = layer_norm(dtype=self.dtype, name="attention_norm")(x)
        y = SelfAttention(self.heads, rotary=self.rotary, **common, name="attention")(
            y, mask, deterministic=deterministic
        )
        x = x + nn.Dropout(self.dropout)(y, deterministic=deterministic)
        x = x + ConvolutionModule(self.kernel_size, self.groups, **common, name="convolution")(
            x, mask, deterministic=deterministic
        )
        x = x + 0.5 * FeedForward(self.hidden, **common, name="feed_forward_out")(
            x, deterministic=deterministic
        )
        x = layer_norm(dtype=self.dtype, name="output_norm")(x)
        return constrain(x, "batch", "frames", "act_embed")


class ConformerStack(nn.Module):
    """A number of equal Conformer blocks, with the positions added before the first.

    Attributes:
        layers: Number of blocks.
        features: Model size.
        heads: Attention heads.
        hidden: Size of the feed-forward layers.
        kernel_size: Width of the depthwise convolutions, in frames.
        groups: Groups of the convolution modules' normalisation; 0 for layer normalisation.
        dropout: Rate of every residual branch.
        positions: `sinusoidal` (added to the input), `rotary` (in the attention) or `none`.
        scan: Compile one block and loop over it; parameters get a leading `layers` axis.
        remat: Recompute a block's activations in the backward pass.
        dtype: The type computed in.
    """

    layers: int
    features: int
    heads: int
    hidden: int
    kernel_size: int = 5
    groups: int = 8
    dropout: float = 0.0
    positions: str = "sinusoidal"
    scan: bool = True
    remat: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array, *, deterministic: bool = True) -> jax.Array:
        """`[batch, frames, features]`, `[batch, frames]` to the first's shape; zero on padding."""
        if self.positions == "sinusoidal":
            x = x + sinusoids(jnp.arange(x.shape[1]), self.features).astype(self.dtype)
        x = constrain(x.astype(self.dtype), "batch", "frames", "act_embed")
        block = ConformerBlock
        if self.remat:
            block = nn.remat(block, prevent_cse=not self.scan, static_argnums=())
        settings = {
            "heads": self.heads,
            "hidden": self.hidden,
            "kernel_size": self.kernel_size,
            "groups": self.groups,
            "dropout": self.dropout,
            "rotary": self.positions == "rotary",
            "dtype": self.dtype,
        }
        if self.scan and self.layers > 1:

            def body(module: ConformerBlock, carry: jax.Array, _: None) -> tuple[jax.Array, None]:
                return module(carry, mask, deterministic=deterministic), None

            x, _ = nn.scan(
                body,
                variable_axes={"params": 0},
                split_rngs={"params": True, "dropout": True},
                length=self.layers,
                metadata_params={nn.PARTITION_NAME: "layers"},
            )(block(**settings, name="layers"), x, None)
        else:
            for index in range(self.layers):
                x = block(**settings, name=f"layer_{index}")(x, mask, deterministic=deterministic)
        return zero_padding(x, mask)

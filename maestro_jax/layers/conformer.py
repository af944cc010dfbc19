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

from maestro_jax.layers.adapters import ResidualAdapter
from maestro_jax.layers.attention import SelfAttention
from maestro_jax.layers.dropout import Dropout
from maestro_jax.layers.group_norm import MaskedGroupNorm
from maestro_jax.layers.masking import zero_padding
from maestro_jax.layers.partitioned import Dense, constrain, layer_norm, parameter
from maestro_jax.layers.positions import sinusoids
from maestro_jax.layers.rematerialisation import Policy, check_policy, rematerialised

POSITIONS = ("sinusoidal", "rotary", "none")


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
    products = (padded[:, i : i + frames] * kernel[i] for i in range(width))
    return sum(products, jnp.zeros((), x.dtype))


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
        y = Dropout(self.dropout)(y, deterministic=deterministic)
        y = Dense(features, ("mlp", "embed"), dtype=self.dtype, name="down")(y)
        return Dropout(self.dropout)(y, deterministic=deterministic)


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
        init, shape = nn.initializers.normal(self.kernel_size**-0.5), (self.kernel_size, features)
        kernel = parameter(self, "depthwise", init, ("kernel", "mlp"), shape)
        y = depthwise_convolution(y, kernel.astype(self.dtype))
        if self.groups:
            y = MaskedGroupNorm(self.groups, dtype=self.dtype, name="depthwise_norm")(y, mask)
        else:
            y = layer_norm(dtype=self.dtype, name="depthwise_norm")(y)
        y = Dense(features, ("mlp", "embed"), dtype=self.dtype, name="output")(nn.swish(y))
        return Dropout(self.dropout)(y, deterministic=deterministic)


class ConformerBlock(nn.Module):
    """Half feed-forward, self-attention, convolution, half feed-forward, normalisation; adapter.

    Attributes:
        heads: Attention heads.
        hidden: Size of the feed-forward layers.
        kernel_size: Width of the depthwise convolution.
        groups: Groups of the convolution module's normalisation; 0 for layer normalisation.
        dropout: Rate of every residual branch.
        rotary: Rotary positions in the attention.
        attention_context: Frames to each side that attention sees; None for all.
        attention_implementation: How attention is computed; see `SelfAttention`.
        attention_dropout: Rate on the attention weights; None for that of the branches.
        adapter_features: Size of the residual adapter at the end; 0 for none.
        adapter_languages: Its sets of weights; see `ResidualAdapter`.
        dtype: The type computed in.
    """

    heads: int
    hidden: int
    kernel_size: int = 5
    groups: int = 8
    dropout: float = 0.0
    rotary: bool = False
    attention_context: int | None = None
    attention_implementation: str = "auto"
    attention_dropout: float | None = None
    adapter_features: int = 0
    adapter_languages: int = 0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        mask: jax.Array,
        language: jax.Array | None = None,
        *,
        deterministic: bool = True,
    ) -> jax.Array:
        """`[batch, frames, features]`, `[batch, frames]`, `[batch]` to the first's shape."""
        common = {"dropout": self.dropout, "dtype": self.dtype}
        x = x + 0.5 * FeedForward(self.hidden, **common, name="feed_forward_in")(
            x, deterministic=deterministic
        )
        y = layer_norm(dtype=self.dtype, name="attention_norm")(x)
        drop = self.dropout if self.attention_dropout is None else self.attention_dropout
        y = SelfAttention(
            self.heads,
            dropout=drop,
            rotary=self.rotary,
            context=self.attention_context,
            implementation=self.attention_implementation,
            dtype=self.dtype,
            name="attention",
        )(y, mask, deterministic=deterministic)
        x = x + Dropout(self.dropout)(y, deterministic=deterministic)
        x = x + ConvolutionModule(self.kernel_size, self.groups, **common, name="convolution")(
            x, mask, deterministic=deterministic
        )
        x = x + 0.5 * FeedForward(self.hidden, **common, name="feed_forward_out")(
            x, deterministic=deterministic
        )
        x = layer_norm(dtype=self.dtype, name="output_norm")(x)
        if self.adapter_features:
            x = ResidualAdapter(
                self.adapter_features, self.adapter_languages, self.dtype, name="adapter"
            )(x, language)
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
        attention_context: Frames to each side that attention sees; None for all. The w2v-BERT
            recipe of Ask2Mask has 128.
        attention_implementation: How attention is computed; see `SelfAttention`.
        attention_dropout: Rate on the attention weights; None for that of the branches. The
            kernels `cudnn` and `pallas` train at a rate of 0 alone.
        adapter_features: Size of a residual adapter after each block; 0 for none.
        adapter_languages: Sets of adapters, chosen by the language id of the row; 0 for one set
            that all languages share.
        scan: Compile one block and loop over it; parameters get a leading `layers` axis.
        remat: Which of a block's activations are kept for the backward pass; see
            `rematerialisation`.
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
    attention_context: int | None = None
    attention_implementation: str = "auto"
    attention_dropout: float | None = None
    adapter_features: int = 0
    adapter_languages: int = 0
    scan: bool = True
    remat: Policy = "none"
    dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        """Refuse choices that mean nothing before anything is built."""
        if self.positions not in POSITIONS:
            raise ValueError(
                f"ConformerStack.positions is {self.positions!r}; choose one of {POSITIONS}."
            )
        check_policy(self.remat, "ConformerStack.remat")
        if self.attention_context is not None and self.attention_context < 0:
            raise ValueError(
                f"ConformerStack.attention_context is {self.attention_context}; give a number of "
                "frames, or None for a whole utterance."
            )
        if self.adapter_languages and not self.adapter_features:
            raise ValueError(
                f"ConformerStack.adapter_languages is {self.adapter_languages}, but there are no "
                "adapters; give adapter_features a size."
            )
        super().__post_init__()

    def __call__(
        self,
        x: jax.Array,
        mask: jax.Array,
        language: jax.Array | None = None,
        *,
        deterministic: bool = True,
    ) -> jax.Array:
        """The top of the stack.

        Args:
            x: `[batch, frames, features]`.
            mask: `[batch, frames]` bool, True = valid.
            language: `[batch]` language ids, for adapters of which each language has its own.
            deterministic: No dropout.

        Returns:
            `[batch, frames, features]`, zero on padding.
        """
        return self.with_tap(x, mask, language, deterministic=deterministic)[0]

    @nn.compact
    def with_tap(
        self,
        x: jax.Array,
        mask: jax.Array,
        language: jax.Array | None = None,
        *,
        tap: int | None = None,
        deterministic: bool = True,
    ) -> tuple[jax.Array, jax.Array]:
        """The top of the stack, and what one of its blocks puts out.

        Args:
            x: `[batch, frames, features]`.
            mask: `[batch, frames]` bool, True = valid.
            language: `[batch]` language ids, for adapters of which each language has its own.
            tap: The block, counted from 1; None or `layers` for the top.
            deterministic: No dropout.

        Returns:
            Both `[batch, frames, features]`, zero on padding. No other block's output is kept.

        Raises:
            ValueError: There is no such block.
        """
        if tap is not None and not 1 <= tap <= self.layers:
            raise ValueError(f"there is no block {tap} among {self.layers}; count them from 1.")
        if tap == self.layers:
            tap = None
        if self.positions == "sinusoidal":
            x = x + sinusoids(jnp.arange(x.shape[1]), self.features).astype(self.dtype)
        x = constrain(x.astype(self.dtype), "batch", "frames", "act_embed")
        settings = {
            "heads": self.heads,
            "hidden": self.hidden,
            "kernel_size": self.kernel_size,
            "groups": self.groups,
            "dropout": self.dropout,
            "rotary": self.positions == "rotary",
            "attention_context": self.attention_context,
            "attention_implementation": self.attention_implementation,
            "attention_dropout": self.attention_dropout,
            "adapter_features": self.adapter_features,
            "adapter_languages": self.adapter_languages,
            "dtype": self.dtype,
        }
        scanned = self.scan and self.layers > 1

        # `deterministic` must stay a Python value, so it is closed over and not an argument.
        def run(module: ConformerBlock, x: jax.Array) -> jax.Array:
            return module(x, mask, language, deterministic=deterministic)

        run = rematerialised(run, self.remat, scanned=scanned)
        tapped = x
        if scanned:

            def body(
                module: ConformerBlock, carry: tuple[jax.Array, ...], number: jax.Array
            ) -> tuple[tuple[jax.Array, ...], None]:
                x = run(module, carry[0])
                if tap is None:
                    return (x,), None
                # The carry holds one block's output. Handing it out a block would keep them all.
                return (x, jnp.where(number == tap, x, carry[1])), None

            carry, _ = nn.scan(
                body,
                variable_axes={"params": 0},
                split_rngs={"params": True, "dropout": True},
                length=self.layers,
                metadata_params={nn.PARTITION_NAME: "layers"},
            )(
                ConformerBlock(**settings, name="layers"),
                (x,) if tap is None else (x, x),
                jnp.arange(1, self.layers + 1),
            )
            x, tapped = carry[0], carry[-1]
        else:
            for number in range(1, self.layers + 1):
                x = run(ConformerBlock(**settings, name=f"layer_{number - 1}"), x)
                if number == tap or tap is None:
                    tapped = x
        top = zero_padding(x, mask)
        return top, top if tap is None else zero_padding(tapped, mask)

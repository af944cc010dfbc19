"""Conformer blocks, and the stacks that the speech encoder and the shared encoder are made of.

Source: Gulati et al. 2020 (arXiv 2005.08100), figure 1; sizes in w2v-BERT, table 1; group
normalisation instead of batch normalisation as in SLAM, section 4.1, because batches mix
modalities.
"""

from __future__ import annotations

from typing import Any, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp

from maestro_jax.layers.attention import SelfAttention
from maestro_jax.layers.convolution import depthwise_convolution
from maestro_jax.layers.dropout import Dropout
from maestro_jax.layers.languages import ResidualAdapter
from maestro_jax.layers.masking import zero_padding
from maestro_jax.layers.normalization import MaskedGroupNorm, layer_norm
from maestro_jax.layers.partitioned import Dense, constrain, parameter
from maestro_jax.layers.positions import sinusoids
from maestro_jax.layers.rematerialisation import Policy, check_policy, rematerialised

POSITIONS = ("sinusoidal", "rotary", "none")


class EncoderBlock(Protocol):
    """What a `ConformerStack` repeats: a Linen module that is called like this."""

    def __call__(
        self,
        x: jax.Array,
        mask: jax.Array,
        language: jax.Array | None = None,
        *,
        deterministic: bool = True,
    ) -> jax.Array:
        """Transforms a sequence.

        Args:
            x: `[batch, frames, features]`; what is on padding may be anything finite.
            mask: `[batch, frames]` bool, True = valid.
            language: `[batch]` int32 ids of the language spoken or written; None where unknown.
            deterministic: No dropout.

        Returns:
            `[batch, frames, features]` of the dtype of `x`.
        """
        ...


class FeedForward(nn.Module):
    """Pre-normalised position-wise network with swish.

    Attributes:
        hidden: Size of the hidden layer.
        dropout: Rate after each linear map.
        dtype: Computation dtype.
    """

    hidden: int
    dropout: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, deterministic: bool = True) -> jax.Array:
        """Maps `[batch, frames, features]` to the same shape, without the residual."""
        features = x.shape[-1]
        y = layer_norm(dtype=self.dtype, name="norm")(x)
        y = nn.swish(Dense(self.hidden, ("embed", "mlp"), dtype=self.dtype, name="up")(y))
        # Split over devices along the hidden axis, "up" needs no communication and "down" one sum.
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
        dtype: Computation dtype.
    """

    kernel_size: int = 5
    groups: int = 8
    dropout: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array, *, deterministic: bool = True) -> jax.Array:
        """Maps `[batch, frames, features]` with its mask to the same shape, without residual."""
        features = x.shape[-1]
        y = layer_norm(dtype=self.dtype, name="norm")(x)
        # Two maps instead of one that is split: the halves stay whole under tensor sharding.
        value = Dense(features, ("embed", "mlp"), dtype=self.dtype, name="value")(y)
        gate = Dense(features, ("embed", "mlp"), dtype=self.dtype, name="gate")(y)
        # The biases above have made the padding nonzero, and the convolution reaches half a kernel
        # into it: zeroed, it is to the last frames what the edge of the array would be.
        y = zero_padding(value * nn.sigmoid(gate), mask)
        # A sum of kernel_size products of unit variance keeps unit variance.
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
        adapter_languages: Number of sets of adapter weights; see `ResidualAdapter`.
        dtype: Computation dtype.
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
        """Maps `[batch, frames, features]` to the same shape; see `EncoderBlock`."""
        common = {"dropout": self.dropout, "dtype": self.dtype}
        # x + FFN(x) / 2, x + MHSA(x), x + Conv(x), x + FFN(x) / 2, norm: equation 1 of the paper.
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
    """A number of equal blocks with parameters of their own; positions are added before the first.

    The blocks are Conformer blocks of the sizes below. Any other module takes their place as
    `block`: docs/how_to/block.md writes one.

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
        adapter_languages: Number of sets of adapters, chosen by the language id of the row; 0 for
            one set that all languages share.
        block: A module to repeat instead of the Conformer block, called as `EncoderBlock`. The
            settings from `heads` to `dropout` are then not used, as the block has its own; rotary
            positions, settings of attention, and adapters are refused.
        scan: Compile one block and loop over it; parameters get a leading `layers` axis.
        remat: Which of a block's activations are kept for the backward pass; see
            `rematerialisation`.
        dtype: Computation dtype; a block must return the dtype of its input.
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
    block: nn.Module | None = None
    scan: bool = True
    remat: Policy = "none"
    dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        """Refuses settings that mean nothing before anything is built."""
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
        if self.block is not None:
            self._check_block(self.block)
        super().__post_init__()

    def _check_block(self, block: nn.Module) -> None:
        """Refuses settings that only Conformer blocks have."""
        unused = {
            "positions = 'rotary'": self.positions == "rotary",
            "attention_context": self.attention_context is not None,
            "attention_implementation": self.attention_implementation != "auto",
            "attention_dropout": self.attention_dropout is not None,
            "adapter_features": self.adapter_features > 0,
        }
        for name, is_set in unused.items():
            if is_set:
                raise ValueError(
                    f"ConformerStack.block is a {type(block).__name__}, which does not read "
                    f"ConformerStack.{name}; leave that at its default, and set fields of the "
                    "block instead."
                )

    def __call__(
        self,
        x: jax.Array,
        mask: jax.Array,
        language: jax.Array | None = None,
        *,
        deterministic: bool = True,
    ) -> jax.Array:
        """Computes the output of the last block.

        Args:
            x: `[batch, frames, features]`.
            mask: `[batch, frames]` bool, True = valid.
            language: `[batch]` language ids, for adapters of which each language has its own.
            deterministic: No dropout.

        Returns:
            `[batch, frames, features]`, zero on padding.
        """
        return self.with_intermediate(x, mask, language, deterministic=deterministic)[0]

    @nn.compact
    def with_intermediate(
        self,
        x: jax.Array,
        mask: jax.Array,
        language: jax.Array | None = None,
        *,
        layer: int | None = None,
        deterministic: bool = True,
    ) -> tuple[jax.Array, jax.Array]:
        """Computes the outputs of the last block and of another one.

        Args:
            x: `[batch, frames, features]`.
            mask: `[batch, frames]` bool, True = valid.
            language: `[batch]` language ids, for adapters of which each language has its own.
            layer: The other block, counted from 1; None or `layers` for the last.
            deterministic: No dropout.

        Returns:
            Both `[batch, frames, features]`, zero on padding. No other block's output is kept.

        Raises:
            ValueError: There is no such block.
        """
        if layer is not None and not 1 <= layer <= self.layers:
            raise ValueError(f"there is no block {layer} among {self.layers}; count them from 1.")
        # The last block needs no second entry in the carry of the scan.
        if layer == self.layers:
            layer = None
        if self.positions == "sinusoidal":
            x = x + sinusoids(jnp.arange(x.shape[1]), self.features).astype(self.dtype)
        x = constrain(x.astype(self.dtype), "batch", "frames", "act_embed")
        scanned = self.scan and self.layers > 1

        # `deterministic` must stay a Python value, so it is closed over and not an argument.
        def run(block: Any, x: jax.Array) -> jax.Array:
            return block(x, mask, language, deterministic=deterministic)

        run = rematerialised(run, self.remat, scanned=scanned)
        intermediate = x
        if scanned:

            def body(
                block: nn.Module, carry: tuple[jax.Array, ...], number: jax.Array
            ) -> tuple[tuple[jax.Array, ...], None]:
                x = run(block, carry[0])
                if layer is None:
                    return (x,), None
                # The carry holds one block's output. As an output of the scan, all would be kept.
                return (x, jnp.where(number == layer, x, carry[1])), None

            carry, _ = nn.scan(
                body,
                # Stacked along a leading axis: parameters of each block's own. Dropout too must
                # differ from block to block.
                variable_axes={"params": 0},
                split_rngs={"params": True, "dropout": True},
                length=self.layers,
                metadata_params={nn.PARTITION_NAME: "layers"},
            )(
                self._new_block("layers"),
                (x,) if layer is None else (x, x),
                jnp.arange(1, self.layers + 1),
            )
            x, intermediate = carry[0], carry[-1]
        else:
            for number in range(1, self.layers + 1):
                x = run(self._new_block(f"layer_{number - 1}"), x)
                if number == layer or layer is None:
                    intermediate = x
        # Within the stack the padding holds whatever the biases make of it. Attention and
        # convolution mask it where they read it; here it becomes zero for those who sum over
        # frames.
        top = zero_padding(x, mask)
        return top, top if layer is None else zero_padding(intermediate, mask)

    def _new_block(self, name: str) -> nn.Module:
        """Returns a block with parameters of its own, below this name."""
        if self.block is not None:
            return self.block.copy(name=name)
        return ConformerBlock(
            heads=self.heads,
            hidden=self.hidden,
            kernel_size=self.kernel_size,
            groups=self.groups,
            dropout=self.dropout,
            rotary=self.positions == "rotary",
            attention_context=self.attention_context,
            attention_implementation=self.attention_implementation,
            attention_dropout=self.attention_dropout,
            adapter_features=self.adapter_features,
            adapter_languages=self.adapter_languages,
            dtype=self.dtype,
            name=name,
        )

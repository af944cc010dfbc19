"""The refiner: from resampled text embeddings to the space of the speech encoder's output.

Source: MAESTRO, section 2.2: two layers of "8-headed self-attention blocks with 17x1 lightweight
convolutions". In Parallel Tacotron's vocabulary that is a block in which a lightweight convolution
of 8 heads stands where self-attention would; read literally it is self-attention followed by a
convolution. Both can be chosen.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from maestro_jax.layers.attention import SelfAttention
from maestro_jax.layers.convolution import LightweightConvBlock
from maestro_jax.layers.masking import zero_padding
from maestro_jax.layers.normalization import layer_norm
from maestro_jax.layers.partitioned import Dense, constrain
from maestro_jax.layers.rematerialisation import Policy, check_policy, rematerialised, scan_layers

MIXERS = ("lconv", "attention_lconv")


class Refiner(nn.Module):
    """Blocks at frame rate, then a linear map to the model size and a layer normalisation.

    The speech encoder's output, with which ê_t is compared and in whose place it stands, comes out
    of a layer normalisation, too. Matching that standardises both sides teaches no scale.

    Attributes:
        features: Size of the speech encoder's output.
        layers: Number of blocks.
        heads: Heads of the convolution, and of the attention where there is one.
        kernel_size: Width of the convolution, in frames.
        hidden: Size of the feed-forward layers.
        mixer: `lconv` or `attention_lconv` (self-attention before each convolution).
        dropout: Rate of each branch.
        scan: Compile one block and loop over it; parameters get a leading `layers` axis. Not with
            `attention_lconv`.
        remat: Which of a convolution block's activations are kept for the backward pass; see
            `rematerialisation`.
        normalize: End in a layer normalisation. Without it, ê_t has the scale that the linear map
            happens to give it.
        dtype: Computation dtype.
    """

    features: int
    layers: int = 2
    heads: int = 8
    kernel_size: int = 17
    hidden: int = 2048
    mixer: str = "lconv"
    dropout: float = 0.0
    scan: bool = False
    remat: Policy = "none"
    normalize: bool = True
    dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        """Refuses an unknown mixer or policy before anything is built."""
        check_policy(self.remat, "Refiner.remat")
        if self.mixer not in MIXERS:
            raise ValueError(f"Refiner.mixer is {self.mixer!r}; choose one of {MIXERS}.")
        if self.scan and self.mixer != "lconv":
            raise ValueError(
                f"Refiner.scan is True, but its mixer is {self.mixer!r}; set scan to False."
            )
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array, *, deterministic: bool = True) -> jax.Array:
        """Maps `[batch, frames, text_features]` with its mask to ê_t, of `features`."""

        def run(module: LightweightConvBlock, x: jax.Array) -> jax.Array:
            return module(x, mask, deterministic=deterministic)

        scanned = self.scan and self.layers > 1
        run = rematerialised(run, self.remat, scanned=scanned)
        settings = (self.heads, self.kernel_size, self.hidden, self.dropout, self.dtype)
        if scanned:
            x = scan_layers(run, LightweightConvBlock(*settings, name="blocks"), x, self.layers)
        else:
            for index in range(self.layers):
                if self.mixer == "attention_lconv":
                    # The paper read literally: x + attention(norm(x)) before each convolution
                    # block.
                    y = layer_norm(dtype=self.dtype, name=f"attention_norm_{index}")(x)
                    x = x + SelfAttention(
                        self.heads, self.dropout, dtype=self.dtype, name=f"attention_{index}"
                    )(y, mask, deterministic=deterministic)
                x = run(LightweightConvBlock(*settings, name=f"block_{index}"), x)
        x = layer_norm(dtype=self.dtype, name="output_norm")(x)
        x = Dense(self.features, ("mlp", "embed"), dtype=self.dtype, name="output")(x)
        if self.normalize:
            x = layer_norm(dtype=self.dtype, name="final_norm")(x)
        return constrain(zero_padding(x, mask), "batch", "frames", "act_embed")

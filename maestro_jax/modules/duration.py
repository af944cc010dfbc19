"""The duration model: how many encoder frames each token lasts.

Source: four blocks of 3x1 lightweight convolution on e_t (MAESTRO, section 2.2); two heads,
P(duration is not zero) and a continuous duration (JOIST patent US20240028829, after Parallel
Tacotron): where the first lies below a threshold, the duration is zero.
"""

from __future__ import annotations

import math
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp

from maestro_jax.layers.lightweight_conv import LightweightConvBlock
from maestro_jax.layers.partitioned import Dense, layer_norm
from maestro_jax.precision import EXACT


@flax.struct.dataclass
class DurationPrediction:
    """The two heads.

    Attributes:
        nonzero_logit: `[batch, tokens]`, log-odds that the token lasts at least a frame.
        frames: `[batch, tokens]`, positive; its duration in frames if it lasts.
    """

    nonzero_logit: jax.Array
    frames: jax.Array


class DurationModel(nn.Module):
    """Lightweight-convolution blocks and the two heads.

    Attributes:
        blocks: Number of blocks.
        kernel_size: Width of the convolutions, in tokens.
        heads: Kernels of each convolution.
        max_frames: Longest duration of a token, in frames: predictions are clipped to it.
        zero_threshold: A token lasts if P(duration is not zero) is above it, between 0 and 1. No
            source gives the value that was used.
        dropout: Rate of each block.
        dtype: The type computed in; the heads are float32.
    """

    blocks: int = 4
    kernel_size: int = 3
    heads: int = 8
    max_frames: int = 120
    zero_threshold: float = 0.5
    dropout: float = 0.0
    dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        """Refuse numbers that mean nothing before anything is built."""
        if not 0.0 < self.zero_threshold < 1.0:
            raise ValueError(
                f"DurationModel.zero_threshold is {self.zero_threshold}; "
                "choose a probability between 0 and 1, such as 0.5."
            )
        if self.max_frames < 1:
            raise ValueError(
                f"DurationModel.max_frames is {self.max_frames}; allow at least one frame."
            )
        super().__post_init__()

    @nn.compact
    def __call__(
        self, embedded: jax.Array, mask: jax.Array, *, deterministic: bool = True
    ) -> DurationPrediction:
        """`[batch, tokens, features]`, `[batch, tokens]` to the two heads."""
        x = embedded
        for index in range(self.blocks):
            x = LightweightConvBlock(
                self.heads,
                self.kernel_size,
                dropout=self.dropout,
                dtype=self.dtype,
                name=f"block_{index}",
            )(x, mask, deterministic=deterministic)
        x = layer_norm(name="output_norm")(x.astype(jnp.float32))
        nonzero = Dense(1, ("embed", None), name="nonzero", precision=EXACT)(x)[..., 0]
        frames = Dense(1, ("embed", None), name="frames", precision=EXACT)(x)[..., 0]
        frames = nn.softplus(frames + 1.0)
        return DurationPrediction(nonzero_logit=nonzero, frames=frames)

    def lasts(self, prediction: DurationPrediction) -> jax.Array:
        """`[batch, tokens]` bool: the tokens that the first head gives a frame at least."""
        log_odds = math.log(self.zero_threshold) - math.log1p(-self.zero_threshold)
        return prediction.nonzero_logit > log_odds

    def durations(self, prediction: DurationPrediction, mask: jax.Array) -> jax.Array:
        """Durations that are not rounded, and through which gradients flow to the second head.

        A token that the first head calls silent lasts zero frames; any other at least one, at most
        `max_frames`.

        Args:
            prediction: The two heads.
            mask: `[batch, tokens]` bool, True = valid.

        Returns:
            `[batch, tokens]` float32 frames, 0 on padding.
        """
        frames = jnp.clip(prediction.frames, 1.0, float(self.max_frames))
        return jnp.where(mask & self.lasts(prediction), frames, 0.0)

    def round(self, prediction: DurationPrediction, mask: jax.Array) -> jax.Array:
        """Whole durations for resampling: those of `durations`, rounded.

        Args:
            prediction: The two heads.
            mask: `[batch, tokens]` bool, True = valid.

        Returns:
            `[batch, tokens]` int32 frames, 0 on padding; no gradient.
        """
        durations = jax.lax.stop_gradient(self.durations(prediction, mask))
        return jnp.round(durations).astype(jnp.int32)

"""The duration model: how many encoder frames each token lasts.

Source: four blocks of 3x1 lightweight convolution on e_t (MAESTRO, section 2.2); two heads,
P(duration is not zero) and a continuous duration (JOIST patent US20240028829, after Parallel
Tacotron).
"""

from __future__ import annotations

from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp

from maestro_jax.modules.lightweight_conv import LightweightConvBlock
from maestro_jax.modules.partitioned import Dense, layer_norm


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
        max_frames: Longest duration predicted for a token, in frames.
        dropout: Rate of each block.
        dtype: The type computed in; the heads are float32.
    """

    blocks: int = 4
    kernel_size: int = 3
    heads: int = 8
    max_frames: int = 120
    dropout: float = 0.0
    dtype: Any = jnp.float32

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
        nonzero = Dense(1, ("embed", None), name="nonzero")(x)[..., 0]
        frames = nn.softplus(Dense(1, ("embed", None), name="frames")(x)[..., 0] + 1.0)
        return DurationPrediction(nonzero_logit=nonzero, frames=frames)

    def round(self, prediction: DurationPrediction, mask: jax.Array) -> jax.Array:
        """Whole durations for resampling.

        A token that the first head calls silent lasts zero frames; any other at least one, at most
        `max_frames`.

        Args:
            prediction: The two heads.
            mask: `[batch, tokens]` bool, True = valid.

        Returns:
            `[batch, tokens]` int32 frames, 0 on padding; no gradient.
        """
        frames = jnp.clip(jnp.round(prediction.frames), 1, self.max_frames).astype(jnp.int32)
        frames = jnp.where(prediction.nonzero_logit > 0, frames, 0)
        return jax.lax.stop_gradient(jnp.where(mask, frames, 0))

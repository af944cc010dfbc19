"""The resampler: token embeddings copied to frame rate by their durations.

Source: MAESTRO, section 2.2: each embedding is copied to its duration, then positional embeddings
tell a frame its place within its token, as in Parallel Tacotron (section 2.3 there: the frame's
index in the token, the token's duration, and the fraction of the token that has passed).
"""

from __future__ import annotations

from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp

from maestro_jax.layers.masking import length_mask, zero_padding
from maestro_jax.layers.partitioned import Dense
from maestro_jax.layers.positions import sinusoids


@flax.struct.dataclass
class FrameIndex:
    """Which token each frame comes from.

    Attributes:
        token: `[batch, frames]` int32, index of the frame's token.
        position: `[batch, frames]` int32, the frame's index within its token.
        duration: `[batch, frames]` int32, frames of its token.
        mask: `[batch, frames]` bool, True = valid.
        lengths: `[batch]` int32, valid frames.
        overflow: `[batch]` int32, frames that did not fit and were cut off at the end.
    """

    token: jax.Array
    position: jax.Array
    duration: jax.Array
    mask: jax.Array
    lengths: jax.Array
    overflow: jax.Array


def frame_index(durations: jax.Array, frames: int) -> FrameIndex:
    """Invert durations: for each frame, the token it belongs to.

    Args:
        durations: `[batch, tokens]` int32, frames of each token, 0 on padding.
        frames: Static number of output frames; what is beyond is cut and counted.

    Returns:
        The frame index.
    """
    ends = jnp.cumsum(durations, axis=1)
    total = ends[:, -1]
    times = jnp.arange(frames)
    # The first token whose end lies beyond the frame; a token of zero frames is never it.
    token = jax.vmap(lambda row: jnp.searchsorted(row, times, side="right"))(ends)
    token = jnp.minimum(token, durations.shape[1] - 1).astype(jnp.int32)
    starts = jnp.take_along_axis(ends - durations, token, axis=1)
    lengths = jnp.minimum(total, frames)
    mask = length_mask(lengths, frames)
    return FrameIndex(
        token=token,
        position=jnp.where(mask, times[None, :] - starts, 0),
        duration=jnp.where(mask, jnp.take_along_axis(durations, token, axis=1), 0),
        mask=mask,
        lengths=lengths,
        overflow=total - lengths,
    )


def place_in_token(
    position: jax.Array, duration: jax.Array, fraction: jax.Array, features: int
) -> jax.Array:
    """What tells a frame its place within its token.

    Args:
        position: `[batch, frames]`, frames since the token's first.
        duration: `[batch, frames]`, frames of the token.
        fraction: `[batch, frames]`, share of the token that has passed at the frame's centre.
        features: Size of each sinusoidal embedding.

    Returns:
        `[batch, frames, 2 * features + 1]` float32.
    """
    return jnp.concatenate(
        [sinusoids(position, features), sinusoids(duration, features), fraction[..., None]],
        axis=-1,
    )


class Resampler(nn.Module):
    """Copies, then adds where in its token a frame stands.

    Attributes:
        dtype: The type computed in.
    """

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, embedded: jax.Array, durations: jax.Array, frames: int
    ) -> tuple[jax.Array, FrameIndex]:
        """Resample to frame rate.

        Args:
            embedded: `[batch, tokens, features]`, e_t.
            durations: `[batch, tokens]` int32 frames; no gradient flows through them.
            frames: Static number of output frames.

        Returns:
            `[batch, frames, features]`, zero on padding, and the frame index.
        """
        features = embedded.shape[-1]
        index = frame_index(durations, frames)
        copied = jnp.take_along_axis(embedded, index.token[:, :, None], axis=1)
        fraction = (index.position + 0.5) / jnp.maximum(index.duration, 1)
        where = place_in_token(index.position, index.duration, fraction, features)
        where = Dense(
            features,
            (None, "embed"),
            dtype=self.dtype,
            name="position",
        )(where.astype(self.dtype))
        return zero_padding(copied + where, index.mask), index

"""Resamplers: from token embeddings to frames, by the tokens' durations.

`Resampler` (MAESTRO, section 2.2): each embedding is copied to its duration, then positional
embeddings tell a frame its position within its token, as in Parallel Tacotron (section 2.3 there:
the frame's index in the token, the token's duration, and the fraction of the token that has
passed).

`GaussianUpsampling`: each frame is a mixture of the tokens near it, instead of a copy of one.

    w[t, u] = N(t + 1/2; c_u, s_u) / sum over v of N(t + 1/2; c_v, s_v)
    c_u = d_1 + ... + d_(u - 1) + d_u / 2,    s_u = r_u d_u

Source: Non-Attentive Tacotron (Shen et al. 2020, section 2.3), and the attention-based upsampling
of Parallel Tacotron 2, to which the outlook of MAESTRO points. Their deviations s are numbers of
frames; here they are fractions r of the token's duration. For small r a frame then belongs to the
token within whose bounds it lies, as in `Resampler`, and not to the token whose centre is nearest,
which of a short and a long token may be the wrong one. Weights, and with them the output, are
differentiable in the durations: given durations that are not rounded, the losses behind the
resampler train the model that predicted them.
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
from maestro_jax.precision import EXACT

LARGE_NEGATIVE = -1e9
SMALLEST_RANGE = 0.05


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
    """Inverts durations: finds the token that each frame belongs to.

    Args:
        durations: `[batch, tokens]` int32, frames of each token, 0 on padding.
        frames: Static number of output frames; what is beyond is cut and counted.

    Returns:
        The frame index.
    """
    # [batch, tokens]: token u owns the frames ends[u - 1] ... ends[u] - 1.
    ends = jnp.cumsum(durations, axis=1)
    total = ends[:, -1]
    times = jnp.arange(frames)
    # The first token whose end lies beyond the frame; a token of zero frames is never it.
    token = jax.vmap(lambda row: jnp.searchsorted(row, times, side="right"))(ends)
    # Frames behind the last token find none; the clipped index is masked.
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


def intra_token_position(
    position: jax.Array, duration: jax.Array, fraction: jax.Array, features: int
) -> jax.Array:
    """Encodes the position of each frame within its token.

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
    """Copies embeddings to frames, and adds the position of each frame within its token.

    Attributes:
        dtype: Computation dtype.
    """

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, embedded: jax.Array, durations: jax.Array, frames: int
    ) -> tuple[jax.Array, FrameIndex]:
        """Resamples to frame rate.

        Args:
            embedded: `[batch, tokens, features]`, e_t.
            durations: `[batch, tokens]` int32 frames; no gradient flows through them.
            frames: Static number of output frames.

        Returns:
            `[batch, frames, features]`, zero on padding, and the frame index.
        """
        features = embedded.shape[-1]
        index = frame_index(durations, frames)
        # [batch, frames, features]. The gradient of a token is the sum over its frames.
        copied = jnp.take_along_axis(embedded, index.token[:, :, None], axis=1)
        # At the centre of the frame, so that the only frame of a token is at its middle. Padding
        # has a duration of 0: the maximum keeps 0 / 0 away.
        fraction = (index.position + 0.5) / jnp.maximum(index.duration, 1)
        position = intra_token_position(index.position, index.duration, fraction, features)
        position = Dense(
            features,
            (None, "embed"),
            dtype=self.dtype,
            name="position",
        )(position.astype(self.dtype))
        return zero_padding(copied + position, index.mask), index


def whole_durations(durations: jax.Array) -> jax.Array:
    """Rounds durations so that each token owns the frames whose centres lie within its bounds.

    The ends of the tokens are rounded, not the durations, so that the sum is right to half a frame.

    Args:
        durations: `[batch, tokens]` frames, not negative; integers come back as they are.

    Returns:
        `[batch, tokens]` int32; no gradient.
    """
    if jnp.issubdtype(durations.dtype, jnp.integer):
        return durations.astype(jnp.int32)
    ends = jnp.cumsum(jax.lax.stop_gradient(durations).astype(jnp.float32), axis=1)
    # A centre t + 1/2 lies before an end e if t < e - 1/2: that many frames are ceil(e - 1/2).
    return jnp.diff(jnp.ceil(ends - 0.5).astype(jnp.int32), axis=1, prepend=0)


def gaussian_weights(durations: jax.Array, ranges: jax.Array, frames: int) -> jax.Array:
    """Computes the weight of each token in each frame.

    Args:
        durations: `[batch, tokens]` frames; a token of zero frames gives nothing.
        ranges: `[batch, tokens]`, standard deviations as shares of the durations, positive.
        frames: Number of frames.

    Returns:
        `[batch, frames, tokens]` float32, of sum 1 over the tokens; what a row without any
        duration holds means nothing but is finite.
    """
    durations = durations.astype(jnp.float32)
    nonzero = durations > 0  # [batch, tokens]
    # 1 in place of 0 before the division and the logarithm: a `where` behind them would stop the
    # value, and still let NaN into the gradient.
    deviations = ranges * jnp.where(nonzero, durations, 1.0)
    centres = jnp.cumsum(durations, axis=1) - 0.5 * durations
    times = jnp.arange(frames, dtype=jnp.float32)[None, :, None] + 0.5
    # [batch, frames, tokens]
    distance = (times - centres[:, None, :]) / deviations[:, None, :]
    # log N up to a constant, which the softmax over tokens divides out.
    logits = -0.5 * jnp.square(distance) - jnp.log(deviations)[:, None, :]
    return jax.nn.softmax(jnp.where(nonzero[:, None, :], logits, LARGE_NEGATIVE), axis=-1)


class GaussianUpsampling(nn.Module):
    """An alternative to `Resampler` with the same interface, but for durations that may be floats.

    Attributes:
        fixed_range: Standard deviation of each token's Gaussian as a share of its duration. None:
            predicted from the token and its duration.
        dtype: Computation dtype; weights are float32.
    """

    fixed_range: float | None = None
    dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        """Refuses a range that leaves no Gaussian before anything is built."""
        if self.fixed_range is not None and not self.fixed_range > 0.0:
            raise ValueError(
                f"GaussianUpsampling.fixed_range is {self.fixed_range}; choose a positive share "
                "of a token's duration, such as 0.5, or None to predict it."
            )
        super().__post_init__()

    @nn.compact
    def __call__(
        self, embedded: jax.Array, durations: jax.Array, frames: int
    ) -> tuple[jax.Array, FrameIndex]:
        """Upsamples to frame rate.

        Args:
            embedded: `[batch, tokens, features]`, e_t.
            durations: `[batch, tokens]` frames, 0 on padding. Gradients flow through floats.
            frames: Static number of output frames.

        Returns:
            `[batch, frames, features]`, zero on padding, and the frame index: the token within
            whose bounds the centre of each frame lies.
        """
        features = embedded.shape[-1]
        index = frame_index(whole_durations(durations), frames)
        durations = durations.astype(jnp.float32)
        if self.fixed_range is None:
            inputs = jnp.concatenate(
                [embedded.astype(jnp.float32), jnp.log1p(durations)[..., None]], axis=-1
            )
            raw = Dense(
                1,
                (None, None),
                name="range",
                kernel_init=nn.initializers.zeros_init(),
                precision=EXACT,
            )
            # About 1/2 at first: a token's influence ends with its neighbours.
            ranges = SMALLEST_RANGE + nn.softplus(raw(inputs)[..., 0] - 0.5)
        else:
            ranges = jnp.full(durations.shape, self.fixed_range, jnp.float32)
        weights = gaussian_weights(durations, ranges, frames)

        # The position of a frame in each token is linear in its time, so that four weighted sums
        # over tokens give the mean position in place of [batch, frames, tokens] of them.
        starts = jnp.cumsum(durations, axis=1) - durations
        # (t + 1/2 - start_u) / d_u = (t + 1/2) / d_u - start_u / d_u, weighted by w[t, u]: rate and
        # offset below.
        per_frame = jnp.where(durations > 0, 1.0, 0.0) / jnp.where(durations > 0, durations, 1.0)
        columns = jnp.stack([starts, durations, per_frame, starts * per_frame], axis=-1)
        sums = jnp.matmul(weights, columns, precision=EXACT)  # [batch, frames, 4]
        start, duration, rate, offset = jnp.moveaxis(sums, -1, 0)
        times = jnp.arange(frames, dtype=jnp.float32)
        position = intra_token_position(
            times - start, duration, (times + 0.5) * rate - offset, features
        )
        position = Dense(features, (None, "embed"), dtype=self.dtype, name="position")(
            position.astype(self.dtype)
        )
        mixed = weights.astype(self.dtype) @ embedded.astype(self.dtype)
        return zero_padding(mixed + position, index.mask), index

"""Gaussian upsampling: each frame is a mixture of the tokens near it, instead of a copy of one.

    w[t, u] = N(t + 1/2; c_u, s_u) / sum over v of N(t + 1/2; c_v, s_v)
    c_u = d_1 + ... + d_(u - 1) + d_u / 2,    s_u = r_u d_u

Source: Non-Attentive Tacotron (Shen et al. 2020, section 2.3), and the attention-based upsampling
of Parallel Tacotron 2, to which the outlook of MAESTRO points. Their deviations s are numbers of
frames; here they are shares r of the token's duration. For small r a frame then belongs to the
token within whose bounds it lies, as in `Resampler`, and not to the token whose centre is nearest,
which of a short and a long token may be the wrong one.

Weights, and with them what is upsampled, are differentiable in the durations: given durations
that are not rounded, the losses behind the resampler train the model that predicted them.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from maestro_jax.layers.masking import zero_padding
from maestro_jax.layers.partitioned import Dense
from maestro_jax.modules.resampler import FrameIndex, frame_index, place_in_token
from maestro_jax.precision import EXACT

LARGE_NEGATIVE = -1e9
SMALLEST_RANGE = 0.05


def whole_durations(durations: jax.Array) -> jax.Array:
    """Whole frames for each token: each owns the frames whose centres lie within its bounds.

    The ends of the tokens are rounded, not the durations, so that the sum is right to half a frame.

    Args:
        durations: `[batch, tokens]` frames, not negative; integers come back as they are.

    Returns:
        `[batch, tokens]` int32; no gradient.
    """
    if jnp.issubdtype(durations.dtype, jnp.integer):
        return durations.astype(jnp.int32)
    ends = jnp.cumsum(jax.lax.stop_gradient(durations).astype(jnp.float32), axis=1)
    return jnp.diff(jnp.ceil(ends - 0.5).astype(jnp.int32), axis=1, prepend=0)


def gaussian_weights(durations: jax.Array, ranges: jax.Array, frames: int) -> jax.Array:
    """How much each frame takes from each token.

    Args:
        durations: `[batch, tokens]` frames; a token of zero frames gives nothing.
        ranges: `[batch, tokens]`, standard deviations as shares of the durations, positive.
        frames: Number of frames.

    Returns:
        `[batch, frames, tokens]` float32, of sum 1 over the tokens; what a row without any
        duration holds means nothing but is finite.
    """
    durations = durations.astype(jnp.float32)
    there = durations > 0
    deviations = ranges * jnp.where(there, durations, 1.0)
    centres = jnp.cumsum(durations, axis=1) - 0.5 * durations
    times = jnp.arange(frames, dtype=jnp.float32)[None, :, None] + 0.5
    distance = (times - centres[:, None, :]) / deviations[:, None, :]
    logits = -0.5 * jnp.square(distance) - jnp.log(deviations)[:, None, :]
    return jax.nn.softmax(jnp.where(there[:, None, :], logits, LARGE_NEGATIVE), axis=-1)


class GaussianUpsampling(nn.Module):
    """An alternative to `Resampler` with the same interface, but for durations that may be floats.

    Attributes:
        fixed_range: Standard deviation of each token's Gaussian as a share of its duration. None:
            predicted from the token and its duration.
        dtype: The type computed in; weights are float32.
    """

    fixed_range: float | None = None
    dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        """Refuse a range that leaves no Gaussian before anything is built."""
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
        """Upsample to frame rate.

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
            seen = jnp.concatenate(
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
            ranges = SMALLEST_RANGE + nn.softplus(raw(seen)[..., 0] - 0.5)
        else:
            ranges = jnp.full(durations.shape, self.fixed_range, jnp.float32)
        weights = gaussian_weights(durations, ranges, frames)

        # Where a frame stands in each token is linear in its time: four sums over tokens suffice.
        starts = jnp.cumsum(durations, axis=1) - durations
        per_frame = jnp.where(durations > 0, 1.0, 0.0) / jnp.where(durations > 0, durations, 1.0)
        columns = jnp.stack([starts, durations, per_frame, starts * per_frame], axis=-1)
        sums = jnp.matmul(weights, columns, precision=EXACT)
        start, duration, rate, offset = jnp.moveaxis(sums, -1, 0)
        times = jnp.arange(frames, dtype=jnp.float32)
        where = place_in_token(times - start, duration, (times + 0.5) * rate - offset, features)
        where = Dense(features, (None, "embed"), dtype=self.dtype, name="position")(
            where.astype(self.dtype)
        )
        mixed = weights.astype(self.dtype) @ embedded.astype(self.dtype)
        return zero_padding(mixed + where, index.mask), index

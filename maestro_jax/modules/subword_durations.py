"""A Gaussian for the duration of each sub-word, whatever its context.

Source: JOIST (arXiv 2210.07353) upsamples unspoken text by drawing each sub-word's duration from a
Gaussian of its own. There they are estimated from alignments beforehand; here they are parameters,
fitted by `maestro_jax.losses.duration.gaussian_duration_loss` to the alignments of paired speech.
"""

from __future__ import annotations

from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp

from maestro_jax.layers.partitioned import ZERO_INIT, parameter

ROUNDING_VARIANCE = 1.0 / 12.0
"""Variance of what rounding to whole frames adds."""


@flax.struct.dataclass
class Gaussians:
    """A normal distribution for each token.

    Attributes:
        mean: `[batch, tokens]` frames, positive.
        deviation: `[batch, tokens]` frames, more than 0.28: durations are whole numbers, and a
            piece that always lasts the same would have a likelihood without bound.
    """

    mean: jax.Array
    deviation: jax.Array


class SubwordDurations(nn.Module):
    """Means and deviations by token, each a common factor times one of the token's own.

    The common factors are fitted within a few steps, as every token teaches them; a rare token
    stays near them until it has been heard.

    Attributes:
        vocab_size: Number of tokens.
        initial_mean: Frames of a token before anything is fitted.
        initial_deviation: Its standard deviation, in frames.
    """

    vocab_size: int
    initial_mean: float = 2.0
    initial_deviation: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what has no logarithm before anything is built."""
        if not (self.initial_mean > 0.0 and self.initial_deviation > 0.0):
            raise ValueError(
                f"SubwordDurations has initial_mean={self.initial_mean}, "
                f"initial_deviation={self.initial_deviation}; choose positive frames."
            )
        super().__post_init__()

    @nn.compact
    def __call__(self, tokens: jax.Array) -> Gaussians:
        """`[batch, tokens]` int32 to the Gaussian of each."""

        def zeros(name: str, axes: tuple[Any, ...], shape: tuple[int, ...]) -> jax.Array:
            return parameter(self, name, ZERO_INIT, axes, shape)

        common = zeros("common", (None,), (2,))
        own = zeros("own", ("vocab", None), (self.vocab_size, 2))
        factors = jnp.exp(common + jnp.take(own, tokens, axis=0, mode="clip"))
        spread = jnp.square(self.initial_deviation * factors[..., 1])
        return Gaussians(
            mean=self.initial_mean * factors[..., 0],
            deviation=jnp.sqrt(spread + ROUNDING_VARIANCE),
        )

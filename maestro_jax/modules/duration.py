"""Durations: the number of encoder frames that each token lasts.

`DurationModel` (the paper's theta_D): four blocks of 3x1 lightweight convolution on e_t (MAESTRO,
section 2.2); two heads, P(duration is not zero) and a continuous duration (JOIST patent
US20240028829, after Parallel Tacotron): where the first lies below a threshold, the duration is
zero.

`SubwordDurations`: a Gaussian for the duration of each sub-word, whatever its context. JOIST (arXiv
2210.07353) upsamples unspoken text by drawing from them. There they are estimated from alignments
beforehand; here they are parameters, fitted by `maestro_jax.losses.duration.gaussian_duration_loss`
to the alignments of paired speech.

Frozen durations: the duration model reads the text encoder. Pairs of speech and text train both; a
loss that trains the text encoder alone, such as text translation in fine-tuning, changes the input
of the duration model, and the durations with it. A run of that kind keeps a copy of the two
networks as they are before its first step. The copy is part of its parameters, under
`frozen_durations`: it is never trained, every checkpoint has it, and durations are predicted by it
in training and in decoding.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp

from maestro_jax.layers.convolution import LightweightConvBlock
from maestro_jax.layers.normalization import layer_norm
from maestro_jax.layers.partitioned import ZERO_INIT, Dense, parameter
from maestro_jax.precision import EXACT

ROUNDING_VARIANCE = 1.0 / 12.0
"""Variance of what rounding to whole frames adds."""
FROZEN_DURATIONS = "frozen_durations"
DURATION_NETWORKS = ("text_encoder", "duration_model")
"""The networks between a text and its durations."""


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
        dtype: Computation dtype; the heads are float32.
    """

    blocks: int = 4
    kernel_size: int = 3
    heads: int = 8
    max_frames: int = 120
    zero_threshold: float = 0.5
    dropout: float = 0.0
    dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        """Refuses numbers out of range before anything is built."""
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
        """Predicts durations of e_t `[batch, tokens, features]` with mask `[batch, tokens]`."""
        x = embedded
        for index in range(self.blocks):
            x = LightweightConvBlock(
                self.heads,
                self.kernel_size,
                dropout=self.dropout,
                dtype=self.dtype,
                name=f"block_{index}",
            )(x, mask, deterministic=deterministic)
        # From here in float32 and with exact products: a duration that rounding moves over a half
        # is another number of frames.
        x = layer_norm(name="output_norm")(x.astype(jnp.float32))
        nonzero = Dense(1, ("embed", None), name="nonzero", precision=EXACT)(x)[..., 0]
        frames = Dense(1, ("embed", None), name="frames", precision=EXACT)(x)[..., 0]
        # softplus(1) is 1.3 frames: at first every token that is not silent lasts about one frame.
        frames = nn.softplus(frames + 1.0)
        return DurationPrediction(nonzero_logit=nonzero, frames=frames)

    def predicts_nonzero(self, prediction: DurationPrediction) -> jax.Array:
        """Returns the tokens that last at least a frame by the first head, `[batch, tokens]`."""
        # The threshold in log-odds, in float64: a sigmoid in float32 saturates, the logit does not.
        log_odds = math.log(self.zero_threshold) - math.log1p(-self.zero_threshold)
        return prediction.nonzero_logit > log_odds

    def durations(self, prediction: DurationPrediction, mask: jax.Array) -> jax.Array:
        """Returns durations that are not rounded; gradients flow through them to the second head.

        A token that the first head calls silent lasts zero frames; any other at least one, at most
        `max_frames`.

        Args:
            prediction: The two heads.
            mask: `[batch, tokens]` bool, True = valid.

        Returns:
            `[batch, tokens]` float32 frames, 0 on padding.
        """
        # At least 1: rounded to 0, a token that lasts would be silent after all.
        frames = jnp.clip(prediction.frames, 1.0, float(self.max_frames))
        return jnp.where(mask & self.predicts_nonzero(prediction), frames, 0.0)

    def round(self, prediction: DurationPrediction, mask: jax.Array) -> jax.Array:
        """Rounds the durations of `durations` to whole frames.

        Args:
            prediction: The two heads.
            mask: `[batch, tokens]` bool, True = valid.

        Returns:
            `[batch, tokens]` int32 frames, 0 on padding; no gradient.
        """
        durations = jax.lax.stop_gradient(self.durations(prediction, mask))
        return jnp.round(durations).astype(jnp.int32)


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
        """Refuses numbers without a logarithm before anything is built."""
        if not (self.initial_mean > 0.0 and self.initial_deviation > 0.0):
            raise ValueError(
                f"SubwordDurations has initial_mean={self.initial_mean}, "
                f"initial_deviation={self.initial_deviation}; choose positive frames."
            )
        super().__post_init__()

    @nn.compact
    def __call__(self, tokens: jax.Array) -> Gaussians:
        """Returns the Gaussian of each of `[batch, tokens]` int32 ids."""

        def zeros(name: str, axes: tuple[Any, ...], shape: tuple[int, ...]) -> jax.Array:
            return parameter(self, name, ZERO_INIT, axes, shape)

        common = zeros("common", (None,), (2,))
        own = zeros("own", ("vocab", None), (self.vocab_size, 2))
        # [batch, tokens, 2]: factors of mean and deviation, positive without a constraint. Padding
        # has an id of the vocabulary too, and the loss masks it.
        factors = jnp.exp(common + jnp.take(own, tokens, axis=0, mode="clip"))
        spread = jnp.square(self.initial_deviation * factors[..., 1])
        return Gaussians(
            mean=self.initial_mean * factors[..., 0],
            deviation=jnp.sqrt(spread + ROUNDING_VARIANCE),
        )


def freeze_durations(params: Mapping[str, Any]) -> dict[str, Any]:
    """Adds a copy of `DURATION_NETWORKS` to a model's parameters, or makes the copy anew.

    Args:
        params: The tree of parameters, boxed or not; shapes stay shapes.
    """

    def copy(leaf: Any) -> Any:
        return leaf if isinstance(leaf, jax.ShapeDtypeStruct) else jnp.copy(leaf)

    return {
        **params,
        FROZEN_DURATIONS: jax.tree.map(copy, {name: params[name] for name in DURATION_NETWORKS}),
    }


def names_to_freeze(wanted: Iterable[str], loaded: Iterable[str]) -> tuple[str, ...]:
    """Returns the names of the frozen parameters that are to be copied after a restore.

    Args:
        wanted: Names of the parameters of a model.
        loaded: Names of those that a checkpoint gave.

    Returns:
        All names below `frozen_durations`, or none if the checkpoint has a copy of its own: its
        durations were predicted by that.
    """
    if any(name.startswith(f"{FROZEN_DURATIONS}/") for name in loaded):
        return ()
    return tuple(name for name in wanted if name.startswith(f"{FROZEN_DURATIONS}/"))


def duration_params(params: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the parameters to predict durations with: the frozen ones, if there are any."""
    return {**params, **params[FROZEN_DURATIONS]} if FROZEN_DURATIONS in params else params


def predicted_durations(
    model: Any,
    params: Mapping[str, Any],
    tokens: jax.Array,
    mask: jax.Array,
    language: jax.Array | None,
) -> jax.Array:
    """Predicts the duration of each token of a text.

    Args:
        model: A `Maestro`.
        params: Its parameters.
        tokens: `[batch, tokens]` int32.
        mask: `[batch, tokens]` bool, True = valid.
        language: `[batch]` language ids.

    Returns:
        `[batch, tokens]` int32, 0 on padding.
    """
    bound = model.bind({"params": duration_params(params)})
    embedded = bound.encode_text(tokens, mask, language)
    return bound.round_durations(bound.predict_durations(embedded, mask), mask)

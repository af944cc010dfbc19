"""Where the durations of text without speech come from.

MAESTRO learns them. JOIST (arXiv 2210.07353) gets as far with fixed or random repetition and with
a Gaussian for each sub-word, and Maestro-U loses 2.3 points of character errors in 42.7 with equal
durations for all, so the parameter-free ones are good to begin with.

A source is asked for `[batch, tokens]` durations in frames with the averaged model at hand.
"""

from __future__ import annotations

import dataclasses
from typing import Protocol

import jax
import jax.numpy as jnp

from maestro_jax.errors import UserError
from maestro_jax.modules.maestro import Maestro
from maestro_jax.modules.resampler import GaussianUpsampling


class DurationSource(Protocol):
    """Durations for unspoken text."""

    @property
    def trained_through(self) -> bool:
        """Returns whether gradients flow through the source, which is then given the trained model.

        Otherwise it is given the averaged one.
        """

    @property
    def max_token_frames(self) -> int | None:
        """Returns the most frames that a token can have; None if that is not known, or too many."""

    def check(self, model: Maestro) -> None:
        """Refuses a model that lacks what the source needs.

        Raises:
            UserError: It lacks something.
        """

    def durations(
        self,
        rng: jax.Array,
        model: Maestro,
        embedded: jax.Array,
        tokens: jax.Array,
        mask: jax.Array,
        *,
        deterministic: bool,
    ) -> jax.Array:
        """Returns durations in frames.

        Args:
            rng: Random key; equal keys give equal durations.
            model: The model, bound to trained or averaged weights as `trained_through` says.
            embedded: `[batch, tokens, text_features]`, e_t by the same parameters.
            tokens: `[batch, tokens]` int32.
            mask: `[batch, tokens]` bool, True = valid.
            deterministic: No dropout.

        Returns:
            `[batch, tokens]`, 0 on padding: int32 without a gradient, or float32 if
            `trained_through`.
        """


@dataclasses.dataclass(frozen=True, kw_only=True)
class Learned:
    """The duration model's (the paper's theta_D).

    Attributes:
        jitter: Chance that a token lasts a frame more or less than predicted, either as likely;
            text whose durations vary is harder to memorise (the RWTH experiments).
        min_frames: No token that lasts is shorter, in frames, jittered or not.
        continuous: Do not round, and let the losses on unspoken text train the duration model.
            Durations then come from the trained parameters, not their average, and the model's
            resampler must be a `GaussianUpsampling`, which is differentiable in them. Whether a
            token lasts at all stays a decision without a gradient.
    """

    jitter: float = 0.0
    min_frames: int = 1
    continuous: bool = False
    max_token_frames = None

    def __post_init__(self) -> None:
        """Refuses numbers out of range."""
        if not 0.0 <= self.jitter <= 1.0:
            raise UserError(f"Learned.jitter is {self.jitter}; choose a probability, 0 for none.")
        if self.min_frames < 1:
            raise UserError(f"Learned.min_frames is {self.min_frames}; it must be 1 or more.")

    @property
    def trained_through(self) -> bool:
        """Returns whether durations have a gradient, which those that are rounded lack."""
        return self.continuous

    def check(self, model: Maestro) -> None:
        """Refuses durations with gradients for a resampler that does not pass them on."""
        if self.continuous and not isinstance(model.resampler, GaussianUpsampling):
            raise UserError(
                "Learned.continuous needs a resampler through which durations have a gradient; "
                "set Maestro.resampler to a GaussianUpsampling, or continuous to False."
            )

    def durations(
        self,
        rng: jax.Array,
        model: Maestro,
        embedded: jax.Array,
        tokens: jax.Array,
        mask: jax.Array,
        *,
        deterministic: bool,
    ) -> jax.Array:
        """Predicts durations, then jitters them; see `DurationSource.durations`."""
        del tokens
        predicted = model.predict_durations(embedded, mask, deterministic=deterministic)
        if self.continuous:
            frames = model.continuous_durations(predicted, mask)
        else:
            frames = model.round_durations(predicted, mask)
        jittered = frames
        if self.jitter:
            moved_rng, direction_rng = jax.random.split(rng)
            moved = jax.random.bernoulli(moved_rng, self.jitter, frames.shape)
            up = jax.random.bernoulli(direction_rng, 0.5, frames.shape)
            jittered = frames + jnp.where(moved, jnp.where(up, 1, -1), 0).astype(frames.dtype)
        # Silent tokens stay silent: whether a token lasts is not jittered.
        return jnp.where(frames > 0, jnp.maximum(jittered, self.min_frames), 0).astype(frames.dtype)


class _WithoutModel:
    """A source that asks nothing of the model."""

    trained_through = False

    def check(self, model: Maestro) -> None:
        """Accepts any model."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FixedRepetition(_WithoutModel):
    """Every token lasts equally long.

    Attributes:
        frames: How long. JOIST has 180 ms for word pieces; 2 frames of 40 ms are about a phoneme.
    """

    frames: int = 2

    def __post_init__(self) -> None:
        """Refuses a repetition of less than one frame."""
        if self.frames < 1:
            raise UserError(f"FixedRepetition.frames is {self.frames}; choose 1 or more.")

    @property
    def max_token_frames(self) -> int:
        """Returns the number of frames that every token has."""
        return self.frames

    def durations(
        self,
        rng: jax.Array,
        model: Maestro,
        embedded: jax.Array,
        tokens: jax.Array,
        mask: jax.Array,
        *,
        deterministic: bool,
    ) -> jax.Array:
        """Returns the same number of frames for every token."""
        del rng, model, embedded, tokens, deterministic
        return jnp.where(mask, self.frames, 0).astype(jnp.int32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandomRepetition(_WithoutModel):
    """A token lasts any whole number of frames in a range, all as likely.

    Attributes:
        low: Fewest frames.
        high: Most frames, included. JOIST has 1 to 3.
    """

    low: int = 1
    high: int = 3

    def __post_init__(self) -> None:
        """Refuses an empty range."""
        if not 0 <= self.low <= self.high or self.high < 1:
            raise UserError(
                f"RandomRepetition has low={self.low}, high={self.high}; "
                "choose 0 <= low <= high with a high of 1 or more."
            )

    @property
    def max_token_frames(self) -> int:
        """Returns the highest number that can be drawn."""
        return self.high

    def durations(
        self,
        rng: jax.Array,
        model: Maestro,
        embedded: jax.Array,
        tokens: jax.Array,
        mask: jax.Array,
        *,
        deterministic: bool,
    ) -> jax.Array:
        """Draws a whole number of frames per token."""
        del model, embedded, tokens, deterministic
        # randint leaves its upper bound out.
        drawn = jax.random.randint(rng, mask.shape, self.low, self.high + 1)
        return jnp.where(mask, drawn, 0).astype(jnp.int32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SubwordGaussian:
    """Draws from a Gaussian for each sub-word, fitted to the alignments of paired speech (JOIST).

    The model holds the Gaussians (`Maestro.subword_durations`); the duration weight counts for
    their likelihood as well. Durations of an utterance's first and last token are not fitted: they
    include the silence around it.

    Attributes:
        min_frames: Draws are clipped to this from below.
        max_frames: And to this from above.
    """

    min_frames: int = 1
    max_frames: int = 120
    max_token_frames = None

    def __post_init__(self) -> None:
        """Refuses an empty range."""
        if not 0 <= self.min_frames <= self.max_frames or self.max_frames < 1:
            raise UserError(
                f"SubwordGaussian has min_frames={self.min_frames}, max_frames={self.max_frames}; "
                "choose 0 <= min_frames <= max_frames with a max_frames of 1 or more."
            )

    @property
    def trained_through(self) -> bool:
        """Returns False: draws are rounded."""
        return False

    def check(self, model: Maestro) -> None:
        """Refuses a model without `subword_durations`."""
        if model.subword_durations is None:
            raise UserError(
                "SubwordGaussian needs Gaussians to draw from; set Maestro.subword_durations to a "
                "SubwordDurations with the vocabulary's size."
            )

    def durations(
        self,
        rng: jax.Array,
        model: Maestro,
        embedded: jax.Array,
        tokens: jax.Array,
        mask: jax.Array,
        *,
        deterministic: bool,
    ) -> jax.Array:
        """Draws from the Gaussian of each token, and rounds."""
        del embedded, deterministic
        gaussians = model.subword_gaussians(tokens)
        drawn = gaussians.mean + gaussians.deviation * jax.random.normal(rng, mask.shape)
        whole = jnp.clip(jnp.round(drawn), self.min_frames, self.max_frames).astype(jnp.int32)
        # Means and deviations learn from alignments alone.
        return jax.lax.stop_gradient(jnp.where(mask, whole, 0))

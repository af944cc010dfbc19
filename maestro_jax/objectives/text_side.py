"""What is set about the text side: how it is compared with speech, and how it is masked."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from maestro_jax.losses.matching import FORMS
from maestro_jax.modules.masking import block_mask, span_mask


@dataclasses.dataclass(frozen=True, kw_only=True)
class Matching:
    """The modality matching loss (MAESTRO, section 2.2).

    Attributes:
        form: `mse` or `cosine`.
        stop_gradient: The side that does not learn: `speech` (as USM, section 2.7), or `none`.
        normalize: Standardise both sides over features first.
    """

    form: str = "mse"
    stop_gradient: str = "speech"
    normalize: bool = True

    def __post_init__(self) -> None:
        """Refuse unknown choices before anything is built."""
        if self.form not in FORMS:
            raise ValueError(f"Matching.form is {self.form!r}; choose one of {FORMS}.")
        if self.stop_gradient not in ("speech", "none"):
            raise ValueError(
                f"Matching.stop_gradient is {self.stop_gradient!r}; choose 'speech' or 'none'."
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextMasks:
    """Mask(ê_t) of the aligned masked LM (MAESTRO, section 2.3): spans of frames, feature bands.

    Attributes:
        probability: Chance that a masked span starts in a frame; with spans of 10 frames, 0.03
            hides about a quarter and 0.065 about half of them.
        span: Frames a masked span covers.
        feature_masks: Number of masked bands of features.
        feature_mask_ratio: Largest width of one, as a share of the features.
        on_paired: Run the aligned masked LM on paired text as well, resampled by its alignment.
    """

    probability: float = 0.03
    span: int = 10
    feature_masks: int = 2
    feature_mask_ratio: float = 0.1
    on_paired: bool = False

    def __post_init__(self) -> None:
        """Refuse numbers that mean nothing."""
        if not 0.0 <= self.probability <= 1.0 or not 0.0 <= self.feature_mask_ratio <= 1.0:
            raise ValueError(
                f"TextMasks has probability={self.probability}, "
                f"feature_mask_ratio={self.feature_mask_ratio}; both must lie in 0 ... 1."
            )
        if self.span < 1 or self.feature_masks < 0:
            raise ValueError(
                f"TextMasks has span={self.span}, feature_masks={self.feature_masks}; "
                "use a span of 1 or more, and 0 or more feature masks."
            )

    def apply(self, rng: jax.Array, refined: jax.Array, mask: jax.Array) -> jax.Array:
        """Hide parts of ê_t behind zeros.

        Args:
            rng: Random key.
            refined: `[batch, frames, features]`, ê_t.
            mask: `[batch, frames]` bool, True = valid.

        Returns:
            `[batch, frames, features]`.
        """
        time_rng, feature_rng = jax.random.split(rng)
        hidden = span_mask(time_rng, mask, start_probability=self.probability, span=self.span)
        hidden = hidden[:, :, None]
        batch, _, features = refined.shape
        if self.feature_masks:
            band = block_mask(
                feature_rng,
                jnp.full((batch,), features),
                features,
                blocks=self.feature_masks,
                max_width=int(features * self.feature_mask_ratio),
            )
            hidden = hidden | band[:, None, :]
        return jnp.where(hidden, jnp.zeros((), refined.dtype), refined)

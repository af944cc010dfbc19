"""Settings of the two losses of text: matching with speech, and the masks of the masked LM.

The paper leaves open which frames of paired speech count in matching. Every frame belongs to a
token of the alignment, but not every frame sounds like it: those before the first emission belong
to the first label, the silence at the end to the last, and a pause to the label before.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from maestro_jax.errors import UserError, near_misses
from maestro_jax.layers.masking import block_mask, span_mask
from maestro_jax.losses.matching import FORMS, NEGATIVES, STOPPED, matching_loss
from maestro_jax.losses.reduction import Weighted
from maestro_jax.modules.resampler import FrameIndex
from maestro_jax.objectives.decoder_losses import Lattice
from maestro_jax.objectives.duration_sources import DurationSource

FRAMES = ("all", "labelled", "emitting")


def refuse_unknown(settings: Any, **choices: tuple[str, ...]) -> None:
    """Refuses settings whose values are none of the choices.

    Args:
        settings: A dataclass.
        **choices: The choices of each field.

    Raises:
        UserError: With the field, its value and the choices.
    """
    for field, allowed in choices.items():
        value = getattr(settings, field)
        if value not in allowed:
            raise UserError(
                f"{type(settings).__name__}.{field} is {value!r}; choose one of {allowed}."
                f"{near_misses(str(value), allowed)}"
            )


class DurationFreeMatching(Protocol):
    """Matching of speech with text that has not been resampled by an alignment.

    The text of pairs then has the durations of unspoken text, and no duration model is trained. The
    methods of this kind are in `best_alignment` and `astra`.
    """

    @property
    def unit(self) -> str:
        """Returns the unit of the term, for reports."""

    @property
    def of_shared_encoder(self) -> bool:
        """Returns whether outputs of the shared encoder are compared; otherwise e_s and ê_t."""

    def check(self, durations: DurationSource) -> None:
        """Refuses durations with which the text cannot be compared.

        Raises:
            UserError: It cannot.
        """

    def loss(
        self,
        speech: jax.Array,
        speech_mask: jax.Array,
        text: jax.Array,
        text_mask: jax.Array,
        lattice: Lattice,
    ) -> Weighted:
        """Computes the distance between speech and text.

        Args:
            speech: `[batch, frames, features]`.
            speech_mask: `[batch, frames]` bool.
            text: `[batch, positions, features]`.
            text_mask: `[batch, positions]` bool.
            lattice: The RNN-T's lattice of the speech and the labels of the text.

        Returns:
            Total and count.
        """


@dataclasses.dataclass(frozen=True, kw_only=True)
class Matching:
    """The modality matching loss (MAESTRO, section 2.2).

    Attributes:
        form: `mse`, `mae`, `cosine`, or `infonce`, which contrasts a frame with other frames
            (VQ-CTAP).
        stop_gradient: The side that is the target and does not learn: `speech` (as USM, section
            2.7), `text`, or `none`.
        normalize: Standardise both sides over features first.
        frames: The frames that count. `all`; `labelled`, from the first label's emission on (the
            RWTH experiments cut off what is before); or `emitting`, those on which a label is
            emitted, where the alignment is surest.
        token_frames: Number of frames per token that count, from its emission on; a limit leaves
            out the silence at the end and in long pauses. None: no limit.
        temperature: tau of `infonce`.
        negatives: Frames that `infonce` contrasts with: those of the `utterance` or of the whole
            `batch`, whose memory grows with (batch x frames)^2.
        contrast_equal_tokens: Whether frames of the same piece are negatives of each other.
    """

    form: str = "mse"
    stop_gradient: str = "speech"
    normalize: bool = True
    frames: str = "all"
    token_frames: int | None = None
    temperature: float = 0.1
    negatives: str = "utterance"
    contrast_equal_tokens: bool = False
    unit = "distance per frame"

    def __post_init__(self) -> None:
        """Refuses unknown choices before anything is built."""
        refuse_unknown(self, form=FORMS, stop_gradient=STOPPED, frames=FRAMES, negatives=NEGATIVES)
        if not self.temperature > 0.0:
            raise UserError(
                f"Matching.temperature is {self.temperature}; choose a positive number such as 0.1."
            )
        if self.token_frames is not None and self.token_frames < 1:
            raise UserError(
                f"Matching.token_frames is {self.token_frames}; choose 1 or more, or None for all."
            )

    def matched_frames(self, index: FrameIndex, emissions: jax.Array, mask: jax.Array) -> jax.Array:
        """Returns the frames that count in the loss.

        Args:
            index: Which token each frame comes from, by the alignment's durations.
            emissions: `[batch, tokens]` int32, the frame on which each label is emitted.
            mask: `[batch, frames]` bool, the frames of the speech.

        Returns:
            `[batch, frames]` bool.
        """
        # Frames since the token was emitted. Where several labels share a frame, the last owns it.
        frames_since = jnp.arange(mask.shape[1])[None, :] - jnp.take_along_axis(
            emissions, index.token, axis=1
        )
        matched = mask & index.mask
        # Negative in the frames before the first emission alone.
        if self.frames == "labelled":
            matched = matched & (frames_since >= 0)
        elif self.frames == "emitting":
            matched = matched & (frames_since == 0)
        if self.token_frames is not None:
            matched = matched & (frames_since < self.token_frames)
        return matched

    def loss(
        self,
        speech: jax.Array,
        text: jax.Array,
        tokens: jax.Array,
        index: FrameIndex,
        matched: jax.Array,
    ) -> Weighted:
        """Computes the distance between e_s and ê_t.

        Args:
            speech: `[batch, frames, features]`, e_s.
            text: `[batch, frames, features]`, ê_t.
            tokens: `[batch, tokens]` int32 of the text.
            index: Which of them each frame comes from.
            matched: `[batch, frames]` bool, the frames that count.

        Returns:
            Total over the frames, and their count.
        """
        labels = None
        if not self.contrast_equal_tokens:
            labels = jnp.take_along_axis(tokens, index.token, axis=1)
        return matching_loss(
            speech,
            text,
            matched,
            form=self.form,
            stop_gradient=self.stop_gradient,
            normalize=self.normalize,
            temperature=self.temperature,
            negatives=self.negatives,
            labels=labels,
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
        """Refuses numbers out of range."""
        if not 0.0 <= self.probability <= 1.0 or not 0.0 <= self.feature_mask_ratio <= 1.0:
            raise UserError(
                f"TextMasks has probability={self.probability}, "
                f"feature_mask_ratio={self.feature_mask_ratio}; both must lie in 0 ... 1."
            )
        if self.span < 1 or self.feature_masks < 0:
            raise UserError(
                f"TextMasks has span={self.span}, feature_masks={self.feature_masks}; "
                "use a span of 1 or more, and 0 or more feature masks."
            )

    def apply(self, rng: jax.Array, refined: jax.Array, mask: jax.Array) -> jax.Array:
        """Replaces spans of frames and bands of features of ê_t by zeros.

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

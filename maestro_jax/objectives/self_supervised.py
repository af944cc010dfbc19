"""The self-supervised objective of untranscribed speech: w2v-BERT (arXiv 2108.06209).

    L = L_w + 0.1 L_d + L_m

contrastive and diversity losses at the speech encoder, masked prediction at the top.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from maestro_jax.losses.contrastive import contrastive_loss, diversity_loss
from maestro_jax.losses.masked_prediction import masked_prediction_loss
from maestro_jax.losses.reduction import Weighted
from maestro_jax.modules.masking import span_mask
from maestro_jax.objectives.base import Metrics, Parts
from maestro_jax.objectives.passes import Speech


@dataclasses.dataclass(frozen=True, kw_only=True)
class W2vBert:
    """Masks and negatives of w2v-BERT (section 3.3, table 1); term weights are the objective's.

    Attributes:
        mask_probability: Chance that a masked span starts in a frame.
        mask_span: Frames a masked span covers.
        distractors: Negatives of the contrastive loss, from masked frames of the utterance.
        temperature: kappa of the contrastive loss.
    """

    mask_probability: float = 0.065
    mask_span: int = 10
    distractors: int = 100
    temperature: float = 0.1

    @property
    def term_names(self) -> tuple[str, ...]:
        """The terms that `terms` gives."""
        return ("contrastive", "diversity", "masked_prediction")

    def mask(self, rng: jax.Array, valid: jax.Array) -> jax.Array:
        """The frames to hide, `[batch, frames]` bool, of those that are valid."""
        return span_mask(rng, valid, start_probability=self.mask_probability, span=self.mask_span)

    def terms(
        self,
        parts: Parts,
        speech: Speech,
        context: jax.Array,
        step: jax.Array | int,
        rng: jax.Array,
    ) -> tuple[dict[str, Weighted], Metrics]:
        """Contrastive, diversity and masked prediction losses.

        Args:
            parts: The model.
            speech: The stream after the speech encoder.
            context: `[batch, frames, features]`, of the shared encoder.
            step: Training step, for the temperature of the quantizer.
            rng: Random key for the distractors.

        Returns:
            The terms by name, and metrics.
        """
        quantized = parts("quantize", speech.features, step, deterministic=parts.deterministic)
        contrastive, contrastive_accuracy = contrastive_loss(
            rng,
            parts("contrastive_context", speech.tapped),
            quantized.vectors,
            speech.hidden,
            distractors=self.distractors,
            temperature=self.temperature,
        )
        diversity, perplexity = diversity_loss(quantized.probabilities, speech.mask)
        prediction, prediction_accuracy = masked_prediction_loss(
            parts("code_logits", context), quantized.ids, speech.hidden
        )
        one = jnp.ones(())
        return {
            "contrastive": contrastive,
            "diversity": (diversity, jnp.minimum(jnp.sum(speech.mask.astype(jnp.float32)), one)),
            "masked_prediction": prediction,
        }, {
            "speech/contrastive_accuracy": contrastive_accuracy,
            "speech/masked_accuracy": prediction_accuracy,
            "speech/code_perplexity": (perplexity, one),
        }

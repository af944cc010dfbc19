"""Fine-tuning for speech translation, optionally jointly with text translation.

Source: ST and MT are fine-tuned jointly, with equal numbers of examples (MAESTRO, section 3.3;
mSLAM, section 4.2). The decoder here is the RNN-T, told the language to write.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from maestro_jax.objectives.base import Batch, Controls, Metrics, init_all_parameters
from maestro_jax.objectives.maestro import MaestroPretraining
from maestro_jax.objectives.text_side import TextMasks


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpeechTranslation:
    """-log P(translation | speech), plus the same from text where the batch has it.

    Attributes:
        mt_weight: Weight of text translation.
        augment: SpecAugment in training.
        text_frames: Static number of frames of a resampled text.
        text_masks: Mask(ê_t) of text translation.
        fastemit: Extra weight of the gradient of label arcs: labels come earlier.
        delay_penalty: Nats a frame by which later labels cost more.
    """

    mt_weight: float = 1.0
    augment: bool = True
    text_frames: int = 400
    text_masks: TextMasks = TextMasks()
    fastemit: float = 0.0
    delay_penalty: float = 0.0

    @property
    def streams(self) -> tuple[str, ...]:
        """ST, and MT if the batch has it."""
        return ("st", "mt")

    def active_streams(self, step: int) -> tuple[str, ...]:
        """Both, at every step."""
        del step
        return self.streams

    def init(self, model: nn.Module, rng: jax.Array, batch: Batch) -> Any:
        """Parameters of the whole model, so that any checkpoint of it can be taken over."""
        return init_all_parameters(model, rng, batch)

    def loss(
        self,
        model: nn.Module,
        params: Any,
        ema_params: Any,
        batch: Batch,
        *,
        rng: jax.Array,
        step: jax.Array | int,
        controls: Controls | None = None,
        train: bool = True,
    ) -> tuple[jax.Array, Metrics]:
        """The ST and MT terms of pretraining, with their weights, and nothing else."""
        terms = MaestroPretraining(
            mt_weight=self.mt_weight,
            augment_paired=self.augment,
            text_frames=self.text_frames,
            text_masks=self.text_masks,
            fastemit=self.fastemit,
            delay_penalty=self.delay_penalty,
        )
        chosen = {stream: batch[stream] for stream in self.streams if stream in batch}
        loss, metrics = terms.loss(
            model, params, ema_params, chosen, rng=rng, step=step, controls=controls, train=train
        )
        metrics["loss"] = (loss, jnp.ones(()))
        return loss, metrics

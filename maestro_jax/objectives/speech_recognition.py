"""Fine-tuning for speech recognition by RNN-T (MAESTRO, section 3.2), by CTC, or by both."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from maestro_jax.errors import UserError
from maestro_jax.losses.reduction import Weighted
from maestro_jax.modules.maestro import Maestro
from maestro_jax.objectives.base import Batch, Controls, Metrics, Objective, bind, num_present
from maestro_jax.objectives.curriculum import Schedule, Weight
from maestro_jax.objectives.decoder_losses import (
    TargetLabels,
    ctc_term,
    infeasible_metrics,
    transducer_losses,
)
from maestro_jax.objectives.metrics import frame_variance_ratio


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpeechRecognition(Objective):
    """-log P(text | speech) on the paired stream.

    Attributes:
        transducer_weight: Weight of the RNN-T loss, a number or a schedule of them; with 0 the
            decoder is not run. Beside CTC, a schedule that begins with 0 aligns the encoder first:
            a prediction network that already knows a few hundred sentences leaves the encoder
            little to learn.
        ctc_weight: Weight of the CTC loss; above 0 the model needs a `ctc_head`.
        augment: SpecAugment in training.
        augment_start_step: First step with SpecAugment; before, it would hide from an encoder that
            has no alignment yet what there is to find.
        fastemit: Extra weight of the gradient of label arcs: labels come earlier.
        delay_penalty: Nats per frame by which later labels cost more.
    """

    transducer_weight: Weight = 1.0
    ctc_weight: Weight = 0.0
    augment: bool = True
    augment_start_step: int = 0
    fastemit: float = 0.0
    delay_penalty: float = 0.0

    def __post_init__(self) -> None:
        """Refuses weights with which nothing is learned."""
        weights = (self.transducer_weight, self.ctc_weight)
        numbers = [weight for weight in weights if not isinstance(weight, Schedule)]
        if self.augment_start_step < 0:
            raise UserError(
                f"SpeechRecognition.augment_start_step is {self.augment_start_step}; it must be 0 "
                "or more."
            )
        if not all(0.0 <= weight < math.inf for weight in numbers) or not any(weights):
            raise UserError(
                f"SpeechRecognition has transducer_weight={self.transducer_weight} and "
                f"ctc_weight={self.ctc_weight}; neither may be negative, and one must be above 0."
            )

    @property
    def decoders(self) -> tuple[str, ...]:
        """Returns the decoders that are trained, the one to decode with first."""
        return tuple(self.loss_weights["paired"])

    @property
    def loss_weights(self) -> dict[str, dict[str, Weight]]:
        """Returns the weights of RNN-T and CTC on the paired stream, without zeros."""
        weights: dict[str, Weight] = {
            "transducer": self.transducer_weight,
            "ctc": self.ctc_weight,
        }
        return {"paired": {name: weight for name, weight in weights.items() if weight}}

    @property
    def term_units(self) -> dict[str, str]:
        """Returns the unit of both terms, nats per label."""
        return {"transducer": "nats per label", "ctc": "nats per label"}

    def loss_terms(
        self,
        model: Maestro,
        params: Any,
        ema_params: Any,
        batch: Batch,
        *,
        rng: jax.Array,
        step: jax.Array | int,
        controls: Controls | None = None,
        train: bool = True,
    ) -> tuple[dict[str, Weighted], Metrics]:
        """Computes RNN-T and CTC losses in nats per label; see `Objective.loss_terms`."""
        del ema_params, controls
        augment: jax.Array | bool = self.augment and train
        if augment and self.augment_start_step:
            augment = jnp.asarray(step) >= self.augment_start_step
        bound = bind(model, params, rng)
        paired = batch["paired"]
        language = paired["language"]
        features, mask = bound.features(paired["audio"], paired["audio_length"], augment=augment)
        encoded = bound.encode_speech(features, mask, language, deterministic=not train)
        context = bound.encode_shared(encoded, mask, None, language, deterministic=not train)
        labels = TargetLabels(paired["text"], paired["text_length"])
        terms: dict[str, Weighted] = {}
        metrics: Metrics = {
            "paired/frame_variance_ratio": frame_variance_ratio(encoded, mask),
            "paired/context_variance_ratio": frame_variance_ratio(context, mask),
            "paired/examples": num_present(paired["audio_length"]),
        }
        if self.transducer_weight:
            terms["transducer"] = transducer_losses(
                bound,
                {"paired": context},
                {"paired": mask},
                {"paired": labels},
                fastemit=self.fastemit,
                delay_penalty=self.delay_penalty,
                deterministic=not train,
            )["paired"]
            metrics |= infeasible_metrics(bound, {"paired": mask}, {"paired": labels})
        if self.ctc_weight:
            terms["ctc"], metrics["paired/num_ctc_infeasible"] = ctc_term(
                bound, context, mask, labels, deterministic=not train
            )
        return terms, metrics

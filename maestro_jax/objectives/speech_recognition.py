"""Fine-tuning for speech recognition by RNN-T (MAESTRO, section 3.2), by CTC, or by both."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from maestro_jax.errors import UserError
from maestro_jax.losses.reduction import Weighted, mean
from maestro_jax.objectives.base import (
    Batch,
    Controls,
    LossOfTerms,
    Metrics,
    Parts,
    init_all_parameters,
    present,
)
from maestro_jax.objectives.ctc_terms import ctc_term
from maestro_jax.objectives.health import frame_variation
from maestro_jax.objectives.transducer_terms import (
    Frames,
    Labels,
    encode_shared,
    transducer_losses,
    without_path,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpeechRecognition(LossOfTerms):
    """-log P(text | speech) on the paired stream.

    Attributes:
        transducer_weight: Weight of the RNN-T loss; with 0 the decoder is not run.
        ctc_weight: Weight of the CTC loss; above 0 the model needs a `ctc_head`.
        augment: SpecAugment in training.
        fastemit: Extra weight of the gradient of label arcs: labels come earlier.
        delay_penalty: Nats a frame by which later labels cost more.
    """

    transducer_weight: float = 1.0
    ctc_weight: float = 0.0
    augment: bool = True
    fastemit: float = 0.0
    delay_penalty: float = 0.0

    def __post_init__(self) -> None:
        """Refuse weights that teach nothing."""
        weights = (self.transducer_weight, self.ctc_weight)
        if not all(0.0 <= weight < math.inf for weight in weights) or not any(weights):
            raise UserError(
                f"SpeechRecognition has transducer_weight={self.transducer_weight} and "
                f"ctc_weight={self.ctc_weight}; neither may be negative, and one must be above 0."
            )

    @property
    def decoders(self) -> tuple[str, ...]:
        """What the objective trains to write, the one to decode with first."""
        weights = {"transducer": self.transducer_weight, "ctc": self.ctc_weight}
        return tuple(name for name, weight in weights.items() if weight)

    @property
    def streams(self) -> tuple[str, ...]:
        """The paired stream alone."""
        return ("paired",)

    def weights_of(self, stream: str) -> dict[str, float]:
        """RNN-T and CTC, as far as they are trained."""
        weights = {"transducer": self.transducer_weight, "ctc": self.ctc_weight}
        return {name: weights[name] for name in self.decoders} if stream == "paired" else {}

    def active_streams(self, step: int) -> tuple[str, ...]:
        """The paired stream, at every step."""
        del step
        return self.streams

    def init(self, model: nn.Module, rng: jax.Array, batch: Batch) -> Any:
        """Parameters of the whole model, so that any checkpoint of it can be taken over."""
        return init_all_parameters(model, rng, batch)

    def terms(
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
    ) -> tuple[dict[str, Weighted], Metrics]:
        """RNN-T and CTC losses in nats a label."""
        del ema_params, step, controls
        parts = Parts(model, params, rng, train)
        paired = batch["paired"]
        features, mask = parts(
            "features", paired["audio"], paired["audio_length"], augment=self.augment and train
        )
        language = paired["language"]
        encoded = parts(
            "encode_speech", features, mask, language, deterministic=parts.deterministic
        )
        frames = {"paired": Frames(encoded, mask, language=language)}
        context = encode_shared(parts, frames)["paired"]
        labels = Labels(paired["text"], paired["text_length"])
        terms: dict[str, Weighted] = {}
        metrics: Metrics = {
            "paired/frame_variation": frame_variation(encoded, mask),
            "paired/context_variation": frame_variation(context, mask),
            "paired/examples": present(paired["audio_length"]),
        }
        if self.transducer_weight:
            terms["transducer"] = transducer_losses(
                parts,
                {"paired": context},
                {"paired": mask},
                {"paired": labels},
                fastemit=self.fastemit,
                delay_penalty=self.delay_penalty,
            )["paired"]
            metrics |= without_path(parts, {"paired": mask}, {"paired": labels})
        if self.ctc_weight:
            terms["ctc"], lacking = ctc_term(parts, context, mask, labels)
            metrics["paired/without_ctc_path"] = lacking
        return terms, metrics | {f"loss/{name}": term for name, term in terms.items()}

    def combine(
        self,
        terms: Mapping[str, Weighted],
        params: Any,
        *,
        step: jax.Array | int,
        controls: Controls | None = None,
    ) -> tuple[jax.Array, Metrics]:
        """RNN-T and CTC losses, each times its weight."""
        del params, step, controls
        weights = self.weights_of("paired")
        loss = jnp.zeros(())
        for name, term in terms.items():
            loss = loss + weights[name] * mean(term)
        return loss, {"loss": (loss, jnp.ones(()))}

"""Fine-tuning for speech recognition by RNN-T (MAESTRO, section 3.2)."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from maestro_jax.losses.reduction import mean
from maestro_jax.objectives.base import (
    Batch,
    Controls,
    Metrics,
    Parts,
    init_all_parameters,
    present,
)
from maestro_jax.objectives.health import frame_variation
from maestro_jax.objectives.transducer_terms import (
    Frames,
    Labels,
    encode_shared,
    transducer_losses,
    without_path,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpeechRecognition:
    """-log P(text | speech) on the paired stream.

    Attributes:
        augment: SpecAugment in training.
        fastemit: Extra weight of the gradient of label arcs: labels come earlier.
        delay_penalty: Nats a frame by which later labels cost more.
    """

    augment: bool = True
    fastemit: float = 0.0
    delay_penalty: float = 0.0

    @property
    def streams(self) -> tuple[str, ...]:
        """The paired stream alone."""
        return ("paired",)

    def active_streams(self, step: int) -> tuple[str, ...]:
        """The paired stream, at every step."""
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
        """RNN-T loss in nats a label."""
        del ema_params, step, controls
        parts = Parts(model, params, rng, train)
        paired = batch["paired"]
        features, mask = parts(
            "features", paired["audio"], paired["audio_length"], augment=self.augment and train
        )
        encoded = parts("encode_speech", features, mask, deterministic=parts.deterministic)
        context = encode_shared(parts, {"paired": Frames(encoded, mask)})
        labels = Labels(paired["text"], paired["text_length"])
        term = transducer_losses(
            parts,
            context,
            {"paired": mask},
            {"paired": labels},
            fastemit=self.fastemit,
            delay_penalty=self.delay_penalty,
        )["paired"]
        loss = mean(term)
        return loss, {
            "loss": (loss, jnp.ones(())),
            "loss/transducer": term,
            "paired/frame_variation": frame_variation(encoded, mask),
            "paired/context_variation": frame_variation(context["paired"], mask),
            "paired/examples": present(paired["audio_length"]),
            **without_path(parts, {"paired": mask}, {"paired": labels}),
        }

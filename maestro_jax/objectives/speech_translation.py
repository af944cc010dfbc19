"""Fine-tuning for speech translation, optionally jointly with text translation.

Source: ST and MT are fine-tuned jointly, with equal numbers of examples (MAESTRO, section 3.3;
mSLAM, section 4.2). Two decoders write: the RNN-T, told the language at the entrance of the shared
encoder, and mSLAM's Transformer decoder.

    speech -> speech encoder -> e_s ---------------------------------.
    text -> text encoder -> predicted durations -> resampler and      > shared encoder -> decoder
            refiner -> Mask(ê_t) -------------------------------------'
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Self

import jax

from maestro_jax.errors import UserError, near_misses
from maestro_jax.losses.reduction import Weighted
from maestro_jax.modules.duration import duration_params, freeze_durations
from maestro_jax.modules.maestro import Maestro
from maestro_jax.objectives.base import (
    Batch,
    Controls,
    Metrics,
    Objective,
    bind,
    frozen,
    num_present,
)
from maestro_jax.objectives.decoder_losses import (
    TargetLabels,
    attention_losses,
    infeasible_metrics,
    transducer_losses,
)
from maestro_jax.objectives.duration_sources import DurationSource, Learned
from maestro_jax.objectives.forward import (
    EncoderInput,
    TokenBatch,
    audio_samples,
    default_max_text_frames,
    encode_shared,
    encode_speech,
    encode_text,
    upsample,
    upsampling_metrics,
)
from maestro_jax.objectives.metrics import frame_variance_ratio
from maestro_jax.objectives.text_losses import TextMasks

DECODERS = ("transducer", "attention")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpeechTranslation(Objective):
    """-log P(translation | speech), and the same from text where the batch has an MT stream.

    Attributes:
        decoder: `transducer`, or `attention` for the model's `translation_decoder`.
        mt_weight: Weight of text translation; mSLAM takes 5 with an attention decoder. Give both
            streams the same batch size for its equal numbers of examples.
        label_smoothing: Label smoothing of the attention decoder.
        augment: SpecAugment in training.
        max_text_frames: Static number of frames of a resampled text. A longer text leaves the loss
            and is counted in `mt/too_long_fraction`. None: as many as the longest speech has.
        text_masks: Mask(ê_t) of text translation.
        durations: Where the durations of the text to translate come from.
        fastemit: Extra weight of the gradient of label arcs: labels come earlier.
        delay_penalty: Nats per frame by which later labels cost more.
    """

    decoder: str = "transducer"
    mt_weight: float = 1.0
    label_smoothing: float = 0.1
    augment: bool = True
    max_text_frames: int | None = None
    text_masks: TextMasks = TextMasks()
    durations: DurationSource = Learned()
    fastemit: float = 0.0
    delay_penalty: float = 0.0

    def __post_init__(self) -> None:
        """Refuses settings that cannot be trained."""
        if self.decoder not in DECODERS:
            raise UserError(
                f"SpeechTranslation.decoder is {self.decoder!r}; choose one of "
                f"{', '.join(DECODERS)}.{near_misses(self.decoder, DECODERS)}"
            )
        if not 0.0 <= self.mt_weight < math.inf:
            raise UserError(
                f"SpeechTranslation.mt_weight is {self.mt_weight}; it must not be negative."
            )
        if not 0.0 <= self.label_smoothing < 1.0:
            raise UserError(
                f"SpeechTranslation.label_smoothing is {self.label_smoothing}; "
                "it must be at least 0 and below 1."
            )

    @property
    def decoders(self) -> tuple[str, ...]:
        """Returns the decoder that is trained."""
        return (self.decoder,)

    @property
    def loss_weights(self) -> dict[str, dict[str, float]]:
        """Returns the weights of ST and MT; each term bears the name of its stream."""
        return {"st": {"st": 1.0}, "mt": {"mt": self.mt_weight}}

    @property
    def term_units(self) -> dict[str, str]:
        """Returns the unit of both terms, nats per label."""
        return {"st": "nats per label", "mt": "nats per label"}

    def for_run(self, model: Maestro, audio_samples: Mapping[str, int]) -> Self:
        """Sets `max_text_frames`, where it is None, to the frames of the longest speech."""
        if self.max_text_frames is not None:
            return self
        frames = default_max_text_frames(model, audio_samples)
        return dataclasses.replace(self, max_text_frames=frames)

    def init(self, model: Maestro, rng: jax.Array, batch: Batch) -> Any:
        """Initialises all parameters of the model, so that any checkpoint of it fits.

        Text translation trains the text encoder and no pair trains the durations, so that with an
        MT stream the durations are frozen; see `maestro_jax.modules.duration`.
        """
        self.durations.check(model)
        params = super().init(model, rng, batch)
        if "mt" in batch and not self.durations.trained_through:
            params = freeze_durations(params)
        return params

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
        """Computes ST and MT losses in nats per label; see `Objective.loss_terms`."""
        del step, controls
        keys = iter(jax.random.split(rng, 4))
        bound = bind(model, params, next(keys))
        metrics: Metrics = {}
        inputs: dict[str, EncoderInput] = {}
        if "st" in batch:
            stream = batch["st"]
            speech = encode_speech(
                bound,
                {"st": stream},
                next(keys),
                augment=self.augment and train,
                deterministic=not train,
            )["st"]
            inputs["st"] = EncoderInput(
                speech.encoded, speech.mask, stream["target_language"], stream["language"]
            )
            metrics["st/frame_variance_ratio"] = frame_variance_ratio(speech.encoded, speech.mask)
            metrics["st/examples"] = num_present(stream["audio_length"])
        if "mt" in batch:
            self.durations.check(model)
            # Durations are predicted with averaged weights, if the run keeps them.
            averaged = duration_params(frozen(params if ema_params is None else ema_params))
            max_frames = self.max_text_frames
            if max_frames is None:
                max_frames = default_max_text_frames(model, audio_samples(batch))
            inputs["mt"], mt_metrics = self._encode_text(
                bound, bind(model, averaged), batch["mt"], max_frames, next(keys), train
            )
            metrics |= mt_metrics
        contexts = encode_shared(bound, inputs, deterministic=not train)
        if "st" in batch:
            metrics["st/context_variance_ratio"] = frame_variance_ratio(
                contexts["st"], inputs["st"].mask
            )
        labels = {
            name: TargetLabels(batch[name]["translation"], batch[name]["translation_length"])
            for name in inputs
        }
        terms, decoder_metrics = self._decoder_losses(bound, contexts, inputs, labels, train)
        return terms, metrics | decoder_metrics

    def _encode_text(
        self,
        model: Maestro,
        averaged: Maestro,
        stream: Mapping[str, jax.Array],
        max_frames: int,
        rng: jax.Array,
        train: bool,
    ) -> tuple[EncoderInput, Metrics]:
        """Computes the masked ê_t of the source text, as far as it fits.

        Args:
            model: The model, bound to the trained parameters.
            averaged: The model, bound to the parameters that durations are predicted with.
            stream: The MT stream.
            max_frames: Static number of frames.
            rng: Random key.
            train: Whether to mask, and to use dropout.
        """
        duration_rng, mask_rng = jax.random.split(rng)

        def durations_of(text: TokenBatch, mask: jax.Array, embedded: jax.Array) -> jax.Array:
            if self.durations.trained_through:
                source, deterministic = model, not train
            else:
                source, deterministic = averaged, True
                embedded = averaged.encode_text(text.tokens, mask, text.language)
            return self.durations.durations(
                duration_rng, source, embedded, text.tokens, mask, deterministic=deterministic
            )

        tokens = TokenBatch(stream["text"], stream["text_length"], stream["language"])
        texts = encode_text(model, {"mt": tokens}, durations_of, {}, deterministic=not train)
        upsampled = upsample(model, texts, {"mt": max_frames}, deterministic=not train)["mt"]
        values, mask = upsampled.refined, upsampled.index.mask
        if train:
            values = self.text_masks.apply(mask_rng, values, mask)
        return EncoderInput(values, mask, stream["target_language"], stream["language"]), {
            "mt/examples": num_present(stream["text_length"]),
            **upsampling_metrics("mt", texts["mt"], upsampled),
        }

    def _decoder_losses(
        self,
        model: Maestro,
        contexts: dict[str, jax.Array],
        inputs: dict[str, EncoderInput],
        labels: dict[str, TargetLabels],
        train: bool,
    ) -> tuple[dict[str, Weighted], Metrics]:
        """Computes the term of each stream, and the decoder's metrics."""
        if self.decoder == "transducer":
            masks = {name: each.mask for name, each in inputs.items()}
            terms = transducer_losses(
                model,
                contexts,
                masks,
                labels,
                fastemit=self.fastemit,
                delay_penalty=self.delay_penalty,
                deterministic=not train,
            )
            return terms, infeasible_metrics(model, masks, labels)
        losses = attention_losses(
            model,
            contexts,
            inputs,
            labels,
            smoothing=self.label_smoothing,
            deterministic=not train,
        )
        metrics: Metrics = {}
        for name, each in losses.items():
            metrics[f"{name}/nll_per_token"] = each.nats
            metrics[f"{name}/token_accuracy"] = each.accuracy
        return {name: each.loss for name, each in losses.items()}, metrics

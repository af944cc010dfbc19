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
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from maestro_jax.errors import UserError, near_misses
from maestro_jax.losses.reduction import Weighted, mean
from maestro_jax.modules.held_durations import duration_params, hold
from maestro_jax.objectives.attention_terms import attention_losses
from maestro_jax.objectives.base import (
    Batch,
    Controls,
    LossOfTerms,
    Metrics,
    Parts,
    frozen,
    init_all_parameters,
    present,
)
from maestro_jax.objectives.duration_sources import DurationSource, Learned
from maestro_jax.objectives.health import frame_variation
from maestro_jax.objectives.passes import (
    Written,
    encode_speech,
    encode_texts,
    resampling_metrics,
    upsample,
)
from maestro_jax.objectives.text_room import audio_samples, text_room
from maestro_jax.objectives.text_side import TextMasks
from maestro_jax.objectives.transducer_terms import (
    Frames,
    Labels,
    encode_shared,
    transducer_losses,
    without_path,
)

DECODERS = ("transducer", "attention")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpeechTranslation(LossOfTerms):
    """-log P(translation | speech), plus the same from text where the batch has it.

    Attributes:
        decoder: `transducer`, or `attention` for the model's `translation_decoder`.
        mt_weight: Weight of text translation; mSLAM takes 5 with an attention decoder. Give both
            streams the same batch size for its equal numbers of examples.
        label_smoothing: Of the attention decoder.
        augment: SpecAugment in training.
        text_frames: Static number of frames of a resampled text. A text that lasts longer leaves
            the loss and is counted in `mt/over_long_share`. None: as many as the longest speech.
        text_masks: Mask(ê_t) of text translation.
        durations: Where the durations of the text to translate come from.
        fastemit: Extra weight of the gradient of label arcs: labels come earlier.
        delay_penalty: Nats a frame by which later labels cost more.
    """

    decoder: str = "transducer"
    mt_weight: float = 1.0
    label_smoothing: float = 0.1
    augment: bool = True
    text_frames: int | None = None
    text_masks: TextMasks = TextMasks()
    durations: DurationSource = Learned()
    fastemit: float = 0.0
    delay_penalty: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what cannot be trained."""
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
        """What the objective trains to write."""
        return (self.decoder,)

    @property
    def streams(self) -> tuple[str, ...]:
        """ST, and MT if the batch has it."""
        return ("st", "mt")

    def weights_of(self, stream: str) -> dict[str, float]:
        """The term of a stream, which has its name, and its weight."""
        weights = {"st": 1.0, "mt": self.mt_weight}
        return {stream: weights[stream]} if stream in weights else {}

    def active_streams(self, step: int) -> tuple[str, ...]:
        """Both, at every step."""
        del step
        return self.streams

    def init(self, model: nn.Module, rng: jax.Array, batch: Batch) -> Any:
        """Parameters of the whole model, so that any checkpoint of it can be taken over.

        With text to translate, they hold its durations; see `modules.held_durations`.
        """
        self.durations.check(model)
        params = init_all_parameters(model, rng, batch)
        # Text translation trains the text encoder, and no pair trains the durations.
        if "mt" in batch and not self.durations.trained_through:
            params = hold(params)
        return params

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
        """ST and MT in nats a label."""
        del step, controls
        keys = iter(jax.random.split(rng, 4))
        parts = Parts(model, params, next(keys), train)
        metrics: Metrics = {}
        frames: dict[str, Frames] = {}
        if "st" in batch:
            stream = batch["st"]
            speech = encode_speech(
                parts,
                {"st": stream},
                next(keys),
                augment=self.augment and train,
            )["st"]
            frames["st"] = Frames(
                speech.encoded, speech.mask, stream["target_language"], stream["language"]
            )
            metrics["st/frame_variation"] = frame_variation(speech.encoded, speech.mask)
            metrics["st/examples"] = present(stream["audio_length"])
        if "mt" in batch:
            self.durations.check(model)
            # Durations are predicted with averaged weights, if the run keeps them.
            averaged = frozen(params if ema_params is None else ema_params)
            aligner = Parts(model, duration_params(averaged), next(keys), False)
            room = self.text_frames
            if room is None:
                room = text_room(model, audio_samples(batch))
            frames["mt"], more = self._encode_text(
                parts, aligner, batch["mt"], room, next(keys), train
            )
            metrics |= more
        contexts = encode_shared(parts, frames)
        if "st" in batch:
            metrics["st/context_variation"] = frame_variation(contexts["st"], frames["st"].mask)
        labels = {
            name: Labels(batch[name]["translation"], batch[name]["translation_length"])
            for name in frames
        }
        terms, more = self._scored(parts, contexts, frames, labels)
        metrics |= more | {f"loss/{name}": term for name, term in terms.items()}
        return terms, metrics

    def combine(
        self,
        terms: Mapping[str, Weighted],
        params: Any,
        *,
        step: jax.Array | int,
        controls: Controls | None = None,
    ) -> tuple[jax.Array, Metrics]:
        """ST, plus `mt_weight` times MT."""
        del params, step, controls
        loss = jnp.zeros(())
        for name, term in terms.items():
            loss = loss + self.weights_of(name)[name] * mean(term)
        return loss, {"loss": (loss, jnp.ones(()))}

    def _encode_text(
        self,
        parts: Parts,
        aligner: Parts,
        stream: Mapping[str, jax.Array],
        room: int,
        rng: jax.Array,
        train: bool,
    ) -> tuple[Frames, Metrics]:
        """The source text at frame rate, if it fits its room."""
        duration_rng, mask_rng = jax.random.split(rng)

        def chosen(text: Written, mask: jax.Array, embedded: jax.Array) -> jax.Array:
            reader = parts if self.durations.trained_through else aligner
            if not self.durations.trained_through:
                embedded = aligner("encode_text", text.tokens, mask, text.language)
            return self.durations.durations(duration_rng, reader, embedded, text.tokens, mask)

        written = Written(stream["text"], stream["text_length"], stream["language"])
        texts = encode_texts(parts, {"mt": written}, chosen, {})
        upsampled = upsample(parts, texts, {"mt": room})["mt"]
        values, mask = upsampled.refined, upsampled.index.mask
        if train:
            values = self.text_masks.apply(mask_rng, values, mask)
        return Frames(values, mask, stream["target_language"], stream["language"]), {
            "mt/examples": present(stream["text_length"]),
            **resampling_metrics("mt", texts["mt"], upsampled),
        }

    def _scored(
        self,
        parts: Parts,
        contexts: dict[str, jax.Array],
        frames: dict[str, Frames],
        labels: dict[str, Labels],
    ) -> tuple[dict[str, Weighted], Metrics]:
        """The term of each stream, and what else the decoder can tell."""
        masks = {name: each.mask for name, each in frames.items()}
        if self.decoder == "transducer":
            terms = transducer_losses(
                parts,
                contexts,
                masks,
                labels,
                fastemit=self.fastemit,
                delay_penalty=self.delay_penalty,
            )
            return terms, without_path(parts, masks, labels)
        found = attention_losses(parts, contexts, frames, labels, smoothing=self.label_smoothing)
        metrics: Metrics = {}
        for name, each in found.items():
            metrics[f"{name}/nats_a_token"] = each.nats
            metrics[f"{name}/token_accuracy"] = each.accuracy
        return {name: each.loss for name, each in found.items()}, metrics

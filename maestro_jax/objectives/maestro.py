"""The MAESTRO pretraining objective (arXiv 2204.03409, section 2), on top of w2v-BERT.

| stream | term | formula |
|---|---|---|
| speech | contrastive, diversity, masked prediction | L_w + 0.1 L_d + L_m |
| paired | transducer | L_RNNT(t given e_s) |
| paired | matching | MSE(e_s, ê_t), ê_t resampled by the transducer's best path |
| paired | duration | L_D against the durations of that path |
| text | aligned masked LM | L_RNNT(t given Mask(ê_t)), ê_t resampled by predicted durations |
| mt | translation of text | L_RNNT(translation given Mask(ê_t)) |
| st | translation of speech | L_RNNT(translation given e_s); it never trains durations |

Alignments, predicted durations and resampling use the moving average of the weights (section 3).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from maestro_jax.losses.contrastive import contrastive_loss, diversity_loss
from maestro_jax.losses.duration import duration_loss
from maestro_jax.losses.masked_prediction import masked_prediction_loss
from maestro_jax.losses.matching import cosine_similarity, matching_loss
from maestro_jax.losses.reduction import masked_sum, mean
from maestro_jax.modules.masking import block_mask, length_mask, span_mask
from maestro_jax.modules.resampler import FrameIndex
from maestro_jax.objectives.base import (
    Batch,
    Metrics,
    Parts,
    frozen,
    init_all_parameters,
    present,
)
from maestro_jax.objectives.health import frame_variation
from maestro_jax.objectives.joining import groups_of_equal, join, split
from maestro_jax.objectives.transducer_terms import (
    Frames,
    Labels,
    best_path,
    encode_shared,
    transducer_losses,
    without_path,
)

SPOKEN = ("speech", "paired", "st")
WRITTEN = ("text", "mt")


@dataclasses.dataclass(frozen=True)
class _Speech:
    """A spoken stream after the speech encoder.

    Attributes:
        features: `[batch, frames, conv_features]`, not masked.
        mask: `[batch, frames]` bool, True = valid.
        hidden: `[batch, frames]` bool, frames whose input was masked.
        encoded: `[batch, frames, features]`, e_s.
    """

    features: jax.Array
    mask: jax.Array
    hidden: jax.Array
    encoded: jax.Array


@dataclasses.dataclass(frozen=True)
class _Text:
    """A text on its way to frames.

    Attributes:
        mask: `[batch, tokens]` bool, True = valid.
        embedded: `[batch, tokens, text_features]`, e_t.
        durations: `[batch, tokens]` int32, the frames it is resampled to.
    """

    mask: jax.Array
    embedded: jax.Array
    durations: jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaestroPretraining:
    """Weights, masks and the curriculum of MAESTRO.

    Attributes:
        contrastive_weight: Weight of L_w.
        diversity_weight: Weight of L_d.
        masked_prediction_weight: Weight of L_m.
        transducer_weight: Weight of the RNN-T loss on paired speech.
        matching_weight: Weight of the matching loss.
        duration_weight: Weight of the duration loss.
        text_weight: Weight of the aligned masked LM loss.
        mt_weight: Weight of text translation.
        st_weight: Weight of speech translation.
        paired_from: Step at which the paired stream begins (500k in the paper).
        text_from: Step at which unspoken text begins (515k in the paper).
        translation_from: Step at which MT and ST begin.
        speech_mask_probability: Chance that a masked span starts in a frame of speech.
        speech_mask_span: Frames a masked span of speech covers.
        distractors: Negatives of the contrastive loss.
        contrastive_temperature: kappa of the contrastive loss.
        text_mask_probability: Chance that a masked span starts in a frame of resampled text.
        text_mask_span: Frames a masked span of text covers.
        text_feature_masks: Number of feature masks on resampled text.
        text_feature_mask_ratio: Largest width of one, as a share of the features.
        text_frames: Static number of frames that a resampled text may have; what is beyond is cut
            and counted in `text/overflow_frames`.
        matching_form: `mse` or `cosine`.
        stop_speech_gradient: Whether matching trains only the text side.
        duration_form: `l1` or `log_mse`.
        duration_trains_text_encoder: Whether the duration loss reaches the text encoder.
        align_with_ema: Use the moving average for alignment, durations and resampling.
        augment_paired: SpecAugment on the paired and ST streams.
        fastemit: Extra weight of the gradient of label arcs: labels come earlier.
        delay_penalty: Nats a frame by which later labels cost more, in every transducer term.
    """

    contrastive_weight: float = 1.0
    diversity_weight: float = 0.1
    masked_prediction_weight: float = 1.0
    transducer_weight: float = 1.0
    matching_weight: float = 1.0
    duration_weight: float = 1.0
    text_weight: float = 1.0
    mt_weight: float = 1.0
    st_weight: float = 1.0
    paired_from: int = 0
    text_from: int = 0
    translation_from: int = 0
    speech_mask_probability: float = 0.065
    speech_mask_span: int = 10
    distractors: int = 100
    contrastive_temperature: float = 0.1
    text_mask_probability: float = 0.03
    text_mask_span: int = 10
    text_feature_masks: int = 2
    text_feature_mask_ratio: float = 0.1
    text_frames: int = 400
    matching_form: str = "mse"
    stop_speech_gradient: bool = True
    duration_form: str = "l1"
    duration_trains_text_encoder: bool = True
    align_with_ema: bool = True
    augment_paired: bool = True
    fastemit: float = 0.0
    delay_penalty: float = 0.0

    @property
    def streams(self) -> tuple[str, ...]:
        """All five; a batch may lack any."""
        return ("speech", "paired", "text", "mt", "st")

    def active_streams(self, step: int) -> tuple[str, ...]:
        """The curriculum: the streams that have begun at a step.

        What has not begun is left out of the batch, so that it costs nothing; a step is compiled
        anew where a stream begins.
        """
        begins = {
            "speech": 0,
            "paired": self.paired_from,
            "text": self.text_from,
            "mt": self.translation_from,
            "st": self.translation_from,
        }
        return tuple(stream for stream in self.streams if step >= begins[stream])

    def init(self, model: nn.Module, rng: jax.Array, batch: Batch) -> Any:
        """Parameters of the whole model."""
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
        train: bool = True,
    ) -> tuple[jax.Array, Metrics]:
        """The weighted sum of all terms of the streams that are there."""
        keys = iter(jax.random.split(rng, 6))
        parts = Parts(model, params, next(keys), train)
        averaged = frozen(ema_params if self.align_with_ema else params)
        aligner = Parts(model, averaged, next(keys), False)

        speech = self._encode_speech(parts, batch, next(keys))
        texts = self._encode_text(parts, aligner, batch)
        upsampled = self._upsample(
            parts, texts, {name: each.mask.shape[1] for name, each in speech.items()}
        )

        frames: dict[str, Frames] = {}
        labels: dict[str, Labels] = {}
        mask_rng = next(keys)
        for name in self.streams:
            if name not in batch:
                continue
            stream = batch[name]
            target = stream.get("target_language")
            if name in SPOKEN:
                frames[name] = Frames(speech[name].encoded, speech[name].mask, target)
            else:
                refined, index = upsampled[name]
                mask_rng, key = jax.random.split(mask_rng)
                frames[name] = Frames(self._mask_text(key, refined, index.mask), index.mask, target)
            if target is not None:
                labels[name] = Labels(stream["translation"], stream["translation_length"])
            elif name != "speech":
                labels[name] = Labels(stream["text"], stream["text_length"])

        contexts = encode_shared(parts, frames)
        masks = {name: each.mask for name, each in frames.items()}
        transducer = transducer_losses(
            parts,
            contexts,
            masks,
            labels,
            fastemit=self.fastemit,
            delay_penalty=self.delay_penalty,
        )

        total = jnp.zeros(())
        metrics: Metrics = {}
        if "speech" in batch:
            term, found = self._w2v_bert(
                parts, speech["speech"], contexts["speech"], step, next(keys)
            )
            total, metrics = total + term, metrics | found
        if "paired" in batch:
            term, found = self._text_side(parts, speech["paired"], texts["paired"], upsampled)
            total, metrics = total + term, metrics | found
        for name, metric, weight in (
            ("paired", "loss/transducer", self.transducer_weight),
            ("text", "loss/aligned_masked_lm", self.text_weight),
            ("mt", "loss/mt", self.mt_weight),
            ("st", "loss/st", self.st_weight),
        ):
            if name in transducer:
                total = total + weight * mean(transducer[name])
                metrics[metric] = transducer[name]
        for name, each in speech.items():
            metrics[f"{name}/frame_variation"] = frame_variation(each.encoded, each.mask)
            metrics[f"{name}/context_variation"] = frame_variation(contexts[name], each.mask)
        metrics |= _stream_metrics(batch, texts, upsampled) | without_path(parts, masks, labels)
        metrics["loss"] = (total, jnp.ones(()))
        return total, metrics

    def _encode_speech(self, parts: Parts, batch: Batch, rng: jax.Array) -> dict[str, _Speech]:
        """Features, masks and e_s of the spoken streams, in as few passes as lengths allow."""
        spoken = {name: batch[name] for name in SPOKEN if name in batch}
        found: dict[str, _Speech] = {}
        for group in groups_of_equal({name: s["audio"].shape[1] for name, s in spoken.items()}):
            rows = [len(spoken[name]["audio"]) for name in group]
            augmented: jax.Array | bool = False
            if self.augment_paired and parts.train and group != ("speech",):
                # Untranscribed speech has masks of its own; the quantizer must see it whole.
                augmented = join(
                    jnp.full((count,), name != "speech")
                    for name, count in zip(group, rows, strict=True)
                )
            features, mask = parts(
                "features",
                join(spoken[name]["audio"] for name in group),
                join(spoken[name]["audio_length"] for name in group),
                augment=augmented,
            )
            hidden = jnp.zeros_like(mask)
            if "speech" in group:
                spans = span_mask(
                    rng,
                    mask,
                    start_probability=self.speech_mask_probability,
                    span=self.speech_mask_span,
                )
                untranscribed = join(
                    jnp.full((count,), name == "speech")
                    for name, count in zip(group, rows, strict=True)
                )
                hidden = spans & untranscribed[:, None]
            encoded = parts(
                "encode_speech",
                features,
                mask,
                masked_frames=hidden if "speech" in group else None,
                deterministic=parts.deterministic,
            )
            columns = [split(array, rows) for array in (features, mask, hidden, encoded)]
            for name, *each in zip(group, *columns, strict=True):
                found[name] = _Speech(*each)
        return found

    def _encode_text(self, parts: Parts, aligner: Parts, batch: Batch) -> dict[str, _Text]:
        """e_t and durations: aligned for paired text, predicted for the rest."""
        names = [name for name in ("paired", *WRITTEN) if name in batch]
        found: dict[str, _Text] = {}
        for group in groups_of_equal({name: batch[name]["text"].shape[1] for name in names}):
            rows = [len(batch[name]["text"]) for name in group]
            text, lengths, language = (
                join(batch[name][feature] for name in group)
                for feature in ("text", "text_length", "language")
            )
            mask = length_mask(lengths, text.shape[1])
            embedded = parts("encode_text", text, mask, language, deterministic=parts.deterministic)
            durations = jnp.zeros_like(text)
            if group != ("paired",):
                averaged = aligner("encode_text", text, mask, language)
                durations = aligner(
                    "round_durations", aligner("predict_durations", averaged, mask), mask
                )
            columns = [split(array, rows) for array in (mask, embedded, durations)]
            for name, *each in zip(group, *columns, strict=True):
                found[name] = _Text(*each)
        if "paired" in batch:
            paired = batch["paired"]
            # The aligner hears the speech as it is: no augmentation, no dropout, averaged weights.
            features, mask = aligner("features", paired["audio"], paired["audio_length"])
            encoded = aligner("encode_speech", features, mask)
            path = best_path(aligner, encoded, mask, Labels(paired["text"], paired["text_length"]))
            found["paired"] = dataclasses.replace(found["paired"], durations=path.durations)
        return found

    def _upsample(
        self, parts: Parts, texts: dict[str, _Text], speech_frames: dict[str, int]
    ) -> dict[str, tuple[jax.Array, FrameIndex]]:
        """ê_t of every text: paired text at the length of its speech, the rest at `text_frames`."""
        shapes = {
            name: (each.embedded.shape[1], speech_frames.get(name, self.text_frames))
            for name, each in texts.items()
        }
        found: dict[str, tuple[jax.Array, FrameIndex]] = {}
        for group in groups_of_equal(shapes):
            rows = [len(texts[name].embedded) for name in group]
            refined, index = parts(
                "upsample",
                join(texts[name].embedded for name in group),
                join(texts[name].durations for name in group),
                shapes[group[0]][1],
                deterministic=parts.deterministic,
            )
            leaves, structure = jax.tree.flatten((refined, index))
            columns = [split(leaf, rows) for leaf in leaves]
            for name, *each in zip(group, *columns, strict=True):
                found[name] = jax.tree.unflatten(structure, each)
        return found

    def _w2v_bert(
        self,
        parts: Parts,
        speech: _Speech,
        context: jax.Array,
        step: jax.Array | int,
        rng: jax.Array,
    ) -> tuple[jax.Array, Metrics]:
        """Contrastive, diversity and masked prediction losses on untranscribed speech."""
        quantized = parts("quantize", speech.features, step, deterministic=parts.deterministic)
        contrastive, contrastive_accuracy = contrastive_loss(
            rng,
            parts("contrastive_context", speech.encoded),
            quantized.vectors,
            speech.hidden,
            distractors=self.distractors,
            temperature=self.contrastive_temperature,
        )
        diversity, perplexity = diversity_loss(quantized.probabilities, speech.mask)
        prediction, prediction_accuracy = masked_prediction_loss(
            parts("code_logits", context), quantized.ids, speech.hidden
        )
        loss = (
            self.contrastive_weight * mean(contrastive)
            + self.diversity_weight * diversity
            + self.masked_prediction_weight * mean(prediction)
        )
        one = jnp.ones(())
        return loss, {
            "loss/contrastive": contrastive,
            "loss/diversity": (diversity, one),
            "loss/masked_prediction": prediction,
            "speech/contrastive_accuracy": contrastive_accuracy,
            "speech/masked_accuracy": prediction_accuracy,
            "speech/code_perplexity": (perplexity, one),
        }

    def _text_side(
        self,
        parts: Parts,
        speech: _Speech,
        text: _Text,
        upsampled: dict[str, tuple[jax.Array, FrameIndex]],
    ) -> tuple[jax.Array, Metrics]:
        """Matching and duration losses: what paired speech teaches the text side."""
        refined, index = upsampled["paired"]
        both = speech.mask & index.mask
        matching = matching_loss(
            speech.encoded,
            refined,
            both,
            form=self.matching_form,
            stop_speech_gradient=self.stop_speech_gradient,
        )
        embedded = text.embedded
        if not self.duration_trains_text_encoder:
            embedded = jax.lax.stop_gradient(embedded)
        predicted = parts(
            "predict_durations", embedded, text.mask, deterministic=parts.deterministic
        )
        # A text whose speech is absent has no durations to learn from.
        aligned = text.mask & jnp.any(speech.mask, axis=1)[:, None]
        duration, duration_error = duration_loss(
            predicted.nonzero_logit,
            predicted.frames,
            text.durations,
            aligned,
            form=self.duration_form,
        )
        loss = self.matching_weight * mean(matching) + self.duration_weight * mean(duration)
        return loss, {
            "loss/matching": matching,
            "loss/duration": duration,
            "paired/duration_error_frames": duration_error,
            "paired/zero_duration_share": masked_sum(text.durations == 0, aligned),
            "paired/cosine": masked_sum(cosine_similarity(speech.encoded, refined), both),
        }

    def _mask_text(self, rng: jax.Array, refined: jax.Array, mask: jax.Array) -> jax.Array:
        """Mask(ê_t): spans of frames and bands of features set to zero (section 2.3)."""
        time_rng, feature_rng = jax.random.split(rng)
        hidden = span_mask(
            time_rng,
            mask,
            start_probability=self.text_mask_probability,
            span=self.text_mask_span,
        )[:, :, None]
        batch, _, features = refined.shape
        if self.text_feature_masks:
            band = block_mask(
                feature_rng,
                jnp.full((batch,), features),
                features,
                blocks=self.text_feature_masks,
                max_width=int(features * self.text_feature_mask_ratio),
            )
            hidden = hidden | band[:, None, :]
        return jnp.where(hidden, jnp.zeros((), refined.dtype), refined)


def _stream_metrics(
    batch: Batch, texts: dict[str, _Text], upsampled: dict[str, tuple[jax.Array, FrameIndex]]
) -> Metrics:
    """How many examples each stream had, and what became of its texts in resampling."""
    one = jnp.ones(())
    metrics: Metrics = {}
    for name, stream in batch.items():
        metrics[f"{name}/examples"] = present(stream.get("audio_length", stream.get("text_length")))
    for name in WRITTEN:
        if name in texts:
            overflow = upsampled[name][1].overflow
            metrics[f"{name}/overflow_frames"] = (jnp.sum(overflow).astype(jnp.float32), one)
            metrics[f"{name}/frames_per_token"] = masked_sum(
                texts[name].durations, texts[name].mask
            )
    return metrics

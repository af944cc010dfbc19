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
from collections.abc import Callable
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
from maestro_jax.objectives.base import (
    Batch,
    Metrics,
    Parts,
    frozen,
    init_all_parameters,
    present,
)
from maestro_jax.objectives.transducer_terms import best_path, transducer_term

StreamTerm = Callable[[Parts, Parts, dict[str, jax.Array], jax.Array], tuple[jax.Array, Metrics]]


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

    @property
    def streams(self) -> tuple[str, ...]:
        """All five; a batch may lack any."""
        return ("speech", "paired", "text", "mt", "st")

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
        """The weighted sum of all terms of the streams that are there and have begun."""
        begins = {
            "speech": 0,
            "paired": self.paired_from,
            "text": self.text_from,
            "mt": self.translation_from,
            "st": self.translation_from,
        }
        terms: dict[str, StreamTerm] = {
            "speech": self._speech,
            "paired": self._paired,
            "text": self._text,
            "mt": self._mt,
            "st": self._st,
        }
        align_params = frozen(ema_params if self.align_with_ema else params)
        total = jnp.zeros(())
        metrics: Metrics = {}
        for index, (stream, term) in enumerate(terms.items()):
            if stream not in batch:
                continue

            def run(
                params: Any, term: StreamTerm = term, stream: str = stream, index: int = index
            ) -> tuple[jax.Array, Metrics]:
                key = jax.random.fold_in(rng, index)
                parts = Parts(model, params, key, train)
                aligner = Parts(model, align_params, jax.random.fold_in(key, 1), False)
                return term(parts, aligner, batch[stream], jnp.asarray(step))

            if begins[stream] == 0:
                loss, stream_metrics = run(params)
            else:
                # A stream that has not begun costs nothing: neither forward nor backward pass.
                shapes = jax.eval_shape(run, params)
                loss, stream_metrics = jax.lax.cond(
                    jnp.asarray(step) >= begins[stream],
                    run,
                    lambda _, shapes=shapes: jax.tree.map(
                        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes
                    ),
                    params,
                )
            total = total + loss
            metrics.update(stream_metrics)
        metrics["loss"] = (total, jnp.ones(()))
        return total, metrics

    def _speech(
        self, parts: Parts, aligner: Parts, batch: dict[str, jax.Array], step: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        """w2v-BERT on untranscribed speech."""
        features, mask = parts("features", batch["audio"], batch["audio_length"])
        mask_rng, distractor_rng = jax.random.split(jax.random.fold_in(parts.rng, 7))
        masked = span_mask(
            mask_rng,
            mask,
            start_probability=self.speech_mask_probability,
            span=self.speech_mask_span,
        )
        quantized = parts("quantize", features, step, deterministic=parts.deterministic)
        encoded = parts(
            "encode_speech",
            features,
            mask,
            masked_frames=masked,
            deterministic=parts.deterministic,
        )
        contrastive, contrastive_accuracy = contrastive_loss(
            distractor_rng,
            parts("contrastive_context", encoded),
            quantized.vectors,
            masked,
            distractors=self.distractors,
            temperature=self.contrastive_temperature,
        )
        diversity, perplexity = diversity_loss(quantized.probabilities, mask)
        context = parts("encode_shared", encoded, mask, deterministic=parts.deterministic)
        prediction, prediction_accuracy = masked_prediction_loss(
            parts("code_logits", context), quantized.ids, masked
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
            "speech/examples": present(batch["audio_length"]),
        }

    def _paired(
        self, parts: Parts, aligner: Parts, batch: dict[str, jax.Array], step: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        """RNN-T on the speech, and the text side taught by its best path."""
        audio, audio_length = batch["audio"], batch["audio_length"]
        text, text_length = batch["text"], batch["text_length"]
        augment = self.augment_paired and parts.train
        features, mask = parts("features", audio, audio_length, augment=augment)
        encoded = parts("encode_speech", features, mask, deterministic=parts.deterministic)
        transducer = transducer_term(parts, encoded, mask, text, text_length)

        # The aligner hears the speech as it is: no augmentation, no dropout, averaged weights.
        clean, _ = aligner("features", audio, audio_length)
        clean = aligner("encode_speech", clean, mask)
        durations = best_path(aligner, clean, mask, text, text_length).durations

        text_mask = length_mask(text_length, text.shape[1])
        embedded = parts(
            "encode_text", text, text_mask, batch["language"], deterministic=parts.deterministic
        )
        refined, index = parts(
            "upsample", embedded, durations, mask.shape[1], deterministic=parts.deterministic
        )
        both = mask & index.mask
        matching = matching_loss(
            encoded,
            refined,
            both,
            form=self.matching_form,
            stop_speech_gradient=self.stop_speech_gradient,
        )
        duration_input = embedded
        if not self.duration_trains_text_encoder:
            duration_input = jax.lax.stop_gradient(embedded)
        predicted = parts(
            "predict_durations", duration_input, text_mask, deterministic=parts.deterministic
        )
        # A text whose speech is absent or silent in length has no durations to learn from.
        aligned = text_mask & (jnp.sum(mask, axis=1) > 0)[:, None]
        duration, duration_error = duration_loss(
            predicted.nonzero_logit,
            predicted.frames,
            durations,
            aligned,
            form=self.duration_form,
        )
        loss = (
            self.transducer_weight * mean(transducer)
            + self.matching_weight * mean(matching)
            + self.duration_weight * mean(duration)
        )
        return loss, {
            "loss/transducer": transducer,
            "loss/matching": matching,
            "loss/duration": duration,
            "paired/duration_error_frames": duration_error,
            "paired/zero_duration_share": masked_sum(durations == 0, aligned),
            "paired/cosine": masked_sum(cosine_similarity(encoded, refined), both),
            "paired/examples": present(audio_length),
        }

    def _text(
        self, parts: Parts, aligner: Parts, batch: dict[str, jax.Array], step: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        """Aligned masked LM on unspoken text."""
        term, metrics = self._from_text(
            parts, aligner, batch, batch["text"], batch["text_length"], None
        )
        loss = self.text_weight * mean(term)
        return loss, {
            "loss/aligned_masked_lm": term,
            **{f"text/{name}": value for name, value in metrics.items()},
        }

    def _mt(
        self, parts: Parts, aligner: Parts, batch: dict[str, jax.Array], step: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        """Translation from text through the shared encoder."""
        term, metrics = self._from_text(
            parts,
            aligner,
            batch,
            batch["translation"],
            batch["translation_length"],
            batch["target_language"],
        )
        loss = self.mt_weight * mean(term)
        return loss, {
            "loss/mt": term,
            **{f"mt/{name}": value for name, value in metrics.items()},
        }

    def _st(
        self, parts: Parts, aligner: Parts, batch: dict[str, jax.Array], step: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        """Translation from speech; its alignment is not monotonic and trains no durations."""
        augment = self.augment_paired and parts.train
        features, mask = parts("features", batch["audio"], batch["audio_length"], augment=augment)
        encoded = parts("encode_speech", features, mask, deterministic=parts.deterministic)
        term = transducer_term(
            parts,
            encoded,
            mask,
            batch["translation"],
            batch["translation_length"],
            batch["target_language"],
        )
        loss = self.st_weight * mean(term)
        return loss, {"loss/st": term, "st/examples": present(batch["audio_length"])}

    def _from_text(
        self,
        parts: Parts,
        aligner: Parts,
        batch: dict[str, jax.Array],
        labels: jax.Array,
        label_lengths: jax.Array,
        target_language: jax.Array | None,
    ) -> tuple[tuple[jax.Array, jax.Array], Metrics]:
        """RNN-T of labels given the masked, resampled text of a batch."""
        text, language = batch["text"], batch["language"]
        text_mask = length_mask(batch["text_length"], text.shape[1])
        averaged = aligner("encode_text", text, text_mask, language)
        durations = aligner(
            "round_durations", aligner("predict_durations", averaged, text_mask), text_mask
        )
        embedded = parts(
            "encode_text", text, text_mask, language, deterministic=parts.deterministic
        )
        refined, index = parts(
            "upsample", embedded, durations, self.text_frames, deterministic=parts.deterministic
        )
        masked = self._mask_text(jax.random.fold_in(parts.rng, 11), refined, index.mask)
        term = transducer_term(parts, masked, index.mask, labels, label_lengths, target_language)
        one = jnp.ones(())
        return term, {
            "overflow_frames": (jnp.sum(index.overflow).astype(jnp.float32), one),
            "frames_per_token": (
                jnp.sum(durations).astype(jnp.float32),
                jnp.sum(text_mask).astype(jnp.float32),
            ),
            "examples": present(batch["text_length"]),
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

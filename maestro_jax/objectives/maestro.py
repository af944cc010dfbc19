"""The MAESTRO pretraining objective (arXiv 2204.03409, section 2), on top of w2v-BERT.

| stream | term | formula |
|---|---|---|
| speech | contrastive, diversity, masked prediction | L_w + 0.1 L_d + L_m, or a part of it |
| paired | transducer | L_RNNT(t given e_s) |
| paired | matching | MSE(e_s, ê_t), ê_t resampled by the transducer's best path |
| paired | duration | L_D against the durations of that path |
| paired | sub-word durations, if drawn from | likelihood of the durations of that path |
| paired | paired aligned masked LM, if asked for | L_RNNT(t given Mask(ê_t)) |
| text | aligned masked LM | L_RNNT(t given Mask(ê_t)), ê_t resampled by durations from a source |
| text | text transducer, if asked for | L_RNNT(t given synthesised speech of t) |
| mt | translation of text | L_RNNT(translation given Mask(ê_t)) |
| st | translation of speech | L_RNNT(translation given e_s); its alignments train no durations |

Alignments, predicted durations and resampling use the moving average of the weights (section 3).

Methods that differ in one of these parts are settings of this objective, in `gin/objectives/`:
matching that needs no durations is in `best_alignment` and `astra`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Self

import jax
import jax.numpy as jnp

from maestro_jax.errors import UserError
from maestro_jax.layers.masking import length_mask, zero_padding
from maestro_jax.losses.duration import FORMS as DURATION_FORMS
from maestro_jax.losses.duration import duration_loss, gaussian_duration_loss
from maestro_jax.losses.reduction import Weighted, masked_sum
from maestro_jax.losses.similarity import cosine_similarity
from maestro_jax.losses.transducer_alignment import Alignment, posterior_entropy
from maestro_jax.modules.duration import duration_params, freeze_durations
from maestro_jax.modules.maestro import Maestro
from maestro_jax.objectives import weighting as learned
from maestro_jax.objectives.base import (
    Batch,
    Controls,
    Metrics,
    Objective,
    bind,
    frozen,
    loss_metrics,
)
from maestro_jax.objectives.curriculum import ALL_STREAMS, Curriculum, Weight, weight_at
from maestro_jax.objectives.decoder_losses import (
    Lattice,
    TargetLabels,
    best_path,
    infeasible_metrics,
    transducer_losses_and_lattices,
)
from maestro_jax.objectives.duration_sources import DurationSource, Learned, SubwordGaussian
from maestro_jax.objectives.forward import (
    EncoderInput,
    SpeechEncoding,
    TextEncoding,
    TokenBatch,
    UpsampledText,
    audio_samples,
    concat_valid,
    default_max_text_frames,
    encode_shared_with_intermediate,
    encode_speech,
    encode_text,
    stream_metrics,
    synthetic_speech,
    upsample,
)
from maestro_jax.objectives.metrics import (
    Probe,
    alignment_collapse,
    at_speech_frames,
    frame_variance_ratio,
    probe_pairs,
)
from maestro_jax.objectives.self_supervised import SelfSupervised, W2vBert
from maestro_jax.objectives.text_losses import DurationFreeMatching, Matching, TextMasks

SPEECH_STREAMS = ("speech", "paired", "st", "synthetic_text")
TEXT_STREAMS = ("text", "mt")
TRANSDUCER_TERMS = {
    "paired": "transducer",
    "text": "aligned_masked_lm",
    "synthetic_text": "text_transducer",
    "paired_text": "paired_aligned_masked_lm",
    "mt": "mt",
    "st": "st",
}
"""The term that scores each stream; `paired_text` is the text of the paired stream,
`synthetic_text` the synthesised speech of the text stream."""
WHOLE_PAIRED_TEXT = "whole_paired_text"
"""The unmasked text of the paired stream in the shared encoder, where matching compares it."""
TERM_UNITS = {
    "contrastive": "nats per frame",
    "masked_prediction": "nats per frame",
    "diversity": "fraction of unused codes",
    "duration": "duration error",
    "subword_duration": "nats per token",
    **dict.fromkeys(TRANSDUCER_TERMS.values(), "nats per label"),
}
PACKINGS = ("supervised", "concatenated")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaestroPretraining(Objective):
    """Weights, masks and the curriculum of MAESTRO.

    A weight is a number or a `Schedule` over the curriculum step.

    Attributes:
        contrastive_weight: Weight of L_w.
        diversity_weight: Weight of L_d.
        masked_prediction_weight: Weight of L_m.
        transducer_weight: Weight of the RNN-T loss on paired speech.
        matching_weight: Weight of the matching loss.
        duration_weight: Weight of the duration loss.
        text_weight: Weight of the aligned masked LM loss; the RWTH experiments use 0.3 where text
            drowns speech. With 0, and a `synthetic_weight`, text is heard only.
        synthetic_weight: Weight of the RNN-T loss on synthesised speech of the text stream, for
            adaptation; above 0 the stream needs a `StreamConfig.synthesis`.
        paired_text_weight: Weight of the aligned masked LM on paired text, if `text_masks` ask for
            it.
        mt_weight: Weight of text translation.
        st_weight: Weight of speech translation.
        weighting: Learned weights on top of these; None for none.
        streams: The streams that are learned from; a run may have others, which it does not read.
            With `("speech",)` this is the self-supervised objective alone.
        curriculum: When each stream begins, and what may hold it back.
        self_supervised: What untranscribed speech learns: w2v-BERT, wav2vec 2.0 or BEST-RQ.
        matching: How text is compared with speech: `Matching`, MAESTRO's, which resamples the text
            by the transducer's alignment and trains durations; `best_alignment.BestAlignment` or
            `astra.Astra`, which do neither; or None for no comparison and no durations.
        text_masks: Mask(ê_t).
        max_text_frames: Static number of frames that a resampled text may have. A longer text
            leaves the loss and is counted in `text/too_long_fraction`. None: as many as the longest
            pairs have.
        durations: Where the durations of text without speech come from.
        duration_form: `l1` or `log_mse`.
        duration_trains_text_encoder: Whether the duration loss reaches the text encoder.
        translation_packing: How MT and ST enter (the paper leaves it open). `supervised`: the
            source is encoded and the transducer writes the translation. `concatenated`: source and
            masked resampled translation stand one after the other; the transducer writes both texts
            for MT, the translation for ST, as in translation language modelling.
        align_with_ema: Use the moving average for alignment, and for durations unless they are to
            be trained by the text. Without it, or where the run keeps none: the trained weights.
        augment_paired: SpecAugment on the paired and ST streams.
        augment_paired_start_step: Curriculum step from which on `augment_paired` applies: without
            SpecAugment, an RNN-T at the start of training learns sooner to use the speech.
        fastemit: Extra weight of the gradient of label arcs: labels come earlier.
        delay_penalty: Nats per frame by which later labels cost more, in every transducer term.
    """

    contrastive_weight: Weight = 1.0
    diversity_weight: Weight = 0.1
    masked_prediction_weight: Weight = 1.0
    transducer_weight: Weight = 1.0
    matching_weight: Weight = 1.0
    duration_weight: Weight = 1.0
    text_weight: Weight = 1.0
    synthetic_weight: Weight = 0.0
    paired_text_weight: Weight = 1.0
    mt_weight: Weight = 1.0
    st_weight: Weight = 1.0
    weighting: learned.Weighting | None = None
    streams: tuple[str, ...] = ALL_STREAMS
    curriculum: Curriculum = Curriculum()
    self_supervised: SelfSupervised = W2vBert()
    matching: Matching | DurationFreeMatching | None = Matching()
    text_masks: TextMasks = TextMasks()
    max_text_frames: int | None = None
    durations: DurationSource = Learned()
    duration_form: str = "l1"
    duration_trains_text_encoder: bool = True
    translation_packing: str = "supervised"
    align_with_ema: bool = True
    augment_paired: bool = True
    augment_paired_start_step: int = 0
    fastemit: float = 0.0
    delay_penalty: float = 0.0
    probe_stream = "paired"

    def __post_init__(self) -> None:
        """Refuses unknown choices before anything is built."""
        # gin hands over lists.
        object.__setattr__(self, "streams", tuple(self.streams))
        unknown = [name for name in self.streams if name not in ALL_STREAMS]
        if unknown or not self.streams:
            raise UserError(
                f"MaestroPretraining.streams is {self.streams}; name one or more of {ALL_STREAMS}."
            )
        if self.duration_form not in DURATION_FORMS:
            raise UserError(
                f"duration_form is {self.duration_form!r}; choose one of {DURATION_FORMS}."
            )
        if self.translation_packing not in PACKINGS:
            raise UserError(
                f"translation_packing is {self.translation_packing!r}; choose one of {PACKINGS}."
            )
        if self.matching is not None and not isinstance(self.matching, Matching):
            self.matching.check(self.durations)

    @property
    def decoders(self) -> tuple[str, ...]:
        """Returns the transducer, which untranscribed speech alone does not train."""
        return () if self.streams == ("speech",) else ("transducer",)

    @property
    def term_units(self) -> dict[str, str]:
        """Returns the units of all terms."""
        if self.matching is None:
            return TERM_UNITS
        return TERM_UNITS | {"matching": self.matching.unit}

    @property
    def _learns_durations(self) -> bool:
        """Returns whether the text of pairs is aligned with the speech, and trains durations."""
        return isinstance(self.matching, Matching)

    @property
    def loss_weights(self) -> dict[str, dict[str, Weight]]:
        """Returns the weights of the terms that each stream adds, those that are asked for."""
        paired: dict[str, Weight] = {"transducer": self.transducer_weight}
        if self.matching is not None:
            paired["matching"] = self.matching_weight
        if self._learns_durations:
            paired["duration"] = self.duration_weight
        if self._learns_durations and isinstance(self.durations, SubwordGaussian):
            paired["subword_duration"] = self.duration_weight
        if self.text_masks.on_paired:
            paired["paired_aligned_masked_lm"] = self.paired_text_weight
        text: dict[str, Weight] = {"aligned_masked_lm": self.text_weight}
        if self._hears_text:
            text["text_transducer"] = self.synthetic_weight
        weights = {
            "speech": {
                name: getattr(self, f"{name}_weight") for name in self.self_supervised.term_names
            },
            "paired": paired,
            "text": text,
            "mt": {"mt": self.mt_weight},
            "st": {"st": self.st_weight},
        }
        return {name: terms for name, terms in weights.items() if name in self.streams}

    @property
    def _hears_text(self) -> bool:
        return not isinstance(self.synthetic_weight, float | int) or self.synthetic_weight != 0

    def for_run(self, model: Maestro, audio_samples: Mapping[str, int]) -> Self:
        """Sets `max_text_frames`, where it is None, to the frames of the longest pairs."""
        if self.max_text_frames is not None:
            return self
        frames = default_max_text_frames(model, audio_samples)
        return dataclasses.replace(self, max_text_frames=frames)

    def init(self, model: Maestro, rng: jax.Array, batch: Batch) -> Any:
        """Initialises all parameters of the model, and those of the learned weighting.

        Where texts train the text encoder and no pairs train durations, the durations are frozen;
        see `maestro_jax.modules.duration`.

        Raises:
            UserError: The model lacks what a setting needs.
        """
        self.self_supervised.check(model)
        self.durations.check(model)
        params = super().init(model, rng, batch)
        if self._freezes_durations(self._learned_from(batch)):
            params = freeze_durations(params)
        if isinstance(self.weighting, learned.UncertaintyWeighting):
            weights = self.weighting.init(tuple(self.term_weights))
            params = {**params, learned.PARAMETERS: weights}
        return params

    def _learned_from(self, batch: Batch) -> Batch:
        """Returns the streams of a batch that are learned from."""
        return {name: stream for name, stream in batch.items() if name in self.streams}

    def _freezes_durations(self, batch: Batch) -> bool:
        """Returns whether texts alone would change the durations of a run with these streams."""
        by_pairs = "paired" in batch and self._learns_durations and self.duration_weight != 0
        by_texts = self.durations.trained_through
        # Tokens that are repeated ask no model.
        repeated = self.durations.max_token_frames is not None
        texts = {"text", "mt"}
        if self.translation_packing == "concatenated":
            texts.add("st")
        return not texts.isdisjoint(batch) and not (by_pairs or by_texts or repeated)

    def weighted_loss(
        self,
        terms: Mapping[str, Weighted],
        params: Any,
        *,
        step: jax.Array | int,
        controls: Controls | None = None,
    ) -> tuple[jax.Array, Metrics]:
        """Computes the weighted sum of all terms; see `Objective.weighted_loss`."""
        if not isinstance(self.weighting, learned.UncertaintyWeighting):
            return super().weighted_loss(terms, params, step=step, controls=controls)
        curriculum_step = step if controls is None else controls.curriculum_step
        weights = {name: weight_at(self.term_weights[name], curriculum_step) for name in terms}
        total, factors = self.weighting.total(terms, weights, params[learned.PARAMETERS])
        return total, loss_metrics(terms, total, factors)

    @property
    def _compares_contexts(self) -> bool:
        """Returns whether matching reads the text of pairs at the top of the shared encoder."""
        if self.matching is None or isinstance(self.matching, Matching):
            return False
        return self.matching.of_shared_encoder

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
        """Computes the terms of all streams of the batch; see `Objective.loss_terms`."""
        batch = self._learned_from(batch)
        augment: jax.Array | bool = self.augment_paired and train
        if augment and self.augment_paired_start_step:
            curriculum_step = step if controls is None else controls.curriculum_step
            augment = jnp.asarray(curriculum_step) >= self.augment_paired_start_step
        self.self_supervised.check(model)
        self.durations.check(model)
        if self._hears_text and "text" in batch:
            batch = {**batch, "synthetic_text": synthetic_speech(batch, "text")}
            if isinstance(self.text_weight, float | int) and self.text_weight == 0:
                batch = {name: stream for name, stream in batch.items() if name != "text"}
        keys = iter(jax.random.split(rng, 6))
        deterministic = not train
        bound = bind(model, params, next(keys))
        averaged = ema_params if self.align_with_ema and ema_params is not None else params
        # Alignments and durations are targets: no gradient reaches what they are made with. Without
        # random keys there is no dropout either.
        aligner = bind(model, duration_params(frozen(averaged)))

        # Section 2.1: e_s of all speech. The untranscribed stream is masked, the others get
        # SpecAugment.
        speech = encode_speech(
            bound,
            {name: batch[name] for name in SPEECH_STREAMS if name in batch},
            next(keys),
            masking={"speech": self.self_supervised},
            augment=augment,
            deterministic=deterministic,
        )
        # Section 2.2: e_t and durations, aligned with the speech for pairs and from a source for
        # the rest; then ê_t, resampled by them and refined.
        texts, alignment = self._encode_texts(
            bound, aligner, batch, speech, next(keys), deterministic=deterministic
        )
        max_frames = {
            name: self._max_frames(model, batch, name, text.mask.shape[1])
            for name, text in texts.items()
        }
        upsampled = upsample(bound, texts, max_frames, deterministic=deterministic)
        # Section 2.3: Mask(ê_t) stands in the place of e_s, and the RNN-T writes the same labels.
        # All streams share the encoder and the decoder.
        inputs, labels = self._decoder_task(batch, speech, upsampled, next(keys))
        outputs = encode_shared_with_intermediate(bound, inputs, deterministic=deterministic)
        contexts = {name: context for name, (context, _) in outputs.items()}
        # The layer that the contrastive loss reads lies in the shared encoder, which has run by
        # now.
        if "speech" in batch and model.contrasts_in_shared_encoder:
            speech["speech"] = dataclasses.replace(
                speech["speech"], intermediate=outputs["speech"][1]
            )
        masks = {name: each.mask for name, each in inputs.items()}
        decoder_terms, lattices = transducer_losses_and_lattices(
            bound,
            contexts,
            masks,
            labels,
            fastemit=self.fastemit,
            delay_penalty=self.delay_penalty,
            deterministic=deterministic,
        )

        terms: dict[str, Weighted] = {}
        metrics: Metrics = {}
        if "speech" in batch:
            terms, metrics = self.self_supervised.loss_terms(
                bound,
                speech["speech"],
                contexts["speech"],
                step,
                next(keys),
                deterministic=deterministic,
            )
        if "paired" in batch:
            paired = batch["paired"]
            labels_of_pairs = TargetLabels(paired["text"], paired["text_length"])
            if alignment is None:
                # Of the RNN-T loss, augmented and with dropout; it takes no pass of its own.
                lattice = lattices["paired"]
                alignment = lattice.best_path(), posterior_entropy(lattice.posterior)
            path, entropy = alignment
            if isinstance(self.matching, Matching):
                paired_terms, paired_metrics = self._matching_and_duration_losses(
                    bound,
                    self.matching,
                    speech["paired"],
                    labels_of_pairs,
                    texts["paired"],
                    path,
                    upsampled["paired"],
                    deterministic=deterministic,
                )
                terms |= paired_terms
                metrics |= paired_metrics
            elif self.matching is not None:
                of_context = self.matching.of_shared_encoder
                terms["matching"], metrics["paired/cosine"] = self._duration_free_loss(
                    self.matching,
                    contexts["paired"] if of_context else speech["paired"].encoded,
                    speech["paired"].mask,
                    contexts[WHOLE_PAIRED_TEXT] if of_context else upsampled["paired"].refined,
                    upsampled["paired"].index.mask,
                    texts["paired"].durations,
                    path,
                    lattices["paired"],
                )
            label_mask = length_mask(labels_of_pairs.lengths, labels_of_pairs.tokens.shape[1])
            # A text whose speech is absent has no durations.
            aligned = label_mask & jnp.any(speech["paired"].mask, axis=1)[:, None]
            metrics |= alignment_collapse(path, entropy, label_mask, speech["paired"].mask)
            metrics["paired/zero_duration_fraction"] = masked_sum(path.durations == 0, aligned)
        terms |= {TRANSDUCER_TERMS[name]: term for name, term in decoder_terms.items()}
        for name, each in speech.items():
            metrics[f"{name}/frame_variance_ratio"] = frame_variance_ratio(each.encoded, each.mask)
            metrics[f"{name}/context_variance_ratio"] = frame_variance_ratio(
                contexts[name], masks[name]
            )
        metrics |= stream_metrics(batch, texts, upsampled)
        return terms, metrics | infeasible_metrics(bound, masks, labels)

    def probe(
        self, model: Maestro, params: Any, examples: Mapping[str, jax.Array], row: int
    ) -> Probe:
        """Computes metrics and arrays of held-out pairs; see `probe_pairs`."""
        # Text is shown at the rate that the encoders know.
        repeats = self.durations.max_token_frames is not None
        durations = self.durations if repeats and not self._learns_durations else None
        return probe_pairs(model, params, examples, row, durations=durations)

    def _max_frames(self, model: Maestro, batch: Batch, name: str, tokens: int) -> int:
        """Returns the static number of frames of a text of so many tokens.

        That of a pair that is aligned is its speech's.
        """
        if name == "paired" and self._learns_durations:
            return default_max_text_frames(model, audio_samples(batch))
        per_token = self.durations.max_token_frames
        # The text of a pair is never too long: what its speech trains must not depend on its rate.
        if name == "paired" and per_token is not None:
            return per_token * tokens
        limit = self.max_text_frames
        if limit is None:
            limit = default_max_text_frames(model, audio_samples(batch))
        return limit if per_token is None else min(limit, per_token * tokens)

    def _encode_texts(
        self,
        model: Maestro,
        aligner: Maestro,
        batch: Batch,
        speech: Mapping[str, SpeechEncoding],
        rng: jax.Array,
        *,
        deterministic: bool,
    ) -> tuple[dict[str, TextEncoding], tuple[Alignment, Weighted] | None]:
        """Computes e_t and durations: aligned for paired text, from `self.durations` for the rest.

        Args:
            model: The model, bound to the trained parameters.
            aligner: The model, bound to those that alignments and durations are made with.
            batch: The batch.
            speech: Its streams of speech after the speech encoder.
            rng: Random key for durations.
            deterministic: No dropout.

        Returns:
            The texts by name, and the alignment of paired text with its entropy; None where no
            durations are learned.
        """
        texts: dict[str, TokenBatch] = {}
        of_pairs = self.matching is not None or self.text_masks.on_paired
        for name in (*(["paired"] if of_pairs else []), *TEXT_STREAMS):
            if name in batch:
                stream = batch[name]
                texts[name] = TokenBatch(stream["text"], stream["text_length"], stream["language"])
        if self.translation_packing == "concatenated":
            for name in ("mt", "st"):
                if name in batch:
                    stream = batch[name]
                    texts[f"{name}_translation"] = TokenBatch(
                        stream["translation"],
                        stream["translation_length"],
                        stream["target_language"],
                    )
        alignment = None
        durations = {}
        if "paired" in batch and self._learns_durations:
            paired = batch["paired"]
            # Aligned as it was recorded: no SpecAugment, no dropout, averaged weights.
            features, mask = aligner.subsample(speech["paired"].mel, speech["paired"].mel_lengths)
            encoded = aligner.encode_speech(features, mask, paired["language"])
            labels = TargetLabels(paired["text"], paired["text_length"])
            alignment = best_path(aligner, encoded, mask, labels, paired["language"])
            durations["paired"] = alignment[0].durations

        keys = iter(jax.random.split(rng, 8))

        def durations_of(text: TokenBatch, mask: jax.Array, embedded: jax.Array) -> jax.Array:
            # Where losses on the text train the durations, they are of the trained model and with
            # its dropout; otherwise targets as alignments are.
            if self.durations.trained_through:
                source, no_dropout = model, deterministic
            else:
                source, no_dropout = aligner, True
                embedded = aligner.encode_text(text.tokens, mask, text.language)
            return self.durations.durations(
                next(keys), source, embedded, text.tokens, mask, deterministic=no_dropout
            )

        encodings = encode_text(model, texts, durations_of, durations, deterministic=deterministic)
        return encodings, alignment

    def _decoder_task(
        self,
        batch: Batch,
        speech: Mapping[str, SpeechEncoding],
        upsampled: Mapping[str, UpsampledText],
        rng: jax.Array,
    ) -> tuple[dict[str, EncoderInput], dict[str, TargetLabels]]:
        """Returns the shared encoder's input for each stream, and the transducer's labels."""
        keys = iter(jax.random.split(rng, 8))
        concatenated = self.translation_packing == "concatenated"

        def masked(name: str) -> tuple[jax.Array, jax.Array]:
            refined, index = upsampled[name].refined, upsampled[name].index
            return self.text_masks.apply(next(keys), refined, index.mask), index.mask

        inputs: dict[str, EncoderInput] = {}
        labels: dict[str, TargetLabels] = {}
        for name in (*ALL_STREAMS, "synthetic_text"):
            if name not in batch:
                continue
            stream = batch[name]
            if name in SPEECH_STREAMS:
                values, mask = speech[name].encoded, speech[name].mask
            else:
                values, mask = masked(name)
            target = stream.get("target_language")
            if target is not None and concatenated:
                translation, translation_mask = masked(f"{name}_translation")
                # Translation language modelling: the translation follows the last valid frame of
                # the source, without padding between them.
                values, count = concat_valid(
                    values,
                    jnp.sum(mask, axis=1),
                    translation,
                    jnp.sum(translation_mask, axis=1),
                )
                # Of two texts both must fit.
                fits = upsampled[f"{name}_translation"].fits
                if name in upsampled:
                    fits &= upsampled[name].fits
                mask = length_mask(jnp.where(fits, count, 0), values.shape[1])
                values = zero_padding(values, mask)
            inputs[name] = EncoderInput(values, mask, target, stream["language"])
            if name == "mt" and concatenated:
                labels[name] = TargetLabels(
                    *concat_valid(
                        stream["text"],
                        stream["text_length"],
                        stream["translation"],
                        stream["translation_length"],
                    )
                )
            elif target is not None:
                labels[name] = TargetLabels(stream["translation"], stream["translation_length"])
            elif name != "speech":
                labels[name] = TargetLabels(stream["text"], stream["text_length"])
        if "paired" in batch and self.text_masks.on_paired:
            language = batch["paired"]["language"]
            inputs["paired_text"] = EncoderInput(*masked("paired"), language=language)
            # The same labels from the text side, in MAESTRO resampled by its true alignment.
            labels["paired_text"] = labels["paired"]
        if "paired" in batch and self._compares_contexts:
            text = upsampled["paired"]
            inputs[WHOLE_PAIRED_TEXT] = EncoderInput(
                text.refined, text.index.mask, language=batch["paired"]["language"]
            )
        return inputs, labels

    def _duration_free_loss(
        self,
        matching: DurationFreeMatching,
        speech: jax.Array,
        speech_mask: jax.Array,
        text: jax.Array,
        text_mask: jax.Array,
        durations: jax.Array,
        path: Alignment,
        lattice: Lattice,
    ) -> tuple[Weighted, Weighted]:
        """Computes the matching loss of text at a rate of its own, and the cosine of pairs.

        The cosine is of the frames that the transducer's best path matches, as in MAESTRO's.
        """
        at_frames, index = at_speech_frames(text, durations, path.durations, speech.shape[1])
        cosine = masked_sum(cosine_similarity(speech, at_frames), speech_mask & index.mask)
        return matching.loss(speech, speech_mask, text, text_mask, lattice), cosine

    def _matching_and_duration_losses(
        self,
        model: Maestro,
        settings: Matching,
        speech: SpeechEncoding,
        labels: TargetLabels,
        text: TextEncoding,
        path: Alignment,
        upsampled: UpsampledText,
        *,
        deterministic: bool,
    ) -> tuple[dict[str, Weighted], Metrics]:
        """Computes the matching and duration losses, which train the text encoder from pairs."""
        # Aligned durations sum to the frames of the speech, so that the masks differ only where
        # there is no text.
        both = speech.mask & upsampled.index.mask
        matching = settings.loss(
            speech.encoded,
            upsampled.refined,
            labels.tokens,
            upsampled.index,
            settings.matched_frames(upsampled.index, path.frames, speech.mask),
        )
        embedded = text.embedded
        # The duration loss then trains the duration model alone, on e_t as it is.
        if not self.duration_trains_text_encoder:
            embedded = jax.lax.stop_gradient(embedded)
        predicted = model.predict_durations(embedded, text.mask, deterministic=deterministic)
        # A text whose speech is absent has no durations to learn from.
        aligned = text.mask & jnp.any(speech.mask, axis=1)[:, None]
        duration, duration_error = duration_loss(
            predicted.nonzero_logit,
            predicted.frames,
            text.durations,
            aligned,
            form=self.duration_form,
            threshold=model.duration_model.zero_threshold,
            max_frames=model.duration_model.max_frames,
        )
        terms = {"matching": matching, "duration": duration}
        if isinstance(self.durations, SubwordGaussian):
            gaussians = model.subword_gaussians(labels.tokens)
            position = jnp.arange(labels.tokens.shape[1])[None, :]
            # The first and the last label own the silence around the utterance.
            inner = aligned & (position > 0) & (position < labels.lengths[:, None] - 1)
            terms["subword_duration"] = gaussian_duration_loss(
                gaussians.mean, gaussians.deviation, text.durations, inner
            )
        return terms, {
            "paired/duration_error_frames": duration_error,
            "paired/cosine": masked_sum(cosine_similarity(speech.encoded, upsampled.refined), both),
        }

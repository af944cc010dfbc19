"""The MAESTRO pretraining objective (arXiv 2204.03409, section 2), on top of w2v-BERT.

| stream | term | formula |
|---|---|---|
| speech | contrastive, diversity, masked prediction | L_w + 0.1 L_d + L_m; BEST-RQ: L_m alone |
| paired | transducer | L_RNNT(t given e_s) |
| paired | matching | MSE(e_s, ê_t), ê_t resampled by the transducer's best path |
| paired | duration | L_D against the durations of that path |
| paired | sub-word durations, if drawn from | likelihood of the durations of that path |
| paired | paired aligned masked LM, if asked for | L_RNNT(t given Mask(ê_t)) |
| text | aligned masked LM | L_RNNT(t given Mask(ê_t)), ê_t resampled by durations from a source |
| mt | translation of text | L_RNNT(translation given Mask(ê_t)) |
| st | translation of speech | L_RNNT(translation given e_s); it never trains durations |

Alignments, predicted durations and resampling use the moving average of the weights (section 3).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from maestro_jax.errors import UserError
from maestro_jax.layers.masking import length_mask, zero_padding
from maestro_jax.losses.duration import FORMS as DURATION_FORMS
from maestro_jax.losses.duration import duration_loss, gaussian_duration_loss
from maestro_jax.losses.reduction import Weighted, masked_sum, mean
from maestro_jax.losses.similarity import cosine_similarity
from maestro_jax.losses.transducer_alignment import Alignment
from maestro_jax.modules.held_durations import duration_params, hold
from maestro_jax.objectives import weighting as learned
from maestro_jax.objectives.base import (
    Batch,
    Controls,
    LossOfTerms,
    Metrics,
    Parts,
    frozen,
    init_all_parameters,
)
from maestro_jax.objectives.curriculum import ALL_STREAMS, Curriculum, Weight, weight_at
from maestro_jax.objectives.duration_sources import DurationSource, Learned, SubwordGaussian
from maestro_jax.objectives.health import alignment_health, frame_variation
from maestro_jax.objectives.passes import (
    Speech,
    Text,
    Upsampled,
    Written,
    encode_speech,
    encode_texts,
    one_after_the_other,
    stream_metrics,
    upsample,
)
from maestro_jax.objectives.probe import Probe, probe_pairs
from maestro_jax.objectives.self_supervised import BestRq, W2vBert
from maestro_jax.objectives.text_room import audio_samples, text_room
from maestro_jax.objectives.text_side import Matching, TextMasks
from maestro_jax.objectives.transducer_terms import (
    Frames,
    Labels,
    best_path,
    encode_shared_with_tap,
    transducer_losses,
    without_path,
)

SPOKEN = ("speech", "paired", "st")
WRITTEN = ("text", "mt")
TRANSDUCER_TERMS = {
    "paired": "transducer",
    "text": "aligned_masked_lm",
    "paired_text": "paired_aligned_masked_lm",
    "mt": "mt",
    "st": "st",
}
"""The term that scores each stream; `paired_text` is the text of the paired stream."""
PAIRED_TERMS = (
    *("transducer", "matching", "duration"),
    *("subword_duration", "paired_aligned_masked_lm"),
)
"""Those of the paired stream, the last two where they are asked for."""
PACKINGS = ("supervised", "concatenated")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaestroPretraining(LossOfTerms):
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
            drowns speech.
        paired_text_weight: Weight of the aligned masked LM on paired text, if `text_masks` ask for
            it.
        mt_weight: Weight of text translation.
        st_weight: Weight of speech translation.
        weighting: Learned weights on top of these; None for none.
        curriculum: When each stream begins, and what may hold it back.
        self_supervised: What untranscribed speech learns: w2v-BERT or BEST-RQ.
        matching: How text is compared with speech.
        text_masks: Mask(ê_t).
        text_frames: Static number of frames that a resampled text may have. A text that lasts
            longer leaves the loss and is counted in `text/over_long_share`. None: as many as the
            longest pairs have.
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
        augment_paired_from: Curriculum step from which on: a young RNN-T hears sooner without.
        fastemit: Extra weight of the gradient of label arcs: labels come earlier.
        delay_penalty: Nats a frame by which later labels cost more, in every transducer term.
    """

    contrastive_weight: Weight = 1.0
    diversity_weight: Weight = 0.1
    masked_prediction_weight: Weight = 1.0
    transducer_weight: Weight = 1.0
    matching_weight: Weight = 1.0
    duration_weight: Weight = 1.0
    text_weight: Weight = 1.0
    paired_text_weight: Weight = 1.0
    mt_weight: Weight = 1.0
    st_weight: Weight = 1.0
    weighting: learned.Weighting | None = None
    curriculum: Curriculum = Curriculum()
    self_supervised: W2vBert | BestRq = W2vBert()
    matching: Matching = Matching()
    text_masks: TextMasks = TextMasks()
    text_frames: int | None = None
    durations: DurationSource = Learned()
    duration_form: str = "l1"
    duration_trains_text_encoder: bool = True
    translation_packing: str = "supervised"
    align_with_ema: bool = True
    augment_paired: bool = True
    augment_paired_from: int = 0
    fastemit: float = 0.0
    delay_penalty: float = 0.0

    def __post_init__(self) -> None:
        """Refuse unknown choices before anything is built."""
        if self.duration_form not in DURATION_FORMS:
            raise UserError(
                f"duration_form is {self.duration_form!r}; choose one of {DURATION_FORMS}."
            )
        if self.translation_packing not in PACKINGS:
            raise UserError(
                f"translation_packing is {self.translation_packing!r}; choose one of {PACKINGS}."
            )

    @property
    def streams(self) -> tuple[str, ...]:
        """All five; a batch may lack any."""
        return ALL_STREAMS

    @property
    def weights(self) -> dict[str, Weight]:
        """The weight of each term that this objective may have, by the term's name."""
        weights = {
            **{name: getattr(self, f"{name}_weight") for name in self.self_supervised.term_names},
            "transducer": self.transducer_weight,
            "matching": self.matching_weight,
            "duration": self.duration_weight,
            "aligned_masked_lm": self.text_weight,
            "mt": self.mt_weight,
            "st": self.st_weight,
        }
        if isinstance(self.durations, SubwordGaussian):
            weights["subword_duration"] = self.duration_weight
        if self.text_masks.on_paired:
            weights["paired_aligned_masked_lm"] = self.paired_text_weight
        return weights

    def weights_of(self, stream: str) -> dict[str, Weight]:
        """The terms that a stream adds to the loss, and their weights."""
        several = {"speech": self.self_supervised.term_names, "paired": PAIRED_TERMS}
        terms = several[stream] if stream in several else (TRANSDUCER_TERMS[stream],)
        return {name: weight for name, weight in self.weights.items() if name in terms}

    def active_streams(self, step: int) -> tuple[str, ...]:
        """The streams that have begun at a curriculum step.

        What has not begun is left out of the batch, so that it costs nothing; a step is compiled
        anew where a stream begins.
        """
        return self.curriculum.streams(step)

    def init(self, model: nn.Module, rng: jax.Array, batch: Batch) -> Any:
        """Parameters of the whole model, and of the learned weighting.

        Where texts train the text encoder and no pairs train durations, they are held; see
        `modules.held_durations`.

        Raises:
            UserError: The model lacks what a setting needs.
        """
        self.self_supervised.check(model)
        self.durations.check(model)
        params = init_all_parameters(model, rng, batch)
        if self._holds_durations(batch):
            params = hold(params)
        if isinstance(self.weighting, learned.UncertaintyWeighting):
            params = {**params, learned.PARAMETERS: self.weighting.init(tuple(self.weights))}
        return params

    def _holds_durations(self, batch: Batch) -> bool:
        """Whether texts would move the durations of a run with these streams."""
        learned_from_pairs = "paired" in batch and self.duration_weight != 0
        texts = {"text", "mt"}
        if self.translation_packing == "concatenated":
            texts.add("st")
        by_texts = self.durations.trained_through
        return not texts.isdisjoint(batch) and not learned_from_pairs and not by_texts

    def combine(
        self,
        terms: Mapping[str, Weighted],
        params: Any,
        *,
        step: jax.Array | int,
        controls: Controls | None = None,
    ) -> tuple[jax.Array, Metrics]:
        """The weighted sum of all terms of the streams that are there, and their factors."""
        clock = step if controls is None else controls.clock
        weights = {name: weight_at(self.weights[name], clock) for name in terms}
        one = jnp.ones(())
        factors: dict[str, jax.Array] = {}
        if isinstance(self.weighting, learned.UncertaintyWeighting):
            total, factors = self.weighting.total(terms, weights, params[learned.PARAMETERS])
        else:
            if self.weighting is not None and controls is not None:
                factors = {name: controls.weights[name] for name in terms}
            total = jnp.zeros(())
            for name, term in terms.items():
                total = total + weights[name] * factors.get(name, 1.0) * mean(term)
        return total, {
            **{f"weight/{name}": (factor, one) for name, factor in factors.items()},
            "loss": (total, one),
        }

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
        """The terms of the loss before any weight, and all metrics but the loss."""
        augment: jax.Array | bool = self.augment_paired and train
        if augment and self.augment_paired_from:
            clock = step if controls is None else controls.clock
            augment = jnp.asarray(clock) >= self.augment_paired_from
        self.self_supervised.check(model)
        self.durations.check(model)
        keys = iter(jax.random.split(rng, 6))
        parts = Parts(model, params, next(keys), train)
        average = ema_params if self.align_with_ema and ema_params is not None else params
        aligner = Parts(model, duration_params(frozen(average)), next(keys), False)

        speech = encode_speech(
            parts,
            {name: batch[name] for name in SPOKEN if name in batch},
            next(keys),
            masks=self.self_supervised,
            augment=augment,
        )
        texts, aligned = self._encode_texts(parts, aligner, batch, speech, next(keys))
        upsampled = upsample(parts, texts, {name: self._room(model, batch, name) for name in texts})
        frames, labels = self._scored(batch, speech, upsampled, next(keys))
        both = encode_shared_with_tap(parts, frames)
        contexts = {name: context for name, (context, _) in both.items()}
        if "speech" in batch and model.taps_shared_encoder:
            speech["speech"] = dataclasses.replace(speech["speech"], tapped=both["speech"][1])
        masks = {name: each.mask for name, each in frames.items()}
        scored = transducer_losses(
            parts,
            contexts,
            masks,
            labels,
            fastemit=self.fastemit,
            delay_penalty=self.delay_penalty,
        )

        terms: dict[str, Weighted] = {}
        metrics: Metrics = {}
        if "speech" in batch:
            terms, metrics = self.self_supervised.terms(
                parts, speech["speech"], contexts["speech"], step, next(keys)
            )
        if aligned is not None:
            found, more = self._text_side(
                parts,
                speech["paired"],
                Labels(batch["paired"]["text"], batch["paired"]["text_length"]),
                texts["paired"],
                aligned[0],
                upsampled["paired"],
            )
            terms, metrics = terms | found, metrics | more
            metrics |= alignment_health(*aligned, texts["paired"].mask, speech["paired"].mask)
        terms |= {TRANSDUCER_TERMS[name]: term for name, term in scored.items()}
        metrics |= {f"loss/{name}": term for name, term in terms.items()}
        for name, each in speech.items():
            metrics[f"{name}/frame_variation"] = frame_variation(each.encoded, each.mask)
            metrics[f"{name}/context_variation"] = frame_variation(contexts[name], masks[name])
        metrics |= stream_metrics(batch, texts, upsampled) | without_path(parts, masks, labels)
        return terms, metrics

    def probe(
        self, model: nn.Module, params: Any, paired: Mapping[str, jax.Array], row: int
    ) -> Probe:
        """What the model makes of pairs that it does not train on; see `probe_pairs`."""
        return probe_pairs(model, params, paired, row)

    def _room(self, model: nn.Module, batch: Batch, name: str) -> int:
        """The static number of frames of a text; that of a pair is its speech's."""
        if name == "paired" or self.text_frames is None:
            return text_room(model, audio_samples(batch))
        return self.text_frames

    def _encode_texts(
        self,
        parts: Parts,
        aligner: Parts,
        batch: Batch,
        speech: Mapping[str, Speech],
        rng: jax.Array,
    ) -> tuple[dict[str, Text], tuple[Alignment, Weighted] | None]:
        """e_t and durations: aligned for paired text, from the source for the rest.

        The alignment of paired text, with its entropy, comes back as well.
        """
        written: dict[str, Written] = {}
        for name in ("paired", *WRITTEN):
            if name in batch:
                stream = batch[name]
                written[name] = Written(stream["text"], stream["text_length"], stream["language"])
        if self.translation_packing == "concatenated":
            for name in ("mt", "st"):
                if name in batch:
                    stream = batch[name]
                    written[f"{name}_translation"] = Written(
                        stream["translation"],
                        stream["translation_length"],
                        stream["target_language"],
                    )
        found = None
        durations = {}
        if "paired" in batch:
            paired = batch["paired"]
            # The aligner hears the speech as it is: no augmentation, no dropout, averaged weights.
            heard = speech["paired"]
            features, mask = aligner("subsample", heard.mel, heard.mel_lengths)
            encoded = aligner("encode_speech", features, mask, paired["language"])
            labels = Labels(paired["text"], paired["text_length"])
            found = best_path(aligner, encoded, mask, labels, paired["language"])
            durations["paired"] = found[0].durations

        keys = iter(jax.random.split(rng, 8))

        def chosen(text: Written, mask: jax.Array, embedded: jax.Array) -> jax.Array:
            reader = parts
            if not self.durations.trained_through:
                reader = aligner
                embedded = aligner("encode_text", text.tokens, mask, text.language)
            return self.durations.durations(next(keys), reader, embedded, text.tokens, mask)

        return encode_texts(parts, written, chosen, durations), found

    def _scored(
        self,
        batch: Batch,
        speech: dict[str, Speech],
        upsampled: dict[str, Upsampled],
        rng: jax.Array,
    ) -> tuple[dict[str, Frames], dict[str, Labels]]:
        """What enters the shared encoder for each stream, and what the transducer is to write."""
        keys = iter(jax.random.split(rng, 8))
        concatenated = self.translation_packing == "concatenated"

        def masked(name: str) -> tuple[jax.Array, jax.Array]:
            refined, index = upsampled[name].refined, upsampled[name].index
            return self.text_masks.apply(next(keys), refined, index.mask), index.mask

        frames: dict[str, Frames] = {}
        labels: dict[str, Labels] = {}
        for name in self.streams:
            if name not in batch:
                continue
            stream = batch[name]
            if name in SPOKEN:
                values, mask = speech[name].encoded, speech[name].mask
            else:
                values, mask = masked(name)
            target = stream.get("target_language")
            if target is not None and concatenated:
                more, more_mask = masked(f"{name}_translation")
                values, count = one_after_the_other(
                    values, jnp.sum(mask, axis=1), more, jnp.sum(more_mask, axis=1)
                )
                # Of two texts both must be whole.
                whole = upsampled[f"{name}_translation"].fits
                if name in upsampled:
                    whole &= upsampled[name].fits
                mask = length_mask(jnp.where(whole, count, 0), values.shape[1])
                values = zero_padding(values, mask)
            frames[name] = Frames(values, mask, target, stream["language"])
            if name == "mt" and concatenated:
                labels[name] = Labels(
                    *one_after_the_other(
                        stream["text"],
                        stream["text_length"],
                        stream["translation"],
                        stream["translation_length"],
                    )
                )
            elif target is not None:
                labels[name] = Labels(stream["translation"], stream["translation_length"])
            elif name != "speech":
                labels[name] = Labels(stream["text"], stream["text_length"])
        if "paired" in batch and self.text_masks.on_paired:
            frames["paired_text"] = Frames(*masked("paired"), language=batch["paired"]["language"])
            labels["paired_text"] = labels["paired"]
        return frames, labels

    def _text_side(
        self,
        parts: Parts,
        speech: Speech,
        labels: Labels,
        text: Text,
        path: Alignment,
        upsampled: Upsampled,
    ) -> tuple[dict[str, Weighted], Metrics]:
        """Matching and duration losses: what paired speech teaches the text side."""
        both = speech.mask & upsampled.index.mask
        matching = self.matching.loss(
            speech.encoded,
            upsampled.refined,
            labels.tokens,
            upsampled.index,
            self.matching.counted(upsampled.index, path.frames, speech.mask),
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
            threshold=parts.model.duration_model.zero_threshold,
            max_frames=parts.model.duration_model.max_frames,
        )
        terms = {"matching": matching, "duration": duration}
        if isinstance(self.durations, SubwordGaussian):
            gaussians = parts("subword_gaussians", labels.tokens)
            place = jnp.arange(labels.tokens.shape[1])[None, :]
            # The first and the last label own the silence around the utterance.
            inner = aligned & (place > 0) & (place < labels.lengths[:, None] - 1)
            terms["subword_duration"] = gaussian_duration_loss(
                gaussians.mean, gaussians.deviation, text.durations, inner
            )
        return terms, {
            "paired/duration_error_frames": duration_error,
            "paired/zero_duration_share": masked_sum(text.durations == 0, aligned),
            "paired/cosine": masked_sum(cosine_similarity(speech.encoded, upsampled.refined), both),
        }

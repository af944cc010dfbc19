"""TTS4Pretrain 2.0: unspoken text enters pretraining as synthesised speech (ICASSP 2022).

TTS4Pretrain (arXiv 2108.12226) trains w2v-BERT and a decoder on synthesised speech of unspoken
text, beside untranscribed speech. Its second version adds transcribed speech, of which each text is
synthesised as well, and regularises the two versions of a text to agree. Its abstract and patent
application (US 2023/0013587) leave open how frames of unequal length are compared; here both are
aligned with the text by the transducer (`maestro_jax.losses.consistency`).

| stream | term | formula |
|---|---|---|
| speech | contrastive, diversity, masked prediction | w2v-BERT or BEST-RQ on untranscribed speech |
| text | the same three, `synthetic_*` | on synthesised speech of unspoken text |
| text | text transducer | L_RNNT(t given synthesised speech of t) |
| paired | transducer | L_RNNT(t given s) |
| paired | synthetic transducer | L_RNNT(t given synthesised speech of t) |
| paired | encoder consistency | distance of the shared encoder's outputs for s and synthesised t |
| paired | decoder consistency | KL(P(. given s) to P(. given synthesised t)) at each label of t |

The speech is `synthetic_audio` of a batch (`StreamConfig.synthesis`). There is no text encoder in
any term. Real speech is the target of both consistency terms, as in Wang et al., "Improving speech
recognition using consistent predictions on synthesized speech" (ICASSP 2020).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from maestro_jax.batches import SAMPLE_RATE
from maestro_jax.layers.masking import length_mask
from maestro_jax.losses.consistency import corresponding_frames, output_divergence
from maestro_jax.losses.reduction import Weighted
from maestro_jax.losses.transducer_alignment import Alignment
from maestro_jax.losses.transducer_arcs import log_probabilities
from maestro_jax.modules.maestro import Maestro
from maestro_jax.modules.resampler import frame_index
from maestro_jax.objectives.base import (
    Batch,
    Controls,
    Metrics,
    Objective,
    bind,
    frozen,
    num_present,
    per_step,
)
from maestro_jax.objectives.curriculum import Curriculum, Weight
from maestro_jax.objectives.decoder_losses import (
    TargetLabels,
    best_path,
    infeasible_metrics,
    transducer_losses,
)
from maestro_jax.objectives.forward import (
    EncoderInput,
    SpeechEncoding,
    encode_shared_with_intermediate,
    encode_speech,
    synthetic_speech,
)
from maestro_jax.objectives.metrics import alignment_collapse, frame_variance_ratio
from maestro_jax.objectives.self_supervised import SelfSupervised, W2vBert
from maestro_jax.objectives.text_losses import Matching

TRANSDUCER_TERMS = {
    "paired": "transducer",
    "synthetic_paired": "synthetic_transducer",
    "synthetic_text": "text_transducer",
}
"""The term that scores each kind of transcribed speech."""
TERM_UNITS = {
    **{
        f"{prefix}{name}": unit
        for prefix in ("", "synthetic_")
        for name, unit in (
            ("contrastive", "nats per frame"),
            ("masked_prediction", "nats per frame"),
            ("diversity", "fraction of unused codes"),
        )
    },
    **dict.fromkeys(TRANSDUCER_TERMS.values(), "nats per label"),
    "encoder_consistency": "distance per frame",
    "decoder_consistency": "nats per label",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tts4Pretrain(Objective):
    """Weights and settings of TTS4Pretrain 2.0.

    A weight is a number or a `Schedule` over the curriculum step.

    Attributes:
        contrastive_weight: Weight of L_w, on real and on synthesised speech.
        diversity_weight: Weight of L_d, likewise.
        masked_prediction_weight: Weight of L_m, likewise.
        transducer_weight: Weight of the RNN-T loss on transcribed speech.
        synthetic_transducer_weight: Weight of the RNN-T loss on synthesised speech of transcripts.
        text_transducer_weight: Weight of the RNN-T loss on synthesised speech of unspoken text.
        encoder_consistency_weight: Weight of the distance of encoder outputs.
        decoder_consistency_weight: Weight of the divergence of decoder outputs.
        curriculum: When each stream begins.
        self_supervised: What speech learns without text: w2v-BERT, wav2vec 2.0 or BEST-RQ.
        consistency: How encoder outputs are compared. Real speech takes the part of `speech` in its
            settings, synthesised speech that of `text`.
        align_with_ema: Whether to align with the moving average of the weights.
        augment: SpecAugment wherever the transducer is trained.
        fastemit: Extra weight of the gradient of label arcs: labels come earlier.
        delay_penalty: Nats per frame by which later labels cost more.
    """

    contrastive_weight: Weight = 1.0
    diversity_weight: Weight = 0.1
    masked_prediction_weight: Weight = 1.0
    transducer_weight: Weight = 1.0
    synthetic_transducer_weight: Weight = 1.0
    text_transducer_weight: Weight = 1.0
    encoder_consistency_weight: Weight = 1.0
    decoder_consistency_weight: Weight = 1.0
    curriculum: Curriculum = Curriculum()
    self_supervised: SelfSupervised = W2vBert()
    consistency: Matching = Matching()
    align_with_ema: bool = True
    augment: bool = True
    fastemit: float = 0.0
    delay_penalty: float = 0.0

    @property
    def term_units(self) -> dict[str, str]:
        """Returns the units of all terms."""
        return TERM_UNITS

    @property
    def loss_weights(self) -> dict[str, dict[str, Weight]]:
        """Returns the weights of the terms that each stream adds."""
        self_supervised = {
            name: getattr(self, f"{name}_weight") for name in self.self_supervised.term_names
        }
        return {
            "speech": self_supervised,
            "paired": {
                name: getattr(self, f"{name}_weight")
                for name in (
                    "transducer",
                    "synthetic_transducer",
                    "encoder_consistency",
                    "decoder_consistency",
                )
            },
            "text": {
                **{f"synthetic_{name}": weight for name, weight in self_supervised.items()},
                "text_transducer": self.text_transducer_weight,
            },
        }

    def init(self, model: Maestro, rng: jax.Array, batch: Batch) -> Any:
        """Initialises all parameters of the model, also of the text encoder, which does not learn.

        Raises:
            UserError: The model's quantizer does not fit.
        """
        self.self_supervised.check(model)
        return super().init(model, rng, batch)

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
        del controls
        self.self_supervised.check(model)
        deterministic = not train
        keys = iter(jax.random.split(rng, 4))
        bound = bind(model, params, next(keys))
        averaged = ema_params if self.align_with_ema and ema_params is not None else params
        # Alignments are targets: no gradient reaches what they are made with.
        aligner = bind(model, frozen(averaged))

        transcribed = transcribed_speech(batch)
        masked: dict[str, Mapping[str, jax.Array]] = {}
        if "speech" in batch:
            masked["speech"] = batch["speech"]
        if "synthetic_text" in transcribed:
            masked["synthetic"] = transcribed["synthetic_text"]
        streams = transcribed | masked
        # What learns without text is masked; what is written gets SpecAugment.
        speech = encode_speech(
            bound,
            streams,
            next(keys),
            masking=dict.fromkeys(masked, self.self_supervised),
            augment=self.augment and train,
            deterministic=deterministic,
        )
        inputs = {
            name: EncoderInput(each.encoded, each.mask, None, streams[name]["language"])
            for name, each in speech.items()
        }
        outputs = encode_shared_with_intermediate(bound, inputs, deterministic=deterministic)
        contexts = {name: context for name, (context, _) in outputs.items()}
        masks = {name: each.mask for name, each in speech.items()}
        labels = {
            name: TargetLabels(stream["text"], stream["text_length"])
            for name, stream in transcribed.items()
        }
        decoder_terms = transducer_losses(
            bound,
            contexts,
            masks,
            labels,
            fastemit=self.fastemit,
            delay_penalty=self.delay_penalty,
            deterministic=deterministic,
        )
        terms = {TRANSDUCER_TERMS[name]: term for name, term in decoder_terms.items()}
        metrics: Metrics = infeasible_metrics(bound, masks, labels)

        for name in masked:
            encoding = speech[name]
            if model.contrasts_in_shared_encoder:
                encoding = dataclasses.replace(encoding, intermediate=outputs[name][1])
            own_terms, own_metrics = self.self_supervised.loss_terms(
                bound, encoding, contexts[name], step, next(keys), deterministic=deterministic
            )
            prefix = "" if name == "speech" else f"{name}_"
            terms |= {f"{prefix}{term}": value for term, value in own_terms.items()}
            metrics |= {
                f"{name}/{metric.removeprefix('speech/')}": value
                for metric, value in own_metrics.items()
            }
        if "synthetic_paired" in speech:
            consistency_terms, consistency_metrics = self._consistency(
                bound, aligner, transcribed, speech, contexts, labels, deterministic=deterministic
            )
            terms |= consistency_terms
            metrics |= consistency_metrics
        for name in ("speech", "paired", "synthetic_paired", "synthetic_text"):
            if name in speech:
                metrics[f"{name}/frame_variance_ratio"] = frame_variance_ratio(
                    speech[name].encoded, masks[name]
                )
                metrics[f"{name}/context_variance_ratio"] = frame_variance_ratio(
                    contexts[name], masks[name]
                )
        for name, stream in transcribed.items():
            metrics[f"{name}/examples"] = num_present(stream["audio_length"])
            if name != "paired":
                seconds = jnp.sum(stream["audio_length"]) / SAMPLE_RATE
                metrics[f"{name}/audio_seconds"] = per_step(seconds)
        return terms, metrics

    def _consistency(
        self,
        model: Maestro,
        aligner: Maestro,
        streams: Mapping[str, Mapping[str, jax.Array]],
        speech: Mapping[str, SpeechEncoding],
        contexts: Mapping[str, jax.Array],
        labels: Mapping[str, TargetLabels],
        *,
        deterministic: bool,
    ) -> tuple[dict[str, Weighted], Metrics]:
        """Compares the outputs of encoder and decoder for the two versions of each transcript."""
        names = ("paired", "synthetic_paired")
        paths: dict[str, Alignment] = {}
        metrics: Metrics = {}
        for name in names:
            # Aligned as it was recorded: no SpecAugment, no dropout, averaged weights.
            language = streams[name]["language"]
            features, mask = aligner.subsample(speech[name].mel, speech[name].mel_lengths)
            encoded = aligner.encode_speech(features, mask, language)
            paths[name], entropy = best_path(aligner, encoded, mask, labels[name], language)
            tokens = length_mask(labels[name].lengths, labels[name].tokens.shape[1])
            metrics |= {
                metric.replace("paired/", f"{name}/"): value
                for metric, value in alignment_collapse(paths[name], entropy, tokens, mask).items()
            }
        real, synthetic = (paths[name] for name in names)
        mask = speech["paired"].mask
        tokens, lengths = labels["paired"].tokens, labels["paired"].lengths
        index = frame_index(real.durations, mask.shape[1])
        frames, valid = corresponding_frames(
            index.token, index.position, index.duration, synthetic.durations
        )
        matched = self.consistency.matched_frames(index, real.frames, mask) & valid
        warped = jnp.take_along_axis(contexts["synthetic_paired"], frames[:, :, None], axis=1)
        encoder = self.consistency.loss(contexts["paired"], warped, tokens, index, matched)

        predicted = model.prediction_network(tokens, deterministic=deterministic)[:, :-1]

        def outputs(name: str, path: Alignment) -> jax.Array:
            """Returns log-probabilities `[batch, labels, vocab]` where each label is emitted."""
            emitting = jnp.take_along_axis(contexts[name], path.frames[:, :, None], axis=1)
            logits = model.joint(model.project_frames(emitting), predicted)
            return log_probabilities(logits, hat=model.decoder.hat)

        both = jnp.any(mask, axis=1) & jnp.any(speech["synthetic_paired"].mask, axis=1)
        decoder = output_divergence(
            outputs("paired", real),
            outputs("synthetic_paired", synthetic),
            length_mask(lengths, tokens.shape[1]) & both[:, None],
        )
        return {"encoder_consistency": encoder, "decoder_consistency": decoder}, metrics


def transcribed_speech(batch: Batch) -> dict[str, Mapping[str, jax.Array]]:
    """Returns the speech of a batch that has a text: recorded or synthesised.

    Args:
        batch: The batch; `text` and `paired` with `synthetic_audio` where it is wanted.

    Returns:
        `paired`, `synthetic_paired` and `synthetic_text`, as far as the batch has them, each with
        audio, audio_length, text, text_length and language. The audio of an example that was not
        spoken has a length of 0.

    Raises:
        UserError: There is unspoken text without synthesised speech.
    """
    streams: dict[str, Mapping[str, jax.Array]] = {}
    if "paired" in batch:
        streams["paired"] = batch["paired"]
        if "synthetic_audio" in batch["paired"]:
            streams["synthetic_paired"] = synthetic_speech(batch, "paired")
    if "text" in batch:
        streams["synthetic_text"] = synthetic_speech(batch, "text")
    return streams

"""Speech-text pretraining without durations: SLAM (arXiv 2110.10329) and mSLAM (arXiv 2202.01374).

| stream | term | what is predicted |
|---|---|---|
| speech | contrastive, diversity, masked_prediction | w2v-BERT; with BEST-RQ the last alone |
| text | span_lm | the tokens of masked spans |
| paired | tlm | the tokens of masked spans, beside the masked speech |
| paired | tlm_contrastive, tlm_diversity, tlm_masked_prediction | speech beside the text |
| paired | speech_text_matching | whether the text is that of the speech (SLAM) |
| paired | ctc | the transcript, by the frames of the masked pair (mSLAM) |

Of the papers are: text enters the shared encoder at the rate of tokens, and in a pair behind the
speech, without padding between them; SpanBERT's masks, 15% of unspoken text in spans of 5 tokens
(mSLAM 20), 50% of the text and 75% of the speech of a pair; CTC of the transcript on the speech of
the pair (mSLAM), a binary classifier of pairs (SLAM, after ALBEF, arXiv 2107.07651).

Of this project, since the summaries that we could read do not tell, are: masked tokens are all
replaced by one vector, never by random tokens; the head is linear; speech of pairs learns all that
untranscribed speech does; the classifier reads a token in front of the text, and sees pairs
unmasked, half of them with the text of another utterance of the batch; weights of 1.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from maestro_jax.errors import UserError
from maestro_jax.layers.masking import length_mask, share_mask, zero_padding
from maestro_jax.losses.cross_entropy import smoothed_cross_entropy
from maestro_jax.losses.reduction import Weighted, masked_sum
from maestro_jax.modules.maestro import Maestro
from maestro_jax.objectives.base import Batch, Controls, Metrics, Objective, bind
from maestro_jax.objectives.curriculum import Curriculum, Weight
from maestro_jax.objectives.decoder_losses import TargetLabels, ctc_term
from maestro_jax.objectives.forward import (
    EncoderInput,
    SpeechEncoding,
    TextEncoding,
    TokenBatch,
    concat_valid,
    encode_shared_with_intermediate,
    encode_speech,
    encode_text,
    stream_metrics,
)
from maestro_jax.objectives.metrics import frame_variance_ratio
from maestro_jax.objectives.self_supervised import SelfSupervised, W2vBert
from maestro_jax.text.vocabularies import EOS_ID, PAD_ID

MASK_ID = PAD_ID
"""The token in the place of a masked one. A text has no padding inside, so that this embedding is
read nowhere else."""
CLS_ID = EOS_ID
"""The token in front of a text, BERT's [CLS]. Texts of batches have no end of sequence."""
TERM_UNITS = {
    "contrastive": "nats per frame",
    "diversity": "fraction of unused codes",
    "masked_prediction": "nats per frame",
    "span_lm": "nats per token",
    "tlm": "nats per token",
    "tlm_contrastive": "nats per frame",
    "tlm_diversity": "fraction of unused codes",
    "tlm_masked_prediction": "nats per frame",
    "speech_text_matching": "nats per pair",
    "ctc": "nats per label",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SlamPretraining(Objective):
    """Masked prediction of speech, of text, and of both one after the other.

    A weight is a number or a `Schedule` over the curriculum step. A term whose weight is the number
    0 is not computed, unless it belongs to `self_supervised`.

    Attributes:
        self_supervised: What speech learns: w2v-BERT (the papers), wav2vec 2.0 or BEST-RQ.
        contrastive_weight: Weight of the contrastive loss, of speech with text or without.
        diversity_weight: Weight of the diversity of codes, likewise.
        masked_prediction_weight: Weight of the prediction of codes, likewise.
        span_lm_weight: Weight of the prediction of masked tokens of unspoken text.
        tlm_weight: Weight of the prediction of masked tokens beside speech.
        matching_weight: Weight of speech-text matching; mSLAM has none.
        ctc_weight: Weight of CTC on pairs; SLAM has none.
        text_mask_share: Share of the tokens of unspoken text that are masked.
        tlm_text_mask_share: The same of the text of pairs.
        text_mask_span: Tokens that a masked span covers, of both.
        tlm_speech_mask_share: Share of the frames of pairs that are masked, in the spans of
            `self_supervised`; the share of untranscribed speech is set there.
        curriculum: When each stream begins. SLAM has 500k steps without pairs first, mSLAM all
            streams from the start.
    """

    self_supervised: SelfSupervised = W2vBert()
    contrastive_weight: Weight = 1.0
    diversity_weight: Weight = 0.1
    masked_prediction_weight: Weight = 1.0
    span_lm_weight: Weight = 1.0
    tlm_weight: Weight = 1.0
    matching_weight: Weight = 1.0
    ctc_weight: Weight = 0.0
    text_mask_share: float = 0.15
    tlm_text_mask_share: float = 0.5
    text_mask_span: int = 5
    tlm_speech_mask_share: float = 0.75
    curriculum: Curriculum = Curriculum()

    def __post_init__(self) -> None:
        """Refuses numbers out of range."""
        for name in ("text_mask_share", "tlm_text_mask_share", "tlm_speech_mask_share"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise UserError(
                    f"SlamPretraining.{name} is {getattr(self, name)}; it must lie in 0 ... 1."
                )
        if self.text_mask_span < 1:
            raise UserError(
                f"SlamPretraining.text_mask_span is {self.text_mask_span}; give 1 token or more."
            )

    @property
    def decoders(self) -> tuple[str, ...]:
        """Returns the CTC head, if it is trained: nothing else learns to write."""
        return ("ctc",) if self.ctc_weight else ()

    @property
    def term_units(self) -> dict[str, str]:
        """Returns the units of all terms."""
        return TERM_UNITS

    @property
    def loss_weights(self) -> dict[str, dict[str, Weight]]:
        """Returns the weights of the terms that each stream adds, those that are asked for."""
        speech = {name: getattr(self, f"{name}_weight") for name in self.self_supervised.term_names}
        paired = {
            "tlm": self.tlm_weight,
            "speech_text_matching": self.matching_weight,
            "ctc": self.ctc_weight,
        }
        return {
            "speech": speech,
            "paired": {name: weight for name, weight in paired.items() if weight}
            | {f"tlm_{name}": weight for name, weight in speech.items()},
            "text": {"span_lm": self.span_lm_weight},
        }

    def init(self, model: Maestro, rng: jax.Array, batch: Batch) -> Any:
        """Initialises all parameters of the model.

        Raises:
            UserError: The model lacks what a term needs.
        """
        self._check(model)
        return super().init(model, rng, batch)

    def _check(self, model: Maestro) -> None:
        self.self_supervised.check(model)
        needed = {
            "token_projection": ("models/heads/tokens.gin", True),
            "token_head": ("models/heads/tokens.gin", True),
            "pair_head": ("models/heads/pairs.gin", self.matching_weight),
            "ctc_head": ("models/heads/ctc.gin", self.ctc_weight),
        }
        for part, (file, is_needed) in needed.items():
            if is_needed and getattr(model, part) is None:
                raise UserError(
                    f"SlamPretraining needs Maestro.{part}, which the model lacks; add {file} to "
                    "the gin files."
                )

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
        del ema_params, controls
        self._check(model)
        batch = {name: stream for name, stream in batch.items() if name in self.streams}
        keys = iter(jax.random.split(rng, 7))
        deterministic = not train
        bound = bind(model, params, next(keys))

        spoken: dict[str, Mapping[str, jax.Array]] = {
            name: batch[name] for name in ("speech", "paired") if name in batch
        }
        texts: dict[str, TokenBatch] = {
            name: _token_batch(batch[name]) for name in ("text", "paired") if name in batch
        }
        matches: jax.Array | None = None
        matching_rng = next(keys)
        if "paired" in batch and self.matching_weight:
            # The pairs once more, unmasked: what the masks leave may not suffice to tell.
            spoken["matching"] = batch["paired"]
            texts["matching"], matches = mismatch_half(matching_rng, texts["paired"])
        speech = encode_speech(
            bound,
            spoken,
            next(keys),
            masking={"speech": self.self_supervised, "paired": self._pair_masking},
            augment=False,
            deterministic=deterministic,
        )
        # A text whose speech is absent does not count.
        for name in ("paired", "matching"):
            if name in texts:
                heard = jnp.any(speech[name].mask, axis=1)
                lengths = jnp.where(heard, texts[name].lengths, 0)
                texts[name] = dataclasses.replace(texts[name], lengths=lengths)
        hidden: dict[str, jax.Array] = {
            name: share_mask(
                next(keys),
                length_mask(texts[name].lengths, texts[name].tokens.shape[1]),
                share=self.text_mask_share if name == "text" else self.tlm_text_mask_share,
                span=self.text_mask_span,
            )
            for name in ("text", "paired")
            if name in texts
        }
        encoded = encode_text(
            bound,
            {name: _encoder_tokens(text, hidden.get(name)) for name, text in texts.items()},
            None,
            {},
            deterministic=deterministic,
        )
        inputs = {
            name: self._input(bound, batch, name, speech.get(name), encoded.get(name))
            for name in {**speech, **encoded}
        }
        outputs = encode_shared_with_intermediate(bound, inputs, deterministic=deterministic)

        terms: dict[str, Weighted] = {}
        metrics: Metrics = stream_metrics(batch, {}, {})
        for name, prefix in (("speech", ""), ("paired", "tlm_")):
            if name not in speech:
                continue
            frames = speech[name]
            mask = frames.mask
            context, intermediate = (
                zero_padding(x[:, : mask.shape[1]], mask) for x in outputs[name]
            )
            if model.contrasts_in_shared_encoder:
                frames = dataclasses.replace(frames, intermediate=intermediate)
            own_terms, own_metrics = self.self_supervised.loss_terms(
                bound, frames, context, step, next(keys), deterministic=deterministic
            )
            terms |= {f"{prefix}{term}": each for term, each in own_terms.items()}
            metrics |= {key.replace("speech", name, 1): each for key, each in own_metrics.items()}
            metrics[f"{name}/frame_variance_ratio"] = frame_variance_ratio(frames.encoded, mask)
            metrics[f"{name}/context_variance_ratio"] = frame_variance_ratio(context, mask)
            if name == "paired" and self.ctc_weight:
                labels = TargetLabels(texts[name].tokens, texts[name].lengths)
                terms["ctc"], metrics["paired/num_ctc_infeasible"] = ctc_term(
                    bound, context, mask, labels, deterministic=deterministic
                )
        for name, term in (("text", "span_lm"), ("paired", "tlm")):
            if term not in self.term_weights or name not in encoded:
                continue
            context = _at_tokens(outputs[name][0], speech.get(name), encoded[name])
            predicted = smoothed_cross_entropy(
                # Position 0 is CLS_ID, which is not a token of the text.
                bound.token_logits(context[:, 1:], deterministic=deterministic),
                texts[name].tokens,
                hidden[name],
            )
            terms[term] = predicted.loss
            metrics[f"{name}/masked_token_accuracy"] = predicted.accuracy
            metrics[f"{name}/masked_token_fraction"] = masked_sum(
                hidden[name], length_mask(texts[name].lengths, hidden[name].shape[1])
            )
        if matches is not None:
            context = _at_tokens(outputs["matching"][0], speech["matching"], encoded["matching"])
            logit = bound.pair_logit(context[:, 0], deterministic=deterministic)
            present = texts["matching"].lengths > 0
            terms["speech_text_matching"] = masked_sum(
                optax.sigmoid_binary_cross_entropy(logit, matches.astype(jnp.float32)), present
            )
            metrics["paired/pair_accuracy"] = masked_sum((logit > 0) == matches, present)
            metrics["paired/matched_fraction"] = masked_sum(matches, present)
        return terms, metrics

    @property
    def _pair_masking(self) -> SelfSupervised:
        """Returns the masks of the speech of pairs."""
        each = self.self_supervised
        start = 1.0 - (1.0 - self.tlm_speech_mask_share) ** (1.0 / each.mask_span)
        return dataclasses.replace(each, mask_probability=start)

    def _input(
        self,
        model: Maestro,
        batch: Batch,
        name: str,
        speech: SpeechEncoding | None,
        text: TextEncoding | None,
    ) -> EncoderInput:
        """Returns the shared encoder's input: speech, text, or text behind speech."""
        language = batch["paired" if name == "matching" else name]["language"]
        if text is None:
            assert speech is not None
            return EncoderInput(speech.encoded, speech.mask, language=language)
        tokens = model.project_tokens(text.embedded, text.mask)
        if speech is None:
            return EncoderInput(tokens, text.mask, language=language)
        values, lengths = concat_valid(
            speech.encoded, jnp.sum(speech.mask, axis=1), tokens, jnp.sum(text.mask, axis=1)
        )
        return EncoderInput(values, length_mask(lengths, values.shape[1]), language=language)


def mismatch_half(rng: jax.Array, texts: TokenBatch) -> tuple[TokenBatch, jax.Array]:
    """Gives half of the utterances the text of another one of the batch.

    All take theirs from the same number of rows further on. An utterance keeps its own text where
    the other is absent or the same.

    Args:
        rng: Random key.
        texts: The texts; the absent ones have length 0.

    Returns:
        The texts, and which of them are the utterance's own, `[batch]` bool.
    """
    shift_rng, choice_rng = jax.random.split(rng)
    rows, size = texts.tokens.shape
    shift = jax.random.randint(shift_rng, (), 1, max(rows, 2))
    other = TokenBatch(
        *(jnp.roll(array, shift, axis=0) for array in (texts.tokens, texts.lengths, texts.language))
    )
    inside = length_mask(texts.lengths, size)
    same = (texts.lengths == other.lengths) & jnp.all(
        (texts.tokens == other.tokens) | ~inside, axis=1
    )
    replaced = jax.random.bernoulli(choice_rng, 0.5, (rows,)) & (other.lengths > 0) & ~same
    chosen = TokenBatch(
        jnp.where(replaced[:, None], other.tokens, texts.tokens),
        jnp.where(replaced, other.lengths, texts.lengths),
        jnp.where(replaced, other.language, texts.language),
    )
    return chosen, ~replaced


def _token_batch(stream: Mapping[str, jax.Array]) -> TokenBatch:
    return TokenBatch(stream["text"], stream["text_length"], stream["language"])


def _encoder_tokens(text: TokenBatch, hidden: jax.Array | None) -> TokenBatch:
    """Masks a text and puts `CLS_ID` in front, `[batch, tokens + 1]`; an absent one stays so."""
    tokens = text.tokens if hidden is None else jnp.where(hidden, MASK_ID, text.tokens)
    return TokenBatch(
        jnp.pad(tokens, ((0, 0), (1, 0)), constant_values=CLS_ID),
        jnp.where(text.lengths > 0, text.lengths + 1, 0),
        text.language,
    )


def _at_tokens(context: jax.Array, speech: SpeechEncoding | None, text: TextEncoding) -> jax.Array:
    """Returns the shared encoder's output at the tokens, `[batch, tokens + 1, features]`.

    In a pair they begin where the speech ends.
    """
    if speech is None:
        return context
    start = jnp.sum(speech.mask, axis=1)[:, None]
    position = start + jnp.arange(text.mask.shape[1])[None, :]
    return zero_padding(jnp.take_along_axis(context, position[..., None], axis=1), text.mask)

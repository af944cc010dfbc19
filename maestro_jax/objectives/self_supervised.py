"""The self-supervised objectives of untranscribed speech.

w2v-BERT (arXiv 2108.06209): contrastive and diversity losses at the speech encoder, which learn the
codes, and masked prediction of the codes at the top.

    L = L_w + 0.1 L_d + L_m

wav2vec 2.0 (arXiv 2006.11477): the contrastive and diversity losses alone.

    L = L_w + 0.1 L_d

BEST-RQ (arXiv 2202.01855, several codebooks as in USM, arXiv 2303.01037): masked prediction of the
codes that a frozen random projection gives of the log-mel features. Nothing there can collapse.

    L = L_m

Where the audio is augmented, codes are those of the clean audio, as in the masked speech denoising
of WavLM (arXiv 2110.13900).
"""

from __future__ import annotations

import dataclasses
from typing import TypeVar

import jax
import jax.numpy as jnp

from maestro_jax.errors import UserError
from maestro_jax.layers.masking import span_mask, zero_padding
from maestro_jax.losses.contrastive import (
    code_counts,
    contrastive_chance,
    contrastive_loss,
    diversity_loss,
    perplexity,
)
from maestro_jax.losses.cross_entropy import masked_prediction_loss
from maestro_jax.losses.reduction import Weighted, masked_sum
from maestro_jax.modules.maestro import Maestro
from maestro_jax.modules.quantizer import (
    GumbelQuantizer,
    Quantized,
    RandomProjectionQuantizer,
)
from maestro_jax.objectives.base import Metrics
from maestro_jax.objectives.forward import SpeechEncoding

_Quantizer = TypeVar("_Quantizer", GumbelQuantizer, RandomProjectionQuantizer)


@dataclasses.dataclass(frozen=True, kw_only=True)
class W2vBert:
    """Masks and negatives of w2v-BERT (section 3.3, table 1); term weights are the objective's.

    What stands in the place of masked frames is `SpeechEncoder.mask_value`; the temperature of the
    codes is the quantizer's.

    Attributes:
        mask_probability: Chance that a masked span starts in a frame.
        mask_span: Frames a masked span covers; with 0.065 and 10, 49% of the frames are masked.
        distractors: Negatives of the contrastive loss, from masked frames of the utterance.
        temperature: kappa of the contrastive loss.
    """

    mask_probability: float = 0.065
    mask_span: int = 10
    distractors: int = 100
    temperature: float = 0.1

    def __post_init__(self) -> None:
        """Refuses numbers out of range."""
        _check_masks(self)
        if self.distractors < 1 or not self.temperature > 0.0:
            raise UserError(
                f"W2vBert: distractors is {self.distractors} and temperature {self.temperature}; "
                "give 1 or more of the former, and a positive number for the latter."
            )

    @property
    def term_names(self) -> tuple[str, ...]:
        """Returns the names of the terms of `loss_terms`."""
        return ("contrastive", "diversity", "masked_prediction")

    @property
    def masks_mel(self) -> bool:
        """Returns False: the speech encoder's input is masked; the quantizer reads it unmasked."""
        return False

    def check(self, model: Maestro) -> None:
        """Refuses a model whose quantizer, heads and codes do not fit.

        Raises:
            UserError: They do not.
        """
        quantizer = _quantizer(self, model, GumbelQuantizer)
        _check_head(model, codebooks=1, codes=quantizer.codes)
        if model.speech_encoder.code_features != quantizer.code_features:
            raise UserError(
                f"SpeechEncoder.code_features is {model.speech_encoder.code_features} and "
                f"GumbelQuantizer.code_features {quantizer.code_features}; the contrastive loss "
                "compares the two, so make them equal."
            )

    def sample_mask(self, rng: jax.Array, valid: jax.Array) -> jax.Array:
        """Draws the frames to mask, `[batch, frames]` bool, of those that are valid."""
        return span_mask(rng, valid, start_probability=self.mask_probability, span=self.mask_span)

    def mask_mel(self, rng: jax.Array, mel: jax.Array, hidden: jax.Array) -> jax.Array:
        """Returns `[batch, mel_frames, bins]` as it is: w2v-BERT masks later."""
        del rng, hidden
        return mel

    def loss_terms(
        self,
        model: Maestro,
        speech: SpeechEncoding,
        context: jax.Array,
        step: jax.Array | int,
        rng: jax.Array,
        *,
        deterministic: bool,
    ) -> tuple[dict[str, Weighted], Metrics]:
        """Computes contrastive, diversity and masked prediction losses.

        Args:
            model: The model, bound.
            speech: The stream after the speech encoder.
            context: `[batch, frames, features]`, of the shared encoder.
            step: Training step, for the temperature of the quantizer.
            rng: Random key for the distractors.
            deterministic: No dropout, and no noise in the quantizer.

        Returns:
            The terms by name, and metrics.
        """
        quantized = self._quantize(model, speech, step, deterministic=deterministic)
        terms, metrics = self._contrastive_terms(model, speech, quantized, rng)
        prediction, accuracy = masked_prediction_loss(
            model.code_logits(context), quantized.ids, speech.hidden
        )
        counts = code_counts(quantized.ids, speech.mask, quantized.probabilities.shape[-1])
        return terms | {"masked_prediction": prediction}, metrics | {
            "speech/masked_accuracy": accuracy,
            "speech/masked_chance": (most_frequent(counts), jnp.ones(())),
        }

    def _quantize(
        self,
        model: Maestro,
        speech: SpeechEncoding,
        step: jax.Array | int,
        *,
        deterministic: bool,
    ) -> Quantized:
        """Quantizes the unmasked features, those of the clean audio where it is augmented."""
        features = speech.features
        if speech.clean_mel is not None:
            features, _ = model.subsample(speech.clean_mel, speech.mel_lengths)
        return model.quantize(features, step, deterministic=deterministic)

    def _contrastive_terms(
        self, model: Maestro, speech: SpeechEncoding, quantized: Quantized, rng: jax.Array
    ) -> tuple[dict[str, Weighted], Metrics]:
        """Computes the contrastive and diversity losses, and the metrics of the codes."""
        # Negatives are told from the positive by the codes that were sampled, whose vectors are
        # compared. Masked prediction learns the likeliest code, without noise.
        contrastive, contrastive_accuracy = contrastive_loss(
            rng,
            model.contrastive_context(speech.intermediate),
            quantized.vectors,
            quantized.sampled_ids,
            speech.hidden,
            distractors=self.distractors,
            temperature=self.temperature,
        )
        diversity, diversity_perplexity = diversity_loss(quantized.probabilities, speech.mask)
        codes = quantized.probabilities.shape[-1]
        counts = code_counts(quantized.ids, speech.mask, codes)
        # Mutual information of frames and codes, as a mean of Kullback-Leibler divergences: as the
        # difference of two entropies, a small one would keep few digits.
        frames = jnp.maximum(jnp.sum(speech.mask), 1)
        average = jnp.sum(zero_padding(quantized.probabilities, speech.mask), (0, 1)) / frames
        ratio = quantized.probabilities / jnp.maximum(average, jnp.finfo(jnp.float32).tiny)
        divergence = jnp.sum(jax.scipy.special.xlogy(quantized.probabilities, ratio), -1)
        information, count = masked_sum(divergence / jnp.log(codes), speech.mask)
        one = jnp.ones(())
        return {
            "contrastive": contrastive,
            # The diversity is that of the whole batch: one value, or none without frames.
            "diversity": (diversity, jnp.minimum(jnp.sum(speech.mask.astype(jnp.float32)), one)),
        }, {
            "speech/contrastive_accuracy": contrastive_accuracy,
            "speech/contrastive_chance": contrastive_chance(
                quantized.sampled_ids, speech.hidden, self.distractors
            ),
            "speech/masked_fraction": masked_sum(speech.hidden, speech.mask),
            "speech/code_perplexity": (diversity_perplexity, one),
            "speech/code_usage": (jnp.mean(counts > 0), one),
            "speech/code_information": (information, count),
            "speech/gumbel_temperature": (quantized.temperature, one),
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wav2Vec2(W2vBert):
    """wav2vec 2.0 (section 3): w2v-BERT without masked prediction; the numbers are the same there.

    The contrastive loss should read the top of all Conformer layers, `Maestro.contrastive_layer` of
    -1: it trains nothing above the layer that it reads. Unlike the paper, which learns its features
    from the waveform and joins the codes of two codebooks, this is on log-mel features and one
    codebook, as in w2v-BERT.
    """

    @property
    def term_names(self) -> tuple[str, ...]:
        """Returns the names of the terms of `loss_terms`."""
        return ("contrastive", "diversity")

    def loss_terms(
        self,
        model: Maestro,
        speech: SpeechEncoding,
        context: jax.Array,
        step: jax.Array | int,
        rng: jax.Array,
        *,
        deterministic: bool,
    ) -> tuple[dict[str, Weighted], Metrics]:
        """Computes contrastive and diversity losses; the arguments are those of `W2vBert`."""
        del context
        quantized = self._quantize(model, speech, step, deterministic=deterministic)
        return self._contrastive_terms(model, speech, quantized, rng)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BestRq:
    """Masks of BEST-RQ (section 3.2), which are laid on the log-mel features.

    BEST-RQ starts spans of 400 ms with a chance of 0.01 in frames of 10 ms. Here spans consist of
    whole encoder frames, so that a target is hidden wholly or not at all: at 40 ms per frame, 10
    frames and 0.04 hide the same third of the speech.

    Attributes:
        mask_probability: Chance that a masked span starts in an encoder frame.
        mask_span: Encoder frames a masked span covers.
        noise: Standard deviation of the normal noise in the place of what is masked.
    """

    mask_probability: float = 0.04
    mask_span: int = 10
    noise: float = 0.1

    def __post_init__(self) -> None:
        """Refuses numbers out of range."""
        _check_masks(self)
        if self.noise < 0.0:
            raise UserError(f"BestRq.noise is {self.noise}; give a standard deviation, 0 or more.")

    @property
    def term_names(self) -> tuple[str, ...]:
        """Returns the names of the terms of `loss_terms`."""
        return ("masked_prediction",)

    @property
    def masks_mel(self) -> bool:
        """Returns True: log-mel features are masked; targets are made of the unmasked ones."""
        return True

    def check(self, model: Maestro) -> None:
        """Refuses a model whose quantizer and head do not fit.

        Raises:
            UserError: They do not.
        """
        quantizer = _quantizer(self, model, RandomProjectionQuantizer)
        _check_head(model, codebooks=quantizer.codebooks, codes=quantizer.codes)

    def sample_mask(self, rng: jax.Array, valid: jax.Array) -> jax.Array:
        """Draws the frames to mask, `[batch, frames]` bool, of those that are valid."""
        return span_mask(rng, valid, start_probability=self.mask_probability, span=self.mask_span)

    def mask_mel(self, rng: jax.Array, mel: jax.Array, hidden: jax.Array) -> jax.Array:
        """Replaces hidden log-mel features by noise.

        Args:
            rng: Random key.
            mel: `[batch, mel_frames, bins]`.
            hidden: `[batch, mel_frames]` bool.

        Returns:
            `[batch, mel_frames, bins]`.
        """
        noise = self.noise * jax.random.normal(rng, mel.shape, mel.dtype)
        return jnp.where(hidden[:, :, None], noise, mel)

    def loss_terms(
        self,
        model: Maestro,
        speech: SpeechEncoding,
        context: jax.Array,
        step: jax.Array | int,
        rng: jax.Array,
        *,
        deterministic: bool,
    ) -> tuple[dict[str, Weighted], Metrics]:
        """Computes masked prediction, averaged over codebooks.

        Args:
            model: The model, bound.
            speech: The stream after the speech encoder.
            context: `[batch, frames, features]`, of the shared encoder.
            step: Not used.
            rng: Not used.
            deterministic: Not used.

        Returns:
            The term by name, and metrics; those of codes are averages over codebooks.
        """
        del step, rng, deterministic
        ids = model.random_codes(speech.target_mel)
        logits = model.code_logits(context)
        logits = logits.reshape(*ids.shape, -1)
        prediction, accuracy = masked_prediction_loss(logits, ids, speech.hidden)
        counts = code_counts(ids, speech.mask, logits.shape[-1])
        frequencies = counts / jnp.maximum(jnp.sum(counts, axis=-1, keepdims=True), 1.0)
        one = jnp.ones(())
        return {"masked_prediction": prediction}, {
            "speech/masked_accuracy": accuracy,
            "speech/masked_chance": (most_frequent(counts), one),
            "speech/masked_fraction": masked_sum(speech.hidden, speech.mask),
            "speech/code_perplexity": (jnp.mean(perplexity(frequencies)), one),
            "speech/code_usage": (jnp.mean(counts > 0), one),
        }


SelfSupervised = W2vBert | Wav2Vec2 | BestRq


def most_frequent(counts: jax.Array) -> jax.Array:
    """Returns the accuracy of always predicting the most frequent code, averaged over codebooks.

    Args:
        counts: `[codebooks, codes]`, as of `code_counts`.
    """
    total = jnp.maximum(jnp.sum(counts, axis=-1), 1.0)
    return jnp.mean(jnp.max(counts, axis=-1) / total)


def _check_masks(settings: W2vBert | BestRq) -> None:
    if not 0.0 <= settings.mask_probability <= 1.0 or settings.mask_span < 1:
        raise UserError(
            f"{type(settings).__name__}: mask_probability is {settings.mask_probability} and "
            f"mask_span {settings.mask_span}; give a chance in [0, 1] and 1 frame or more."
        )


def _quantizer(settings: W2vBert | BestRq, model: Maestro, wanted: type[_Quantizer]) -> _Quantizer:
    """Returns the model's quantizer if it is of the given type, and refuses another."""
    quantizer = model.quantizer
    if not isinstance(quantizer, wanted):
        other = "BestRq" if isinstance(settings, W2vBert) else "W2vBert"
        raise UserError(
            f"self_supervised is {type(settings).__name__}, which needs a {wanted.__name__}, but "
            f"Maestro.quantizer is a {type(quantizer).__name__}; change it, or take {other}."
        )
    return quantizer


def _check_head(model: Maestro, *, codebooks: int, codes: int) -> None:
    """Refuses a shared encoder that predicts other codes than the quantizer has."""
    head = model.shared_encoder
    if (head.codebooks, head.codes) != (codebooks, codes):
        raise UserError(
            f"SharedEncoder predicts {head.codebooks} x {head.codes} codes (codebooks x codes), "
            f"but the quantizer has {codebooks} x {codes}; make SharedEncoder.codebooks and "
            "SharedEncoder.codes those of the quantizer."
        )

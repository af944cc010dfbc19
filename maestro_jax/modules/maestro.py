"""The whole of MAESTRO's Figure 1 as one module, whose methods objectives call.

audio [batch, samples] -> frontend -> subsampling -> features [batch, frames, conv_features]
features -> speech_encoder -> e_s [batch, frames, features]
text [batch, tokens] -> text_encoder -> e_t [batch, tokens, text_features]
e_t -> duration_model -> durations [batch, tokens] in frames
e_t, durations -> resampler -> refiner -> ê_t [batch, frames, features]
e_s or ê_t -> shared_encoder -> [batch, frames, features]
shared encoder's output, labels -> decoder -> two arcs per node [batch, frames, labels + 1]
shared encoder's output -> ctc_head -> logits [batch, frames, vocab]
shared encoder's output, labels -> translation_decoder -> logits [batch, labels + 1, vocab]
e_t -> token_projection -> [batch, tokens, features], which the shared encoder reads, too
shared encoder's output -> token_head -> logits [batch, tokens, vocab]
shared encoder's output at one token -> pair_head -> logit [batch]

The last five need not be there: two are for fine-tuning, three for methods without durations.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from maestro_jax.layers.masking import length_mask
from maestro_jax.modules.ctc_head import CtcHead
from maestro_jax.modules.duration import (
    DurationModel,
    DurationPrediction,
    Gaussians,
    SubwordDurations,
)
from maestro_jax.modules.frontend import ConvSubsampling, LogMelFrontend, stack_frames
from maestro_jax.modules.quantizer import (
    GumbelQuantizer,
    Quantized,
    RandomProjectionQuantizer,
)
from maestro_jax.modules.refiner import Refiner
from maestro_jax.modules.resampler import FrameIndex, GaussianUpsampling, Resampler
from maestro_jax.modules.shared_encoder import SharedEncoder
from maestro_jax.modules.speech_encoder import SpeechEncoder
from maestro_jax.modules.speech_text import PairHead, TokenHead, TokenProjection
from maestro_jax.modules.text_encoder import TextEncoder
from maestro_jax.modules.transducer import LstmState, TransducerDecoder
from maestro_jax.modules.transformer_decoder import DecoderCache, TransformerDecoder

Part = TypeVar("Part")


class Maestro(nn.Module):
    """Speech and text encoders that meet in a shared encoder under an RNN-T decoder.

    Attributes:
        frontend: Log-mel features and SpecAugment.
        subsampling: Strided convolutions.
        quantizer: Codes for the self-supervised losses: of w2v-BERT, or of BEST-RQ.
        speech_encoder: The paper's theta_s.
        text_encoder: The paper's theta_t.
        duration_model: The paper's theta_D.
        resampler: Copies by duration, or mixes neighbours (`GaussianUpsampling`).
        refiner: The paper's theta_R.
        shared_encoder: Upper Conformer stack.
        decoder: RNN-T.
        ctc_head: One symbol per frame, for recognition; None for a model without.
        translation_decoder: A Transformer that writes translations; None for a model without.
        subword_durations: A Gaussian for the duration of each token, for durations that are drawn;
            None for a model without.
        token_projection: From e_t to the shared encoder at the rate of tokens, without durations;
            None for a model without.
        token_head: Predicts masked tokens; None for a model without.
        pair_head: Whether speech and text belong together; None for a model without.
        contrastive_layer: The Conformer layer whose output the contrastive loss reads, counted from
            1 at the bottom through speech and shared encoder, or from -1 at the top; None for the
            speech encoder's output, the natural reading of MAESTRO. w2v-BERT has 12 of 24,
            wav2vec 2.0 the last.
    """

    frontend: LogMelFrontend
    subsampling: ConvSubsampling
    quantizer: GumbelQuantizer | RandomProjectionQuantizer
    speech_encoder: SpeechEncoder
    text_encoder: TextEncoder
    duration_model: DurationModel
    resampler: Resampler | GaussianUpsampling
    refiner: Refiner
    shared_encoder: SharedEncoder
    decoder: TransducerDecoder
    ctc_head: CtcHead | None = None
    translation_decoder: TransformerDecoder | None = None
    subword_durations: SubwordDurations | None = None
    token_projection: TokenProjection | None = None
    token_head: TokenHead | None = None
    pair_head: PairHead | None = None
    contrastive_layer: int | None = None

    def __post_init__(self) -> None:
        """Refuses a contrastive layer outside the encoders before anything is built."""
        layers = self.speech_encoder.stack.layers + self.shared_encoder.stack.layers
        if self.contrastive_layer is not None and not 1 <= abs(self.contrastive_layer) <= layers:
            raise ValueError(
                f"Maestro.contrastive_layer is {self.contrastive_layer}; choose one of the "
                f"{layers} Conformer layers, counted from 1 at the bottom or from -1 at the top, "
                "or None."
            )
        super().__post_init__()

    @property
    def needs_language(self) -> bool:
        """Returns whether the encoders must be told the language of their input."""
        return any(
            encoder.source_languages or encoder.stack.adapter_languages
            for encoder in (self.speech_encoder, self.shared_encoder)
        )

    @property
    def vocab_sizes(self) -> dict[str, int]:
        """Returns the number of tokens that each decoder can write, blank or padding included."""
        heads = {
            "transducer": self.decoder,
            "ctc": self.ctc_head,
            "attention": self.translation_decoder,
        }
        return {name: head.vocab_size for name, head in heads.items() if head is not None}

    @property
    def vocab_size(self) -> int:
        """Returns the number of tokens that every decoder can write, blank included."""
        return min(self.vocab_sizes.values())

    @property
    def frame_seconds(self) -> float:
        """Returns the duration of an encoder frame, in seconds."""
        # 4 * 160 / 16000 s, 40 ms, with the sizes of the paper.
        return self.subsampling.factor * self.frontend.hop / self.frontend.sample_rate

    def frame_count(self, samples: int) -> int:
        """Returns the number of encoder frames of a number of samples of audio."""
        return self.subsampling.frame_count(self.frontend.frame_count(samples))

    def __call__(self, batch: Mapping[str, Mapping[str, jax.Array]]) -> None:
        """Calls every part once, so that initialisation creates all parameters.

        Args:
            batch: Ignored but for its batch size: parameters do not depend on any length.
        """
        size = 1
        # Long enough for a few encoder frames.
        audio = jnp.zeros((size, 8 * self.frontend.window), jnp.int16)
        full = jnp.full((size,), audio.shape[1], jnp.int32)
        language = jnp.zeros((size,), jnp.int32)
        tokens = jnp.ones((size, 4), jnp.int32)
        token_mask = jnp.ones((size, 4), bool)
        features, mask = self.features(audio, full)
        encoded = self.encode_speech(features, mask, language)
        if isinstance(self.quantizer, RandomProjectionQuantizer):
            self.random_codes(self.log_mel(audio, full)[0])
        else:
            self.quantize(features)
            self.contrastive_context(encoded)
        embedded = self.encode_text(tokens, token_mask, language)
        self.predict_durations(embedded, token_mask)
        if self.subword_durations is not None:
            self.subword_gaussians(tokens)
        self.upsample(embedded, tokens, mask.shape[1])
        context = self.encode_shared(encoded, mask, language, language)
        self.code_logits(context)
        self.joint_log_probs(context, tokens)
        if self.ctc_head is not None:
            self.ctc_logits(context)
        if self.translation_decoder is not None:
            self.translation_logits(tokens, context, mask, language)
        if self.token_projection is not None:
            self.project_tokens(embedded, token_mask)
        if self.token_head is not None:
            self.token_logits(context)
        if self.pair_head is not None:
            self.pair_logit(context[:, 0])

    def features(
        self, audio: jax.Array, audio_length: jax.Array, *, augment: jax.Array | bool = False
    ) -> tuple[jax.Array, jax.Array]:
        """Computes subsampled features.

        Args:
            audio: `[batch, samples]` int16 or float, 16 kHz.
            audio_length: `[batch]` valid samples.
            augment: Apply SpecAugment, to all rows or to some (random stream `specaugment`).

        Returns:
            `[batch, frames, conv_features]` and the validity mask `[batch, frames]`.
        """
        return self.subsample(*self.log_mel(audio, audio_length, augment=augment))

    def log_mel(
        self, audio: jax.Array, audio_length: jax.Array, *, augment: jax.Array | bool = False
    ) -> tuple[jax.Array, jax.Array]:
        """Computes log-mel features `[batch, mel_frames, bins]` and their lengths `[batch]`."""
        return self.frontend(audio, audio_length, augment=augment)

    def spec_augment(
        self, mel: jax.Array, lengths: jax.Array, augment: jax.Array | bool = True
    ) -> jax.Array:
        """Applies SpecAugment to `[batch, mel_frames, bins]`, all rows or some (`specaugment`)."""
        return self.frontend.spec_augment(mel, lengths, augment)

    def subsample(self, mel: jax.Array, lengths: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Subsamples log-mel features to `[batch, frames, conv_features]`, and returns the mask."""
        features, lengths = self.subsampling(mel, lengths)
        return features, length_mask(lengths, features.shape[1])

    def frame_mask(self, mel: jax.Array, lengths: jax.Array) -> jax.Array:
        """Returns the mask `[batch, frames]` that `subsample` returns, without its features."""
        count = self.subsampling.frame_count
        return length_mask(count(lengths), count(mel.shape[1]))

    def quantize(
        self, features: jax.Array, step: jax.Array | int = 0, *, deterministic: bool = True
    ) -> Quantized:
        """Quantizes unmasked features (random stream `gumbel` unless deterministic)."""
        # Objectives check that the model has the quantizer that they need.
        quantizer = cast(GumbelQuantizer, self.quantizer)
        return quantizer(features, step, deterministic=deterministic)

    def random_codes(self, mel: jax.Array) -> jax.Array:
        """Returns the fixed codes `[batch, frames, codebooks]` of unmasked log-mel features."""
        quantizer = cast(RandomProjectionQuantizer, self.quantizer)
        return quantizer(stack_frames(mel, self.subsampling.factor))

    def encode_speech(
        self,
        features: jax.Array,
        mask: jax.Array,
        language: jax.Array | None = None,
        *,
        masked_frames: jax.Array | None = None,
        deterministic: bool = True,
    ) -> jax.Array:
        """Computes e_s `[batch, frames, features]` of subsampled features; see `SpeechEncoder`."""
        return self.speech_encoder(
            features, mask, language, masked_frames=masked_frames, deterministic=deterministic
        )[0]

    def encode_speech_with_intermediate(
        self,
        features: jax.Array,
        mask: jax.Array,
        language: jax.Array | None = None,
        *,
        masked_frames: jax.Array | None = None,
        deterministic: bool = True,
    ) -> tuple[jax.Array, jax.Array]:
        """Computes e_s, and the input of `contrastive_context` where that is below e_s.

        Args:
            features: `[batch, frames, conv_features]`, subsampled.
            mask: `[batch, frames]` bool, True = valid.
            language: `[batch]` ids of the language spoken.
            masked_frames: `[batch, frames]` bool, the frames whose input is hidden.
            deterministic: No dropout.

        Returns:
            e_s and the output of the layer `contrastive_layer` (e_s again if
            `contrasts_in_shared_encoder`), both `[batch, frames, features]`.
        """
        layer = None if self.contrasts_in_shared_encoder else self._contrastive_layer
        return self.speech_encoder(
            features,
            mask,
            language,
            masked_frames=masked_frames,
            intermediate_layer=layer,
            deterministic=deterministic,
        )

    @property
    def _contrastive_layer(self) -> int | None:
        """Returns `contrastive_layer` counted from the bottom."""
        layer = self.contrastive_layer
        if layer is not None and layer < 0:
            layer += 1 + self.speech_encoder.stack.layers + self.shared_encoder.stack.layers
        return layer

    @property
    def contrasts_in_shared_encoder(self) -> bool:
        """Returns whether the contrastive loss reads a layer above the speech encoder."""
        layer = self._contrastive_layer
        return layer is not None and layer > self.speech_encoder.stack.layers

    def contrastive_context(self, intermediate: jax.Array) -> jax.Array:
        """Projects to the vectors that are compared with codes.

        Args:
            intermediate: `[batch, frames, features]`, output of the layer `contrastive_layer` for
                masked speech: the second output of `encode_shared_with_intermediate` if
                `contrasts_in_shared_encoder`, else of `encode_speech_with_intermediate`.

        Returns:
            `[batch, frames, code_features]` float32.
        """
        return self.speech_encoder.contrastive_context(intermediate)

    def encode_shared(
        self,
        x: jax.Array,
        mask: jax.Array,
        target_language: jax.Array | None = None,
        language: jax.Array | None = None,
        *,
        deterministic: bool = True,
    ) -> jax.Array:
        """Computes the shared encoder's output `[batch, frames, features]` for e_s or ê_t."""
        return self.shared_encoder(x, mask, target_language, language, deterministic=deterministic)[
            0
        ]

    def encode_shared_with_intermediate(
        self,
        x: jax.Array,
        mask: jax.Array,
        target_language: jax.Array | None = None,
        language: jax.Array | None = None,
        *,
        deterministic: bool = True,
    ) -> tuple[jax.Array, jax.Array]:
        """Computes the shared encoder's output, and the input of `contrastive_context`.

        Args:
            x: `[batch, frames, features]`, e_s or the masked ê_t.
            mask: `[batch, frames]` bool, True = valid.
            target_language: `[batch]` ids of the language to write; None or negative: that of `x`.
            language: `[batch]` ids of the language spoken or written at the input.
            deterministic: No dropout.

        Returns:
            The output and that of the layer `contrastive_layer` (the output again unless
            `contrasts_in_shared_encoder`), both `[batch, frames, features]`.
        """
        layer = self._contrastive_layer
        if layer is not None:
            # Layers are counted from the bottom through both encoders.
            layer -= self.speech_encoder.stack.layers
            layer = layer if layer > 0 else None
        return self.shared_encoder(
            x,
            mask,
            target_language,
            language,
            intermediate_layer=layer,
            deterministic=deterministic,
        )

    def code_logits(self, context: jax.Array) -> jax.Array:
        """Computes logits `[batch, frames, codebooks * codes]` of masked prediction."""
        return self.shared_encoder.code_logits(context)

    def encode_text(
        self,
        tokens: jax.Array,
        mask: jax.Array,
        language: jax.Array | None = None,
        *,
        deterministic: bool = True,
    ) -> jax.Array:
        """Computes e_t `[batch, tokens, text_features]`."""
        return self.text_encoder(tokens, mask, language, deterministic=deterministic)

    def predict_durations(
        self, embedded: jax.Array, mask: jax.Array, *, deterministic: bool = True
    ) -> DurationPrediction:
        """Computes both heads of the duration model, `[batch, tokens]` each, for e_t."""
        return self.duration_model(embedded, mask, deterministic=deterministic)

    def round_durations(self, prediction: DurationPrediction, mask: jax.Array) -> jax.Array:
        """Returns whole frames `[batch, tokens]` from the two heads."""
        return self.duration_model.round(prediction, mask)

    def continuous_durations(self, prediction: DurationPrediction, mask: jax.Array) -> jax.Array:
        """Returns frames `[batch, tokens]` that are not rounded and have a gradient."""
        return self.duration_model.durations(prediction, mask)

    def subword_gaussians(self, tokens: jax.Array) -> Gaussians:
        """Returns the Gaussian for the duration of each of `[batch, tokens]`."""
        return _require(self.subword_durations, "subword_durations")(tokens)

    def upsample(
        self,
        embedded: jax.Array,
        durations: jax.Array,
        frames: int,
        *,
        deterministic: bool = True,
    ) -> tuple[jax.Array, FrameIndex]:
        """Resamples e_t to frames and refines it to ê_t.

        Args:
            embedded: `[batch, tokens, text_features]`, e_t.
            durations: `[batch, tokens]` int32 frames; float32 for `GaussianUpsampling`.
            frames: Static number of frames.
            deterministic: No dropout.

        Returns:
            ê_t `[batch, frames, features]`, and the frame index.
        """
        resampled, index = self.resampler(embedded, durations, frames)
        return self.refiner(resampled, index.mask, deterministic=deterministic), index

    def prediction_network(self, labels: jax.Array, *, deterministic: bool = True) -> jax.Array:
        """Maps labels `[batch, labels]` to `[batch, labels + 1, joint_features]` for the joint."""
        return self.decoder.prediction_network(labels, deterministic=deterministic)

    def joint_log_probs(
        self,
        context: jax.Array,
        labels: jax.Array,
        predicted: jax.Array | None = None,
        *,
        deterministic: bool = True,
    ) -> tuple[jax.Array, jax.Array]:
        """Computes the log-probabilities of both arcs of every RNN-T node, in nats.

        Args:
            context: `[batch, frames, features]` of the shared encoder.
            labels: `[batch, labels]` int32.
            predicted: The output of `prediction_network` for the labels, if it is known already.
            deterministic: No dropout.

        Returns:
            Log-probabilities of the blank `[batch, frames, labels + 1]` and of the next label
            `[batch, frames, labels]`.
        """
        return self.decoder(context, labels, predicted, deterministic=deterministic)

    def decoder_state(self, batch: int) -> tuple[LstmState, ...]:
        """Returns the prediction network's state before the first label, for a batch size."""
        return self.decoder.initial_state(batch)

    def project_frames(self, context: jax.Array) -> jax.Array:
        """Projects `[batch, frames, features]` to `[batch, frames, joint_features]`."""
        return self.decoder.project_frames(context)

    def prediction_step(
        self, labels: jax.Array, state: tuple[LstmState, ...]
    ) -> tuple[jax.Array, tuple[LstmState, ...]]:
        """Runs the prediction network on `[batch, steps]` labels, from a state to the next."""
        return self.decoder.predict(labels, state)

    def joint(self, frames: jax.Array, labels: jax.Array) -> jax.Array:
        """Computes logits `[..., vocab]` of projected frames and labels that broadcast."""
        return self.decoder.joint(frames, labels)

    def ctc_logits(self, context: jax.Array, *, deterministic: bool = True) -> jax.Array:
        """Computes logits `[batch, frames, vocab]` of the CTC head, blank 0."""
        return _require(self.ctc_head, "ctc_head")(context, deterministic=deterministic)

    def project_tokens(self, embedded: jax.Array, mask: jax.Array) -> jax.Array:
        """Projects e_t `[batch, tokens, text_features]` to `[batch, tokens, features]`."""
        return _require(self.token_projection, "token_projection")(embedded, mask)

    def token_logits(self, context: jax.Array, *, deterministic: bool = True) -> jax.Array:
        """Computes logits `[batch, tokens, vocab]` of the tokens at these positions."""
        return _require(self.token_head, "token_head")(context, deterministic=deterministic)

    def pair_logit(self, joint: jax.Array, *, deterministic: bool = True) -> jax.Array:
        """Computes the logit `[batch]` that speech and text of `[batch, features]` match."""
        return _require(self.pair_head, "pair_head")(joint, deterministic=deterministic)

    def translation_logits(
        self,
        tokens: jax.Array,
        context: jax.Array,
        mask: jax.Array,
        target_language: jax.Array | None = None,
        *,
        deterministic: bool = True,
    ) -> jax.Array:
        """Computes logits of the token that follows each token of a translation.

        Args:
            tokens: `[batch, tokens]` int32, the first of a text is id 0.
            context: `[batch, frames, features]` of the shared encoder.
            mask: `[batch, frames]` bool, True = valid.
            target_language: `[batch]` ids of the language to write.
            deterministic: No dropout.

        Returns:
            `[batch, tokens, vocab]` float32.
        """
        decoder = _require(self.translation_decoder, "translation_decoder")
        return decoder(tokens, context, mask, target_language, deterministic=deterministic)

    def start_translation(
        self,
        context: jax.Array,
        mask: jax.Array,
        target_language: jax.Array | None = None,
        *,
        beam: int,
        length: int,
    ) -> DecoderCache:
        """Returns the cache of the translation decoder for `beam` texts per utterance."""
        decoder = _require(self.translation_decoder, "translation_decoder")
        return decoder.start(context, mask, target_language, beam=beam, length=length)

    def step_translation(
        self, tokens: jax.Array, position: jax.Array, cache: DecoderCache
    ) -> tuple[jax.Array, DecoderCache]:
        """Reads `[batch, beam]` tokens; returns logits `[batch, beam, vocab]` and the new cache."""
        decoder = _require(self.translation_decoder, "translation_decoder")
        return decoder.step(tokens, position, cache)


def _require(part: Part | None, name: str) -> Part:
    """Returns an optional part of the model, and raises if the model lacks it."""
    if part is None:
        raise ValueError(f"Maestro.{name} is None, but this call needs it; set it in the model.")
    return part

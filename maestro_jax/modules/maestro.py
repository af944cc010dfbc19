"""The whole of MAESTRO's Figure 1 as one module; objectives call its parts.

audio [batch, samples] -> frontend -> subsampling -> features [batch, frames, conv_features]
features -> speech_encoder -> e_s [batch, frames, features]
text [batch, tokens] -> text_encoder -> e_t [batch, tokens, text_features]
e_t -> duration_model -> durations [batch, tokens] in frames
e_t, durations -> resampler -> refiner -> ê_t [batch, frames, features]
e_s or ê_t -> shared_encoder -> [batch, frames, features]
shared encoder's output, labels -> decoder -> two arcs a node [batch, frames, labels + 1]
shared encoder's output -> ctc_head -> logits [batch, frames, vocab]
shared encoder's output, labels -> translation_decoder -> logits [batch, labels + 1, vocab]

The last two are for fine-tuning and need not be there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from maestro_jax.layers.masking import length_mask
from maestro_jax.modules.ctc_head import CtcHead
from maestro_jax.modules.duration import DurationModel, DurationPrediction
from maestro_jax.modules.frontend import ConvSubsampling, LogMelFrontend, stack_frames
from maestro_jax.modules.gaussian_upsampling import GaussianUpsampling
from maestro_jax.modules.quantizer import GumbelQuantizer, Quantized
from maestro_jax.modules.random_projection import RandomProjectionQuantizer
from maestro_jax.modules.refiner import Refiner
from maestro_jax.modules.resampler import FrameIndex, Resampler
from maestro_jax.modules.shared_encoder import SharedEncoder
from maestro_jax.modules.speech_encoder import SpeechEncoder
from maestro_jax.modules.subword_durations import Gaussians, SubwordDurations
from maestro_jax.modules.text_encoder import TextEncoder
from maestro_jax.modules.transducer import LstmState, TransducerDecoder
from maestro_jax.modules.transformer_decoder import DecoderCache, TransformerDecoder


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
        ctc_head: A symbol a frame, for recognition; None for a model without.
        translation_decoder: A Transformer that writes translations; None for a model without.
        subword_durations: A Gaussian for the duration of each token, for durations that are drawn;
            None for a model without.
        contrastive_layer: After which Conformer layer the contrastive loss taps, counted from 1 at
            the bottom through speech and shared encoder; None for the speech encoder's output, the
            natural reading of MAESTRO. w2v-BERT taps after 12 of 24.
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
    contrastive_layer: int | None = None

    def __post_init__(self) -> None:
        """Refuse a tap outside the encoders before anything is built."""
        if self.contrastive_layer is not None:
            layers = self.speech_encoder.stack.layers + self.shared_encoder.stack.layers
            if not 1 <= self.contrastive_layer <= layers:
                raise ValueError(
                    f"Maestro.contrastive_layer is {self.contrastive_layer}; choose one of the "
                    f"{layers} Conformer layers, counted from 1 at the bottom, or None."
                )
        super().__post_init__()

    @property
    def needs_language(self) -> bool:
        """Whether the encoders must be told the language of what they encode."""
        return any(
            encoder.source_languages or encoder.stack.adapter_languages
            for encoder in (self.speech_encoder, self.shared_encoder)
        )

    @property
    def vocab_sizes(self) -> dict[str, int]:
        """Number of tokens that each decoder there is can write, blank or padding included."""
        heads = {
            "transducer": self.decoder,
            "ctc": self.ctc_head,
            "attention": self.translation_decoder,
        }
        return {name: head.vocab_size for name, head in heads.items() if head is not None}

    @property
    def vocab_size(self) -> int:
        """Number of tokens that every decoder can write, blank included."""
        return min(self.vocab_sizes.values())

    @property
    def frame_seconds(self) -> float:
        """Duration of an encoder frame."""
        return self.subsampling.factor * self.frontend.hop / self.frontend.sample_rate

    def frame_count(self, samples: int) -> int:
        """Encoder frames of so many samples of audio."""
        return self.subsampling.frame_count(self.frontend.frame_count(samples))

    def __call__(self, batch: Mapping[str, Mapping[str, jax.Array]]) -> None:
        """Touch every parameter, for initialisation.

        Args:
            batch: Ignored but for its batch size: parameters do not depend on any length.
        """
        size = 1
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
        self.lattices(context, tokens)
        if self.ctc_head is not None:
            self.ctc_logits(context)
        if self.translation_decoder is not None:
            self.translation_logits(tokens, context, mask, language)

    def features(
        self, audio: jax.Array, audio_length: jax.Array, *, augment: jax.Array | bool = False
    ) -> tuple[jax.Array, jax.Array]:
        """Subsampled features.

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
        """Log-mel features `[batch, mel_frames, bins]` and their lengths `[batch]`."""
        return self.frontend(audio, audio_length, augment=augment)

    def spec_augment(
        self, mel: jax.Array, lengths: jax.Array, augment: jax.Array | bool = True
    ) -> jax.Array:
        """Log-mel features with SpecAugment on all rows or on some (stream `specaugment`)."""
        return self.frontend.spec_augment(mel, lengths, augment)

    def subsample(self, mel: jax.Array, lengths: jax.Array) -> tuple[jax.Array, jax.Array]:
        """From log-mel features to `[batch, frames, conv_features]` and `[batch, frames]` bool."""
        features, lengths = self.subsampling(mel, lengths)
        return features, length_mask(lengths, features.shape[1])

    def frame_mask(self, mel: jax.Array, lengths: jax.Array) -> jax.Array:
        """The validity mask `[batch, frames]` that `subsample` gives, without its features."""
        count = self.subsampling.frame_count
        return length_mask(count(lengths), count(mel.shape[1]))

    def quantize(
        self, features: jax.Array, step: jax.Array | int = 0, *, deterministic: bool = True
    ) -> Quantized:
        """Codes of unmasked features (random stream `gumbel` unless deterministic)."""
        # Objectives check that the model has the quantizer that they need.
        quantizer = cast(GumbelQuantizer, self.quantizer)
        return quantizer(features, step, deterministic=deterministic)

    def random_codes(self, mel: jax.Array) -> jax.Array:
        """Codes `[batch, frames, codebooks]` of unmasked log-mel features, which never move."""
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
        """e_s `[batch, frames, features]` from subsampled features; see `SpeechEncoder`."""
        return self.speech_encoder(
            features, mask, language, masked_frames=masked_frames, deterministic=deterministic
        )[0]

    def encode_speech_with_tap(
        self,
        features: jax.Array,
        mask: jax.Array,
        language: jax.Array | None = None,
        *,
        masked_frames: jax.Array | None = None,
        deterministic: bool = True,
    ) -> tuple[jax.Array, jax.Array]:
        """e_s, and what `contrastive_context` takes unless `taps_shared_encoder`."""
        tap = None if self.taps_shared_encoder else self.contrastive_layer
        return self.speech_encoder(
            features,
            mask,
            language,
            masked_frames=masked_frames,
            tap=tap,
            deterministic=deterministic,
        )

    @property
    def taps_shared_encoder(self) -> bool:
        """Whether the contrastive loss taps above the speech encoder."""
        layer = self.contrastive_layer
        return layer is not None and layer > self.speech_encoder.stack.layers

    def contrastive_context(self, tapped: jax.Array) -> jax.Array:
        """Vectors to compare with codes.

        Args:
            tapped: `[batch, frames, features]`, what the layer that `contrastive_layer` says puts
                out for masked speech: the second output of `encode_shared_with_tap` if
                `taps_shared_encoder`, else that of `encode_speech_with_tap`.

        Returns:
            `[batch, frames, code_features]` float32.
        """
        return self.speech_encoder.contrastive_context(tapped)

    def encode_shared(
        self,
        x: jax.Array,
        mask: jax.Array,
        target_language: jax.Array | None = None,
        language: jax.Array | None = None,
        *,
        deterministic: bool = True,
    ) -> jax.Array:
        """The shared encoder's output `[batch, frames, features]` for e_s or ê_t."""
        return self.shared_encoder(x, mask, target_language, language, deterministic=deterministic)[
            0
        ]

    def encode_shared_with_tap(
        self,
        x: jax.Array,
        mask: jax.Array,
        target_language: jax.Array | None = None,
        language: jax.Array | None = None,
        *,
        deterministic: bool = True,
    ) -> tuple[jax.Array, jax.Array]:
        """The shared encoder's output, and for `contrastive_context` if `taps_shared_encoder`."""
        tap = None
        if self.contrastive_layer is not None and self.taps_shared_encoder:
            tap = self.contrastive_layer - self.speech_encoder.stack.layers
        return self.shared_encoder(
            x, mask, target_language, language, tap=tap, deterministic=deterministic
        )

    def code_logits(self, context: jax.Array) -> jax.Array:
        """Logits `[batch, frames, codebooks * codes]` of masked prediction."""
        return self.shared_encoder.code_logits(context)

    def encode_text(
        self,
        tokens: jax.Array,
        mask: jax.Array,
        language: jax.Array | None = None,
        *,
        deterministic: bool = True,
    ) -> jax.Array:
        """e_t `[batch, tokens, text_features]`."""
        return self.text_encoder(tokens, mask, language, deterministic=deterministic)

    def predict_durations(
        self, embedded: jax.Array, mask: jax.Array, *, deterministic: bool = True
    ) -> DurationPrediction:
        """Both heads of the duration model for e_t."""
        return self.duration_model(embedded, mask, deterministic=deterministic)

    def round_durations(self, prediction: DurationPrediction, mask: jax.Array) -> jax.Array:
        """Whole frames `[batch, tokens]` from the two heads."""
        return self.duration_model.round(prediction, mask)

    def continuous_durations(self, prediction: DurationPrediction, mask: jax.Array) -> jax.Array:
        """Frames `[batch, tokens]` that are not rounded, and which gradients pass."""
        return self.duration_model.durations(prediction, mask)

    def subword_gaussians(self, tokens: jax.Array) -> Gaussians:
        """The Gaussian for the duration of each of `[batch, tokens]`."""
        assert self.subword_durations is not None, "SubwordDurations is not set"
        return self.subword_durations(tokens)

    def upsample(
        self,
        embedded: jax.Array,
        durations: jax.Array,
        frames: int,
        *,
        deterministic: bool = True,
    ) -> tuple[jax.Array, FrameIndex]:
        """Resample and refine.

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

    def predict_texts(self, labels: jax.Array, *, deterministic: bool = True) -> jax.Array:
        """The prediction network over texts: `[batch, labels]` to `[batch, labels + 1, joint]`."""
        return self.decoder.predict_texts(labels, deterministic=deterministic)

    def lattices(
        self,
        context: jax.Array,
        labels: jax.Array,
        predicted: jax.Array | None = None,
        *,
        deterministic: bool = True,
    ) -> tuple[jax.Array, jax.Array]:
        """The two arcs of every RNN-T node, in nats.

        Args:
            context: `[batch, frames, features]` of the shared encoder.
            labels: `[batch, labels]` int32.
            predicted: What `predict_texts` gives for the labels, if it has been called already.
            deterministic: No dropout.

        Returns:
            Log-probabilities of the blank `[batch, frames, labels + 1]` and of the next label
            `[batch, frames, labels]`.
        """
        return self.decoder(context, labels, predicted, deterministic=deterministic)

    def decoder_state(self, batch: int) -> tuple[LstmState, ...]:
        """The prediction network's state before the first label."""
        return self.decoder.initial_state(batch)

    def project_frames(self, context: jax.Array) -> jax.Array:
        """`[batch, frames, features]` to `[batch, frames, joint_features]`."""
        return self.decoder.project_frames(context)

    def predict_labels(
        self, labels: jax.Array, state: tuple[LstmState, ...]
    ) -> tuple[jax.Array, tuple[LstmState, ...]]:
        """The prediction network on `[batch, steps]` labels."""
        return self.decoder.predict(labels, state)

    def joint(self, frames: jax.Array, labels: jax.Array) -> jax.Array:
        """Logits `[..., vocab]` of projected frames and labels."""
        return self.decoder.joint(frames, labels)

    def ctc_logits(self, context: jax.Array, *, deterministic: bool = True) -> jax.Array:
        """Logits `[batch, frames, vocab]` of the CTC head, blank 0."""
        return _there(self.ctc_head, "ctc_head")(context, deterministic=deterministic)

    def translation_logits(
        self,
        tokens: jax.Array,
        context: jax.Array,
        mask: jax.Array,
        target_language: jax.Array | None = None,
        *,
        deterministic: bool = True,
    ) -> jax.Array:
        """Logits `[batch, tokens, vocab]` of what follows each token of a translation.

        Args:
            tokens: `[batch, tokens]` int32, the first of a text is id 0.
            context: `[batch, frames, features]` of the shared encoder.
            mask: `[batch, frames]` bool, True = valid.
            target_language: `[batch]` ids of the language to write.
            deterministic: No dropout.

        Returns:
            `[batch, tokens, vocab]` float32.
        """
        decoder = _there(self.translation_decoder, "translation_decoder")
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
        """The translation decoder's cache for `beam` texts an utterance of up to `length`."""
        decoder = _there(self.translation_decoder, "translation_decoder")
        return decoder.start(context, mask, target_language, beam=beam, length=length)

    def step_translation(
        self, tokens: jax.Array, position: jax.Array, cache: DecoderCache
    ) -> tuple[jax.Array, DecoderCache]:
        """Read `[batch, beam]` tokens: logits `[batch, beam, vocab]` of the next, and the cache."""
        decoder = _there(self.translation_decoder, "translation_decoder")
        return decoder.step(tokens, position, cache)


def _there(part: Any, name: str) -> Any:
    """A part that a model may lack."""
    if part is None:
        raise ValueError(f"Maestro.{name} is None; give the model one, or do without it.")
    return part

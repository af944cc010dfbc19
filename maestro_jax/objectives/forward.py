"""The forward passes of objectives over several streams, in as few calls as the lengths allow.

Streams of equal static length share a call: one large matrix product instead of several small ones,
and one copy of the network in the compiled program instead of one per stream.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from maestro_jax.errors import UserError
from maestro_jax.layers.masking import length_mask, zero_padding
from maestro_jax.layers.partitioned import constrain
from maestro_jax.losses.reduction import masked_sum
from maestro_jax.modules.maestro import Maestro
from maestro_jax.modules.resampler import FrameIndex
from maestro_jax.objectives.base import Batch, Metrics, num_present, per_step

NO_LANGUAGE = -1
"""The target language of rows that are transcribed and not translated; an unknown language."""
SPEECH_LENGTH_STREAMS = ("paired", "st", "speech")
"""The streams whose speech limits the length of resampled texts: transcribed speech first."""


# --- Rows of several streams ---------------------------------------------------------------------


def group_by_shape(shapes: Mapping[str, Hashable]) -> list[tuple[str, ...]]:
    """Groups names of equal static shape, in the order in which they first occur.

    Args:
        shapes: A length, or a tuple of them, by name.

    Returns:
        Groups of names; every name is in one.
    """
    groups: dict[Hashable, list[str]] = {}
    for name, shape in shapes.items():
        groups.setdefault(shape, []).append(name)
    return [tuple(names) for names in groups.values()]


def interleave_rows(arrays: Iterable[jax.Array]) -> jax.Array:
    """Joins arrays along their rows; `split_rows` separates them again.

    Rows alternate: of 4 and 2 rows, two of the first are followed by one of the second, twice. Each
    device of a mesh then joins the rows that it holds and none travels, while the order is the same
    on every mesh.

    Args:
        arrays: `[rows, ...]` each; they differ in the number of rows alone.

    Returns:
        `[sum of rows, ...]`.
    """
    arrays = list(arrays)
    # The devices divide the batch sizes of all streams, and so their greatest common divisor: each
    # device holds whole blocks.
    blocks = math.gcd(*map(len, arrays))
    # [rows, ...] -> [blocks, rows / blocks, ...]
    blocked = [_split_by_rows(x.reshape(blocks, -1, *x.shape[1:])) for x in arrays]
    joined = jnp.concatenate(blocked, axis=1)
    return _split_by_rows(joined.reshape(-1, *joined.shape[2:]))


def split_rows(joined: jax.Array, rows: Sequence[int]) -> list[jax.Array]:
    """Separates arrays that `interleave_rows` has joined.

    Args:
        joined: `[sum of rows, ...]`.
        rows: Number of rows of each array.

    Returns:
        `[rows, ...]` each.
    """
    blocks = math.gcd(*rows)
    blocked = _split_by_rows(joined.reshape(blocks, -1, *joined.shape[1:]))
    ends = [sum(rows[: index + 1]) // blocks for index in range(len(rows))]
    return [
        _split_by_rows(blocked[:, end - count // blocks : end].reshape(-1, *joined.shape[1:]))
        for end, count in zip(ends, rows, strict=True)
    ]


def _split_by_rows(x: jax.Array) -> jax.Array:
    """Asks the partitioner to split an array along its first axis."""
    return constrain(x, "batch", *(None for _ in x.shape[1:]))


def concat_valid(
    first: jax.Array, first_lengths: jax.Array, second: jax.Array, second_lengths: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Concatenates the valid positions of two sequences per row, without padding between them.

    Args:
        first: `[batch, n, ...]`.
        first_lengths: `[batch]` valid positions.
        second: `[batch, m, ...]`.
        second_lengths: `[batch]` valid positions.

    Returns:
        `[batch, n + m, ...]`, zero beyond the valid positions, and their number `[batch]`.
    """
    size = first.shape[1]
    positions = jnp.arange(size + second.shape[1])[None, :]  # [1, n + m]
    offset = positions - first_lengths[:, None]  # [batch, n + m], position within the second
    # In the two arrays side by side, the second begins at `size`.
    source = jnp.where(offset < 0, positions, size + offset)
    lengths = first_lengths + second_lengths
    valid = positions < lengths[:, None]
    source = jnp.where(valid, source, 0)
    extra = (1,) * (first.ndim - 2)
    both = jnp.concatenate([first, second.astype(first.dtype)], axis=1)
    joined = jnp.take_along_axis(both, source.reshape(*source.shape, *extra), axis=1)
    return jnp.where(valid.reshape(*valid.shape, *extra), joined, 0), lengths


# --- Speech --------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpeechEncoding:
    """A stream of speech after the speech encoder.

    Attributes:
        mel: `[batch, mel_frames, bins]`, log-mel features before masks and SpecAugment; noise and
            the like that were added to the audio are in it.
        mel_lengths: `[batch]`, their valid frames.
        features: `[batch, frames, conv_features]`, subsampled; masked if the log-mel features were.
        mask: `[batch, frames]` bool, True = valid.
        hidden: `[batch, frames]` bool, frames whose input was masked.
        encoded: `[batch, frames, features]`, e_s.
        intermediate: `[batch, frames, features]`, output of the layer that the contrastive loss
            reads.
        clean_mel: `[batch, mel_frames, bins]`, `mel` of the audio before augmentation, frame by
            frame of the same moments; None where that is the same.
    """

    mel: jax.Array
    mel_lengths: jax.Array
    features: jax.Array
    mask: jax.Array
    hidden: jax.Array
    encoded: jax.Array
    intermediate: jax.Array
    clean_mel: jax.Array | None = None

    @property
    def target_mel(self) -> jax.Array:
        """Returns the log-mel features that targets are made of, `[batch, mel_frames, bins]`."""
        return self.mel if self.clean_mel is None else self.clean_mel


class SpeechMasking(Protocol):
    """Which frames of a stream of speech are masked, and where."""

    @property
    def masks_mel(self) -> bool:
        """Returns whether `mask_mel` masks log-mel features; else the encoder's input is masked."""

    def sample_mask(self, rng: jax.Array, valid: jax.Array) -> jax.Array:
        """Draws the frames to mask, `[batch, frames]` bool, of those that are valid."""

    def mask_mel(self, rng: jax.Array, mel: jax.Array, hidden: jax.Array) -> jax.Array:
        """Replaces `[batch, mel_frames, bins]` where `hidden` `[batch, mel_frames]` is True."""


def encode_speech(
    model: Maestro,
    streams: Mapping[str, Mapping[str, jax.Array]],
    rng: jax.Array,
    *,
    masking: Mapping[str, SpeechMasking] | None = None,
    augment: jax.Array | bool,
    deterministic: bool,
) -> dict[str, SpeechEncoding]:
    """Computes features, masks and e_s of streams of speech.

    Args:
        model: The model, bound.
        streams: The streams with audio. If one that is masked has `clean_audio`, its targets are
            made of it.
        rng: Random key for masks.
        masking: The streams that are masked, and how; None: none of them.
        augment: SpecAugment on the other streams; a scalar array where it depends on the step.
        deterministic: No dropout.

    Returns:
        By stream; `intermediate` is that of the speech encoder.
    """
    masking = masking or {}
    # The first keeps the key: with one masked stream, as in MAESTRO, the masks of a seed are those
    # that published figures were made with.
    keys = {
        name: jax.random.fold_in(rng, index) if index else rng for index, name in enumerate(masking)
    }
    encodings: dict[str, SpeechEncoding] = {}
    for group in group_by_shape({name: s["audio"].shape[1] for name, s in streams.items()}):
        rows = [len(streams[name]["audio"]) for name in group]
        mel, lengths = model.log_mel(
            interleave_rows(streams[name]["audio"] for name in group),
            interleave_rows(streams[name]["audio_length"] for name in group),
        )
        mels, mel_lengths = split_rows(mel, rows), split_rows(lengths, rows)
        # Whatever is random is drawn per stream, whoever shares the pass.
        inputs, hidden = [], []
        for name, stream_mel, stream_lengths in zip(group, mels, mel_lengths, strict=True):
            valid = model.frame_mask(stream_mel, stream_lengths)
            stream_hidden = jnp.zeros_like(valid)
            if name in masking:
                mask_rng, noise_rng = jax.random.split(keys[name])
                stream_hidden = masking[name].sample_mask(mask_rng, valid)
                if masking[name].masks_mel:
                    # [batch, frames] -> [batch, mel_frames]
                    mel_hidden = jnp.repeat(stream_hidden, model.subsampling.factor, axis=1)
                    mel_hidden = mel_hidden[:, : stream_mel.shape[1]]
                    stream_mel = masking[name].mask_mel(noise_rng, stream_mel, mel_hidden)
            elif name != "speech" and augment is not False:
                # Untranscribed speech has masks of its own; the quantizer must see it whole.
                stream_mel = model.spec_augment(stream_mel, stream_lengths, augment)
            inputs.append(stream_mel)
            hidden.append(stream_hidden)
        features, mask = model.subsample(interleave_rows(inputs), lengths)
        masked_frames = None
        if any(name in group and not masking[name].masks_mel for name in masking):
            masked_frames = interleave_rows(hidden)
        encoded, intermediate = model.encode_speech_with_intermediate(
            features,
            mask,
            interleave_rows(streams[name]["language"] for name in group),
            masked_frames=masked_frames,
            deterministic=deterministic,
        )
        # Log-mel features before masks and SpecAugment: targets and alignments are made of them.
        columns = {
            "mel": mels,
            "mel_lengths": mel_lengths,
            "hidden": hidden,
            "features": split_rows(features, rows),
            "mask": split_rows(mask, rows),
            "encoded": split_rows(encoded, rows),
            "intermediate": split_rows(intermediate, rows),
        }
        for index, name in enumerate(group):
            encodings[name] = SpeechEncoding(
                **{key: value[index] for key, value in columns.items()}
            )
    for name in masking:
        if "clean_audio" in streams.get(name, {}):
            clean_audio = _split_by_rows(streams[name]["clean_audio"])
            clean_mel, _ = model.log_mel(clean_audio, streams[name]["audio_length"])
            encodings[name] = dataclasses.replace(encodings[name], clean_mel=clean_mel)
    return encodings


def synthetic_speech(streams: Batch, name: str) -> dict[str, jax.Array]:
    """Returns the synthesised speech of a stream's texts, as a stream of transcribed speech.

    Args:
        streams: A batch.
        name: The stream, which a synthesiser has spoken (`StreamConfig.synthesis`).

    Returns:
        Its features, with `synthetic_audio` and its length as `audio` and `audio_length`. A text
        that was not spoken has a length of 0.

    Raises:
        UserError: The texts have not been spoken.
    """
    stream = streams[name]
    if "synthetic_audio" not in stream:
        raise UserError(
            f"the objective hears the texts of stream {name!r}, which nobody speaks; set "
            f"{name}/StreamConfig.synthesis, as objectives/tts4pretrain.gin does."
        )
    return {
        **stream,
        "audio": stream["synthetic_audio"],
        "audio_length": stream["synthetic_audio_length"],
    }


# --- Text ----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class TokenBatch:
    """A text as it comes from a batch.

    Attributes:
        tokens: `[batch, tokens]` int32.
        lengths: `[batch]` int32.
        language: `[batch]` int32 ids.
    """

    tokens: jax.Array
    lengths: jax.Array
    language: jax.Array


@dataclasses.dataclass(frozen=True)
class TextEncoding:
    """A text after the text encoder, with the durations to resample it by.

    Attributes:
        mask: `[batch, tokens]` bool, True = valid.
        embedded: `[batch, tokens, text_features]`, e_t.
        durations: `[batch, tokens]`, in frames.
    """

    mask: jax.Array
    embedded: jax.Array
    durations: jax.Array


@dataclasses.dataclass(frozen=True)
class UpsampledText:
    """A text at frame rate.

    Attributes:
        refined: `[batch, frames, features]`, ê_t; zero where the text does not fit.
        index: Which token each frame comes from; a text that does not fit has no valid frame.
        fits: `[batch]` bool, whether the text has no more frames than allowed.
    """

    refined: jax.Array
    index: FrameIndex
    fits: jax.Array


def encode_text(
    model: Maestro,
    texts: Mapping[str, TokenBatch],
    durations_of: Callable[[TokenBatch, jax.Array, jax.Array], jax.Array] | None,
    aligned: Mapping[str, jax.Array],
    *,
    deterministic: bool,
) -> dict[str, TextEncoding]:
    """Computes e_t and durations.

    Args:
        model: The model, bound.
        texts: The texts by name.
        durations_of: From texts, their mask and e_t to durations `[batch, tokens]` in frames; None
            for texts that are not resampled, whose durations are 0.
        aligned: Durations of the texts that have been aligned with speech; `durations_of` is not
            called for them.
        deterministic: No dropout.

    Returns:
        By name.
    """
    encodings: dict[str, TextEncoding] = {}
    for group in group_by_shape({name: text.tokens.shape[1] for name, text in texts.items()}):
        members = [texts[name] for name in group]
        rows = [len(text.tokens) for text in members]
        joined = TokenBatch(
            interleave_rows(text.tokens for text in members),
            interleave_rows(text.lengths for text in members),
            interleave_rows(text.language for text in members),
        )
        mask = length_mask(joined.lengths, joined.tokens.shape[1])
        embedded = model.encode_text(
            joined.tokens, mask, joined.language, deterministic=deterministic
        )
        # Stays 0 where no text is resampled, or where durations come from alignments.
        durations = jnp.zeros_like(joined.tokens)
        if durations_of is not None and any(name not in aligned for name in group):
            durations = durations_of(joined, mask, embedded)
        columns = [split_rows(array, rows) for array in (mask, embedded, durations)]
        for name, *arrays in zip(group, *columns, strict=True):
            encoding = TextEncoding(*arrays)
            # Where aligned and other texts share a pass, what was predicted for the former is not
            # used.
            encodings[name] = dataclasses.replace(
                encoding, durations=aligned.get(name, encoding.durations)
            )
    return encodings


def upsample(
    model: Maestro,
    texts: Mapping[str, TextEncoding],
    max_frames: Mapping[str, int],
    *,
    deterministic: bool,
) -> dict[str, UpsampledText]:
    """Computes ê_t of every text that fits.

    A text of more frames than allowed gets no frames at all. Cut off, it would still have its whole
    transcript or translation to produce, from frames that are missing; without frames it leaves
    every loss, as an over-long transcribed utterance does.

    Args:
        model: The model, bound.
        texts: Embeddings with durations, by name.
        max_frames: The static number of frames of each.
        deterministic: No dropout.

    Returns:
        By name; `index.overflow` still says by how many frames a text was too long.
    """
    shapes = {name: (text.embedded.shape[1], max_frames[name]) for name, text in texts.items()}
    upsampled: dict[str, UpsampledText] = {}
    for group in group_by_shape(shapes):
        rows = [len(texts[name].embedded) for name in group]
        refined, index = model.upsample(
            interleave_rows(texts[name].embedded for name in group),
            interleave_rows(texts[name].durations for name in group),
            max_frames[group[0]],
            deterministic=deterministic,
        )
        # [batch]. Without frames the transducer counts neither the loss nor the labels of a text.
        fits = index.overflow == 0
        mask = index.mask & fits[:, None]
        lengths = jnp.where(fits, index.lengths, 0)
        index = dataclasses.replace(index, mask=mask, lengths=lengths)
        refined = zero_padding(refined, mask)
        # The frame index is split by rows like an array: all of its fields have rows first.
        leaves, structure = jax.tree.flatten((refined, index, fits))
        columns = [split_rows(leaf, rows) for leaf in leaves]
        for name, *arrays in zip(group, *columns, strict=True):
            upsampled[name] = UpsampledText(*jax.tree.unflatten(structure, arrays))
    return upsampled


def default_max_text_frames(model: Any, audio_samples: Mapping[str, int]) -> int:
    """Returns the number of encoder frames of the longest speech of a run or a batch.

    That is how many frames a resampled text may have by default. Durations are learned from pairs,
    so that few texts of the same kind last longer, and streams of equal length share a pass.

    Args:
        model: A `Maestro`.
        audio_samples: Padded length of the audio of each stream, in samples.

    Returns:
        The frames of the first stream of `SPEECH_LENGTH_STREAMS` that has audio.

    Raises:
        UserError: There is no speech.
    """
    for name in SPEECH_LENGTH_STREAMS:
        if name in audio_samples:
            return model.frame_count(audio_samples[name])
    raise UserError(
        "MAX_TEXT_FRAMES (max_text_frames of the objective) is None, but no stream has audio whose "
        "length could be used; set it to a number such as 400."
    )


def audio_samples(batch: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
    """Returns the padded samples of each stream of a batch (arrays or shapes) that has audio."""
    return {name: stream["audio"].shape[1] for name, stream in batch.items() if "audio" in stream}


# --- Shared encoder ------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class EncoderInput:
    """The input of the shared encoder for one stream.

    Attributes:
        values: `[batch, frames, features]`, e_s or the masked ê_t.
        mask: `[batch, frames]` bool.
        target_language: `[batch]` ids for translation; None to write the language that is spoken.
        language: `[batch]` ids of the language spoken or written, for encoders that use it.
    """

    values: jax.Array
    mask: jax.Array
    target_language: jax.Array | None = None
    language: jax.Array | None = None


def encode_shared(
    model: Maestro, inputs: Mapping[str, EncoderInput], *, deterministic: bool
) -> dict[str, jax.Array]:
    """Computes the shared encoder's output `[batch, frames, features]` by stream."""
    both = encode_shared_with_intermediate(model, inputs, deterministic=deterministic)
    return {name: context for name, (context, _) in both.items()}


def encode_shared_with_intermediate(
    model: Maestro, inputs: Mapping[str, EncoderInput], *, deterministic: bool
) -> dict[str, tuple[jax.Array, jax.Array]]:
    """Applies the shared encoder to all streams.

    Args:
        model: The model, bound.
        inputs: Its input by stream.
        deterministic: No dropout.

    Returns:
        By stream, its output and that of the layer that the contrastive loss reads (the output
        again if that layer is below), both `[batch, frames, features]`.
    """
    outputs: dict[str, tuple[jax.Array, jax.Array]] = {}
    for group in group_by_shape({name: each.values.shape[1] for name, each in inputs.items()}):
        members = [inputs[name] for name in group]
        rows = [len(member.values) for member in members]
        context, intermediate = model.encode_shared_with_intermediate(
            interleave_rows(member.values for member in members),
            interleave_rows(member.mask for member in members),
            _language_ids([member.target_language for member in members], rows),
            _language_ids([member.language for member in members], rows),
            deterministic=deterministic,
        )
        columns = (split_rows(context, rows), split_rows(intermediate, rows))
        outputs.update(zip(group, zip(*columns, strict=True), strict=True))
    return outputs


def _language_ids(members: Sequence[jax.Array | None], rows: Sequence[int]) -> jax.Array | None:
    """Joins language ids `[rows]`; None if no member has any."""
    if all(member is None for member in members):
        return None
    return interleave_rows(
        jnp.full((count,), NO_LANGUAGE, jnp.int32) if member is None else member
        for member, count in zip(members, rows, strict=True)
    )


# --- Metrics -------------------------------------------------------------------------------------


def upsampling_metrics(name: str, text: TextEncoding, upsampled: UpsampledText) -> Metrics:
    """Computes metrics of the resampling of a text.

    Args:
        name: Name of the text, with which those of the metrics begin.
        text: The text with its durations.
        upsampled: The text at frame rate.

    Returns:
        `<name>/overflow_frames`, the frames per step beyond the largest number allowed;
        `<name>/too_long_fraction`, the fraction of texts that have left the loss for that; and
        `<name>/frames_per_token`.
    """
    return {
        f"{name}/overflow_frames": per_step(jnp.sum(upsampled.index.overflow)),
        f"{name}/too_long_fraction": masked_sum(~upsampled.fits, jnp.any(text.mask, axis=1)),
        f"{name}/frames_per_token": masked_sum(text.durations, text.mask),
    }


def stream_metrics(
    batch: Batch, texts: Mapping[str, TextEncoding], upsampled: Mapping[str, UpsampledText]
) -> Metrics:
    """Computes the number of examples per stream, and the metrics of `upsampling_metrics`."""
    metrics: Metrics = {}
    for name, stream in batch.items():
        lengths = "audio_length" if "audio_length" in stream else "text_length"
        metrics[f"{name}/examples"] = num_present(stream[lengths])
    for name, text in texts.items():
        if name != "paired":
            metrics |= upsampling_metrics(name, text, upsampled[name])
    return metrics

"""The passes over the networks below the shared encoder, in as few calls as the lengths allow."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from maestro_jax.layers.masking import length_mask, zero_padding
from maestro_jax.losses.reduction import masked_sum
from maestro_jax.modules.resampler import FrameIndex
from maestro_jax.objectives.base import Batch, Metrics, Parts, present
from maestro_jax.objectives.joining import groups_of_equal, join, split

Features = Mapping[str, jax.Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Speech:
    """A spoken stream after the speech encoder.

    Attributes:
        mel: `[batch, mel_frames, bins]`, log-mel features, neither masked nor augmented but with
            what sounds in the audio itself.
        mel_lengths: `[batch]`, their valid frames.
        features: `[batch, frames, conv_features]`, subsampled; masked if the log-mel features were.
        mask: `[batch, frames]` bool, True = valid.
        hidden: `[batch, frames]` bool, frames whose input was masked.
        encoded: `[batch, frames, features]`, e_s.
        tapped: `[batch, frames, features]`, of the layer that the contrastive loss taps.
        clean_mel: `[batch, mel_frames, bins]`, `mel` of the audio before augmentation, frame by
            frame of the same moments; None where that is the same.
    """

    mel: jax.Array
    mel_lengths: jax.Array
    features: jax.Array
    mask: jax.Array
    hidden: jax.Array
    encoded: jax.Array
    tapped: jax.Array
    clean_mel: jax.Array | None = None

    @property
    def target_mel(self) -> jax.Array:
        """`[batch, mel_frames, bins]`, the log-mel features that targets are made of."""
        return self.mel if self.clean_mel is None else self.clean_mel


@dataclasses.dataclass(frozen=True)
class Written:
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
class Text:
    """A text on its way to frames.

    Attributes:
        mask: `[batch, tokens]` bool, True = valid.
        embedded: `[batch, tokens, text_features]`, e_t.
        durations: `[batch, tokens]`, the frames it is resampled to.
    """

    mask: jax.Array
    embedded: jax.Array
    durations: jax.Array


@dataclasses.dataclass(frozen=True)
class Upsampled:
    """A text at frame rate.

    Attributes:
        refined: `[batch, frames, features]`, ê_t; zero where the text does not fit.
        index: Which token each frame comes from; a text that does not fit has no valid frame.
        fits: `[batch]` bool, whether there was room for all frames of the text.
    """

    refined: jax.Array
    index: FrameIndex
    fits: jax.Array


class SpeechMasks(Protocol):
    """Which frames of untranscribed speech are hidden, and where."""

    @property
    def hides_mel(self) -> bool:
        """Whether log-mel features are hidden, by `hide_mel`, or what enters the speech encoder."""

    def mask(self, rng: jax.Array, valid: jax.Array) -> jax.Array:
        """The frames to hide, `[batch, frames]` bool, of those that are valid."""

    def hide_mel(self, rng: jax.Array, mel: jax.Array, hidden: jax.Array) -> jax.Array:
        """`[batch, mel_frames, bins]` with what is `hidden`, `[batch, mel_frames]`, replaced."""


def encode_speech(
    parts: Parts,
    spoken: Mapping[str, Features],
    rng: jax.Array,
    *,
    masks: SpeechMasks | None = None,
    augment: jax.Array | bool,
) -> dict[str, Speech]:
    """Features, masks and e_s of the spoken streams.

    Args:
        parts: The model.
        spoken: The streams with audio, of which the one called `speech` is masked. If that has
            `clean_audio`, its targets are to be made of it.
        rng: Random key for its masks.
        masks: What to hide of it; None: nothing.
        augment: SpecAugment on the other streams; a scalar array where it depends on the step.

    Returns:
        By stream; `tapped` is that of the speech encoder.
    """
    found: dict[str, Speech] = {}
    for group in groups_of_equal({name: s["audio"].shape[1] for name, s in spoken.items()}):
        rows = [len(spoken[name]["audio"]) for name in group]
        mel, lengths = parts(
            "log_mel",
            join(spoken[name]["audio"] for name in group),
            join(spoken[name]["audio_length"] for name in group),
        )
        mels, counts = split(mel, rows), split(lengths, rows)
        # Whatever is random is drawn stream by stream, whoever shares the pass.
        heard, hidden = [], []
        for name, each, count in zip(group, mels, counts, strict=True):
            valid = parts("frame_mask", each, count)
            hides = jnp.zeros_like(valid)
            if name == "speech" and masks is not None:
                mask_rng, noise_rng = jax.random.split(rng)
                hides = masks.mask(mask_rng, valid)
                if masks.hides_mel:
                    spread = jnp.repeat(hides, parts.model.subsampling.factor, axis=1)
                    each = masks.hide_mel(noise_rng, each, spread[:, : each.shape[1]])
            elif name != "speech" and augment is not False:
                # Untranscribed speech has masks of its own; the quantizer must see it whole.
                each = parts("spec_augment", each, count, augment)
            heard.append(each)
            hidden.append(hides)
        features, mask = parts("subsample", join(heard), lengths)
        masked_frames = None
        if "speech" in group and masks is not None and not masks.hides_mel:
            masked_frames = join(hidden)
        encoded, tapped = parts(
            "encode_speech_with_tap",
            features,
            mask,
            join(spoken[name]["language"] for name in group),
            masked_frames=masked_frames,
            deterministic=parts.deterministic,
        )
        columns = {
            "mel": mels,
            "mel_lengths": counts,
            "hidden": hidden,
            "features": split(features, rows),
            "mask": split(mask, rows),
            "encoded": split(encoded, rows),
            "tapped": split(tapped, rows),
        }
        for index, name in enumerate(group):
            found[name] = Speech(**{field: column[index] for field, column in columns.items()})
    if masks is not None and "clean_audio" in spoken.get("speech", {}):
        stream = spoken["speech"]
        clean, _ = parts("log_mel", join([stream["clean_audio"]]), stream["audio_length"])
        found["speech"] = dataclasses.replace(found["speech"], clean_mel=clean)
    return found


def encode_texts(
    parts: Parts,
    written: Mapping[str, Written],
    durations_of: Callable[[Written, jax.Array, jax.Array], jax.Array],
    aligned: Mapping[str, jax.Array],
) -> dict[str, Text]:
    """e_t and durations.

    Args:
        parts: The model.
        written: The texts.
        durations_of: From texts, their mask and e_t to durations `[batch, tokens]` in frames.
        aligned: Durations of the texts that have been aligned with speech; they are not asked for.

    Returns:
        By name.
    """
    found: dict[str, Text] = {}
    for group in groups_of_equal({name: text.tokens.shape[1] for name, text in written.items()}):
        members = [written[name] for name in group]
        rows = [len(text.tokens) for text in members]
        joined = Written(
            join(text.tokens for text in members),
            join(text.lengths for text in members),
            join(text.language for text in members),
        )
        mask = length_mask(joined.lengths, joined.tokens.shape[1])
        embedded = parts(
            "encode_text", joined.tokens, mask, joined.language, deterministic=parts.deterministic
        )
        durations = jnp.zeros_like(joined.tokens)
        if any(name not in aligned for name in group):
            durations = durations_of(joined, mask, embedded)
        columns = [split(array, rows) for array in (mask, embedded, durations)]
        for name, *each in zip(group, *columns, strict=True):
            text = Text(*each)
            found[name] = dataclasses.replace(text, durations=aligned.get(name, text.durations))
    return found


def upsample(
    parts: Parts, texts: Mapping[str, Text], frames: Mapping[str, int]
) -> dict[str, Upsampled]:
    """ê_t of every text that fits.

    A text that lasts longer than its room gets no frames at all. Cut off, it would still have its
    whole transcript or translation to write, from frames that are not there; without frames it
    leaves every loss, as an over-long transcribed utterance does.

    Args:
        parts: The model.
        texts: Embeddings with durations.
        frames: The static number of frames of each, its room.

    Returns:
        By name; `index.overflow` still says how many frames there was no room for.
    """
    shapes = {name: (text.embedded.shape[1], frames[name]) for name, text in texts.items()}
    found: dict[str, Upsampled] = {}
    for group in groups_of_equal(shapes):
        rows = [len(texts[name].embedded) for name in group]
        refined, index = parts(
            "upsample",
            join(texts[name].embedded for name in group),
            join(texts[name].durations for name in group),
            frames[group[0]],
            deterministic=parts.deterministic,
        )
        fits = index.overflow == 0
        mask = index.mask & fits[:, None]
        index = index.replace(mask=mask, lengths=jnp.where(fits, index.lengths, 0))
        refined = zero_padding(refined, mask)
        leaves, structure = jax.tree.flatten((refined, index, fits))
        columns = [split(leaf, rows) for leaf in leaves]
        for name, *each in zip(group, *columns, strict=True):
            found[name] = Upsampled(*jax.tree.unflatten(structure, each))
    return found


def resampling_metrics(name: str, text: Text, upsampled: Upsampled) -> Metrics:
    """What became of a text in resampling.

    Args:
        name: Of the text.
        text: It, with its durations.
        upsampled: It at frame rate.

    Returns:
        `<name>/overflow_frames`, the frames a step for which there was no room;
        `<name>/over_long_share`, the share of the texts that have left the loss for that; and
        `<name>/frames_per_token`.
    """
    overflow = jnp.sum(upsampled.index.overflow).astype(jnp.float32)
    return {
        f"{name}/overflow_frames": (overflow, jnp.ones(())),
        f"{name}/over_long_share": masked_sum(~upsampled.fits, jnp.any(text.mask, axis=1)),
        f"{name}/frames_per_token": masked_sum(text.durations, text.mask),
    }


def stream_metrics(
    batch: Batch, texts: Mapping[str, Text], upsampled: Mapping[str, Upsampled]
) -> Metrics:
    """How many examples each stream had, and what became of its texts in resampling."""
    metrics: Metrics = {}
    for name, stream in batch.items():
        lengths = "audio_length" if "audio_length" in stream else "text_length"
        metrics[f"{name}/examples"] = present(stream[lengths])
    for name, text in texts.items():
        if name != "paired":
            metrics |= resampling_metrics(name, text, upsampled[name])
    return metrics


def one_after_the_other(
    first: Any, first_lengths: jax.Array, second: Any, second_lengths: jax.Array
) -> tuple[Any, jax.Array]:
    """Two sequences a row as one, without padding between them.

    Args:
        first: `[batch, n, ...]`.
        first_lengths: `[batch]` valid positions.
        second: `[batch, m, ...]`.
        second_lengths: `[batch]` valid positions.

    Returns:
        `[batch, n + m, ...]`, zero beyond the valid positions, and their number `[batch]`.
    """
    size = first.shape[1]
    positions = jnp.arange(size + second.shape[1])[None, :]
    after = positions - first_lengths[:, None]
    # In the two arrays side by side, the second begins at `size`.
    source = jnp.where(after < 0, positions, size + after)
    lengths = first_lengths + second_lengths
    valid = positions < lengths[:, None]
    source = jnp.where(valid, source, 0)
    extra = (1,) * (first.ndim - 2)
    both = jnp.concatenate([first, second.astype(first.dtype)], axis=1)
    joined = jnp.take_along_axis(both, source.reshape(*source.shape, *extra), axis=1)
    return jnp.where(valid.reshape(*valid.shape, *extra), joined, 0), lengths

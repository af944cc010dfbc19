"""The five streams of a batch: which features each has, with which shapes.

A batch is ``{stream: {feature: array}}``; MAESTRO mixes the streams in every step at a fixed ratio,
so each stream has its own fixed number of examples. Every padded feature has a ``*_length`` with
its true length; length 0 means that the example is absent, and every loss copes with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import numpy as np

from maestro_jax.errors import UserError, near_misses

STREAM_FEATURES: dict[str, tuple[str, ...]] = {
    "speech": ("audio", "audio_length", "language"),
    "text": ("text", "text_length", "language"),
    "paired": ("audio", "audio_length", "text", "text_length", "language"),
    "mt": (
        "text",
        "text_length",
        "translation",
        "translation_length",
        "language",
        "target_language",
    ),
    "st": (
        "audio",
        "audio_length",
        "translation",
        "translation_length",
        "language",
        "target_language",
    ),
}
"""The features of each stream, in the order in which they are shown."""

SEQUENCE_LIMITS: dict[str, str] = {
    "audio": "audio_samples",
    "text": "text_tokens",
    "translation": "translation_tokens",
}
"""The features with a length, and the field of a `StreamConfig` that bounds it."""

SAMPLE_RATE = 16_000
"""Samples of audio a second, everywhere."""


@dataclass(frozen=True, kw_only=True)
class StreamConfig:
    """Where the examples of one stream come from, and the shape of its part of a batch.

    Attributes:
        mixture: The name of a seqio task or mixture.
        batch_size: Examples a step, over all processes.
        audio_samples: Samples at 16 kHz that an example's audio is padded to; 0 when the stream has
            no audio.
        text_tokens: Tokens that a text is padded to; 0 when the stream has none.
        translation_tokens: Tokens that a translation is padded to; 0 when the stream has none.
    """

    mixture: str
    batch_size: int
    audio_samples: int = 0
    text_tokens: int = 0
    translation_tokens: int = 0

    def __post_init__(self) -> None:
        if not self.mixture or not isinstance(self.mixture, str):
            raise UserError(
                f"StreamConfig.mixture is {self.mixture!r}; "
                "name a task or mixture (`maestro tasks` lists them)."
            )
        if not isinstance(self.batch_size, int) or self.batch_size < 1:
            raise UserError(
                f"StreamConfig.batch_size of {self.mixture!r} is {self.batch_size!r}; "
                "it must be at least 1 (leave a stream out to train without it)."
            )
        for field in SEQUENCE_LIMITS.values():
            value = getattr(self, field)
            if not isinstance(value, int) or value < 0:
                raise UserError(
                    f"StreamConfig.{field} of {self.mixture!r} is {value!r}; "
                    "it must be a whole number >= 0."
                )


def stream_sequences(stream: str) -> tuple[str, ...]:
    """The features of a stream that have a length, such as ``("audio", "text")`` of ``paired``."""
    return tuple(name for name in STREAM_FEATURES[stream] if name in SEQUENCE_LIMITS)


def check_streams(streams: Mapping[str, StreamConfig]) -> None:
    """Checks the streams of a run before anything is read.

    Args:
        streams: The configuration of each stream.

    Raises:
        UserError: No stream, an unknown stream, or a stream without a length that it needs.
    """
    if not streams:
        raise UserError(
            "the run has no stream; name at least one of " + ", ".join(STREAM_FEATURES) + "."
        )
    for name, config in streams.items():
        if name not in STREAM_FEATURES:
            raise UserError(
                f"unknown stream {name!r}; the streams are {', '.join(STREAM_FEATURES)}."
                + near_misses(name, STREAM_FEATURES)
            )
        sequences = stream_sequences(name)
        for sequence, field in SEQUENCE_LIMITS.items():
            if sequence in sequences and not getattr(config, field):
                raise UserError(
                    f"stream {name!r} needs {field} > 0: it has the feature {sequence!r}."
                )
            if sequence not in sequences and getattr(config, field):
                raise UserError(
                    f"stream {name!r} has no feature {sequence!r}, "
                    f"but {field} is {getattr(config, field)}; remove it."
                )


def batch_shapes(
    streams: Mapping[str, StreamConfig],
) -> dict[str, dict[str, jax.ShapeDtypeStruct]]:
    """The global shapes and types of a batch.

    Args:
        streams: The configuration of each stream.

    Returns:
        ``{stream: {feature: shape and dtype}}``: audio int16 `[batch, samples]`, tokens int32
        `[batch, tokens]`, lengths and languages int32 `[batch]`.

    Raises:
        UserError: See `check_streams`.
    """
    check_streams(streams)
    shapes: dict[str, dict[str, jax.ShapeDtypeStruct]] = {}
    for name, config in streams.items():
        shapes[name] = {}
        for feature in STREAM_FEATURES[name]:
            shape: tuple[int, ...] = (config.batch_size,)
            if feature in SEQUENCE_LIMITS:
                shape += (getattr(config, SEQUENCE_LIMITS[feature]),)
            dtype = np.int16 if feature == "audio" else np.int32
            shapes[name][feature] = jax.ShapeDtypeStruct(shape, dtype)
    return shapes


def synthetic_batch(
    streams: Mapping[str, StreamConfig], seed: int, vocab_size: int
) -> dict[str, dict[str, np.ndarray]]:
    """Makes a batch out of nothing: noise for audio, random tokens for text.

    Args:
        streams: The configuration of each stream.
        seed: The batch is a function of it.
        vocab_size: Tokens are drawn from ``range(3, vocab_size)``: no padding, end of sequence or
            unknown piece.

    Returns:
        ``{stream: {feature: array}}`` with the shapes of `batch_shapes`; lengths are between half
        and the whole of the padded length, languages are below 2.

    Raises:
        UserError: See `check_streams`.
        ValueError: ``vocab_size`` is not above 3.
    """
    if vocab_size <= 3:
        raise ValueError(f"vocab_size must be above 3, got {vocab_size}")
    batch: dict[str, dict[str, np.ndarray]] = {}
    for order, (name, shapes) in enumerate(batch_shapes(streams).items()):
        rng = np.random.default_rng([seed, order])
        features: dict[str, np.ndarray] = {}
        for feature, spec in shapes.items():
            if feature in SEQUENCE_LIMITS:
                rows, longest = spec.shape
                lengths = rng.integers((longest + 1) // 2, longest + 1, rows)
                valid = np.arange(longest) < lengths[:, None]
                if feature == "audio":
                    values = rng.normal(0.0, 3000.0, spec.shape).clip(-32768, 32767)
                else:
                    values = rng.integers(3, vocab_size, spec.shape)
                features[feature] = np.where(valid, values, 0).astype(spec.dtype)
                features[f"{feature}_length"] = lengths.astype(np.int32)
            elif not feature.endswith("_length"):
                features[feature] = rng.integers(0, 2, spec.shape).astype(np.int32)
        batch[name] = {feature: features[feature] for feature in shapes}
    return batch

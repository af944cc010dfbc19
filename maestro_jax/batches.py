"""The five streams of a batch: which features each has, with which shapes.

A batch is ``{stream: {feature: array}}``; MAESTRO mixes the streams in every step at a fixed ratio,
so each stream has its own fixed number of examples. Every padded feature has a ``*_length`` with
its true length; length 0 means that the example is absent, and every loss copes with it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import jax
import numpy as np

from maestro_jax.augmentation_config import AudioAugmentation
from maestro_jax.errors import UserError, near_misses
from maestro_jax.speech_synthesis import SpeechSynthesis

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
"""The features of each stream, in the order in which they are shown; see `stream_features`."""

SEQUENCE_LIMITS: dict[str, str] = {
    "audio": "audio_samples",
    "text": "text_tokens",
    "translation": "translation_tokens",
}
"""The features with a length, and the field of a `StreamConfig` that bounds it."""

AUDIO_FEATURES = ("audio", "clean_audio", "synthetic_audio")
"""The features that are samples, int16; all others are int32."""

COMPANIONS: dict[str, str] = {"clean_audio": "audio"}
"""Features with the same length and moments as another one, whose `*_length` holds for both."""

SPOKEN_STREAMS = ("text", "paired")
"""The streams whose texts a synthesiser can speak."""

SAMPLE_RATE = 16_000
"""Samples of audio a second, everywhere."""


@dataclass(frozen=True, kw_only=True)
class Buckets:
    """Shorter shapes for batches of a stream, beside the shape that its `StreamConfig` gives.

    A batch holds examples of one bucket: those that fit its shape, and no shorter one. Which bucket
    a batch is of depends on (seed, step) alone, and buckets are drawn as often as makes every
    example be seen equally often. The training step is compiled for every shape that occurs; the
    streams of a run draw together, short with short and long with long, so that there are no more
    shapes than all their buckets together. Every field is a tuple with a value a bucket, the
    shortest first:

        StreamConfig(
            mixture="...", batch_size=8, audio_samples=240_000, text_tokens=96,
            buckets=Buckets(
                batch_sizes=(24, 12), audio_samples=(80_000, 160_000), text_tokens=(40, 64)
            ),
        )

    has batches of 24 examples of up to 5 s, of 12 of up to 10 s, and of 8 of up to 15 s.

    Attributes:
        batch_sizes: Examples a step, over all processes.
        audio_samples: Samples at 16 kHz that audio is padded to; empty: the stream's own number in
            every bucket, and likewise for tokens.
        text_tokens: Tokens that a text is padded to.
        translation_tokens: Tokens that a translation is padded to.
        characters_per_token: Buckets are made before texts are tokenised, of their characters: a
            text fits where its characters by this number, and one token more, are not above the
            limit. With 1, no text of pieces or characters is put into too short a bucket; a larger
            number leaves less padding. A text that turns out too long for its bucket is an
            over-long example, which is left out and counted.
    """

    batch_sizes: tuple[int, ...]
    audio_samples: tuple[int, ...] = ()
    text_tokens: tuple[int, ...] = ()
    translation_tokens: tuple[int, ...] = ()
    characters_per_token: float = 1.0

    def __post_init__(self) -> None:
        for field in ("batch_sizes", *SEQUENCE_LIMITS.values()):
            values = getattr(self, field)
            if not isinstance(values, (tuple, list)):
                raise UserError(f"Buckets.{field} is {values!r}; write a tuple: ({values!r},).")
            object.__setattr__(self, field, tuple(values))
            if not all(isinstance(value, int) and value > 0 for value in values):
                raise UserError(
                    f"Buckets.{field} is {tuple(values)}; it must be whole numbers above 0."
                )
            if len(values) not in (0, len(self.batch_sizes)):
                raise UserError(
                    f"Buckets.{field} has {len(values)} values, but batch_sizes "
                    f"{len(self.batch_sizes)}; give one a bucket, or none at all."
                )
        if not self.batch_sizes:
            raise UserError("Buckets.batch_sizes is empty; leave buckets out for a single shape.")
        if not self.characters_per_token > 0:
            raise UserError(
                f"Buckets.characters_per_token is {self.characters_per_token}; it must be above 0."
            )


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """A mixture of seqio tasks that a gin file describes, instead of a Python module.

    For example:

        paired/batches.StreamConfig.mixture = @paired/batches.Mixture()
        paired/batches.Mixture:
          name = "german_and_slovene"
          tasks = {"minivox_small_paired_de": 1.0, "minivox_small_paired_sl": 3.0}

    Attributes:
        name: Its name, under which it is registered with seqio when it is first read.
        tasks: Mixing rates by task, up to a factor; or names of tasks and mixtures, which are drawn
            in proportion to the numbers of their training examples.
        temperature: Without rates: a task with n training examples has the rate
            ``min(n, maximum) ** (1 / temperature)``. Above 1, small tasks are drawn more often.
        maximum: Without rates: larger tasks count as if they had this number of examples.
    """

    name: str
    tasks: Mapping[str, float] | Sequence[str]
    temperature: float = 1.0
    maximum: int | None = None

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
            UserError: One is missing or out of range.
        """
        if not isinstance(self.name, str) or not re.fullmatch(r"[\w.:]+", self.name):
            raise UserError(f"Mixture.name is {self.name!r}; use letters, digits and . : _.")
        if isinstance(self.tasks, str) or not self.tasks:
            raise UserError(
                f"Mixture.tasks of {self.name!r} is {self.tasks!r}; give rates by task, "
                "{'task': 1.0}, or a list of tasks."
            )
        if isinstance(self.tasks, Mapping):
            rates = dict(self.tasks)
            for task, rate in rates.items():
                if not isinstance(rate, int | float) or not 0 < rate < math.inf:
                    raise UserError(
                        f"the rate of {task!r} in the mixture {self.name!r} is {rate!r}; it must "
                        "be a number above 0."
                    )
            if self.temperature != 1.0 or self.maximum is not None:
                raise UserError(
                    f"the mixture {self.name!r} has rates; temperature and maximum are for a list "
                    "of tasks without rates."
                )
        elif not self.temperature > 0:
            raise UserError(
                f"Mixture.temperature of {self.name!r} is {self.temperature}; it must be above 0."
            )

    def __str__(self) -> str:
        """Returns the name."""
        return self.name

    def __hash__(self) -> int:
        """Returns a hash; `tasks` may be a dictionary."""
        return hash(self.name)


@dataclass(frozen=True, kw_only=True)
class StreamConfig:
    """Where the examples of one stream come from, and the shape of its part of a batch.

    Attributes:
        mixture: The name of a seqio task or mixture; or a `Mixture`.
        batch_size: Examples a step, over all processes.
        audio_samples: Samples at 16 kHz that an example's audio is padded to; 0 when the stream has
            no audio.
        text_tokens: Tokens that a text is padded to; 0 when the stream has none.
        translation_tokens: Tokens that a translation is padded to; 0 when the stream has none.
        buckets: Shorter shapes; None: every batch has the shape given here.
        augmentation: What is done to audio before it is batched; None: nothing. Where it disturbs
            untranscribed speech, the batch has its `clean_audio` too.
        synthesis: Who speaks the texts of ``text`` or ``paired``; the batch then has their
            `synthetic_audio` too. None: nobody.
    """

    mixture: str | Mixture
    batch_size: int
    audio_samples: int = 0
    text_tokens: int = 0
    translation_tokens: int = 0
    buckets: Buckets | None = None
    augmentation: AudioAugmentation | None = None
    synthesis: SpeechSynthesis | None = None

    def __post_init__(self) -> None:
        if not self.mixture or not isinstance(self.mixture, str | Mixture):
            raise UserError(
                f"StreamConfig.mixture is {self.mixture!r}; "
                "name a task or mixture (`maestro tasks` lists them)."
            )
        if not isinstance(self.batch_size, int) or self.batch_size < 1:
            raise UserError(
                f"StreamConfig.batch_size of {str(self.mixture)!r} is {self.batch_size!r}; "
                "it must be at least 1 (leave a stream out to train without it)."
            )
        for field in SEQUENCE_LIMITS.values():
            value = getattr(self, field)
            if not isinstance(value, int) or value < 0:
                raise UserError(
                    f"StreamConfig.{field} of {str(self.mixture)!r} is {value!r}; "
                    "it must be a whole number >= 0."
                )
        if self.augmentation is not None and not self.audio_samples:
            raise UserError(f"{str(self.mixture)!r} has no audio to augment; remove augmentation.")
        shapes = self.shapes()
        for shorter, longer in zip(shapes, shapes[1:], strict=False):
            limits = [
                (getattr(shorter, field), getattr(longer, field), field)
                for field in SEQUENCE_LIMITS.values()
            ]
            for short, long, field in limits:
                if short > long:
                    raise UserError(
                        f"Buckets.{field} of {str(self.mixture)!r} has {short} before {long}; let "
                        f"them rise, up to the {field} of the stream."
                    )
            if all(short == long for short, long, _ in limits):
                raise UserError(
                    f"two buckets of {str(self.mixture)!r} have the same lengths "
                    f"({', '.join(f'{field} {long}' for _, long, field in limits if long)}); the "
                    "stream's own lengths are those of a last bucket, which is not to be named."
                )

    def shapes(self) -> tuple[StreamConfig, ...]:
        """A config without buckets for every shape that batches may have, this one's own last."""
        own = replace(self, buckets=None) if self.buckets is not None else self
        if self.buckets is None:
            return (own,)
        return (
            *(
                replace(
                    own,
                    batch_size=size,
                    **{
                        field: values[number]
                        for field in SEQUENCE_LIMITS.values()
                        if (values := getattr(self.buckets, field))
                    },
                )
                for number, size in enumerate(self.buckets.batch_sizes)
            ),
            own,
        )


def stream_sequences(stream: str) -> tuple[str, ...]:
    """The features of a stream that have a length, such as ``("audio", "text")`` of ``paired``."""
    return tuple(name for name in STREAM_FEATURES[stream] if name in SEQUENCE_LIMITS)


def stream_features(stream: str, config: StreamConfig) -> tuple[str, ...]:
    """The features that the batches of a stream have.

    Those of `STREAM_FEATURES`; and `clean_audio`, int16 `[batch, samples]` beside `audio`, for
    untranscribed speech that is disturbed by augmentation: its targets are made of the audio.
    Also `synthetic_audio`, int16 `[batch, SpeechSynthesis.audio_samples]`, and its length, where
    texts are spoken.
    """
    names = STREAM_FEATURES[stream]
    if config.synthesis is not None:
        return (*names, "synthetic_audio", "synthetic_audio_length")
    if stream != "speech" or config.augmentation is None or not config.augmentation.disturbs:
        return names
    after = names.index("audio_length") + 1
    return (*names[:after], "clean_audio", *names[after:])


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
        if config.synthesis is not None and name not in SPOKEN_STREAMS:
            raise UserError(
                f"stream {name!r} has a synthesis, but only texts of "
                f"{' and '.join(SPOKEN_STREAMS)} are spoken; remove it."
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
        ``{stream: {feature: shape and dtype}}``, with buckets of the longest: audio int16
        `[batch, samples]`, tokens int32 `[batch, tokens]`, lengths and languages int32 `[batch]`.

    Raises:
        UserError: See `check_streams`.
    """
    check_streams(streams)
    shapes: dict[str, dict[str, jax.ShapeDtypeStruct]] = {}
    for name, config in streams.items():
        shapes[name] = {}
        for feature in stream_features(name, config):
            shape: tuple[int, ...] = (config.batch_size,)
            sequence = COMPANIONS.get(feature, feature)
            if sequence in SEQUENCE_LIMITS:
                shape += (getattr(config, SEQUENCE_LIMITS[sequence]),)
            elif feature == "synthetic_audio" and config.synthesis is not None:
                shape += (config.synthesis.audio_samples,)
            dtype = np.int16 if feature in AUDIO_FEATURES else np.int32
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
            if feature in COMPANIONS:
                lengths = features[f"{COMPANIONS[feature]}_length"]
                valid = np.arange(spec.shape[1]) < lengths[:, None]
                values = rng.normal(0.0, 3000.0, spec.shape).clip(-32768, 32767)
                features[feature] = np.where(valid, values, 0).astype(spec.dtype)
            elif feature in SEQUENCE_LIMITS or feature in AUDIO_FEATURES:
                rows, longest = spec.shape
                lengths = rng.integers((longest + 1) // 2, longest + 1, rows)
                valid = np.arange(longest) < lengths[:, None]
                if feature in AUDIO_FEATURES:
                    values = rng.normal(0.0, 3000.0, spec.shape).clip(-32768, 32767)
                else:
                    values = rng.integers(3, vocab_size, spec.shape)
                features[feature] = np.where(valid, values, 0).astype(spec.dtype)
                features[f"{feature}_length"] = lengths.astype(np.int32)
            elif not feature.endswith("_length"):
                features[feature] = rng.integers(0, 2, spec.shape).astype(np.int32)
        batch[name] = {feature: features[feature] for feature in shapes}
    return batch

"""The rules by which `maestro quickstart` chooses; docs/how_to/quickstart.md states each of them.

A rule is a function of the figures of the directory, the budget and the device. What it chooses is
a `Choice`, with the rule and the figures in words.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

from maestro_jax.experiments.quickstart.figures import Figures
from maestro_jax.experiments.quickstart.survey import LONGEST

FRAMES_PER_SECOND = 25.0
"""Frames of the encoder, whose subsampling is by four."""
_LARGE_ALPHABET = 256
_PIECES_FROM_HOURS = 50.0
_FASTEST_CHARACTERS = 0.9 * FRAMES_PER_SECOND
"""Characters per second that CTC can still write, one per frame and some blanks."""
ALIGNED = 0.25
"""Part of the recogniser's steps after which CTC is expected to have aligned the encoder."""
AUGMENTED = 0.5
"""Part of the recogniser's steps after which SpecAugment begins."""
TRIED_SPEED = 100.0
"""Seconds of audio that one core trains the tiny model on in a second, in fine-tuning."""
ACCELERATION = 60.0
"""How many times faster a GPU or TPU is than a core."""
PRETRAINING_COST = 1.1
"""How many times longer a second of padded audio takes in pretraining."""
COMPILE_SECONDS, PRETRAINING_COMPILE_SECONDS = 25.0, 45.0
"""Time to compile a step of fine-tuning, and of pretraining, of the tiny model on two cores."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice:
    """One decision.

    Attributes:
        name: What is decided.
        value: The decision.
        rule: The rule in words.
        figure: The figures that it came from.
    """

    name: str
    value: str
    rule: str
    figure: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Size:
    """A size of the model.

    Attributes:
        name: Its name.
        file: Gin file of the model.
        macros: Macros of the file that differ.
        cost: Time of a step beside that of the tiny model.
        learning_rate: Peak learning rate.
    """

    name: str
    file: str
    macros: dict[str, str]
    cost: float
    learning_rate: float


SIZES = (
    Size(name="tiny", file="models/tiny.gin", macros={}, cost=1.0, learning_rate=1.5e-3),
    Size(
        name="small",
        file="models/tiny.gin",
        macros={"FEATURES": "192", "HIDDEN": "768", "SHARED_LAYERS": "4"},
        cost=3.0,
        learning_rate=1.2e-3,
    ),
    Size(
        name="medium",
        file="models/tiny.gin",
        macros={"FEATURES": "256", "HIDDEN": "1024", "SPEECH_LAYERS": "3", "SHARED_LAYERS": "5"},
        cost=7.0,
        learning_rate=1e-3,
    ),
    Size(name="base", file="models/base.gin", macros={}, cost=45.0, learning_rate=5e-4),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Device:
    """What computes.

    Attributes:
        kind: `cpu`, `gpu` or `tpu`.
        count: Number of cores, or of accelerators.
    """

    kind: str
    count: int

    @property
    def speed(self) -> float:
        """Returns the seconds of audio per second of the tiny model, before it is measured."""
        cores = 0.5 + 0.5 * min(self.count, 16)
        factor = ACCELERATION * self.count if self.kind != "cpu" else cores
        return TRIED_SPEED * factor


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shares:
    """How the seconds that are left after preparation are divided.

    Attributes:
        pretrain: For pretraining.
        recognition: For fine-tuning as a recogniser; 0 without transcripts.
        translation: For fine-tuning as a translator; 0 without translations.
        evaluation: For tuning the search and for the test sets.
    """

    pretrain: float
    recognition: float
    translation: float
    evaluation: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that is chosen.

    Attributes:
        shares: Seconds of each part.
        vocabulary: Kind of the vocabulary, of `vocabulary_training.KINDS`.
        vocabulary_size: Number of its pieces at most.
        byte_fallback: Whether characters without a piece are written as bytes.
        characters_per_token: Characters of a token, for buckets.
        seconds: Length of the longest batch.
        batch_seconds: Seconds of audio in a batch, padding included.
        buckets: Number of batch lengths of fine-tuning.
        pretrain_buckets: Number of batch lengths of transcribed speech in pretraining.
        size: Size of the model.
        passes: Number of times that fine-tuning is expected to see the transcribed speech.
        dropout: Dropout rate.
        speeds: Speeds at which the audio is heard.
        hybrid: Whether the recogniser has a transducer beside CTC, which comes first.
        text_starts: Part of pretraining after which text and translation begin.
        streams: Streams of pretraining.
        source_languages: Whether the encoders are told the language.
        choices: All of this in words.
    """

    shares: Shares
    vocabulary: str
    vocabulary_size: int
    byte_fallback: bool
    characters_per_token: float
    seconds: float
    batch_seconds: float
    buckets: int
    pretrain_buckets: int
    size: Size
    passes: float
    dropout: float
    speeds: tuple[float, ...]
    hybrid: bool
    text_starts: float
    streams: tuple[str, ...]
    source_languages: bool
    choices: tuple[Choice, ...]


def choose(figures: Figures, seconds: float, device: Device) -> Recipe:
    """Applies all rules.

    Args:
        figures: The figures of the directory.
        seconds: Seconds that are left of the budget.
        device: What computes.
    """
    choices: list[Choice] = []

    def choose_one(name: str, value: object, rule: str, figure: str) -> None:
        choices.append(Choice(name=name, value=str(value), rule=rule, figure=figure))

    shares = _shares(figures, seconds, choose_one)
    speeds = _speeds(figures, choose_one)
    kind, pieces, byte_fallback, per_token = _vocabulary(figures, max(speeds), choose_one)
    longest = _longest(figures, choose_one)
    batch_seconds = _batch_seconds(figures, device, choose_one)
    tuned = shares.recognition or shares.translation
    buckets = batch_lengths(figures.padding, tuned, COMPILE_SECONDS)
    pretrain_buckets = batch_lengths(figures.padding, shares.pretrain, PRETRAINING_COMPILE_SECONDS)
    paddings = ", ".join(f"{padding:.2f}" for padding in figures.padding)
    choose_one(
        "batch lengths",
        f"{pretrain_buckets} in pretraining, {buckets} in fine-tuning",
        f"the number with which most recordings are seen: each takes {COMPILE_SECONDS:.0f} s to "
        f"compile ({PRETRAINING_COMPILE_SECONDS:.0f} s in pretraining), and all leave less padding",
        f"{shares.pretrain:.0f} s and {tuned:.0f} s; {paddings} times the length with 1, 2, ...",
    )
    hours = max(figures.hours.get("train", 0.0), 1e-3)
    size, passes = _size(hours, tuned, device, choose_one)
    # A larger model has learned the speech by heart after fewer passes.
    weighted = passes if size is SIZES[0] else 3 * passes
    dropout = 0.0 if weighted < 100 else 0.1 if weighted < 200 else 0.15
    figure = f"{passes:.0f} passes with the {size.name} model"
    choose_one(
        "dropout",
        dropout,
        "0 below 100 passes over the transcribed speech, 0.1 below 200, else 0.15; a third of "
        "that many for models larger than tiny",
        figure,
    )
    choose_one(
        "SpecAugment",
        f"from {AUGMENTED:.0%} of the steps on",
        f"the recogniser from {AUGMENTED:.0%} of its steps on: before, it hides from an encoder "
        "what there is to learn, after that, most is known by heart; the translator from its first "
        "step",
        f"{hours:.2f} h of transcribed speech",
    )
    hybrid = weighted >= 100
    choose_one(
        "decoders of the recogniser",
        f"CTC, and a transducer from {ALIGNED:.0%} of the steps on" if hybrid else "CTC",
        "CTC alone below 100 passes over the transcribed speech (33 with models larger than "
        f"tiny); else CTC first, and from {ALIGNED:.0%} of the steps on a transducer beside it: "
        "its prediction network knows the sentences before the encoder hears anything in the "
        "speech, and then hides from the encoder what there is to learn",
        figure,
    )
    streams = _streams(figures, choose_one)
    starts = _curriculum(streams, choose_one)
    return Recipe(
        shares=shares,
        vocabulary=kind,
        vocabulary_size=pieces,
        byte_fallback=byte_fallback,
        characters_per_token=per_token,
        seconds=longest,
        batch_seconds=batch_seconds,
        buckets=buckets,
        pretrain_buckets=pretrain_buckets,
        size=size,
        passes=passes,
        dropout=dropout,
        speeds=speeds,
        hybrid=hybrid,
        text_starts=starts,
        streams=streams,
        source_languages=len(figures.languages) > 1,
        choices=tuple(choices),
    )


_Chooser = Callable[[str, object, str, str], None]


def _shares(figures: Figures, seconds: float, choose_one: _Chooser) -> Shares:
    """Divides the seconds that are left."""
    paired = figures.hours.get("train", 0.0)
    unpaired = figures.untranscribed_hours + figures.text_hours
    share = 0.15 + 0.35 * unpaired / max(paired + unpaired, 1e-9)
    evaluation = min(max(0.16 * seconds, 30.0), 1800.0, 0.4 * seconds)
    rest = seconds - evaluation
    translated = figures.translated.get("train", 0) > 0
    transcribed = figures.characters > 0
    translation = 0.0
    if translated:
        translation = 0.35 if transcribed else 1.0
    pretrain = share * rest
    tuned = rest - pretrain
    shares = Shares(
        pretrain=pretrain,
        recognition=(1 - translation) * tuned,
        translation=translation * tuned,
        evaluation=evaluation,
    )
    choose_one(
        "time for pretraining",
        f"{pretrain:.0f} s",
        "15% of the training time, and up to 50% the more unpaired speech and text there is",
        f"{paired:.2f} h transcribed, {figures.untranscribed_hours:.2f} h untranscribed, "
        f"{figures.unspoken_lines} lines",
    )
    choose_one(
        "time for recognition and translation",
        f"{shares.recognition:.0f} s and {shares.translation:.0f} s",
        "what pretraining leaves; with translations, 35% of that is for the translator",
        f"{figures.translated.get('train', 0)} translated utterances",
    )
    return shares


def _speeds(figures: Figures, choose_one: _Chooser) -> tuple[float, ...]:
    """Chooses the speeds at which the audio is heard."""
    speakers = figures.speakers.get("train", 0)
    one_speaker = speakers == 1 and not figures.speakers_apart
    if one_speaker:
        speeds: tuple[float, ...] = (0.95, 1.0, 1.05)
    elif speakers >= 200:
        speeds = (0.9, 1.0, 1.1)
    else:
        speeds = (0.85, 0.9, 0.95, 1.0, 1.05, 1.1, 1.15)
    choose_one(
        "speeds",
        speeds,
        "few speakers: 0.85 to 1.15, which are other voices; 200 or more: 0.9, 1, 1.1; one and the "
        "same speaker in training and test: 0.95 to 1.05",
        f"{speakers or 'an unknown number of'} speakers in training",
    )
    return speeds


def _vocabulary(
    figures: Figures, fastest: float, choose_one: _Chooser
) -> tuple[str, int, bool, float]:
    """Chooses kind and size of the vocabulary."""
    rate = figures.fast * fastest
    hours = figures.hours.get("train", 0.0)
    figure = (
        f"{figures.alphabet} different characters, {rate:.1f} a second in fast speech at the "
        f"highest speed, {hours:.1f} h"
    )
    rule = (
        f"characters; pieces if there are more than {_FASTEST_CHARACTERS:g} characters a "
        f"second (the encoder has {FRAMES_PER_SECOND:.0f} frames) or {_PIECES_FROM_HOURS:.0f} h; "
        f"with more than {_LARGE_ALPHABET} characters the rare ones are written as bytes"
    )
    large = figures.alphabet > _LARGE_ALPHABET
    pieces = not large and (rate > _FASTEST_CHARACTERS or hours >= _PIECES_FROM_HOURS)
    if pieces:
        # A piece must occur often enough to be learned: three hundred times on average.
        size = figures.characters // 2 // 300
        size = min(max(size, figures.alphabet + 64), 2048)
        choose_one("vocabulary", f"{size} pieces", rule, figure)
        return "unigram", size, False, 1.3
    size = min(figures.alphabet + 16, 4096) + (260 if large else 0)
    choose_one("vocabulary", "characters", rule, figure)
    return "char", size, large, 1.0


def _longest(figures: Figures, choose_one: _Chooser) -> float:
    """Chooses the length of the longest batch, in seconds."""
    seconds = min(figures.longest_seconds * 1.05 + 0.1, LONGEST)
    # Whole pairs of frames.
    seconds = math.ceil(seconds / 0.08) * 0.08
    choose_one(
        "longest recording of a batch",
        f"{seconds:.2f} s",
        f"what one in a thousand exceeds, and 5% for slower speech; at most {LONGEST:.0f} s",
        f"{figures.longest_seconds:.2f} s",
    )
    return seconds


def _batch_seconds(figures: Figures, device: Device, choose_one: _Chooser) -> float:
    """Chooses the seconds of audio in a batch."""
    hours = figures.hours.get("train", 0.0)
    seconds = 16.0 if hours < 5 else 32.0 if hours < 20 else 64.0
    seconds = max(seconds, 4 * figures.median_seconds)
    if device.kind != "cpu":
        seconds = min(max(hours * 3600 / 60, 64.0), 600.0 * device.count)
    choose_one(
        "audio in a batch",
        f"{seconds:.0f} s",
        "16 s on a CPU, 32 s from 5 h on, 64 s from 20 h on, or four recordings: with few hours "
        "many small steps teach more than few large ones; on accelerators a sixtieth of the "
        "transcribed speech, 64 s to 600 s for each",
        f"{device.count} x {device.kind}, {hours:.2f} h, {figures.median_seconds:.1f} s each",
    )
    return seconds


def batch_lengths(padding: Sequence[float], seconds: float, compiling: float) -> int:
    """Returns the number of batch lengths with which most recordings are seen in some seconds.

    Args:
        padding: Padded by real length with one batch length, two and so on.
        seconds: Time of a stage.
        compiling: Time in which the step of one length is compiled.
    """
    counts = range(1, len(padding) + 1)
    return max(counts, key=lambda n: max(seconds - n * compiling, 1e-6) / padding[n - 1])


def _size(hours: float, seconds: float, device: Device, choose_one: _Chooser) -> tuple[Size, float]:
    """Chooses the size of the model, and returns the passes over the transcribed speech with it."""
    # Many hours need fewer passes.
    wanted = min(max(60.0 / math.sqrt(max(hours, 0.25)), 8.0), 60.0)
    passes_of_tiny = 0.9 * seconds * device.speed / (hours * 3600)
    fitting = [size for size in SIZES if passes_of_tiny / size.cost >= wanted] or [SIZES[0]]
    size = fitting[-1]
    # A model of many parameters learns nothing from minutes of speech.
    if hours < 10:
        size = min(size, SIZES[2], key=SIZES.index)
    passes = passes_of_tiny / size.cost
    choose_one(
        "model",
        size.name,
        "the largest with which fine-tuning sees the transcribed speech 60 / sqrt(hours) times, "
        "8 to 60 times; at most medium below 10 h",
        f"{hours:.2f} h, about {passes_of_tiny:.0f} passes with the tiny one, {wanted:.0f} wanted",
    )
    choose_one(
        "learning rate",
        f"{size.learning_rate:g}",
        "by the size of the model: 0.0015 tiny, 0.0012 small, 0.001 medium, 0.0005 base; after a "
        "warm-up of 10% of the steps, in which the encoder is aligned, a cosine to 0; in "
        "pretraining two thirds of it, constant after 5%",
        size.name,
    )
    return size, passes


def _streams(figures: Figures, choose_one: _Chooser) -> tuple[str, ...]:
    """Chooses the streams of pretraining."""
    streams = ["speech"]
    if figures.characters:
        streams.append("paired")
        if figures.unspoken_lines:
            streams.append("text")
    if figures.translated.get("train", 0):
        streams.append("st")
    choose_one(
        "streams of pretraining",
        " ".join(streams),
        "all speech as untranscribed, transcribed speech as pairs; text if some has no speech; "
        "translated speech",
        f"{figures.speech_hours:.2f} h of speech, {figures.unspoken_lines} unspoken lines",
    )
    return tuple(streams)


def _curriculum(streams: tuple[str, ...], choose_one: _Chooser) -> float:
    """Chooses when text and translation begin."""
    late = [name for name in ("text", "st") if name in streams and "paired" in streams]
    starts = 0.3 if late else 0.0
    choose_one(
        "curriculum",
        f"{' and '.join(late)} from {starts:.0%} of pretraining" if late else "all from the start",
        "speech and pairs from the first step; text and translation from 30% on, when alignments "
        "exist to resample text by",
        " ".join(streams),
    )
    return starts


def ema_decay(steps: int) -> float:
    """Returns the decay of the averaged weights: an average over about 2% of the steps."""
    return round(min(max(1.0 - 1.0 / max(0.02 * steps, 1.0), 0.9), 0.9995), 4)

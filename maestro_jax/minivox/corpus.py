"""Makes the examples of a synthetic corpus, each from its split and number alone."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator

import numpy as np

from maestro_jax.data.processes import Processes
from maestro_jax.espeak import SAMPLE_RATE, Phoneme, Speech
from maestro_jax.minivox.config import CorpusConfig
from maestro_jax.minivox.meanings import Meaning, draw_meaning, split_of
from maestro_jax.minivox.sentences import Sentence, say
from maestro_jax.minivox.speech import Speaker, record, speakers


@dataclasses.dataclass(frozen=True)
class Example:
    """An example; fields that its stream does not have are empty.

    Attributes:
        id: `{split}_{number}`.
        audio: int16 `[samples]`, 16 kHz.
        text: Normalised text.
        raw_text: Text with case, punctuation and digits.
        translation: Normalised English translation; empty for English.
        language: ISO 639-1 code.
        speaker: Name of the speaker.
        phonemes: Phonemes of the audio and their times.
    """

    id: str
    audio: np.ndarray
    text: str
    raw_text: str
    translation: str
    language: str
    speaker: str
    phonemes: tuple[Phoneme, ...] = ()


def make_example(config: CorpusConfig, split: str, index: int) -> Example:
    """Makes an example, which is independent of all other examples.

    Args:
        config: The corpus.
        split: One of `config.splits()`.
        index: Number of the example in the split, from 0.
    """
    stream, language, part = split.split("_")
    seed = hashlib.blake2b(f"{config.seed}/{split}/{index}".encode(), digest_size=16).digest()
    rng = np.random.default_rng(int.from_bytes(seed, "little"))
    name = f"{split}_{index:06d}"
    if stream in ("text", "mt"):
        meanings = _draw_meanings(config, part, rng)
        sentence = say(meanings, language)
        translation = say(meanings, "en").text if stream == "mt" else ""
        silence = np.zeros(0, np.int16)
        return Example(name, silence, sentence.text, sentence.raw_text, translation, language, "")
    candidates = speakers(part)
    speaker = candidates[int(rng.integers(len(candidates)))]
    while True:
        meanings = _draw_meanings(config, part, rng)
        sentence = say(meanings, language)
        speech = _speak(config, sentence, language, speaker, rng)
        if speech is not None:
            break
    if stream == "speech":
        return Example(name, speech.audio, "", "", "", language, speaker.name, speech.phonemes)
    translation = say(meanings, "en").text if language != "en" else ""
    return Example(
        name,
        speech.audio,
        sentence.text,
        sentence.raw_text,
        translation,
        language,
        speaker.name,
        speech.phonemes,
    )


def _draw_meanings(config: CorpusConfig, part: str, rng: np.random.Generator) -> list[Meaning]:
    meanings: list[Meaning] = []
    count = int(rng.integers(1, config.max_meanings + 1))
    while len(meanings) < count:
        meaning = draw_meaning(rng, config.kinds)
        if split_of(meaning) == part:
            meanings.append(meaning)
    return meanings


def _speak(
    config: CorpusConfig,
    sentence: Sentence,
    language: str,
    speaker: Speaker,
    rng: np.random.Generator,
) -> Speech | None:
    """Records a sentence, faster if it is too long; None if the fastest rate is still too slow."""
    rate = speaker.words_per_minute * rng.uniform(0.93, 1.07)
    pitch = float(np.clip(speaker.pitch + rng.uniform(-8, 8), 0, 99))
    noisy, room = rng.random() < config.noisy_share, rng.random() < config.room_share
    seed = int(rng.integers(2**63))
    max_samples = round(SAMPLE_RATE * config.max_seconds)
    max_rate = max(config.max_words_per_minute, rate)
    while rate <= max_rate:
        speech = record(
            sentence.spoken,
            language,
            variant=speaker.variant,
            words_per_minute=rate,
            pitch=pitch,
            # The same room and noise at every rate.
            rng=np.random.default_rng(seed),
            noisy=noisy,
            room=room,
            min_seconds=config.min_seconds,
        )
        if len(speech.audio) <= max_samples:
            return speech
        rate *= max(1.05, 1.05 * len(speech.audio) / max_samples)
    return None


_CHUNK = 16


class ExamplePool(Processes):
    """Processes that make examples.

    Example:
        >>> with ExamplePool(workers=2) as pool:
        ...     for example in pool.examples(SMALL, "paired_de_train", 1500):
        ...         print(example.text)
    """

    def examples(self, config: CorpusConfig, split: str, count: int) -> Iterator[Example]:
        """Yields the first `count` examples of a split, in order.

        Raises:
            UserError: espeak-ng or another package is missing.
            RuntimeError: A process died.
        """
        chunks = (
            (config, split, start, min(start + _CHUNK, count)) for start in range(0, count, _CHUNK)
        )
        for examples in self.results(make_examples, chunks):
            yield from examples


def make_examples(config: CorpusConfig, split: str, start: int, stop: int) -> list[Example]:
    """Makes the examples of a split from `start` up to `stop`, which is not included."""
    return [make_example(config, split, index) for index in range(start, stop)]

"""One example of a synthetic corpus, as a function of its place in it."""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np

from maestro_jax.espeak import SAMPLE_RATE, Phoneme, Spoken
from maestro_jax.minivox.config import CorpusConfig
from maestro_jax.minivox.meanings import Meaning, draw_meaning, share
from maestro_jax.minivox.recording import synthesise_with_phonemes
from maestro_jax.minivox.sentences import Sentence, say
from maestro_jax.minivox.speakers import Speaker, speakers


@dataclasses.dataclass(frozen=True)
class Example:
    """One example; what its stream does not have is empty.

    Attributes:
        id: `{split}_{number}`.
        audio: int16 `[samples]`, 16 kHz.
        text: Normalised text.
        raw_text: As printed.
        translation: The same in English, normalised; empty for English.
        language: ISO 639-1 code.
        speaker: Name of the speaker.
        phonemes: What sounds in the audio, and when.
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
    """Makes one example.

    Args:
        config: The corpus.
        split: One of `config.splits()`.
        index: Its number in the split, from 0.

    Returns:
        The example, which depends on nothing else: not on other examples, nor on what has been made
        before.
    """
    stream, language, part = split.split("_")
    seed = hashlib.blake2b(f"{config.seed}/{split}/{index}".encode(), digest_size=16).digest()
    rng = np.random.default_rng(int.from_bytes(seed, "little"))
    name = f"{split}_{index:06d}"
    nothing = np.zeros(0, np.int16)
    if stream in ("text", "mt"):
        meanings = _draw(config, part, rng)
        sentence = say(meanings, language)
        translation = say(meanings, "en").text if stream == "mt" else ""
        return Example(name, nothing, sentence.text, sentence.raw_text, translation, language, "")
    everybody = speakers(part)
    speaker = everybody[int(rng.integers(len(everybody)))]
    while True:
        meanings = _draw(config, part, rng)
        sentence = say(meanings, language)
        spoken = _utter(config, sentence, language, speaker, rng)
        if spoken is not None:
            break
    audio, phonemes = spoken.audio, spoken.phonemes
    if stream == "speech":
        return Example(name, audio, "", "", "", language, speaker.name, phonemes)
    translation = say(meanings, "en").text if language != "en" else ""
    return Example(
        name, audio, sentence.text, sentence.raw_text, translation, language, speaker.name, phonemes
    )


def _draw(config: CorpusConfig, part: str, rng: np.random.Generator) -> list[Meaning]:
    meanings: list[Meaning] = []
    count = int(rng.integers(1, config.max_meanings + 1))
    while len(meanings) < count:
        meaning = draw_meaning(rng)
        if share(meaning) == part:
            meanings.append(meaning)
    return meanings


def _utter(
    config: CorpusConfig,
    sentence: Sentence,
    language: str,
    speaker: Speaker,
    rng: np.random.Generator,
) -> Spoken | None:
    """Speaks a sentence within the limits of the corpus; None if it is too long even when fast."""
    rate = speaker.words_per_minute * rng.uniform(0.93, 1.07)
    pitch = float(np.clip(speaker.pitch + rng.uniform(-8, 8), 0, 99))
    noisy, room = rng.random() < config.noisy_share, rng.random() < config.room_share
    sound = int(rng.integers(2**63))
    longest = round(SAMPLE_RATE * config.max_seconds)
    fastest = max(config.max_words_per_minute, rate)
    while rate <= fastest:
        spoken = synthesise_with_phonemes(
            sentence.spoken,
            language,
            variant=speaker.variant,
            words_per_minute=rate,
            pitch=pitch,
            rng=np.random.default_rng(sound),
            noisy=noisy,
            room=room,
            min_seconds=config.min_seconds,
        )
        if len(spoken.audio) <= longest:
            return spoken
        rate *= max(1.05, 1.05 * len(spoken.audio) / longest)
    return None

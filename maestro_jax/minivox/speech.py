"""Speakers, and recordings of what they say: a voice, a room, noise and a level."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from maestro_jax import espeak
from maestro_jax.audio import acoustics
from maestro_jax.augmentation_config import NOISES
from maestro_jax.espeak import SAMPLE_RATE, Phoneme, Speech

# No variant of one list is a near copy of one in another list, so the voices of a test set are new
# to a model.
VARIANTS: dict[str, tuple[str, ...]] = {
    "train": espeak.VOICES,
    "validation": ("m6", "Annie", "max"),
    "test": ("m3", "f2", "belinda", "paul", "Denis"),
}
"""Voice variants of espeak-ng by split."""

_SPEAKERS_PER_VARIANT = 3


@dataclasses.dataclass(frozen=True)
class Speaker:
    """A voice variant with a pace and a pitch of its own.

    Attributes:
        name: Name, unique within a language.
        variant: Voice variant of espeak-ng.
        words_per_minute: Mean speaking rate.
        pitch: Mean pitch, 0 to 99.
    """

    name: str
    variant: str
    words_per_minute: float
    pitch: float


@functools.cache
def speakers(split: str) -> tuple[Speaker, ...]:
    """Returns the speakers of `train`, `validation` or `test`."""
    people = []
    for variant in VARIANTS[split]:
        for number in range(1, _SPEAKERS_PER_VARIANT + 1):
            name = f"{variant or 'plain'}-{number}"
            rng = np.random.default_rng(list(name.encode()))
            pace, pitch = rng.uniform(150, 195), rng.uniform(30, 70)
            people.append(Speaker(name, variant, pace, pitch))
    return tuple(people)


def record(
    text: str,
    language: str,
    *,
    variant: str = "",
    words_per_minute: float = 175.0,
    pitch: float = 50.0,
    rng: np.random.Generator | None = None,
    noisy: bool = False,
    room: bool = False,
    min_seconds: float = 0.0,
) -> Speech:
    """Synthesises a text and simulates a recording of it.

    Args:
        text: Text, spelled out or with digits, with or without punctuation.
        language: ISO 639-1 code of any language that espeak-ng speaks.
        variant: Voice variant, such as `f2`.
        words_per_minute: Speaking rate, 80 to 450.
        pitch: Pitch, 0 to 99.
        rng: Generator of silences, room, noise and level; by default seeded with 0.
        noisy: Whether to add background noise, 8 to 28 dB below the voice.
        room: Whether to simulate a reverberant room.
        min_seconds: Minimum duration; shorter audio is padded with silence.

    Returns:
        The recording, with the times of its phonemes, which room and noise do not change. The
        silence around the voice is a pause.

    Raises:
        UserError: espeak-ng is missing, or has no such voice.
    """
    rng = np.random.default_rng(0) if rng is None else rng
    rate = round(words_per_minute)
    speech = espeak.synthesise(
        text, language, variant=variant, words_per_minute=rate, pitch=round(pitch)
    )
    voice = speech.audio / 32768.0
    kept = acoustics.loud_part(voice)
    audio = voice[kept]
    before, after = (round(SAMPLE_RATE * rng.uniform(0.05, 0.2)) for _ in range(2))
    after += max(0, round(SAMPLE_RATE * min_seconds) - before - after - len(audio))
    phonemes = _shifted(speech.phonemes, kept, before, before + len(audio) + after)
    audio = np.pad(audio, (before, after))
    if room:
        audio = acoustics.reverberate(
            audio, rng, decay_seconds=rng.uniform(0.15, 0.5), direct_ratio=rng.uniform(0.0, 12.0)
        )
    if noisy:
        kind = NOISES[int(rng.integers(len(NOISES)))]
        audio = acoustics.add_noise(audio, rng, kind=kind, snr=rng.uniform(8.0, 28.0))
    return Speech(acoustics.record(audio, level=rng.uniform(-32.0, -20.0)), phonemes)


def _shifted(
    phonemes: tuple[Phoneme, ...], kept: slice, before: int, samples: int
) -> tuple[Phoneme, ...]:
    """Returns the phonemes of the `kept` samples, which begin after `before` samples of silence."""
    voice = []
    for phoneme in phonemes:
        begin, end = max(phoneme.begin, kept.start), min(phoneme.end, kept.stop)
        if begin < end:
            voice.append((phoneme.symbol, begin - kept.start + before, end - kept.start + before))
    last = voice[-1][2] if voice else before
    with_pauses = (("", 0, before), *voice, ("", last, samples))
    return tuple(Phoneme(*each) for each in with_pauses if each[1] < each[2])

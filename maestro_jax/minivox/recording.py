"""Speech as a microphone hears it: a voice, a room, noise, a level."""

from __future__ import annotations

from typing import Any

import numpy as np

from maestro_jax.audio import acoustics
from maestro_jax.augmentation_config import NOISES
from maestro_jax.espeak import SAMPLE_RATE, Phoneme, Spoken, speak_with_phonemes


def synthesise(text: str, language: str, **how: Any) -> np.ndarray:
    """The audio of `synthesise_with_phonemes`, int16 `[samples]` at 16 kHz."""
    return synthesise_with_phonemes(text, language, **how).audio


def synthesise_with_phonemes(
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
) -> Spoken:
    """Speaks a text and records it.

    Args:
        text: What to say, spelled out or with digits, with or without punctuation.
        language: ISO 639-1 code of any language that espeak-ng speaks.
        variant: Voice variant, e.g. `f2`.
        words_per_minute: Speaking rate, 80 to 450.
        pitch: 0 to 99.
        rng: Draws silences, room, noise and level; seeded with 0 by default.
        noisy: Adds background noise, 8 to 28 dB below the voice.
        room: Puts the voice into a reverberant room.
        min_seconds: Silence is added to shorter audio.

    Returns:
        The recording, with the phonemes where they sound in it: neither a room nor noise moves
        them, and the silence around the voice is a pause.

    Raises:
        UserError: espeak-ng is missing, or there is no such voice.
    """
    rng = np.random.default_rng(0) if rng is None else rng
    rate = round(words_per_minute)
    spoken = speak_with_phonemes(
        text, language, variant=variant, words_per_minute=rate, pitch=round(pitch)
    )
    voice = spoken.audio / 32768.0
    kept = acoustics.loud_part(voice)
    audio = voice[kept]
    before, after = (round(SAMPLE_RATE * rng.uniform(0.05, 0.2)) for _ in range(2))
    after += max(0, round(SAMPLE_RATE * min_seconds) - before - after - len(audio))
    phonemes = _moved(spoken.phonemes, kept, before, before + len(audio) + after)
    audio = np.pad(audio, (before, after))
    if room:
        audio = acoustics.reverberate(
            audio, rng, decay_seconds=rng.uniform(0.15, 0.5), direct_ratio=rng.uniform(0.0, 12.0)
        )
    if noisy:
        kind = NOISES[int(rng.integers(len(NOISES)))]
        audio = acoustics.add_noise(audio, rng, kind=kind, snr=rng.uniform(8.0, 28.0))
    return Spoken(acoustics.record(audio, level=rng.uniform(-32.0, -20.0)), phonemes)


def _moved(
    phonemes: tuple[Phoneme, ...], kept: slice, before: int, samples: int
) -> tuple[Phoneme, ...]:
    """The phonemes of what is `kept` of a voice, after `before` samples of silence."""
    voice = []
    for phoneme in phonemes:
        begin, end = max(phoneme.begin, kept.start), min(phoneme.end, kept.stop)
        if begin < end:
            voice.append((phoneme.symbol, begin - kept.start + before, end - kept.start + before))
    last = voice[-1][2] if voice else before
    around = (("", 0, before), *voice, ("", last, samples))
    return tuple(Phoneme(*each) for each in around if each[1] < each[2])

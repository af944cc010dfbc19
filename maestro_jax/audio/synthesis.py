"""Speaks a text and makes a recording of it: silence around the voice, a level, augmentation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from maestro_jax.audio import acoustics
from maestro_jax.audio.augmentation import augment
from maestro_jax.batches import SAMPLE_RATE
from maestro_jax.speech_synthesis import SpeechSynthesis

_SILENCE_SECONDS = (0.05, 0.2)
_LEVELS = (-32.0, -20.0)


def spoken(synthesis: SpeechSynthesis, text: str, language: str, seed: Sequence[int]) -> np.ndarray:
    """Returns the synthesised speech of a text.

    Args:
        synthesis: Who speaks, and what is done to the speech.
        text: The text; an empty one has no speech.
        language: Code of its language.
        seed: The speech is a function of it and of the other arguments.

    Returns:
        int16 `[samples]` at 16 kHz.

    Raises:
        UserError: The synthesiser cannot speak it.
    """
    if not text.strip():
        return np.zeros(0, np.int16)
    rng = np.random.default_rng(seed)
    voice = synthesis.synthesizer.speak(text, language, rng) / np.float64(32768.0)
    # Synthesisers differ in the silence around the voice, and in how loud they are.
    before, after = (round(SAMPLE_RATE * rng.uniform(*_SILENCE_SECONDS)) for _ in range(2))
    audio = np.pad(voice[acoustics.loud_part(voice)], (before, after))
    recorded = acoustics.record(audio, level=rng.uniform(*_LEVELS))
    if synthesis.augmentation is None:
        return recorded
    longest = synthesis.audio_samples
    return augment(recorded, synthesis.augmentation, rng, longest=longest).audio

"""Speech that is synthesised while a run trains: who speaks, and what a stream has of it.

TTS4Pretrain (arXiv 2108.12226) and text-only adaptation by synthesis read unspoken texts aloud in
the input pipeline, in another voice every time, instead of storing the speech.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from maestro_jax import espeak
from maestro_jax.augmentation_config import AudioAugmentation
from maestro_jax.errors import UserError


class Synthesizer(Protocol):
    """What speaks texts. It is sent to other processes, so it must be picklable."""

    def check(self, languages: Sequence[str]) -> None:
        """Refuses, before a run starts, what cannot be spoken.

        Args:
            languages: Codes of the languages of the texts.

        Raises:
            UserError: The synthesiser is not installed or lacks a language.
        """

    def speak(self, text: str, language: str, rng: np.random.Generator) -> np.ndarray:
        """Speaks a text.

        Args:
            text: The text, not empty.
            language: Code of its language.
            rng: Source of all that is random, such as the voice: the audio must be a function of
                the arguments, so that a resumed run hears the same.

        Returns:
            int16 `[samples]` at 16 kHz.
        """


@dataclasses.dataclass(frozen=True, kw_only=True)
class Espeak:
    """espeak-ng, which speaks about a hundred languages; in another voice each time.

    Attributes:
        voices: Voice variants, one of which is drawn; "" is the default voice. By default those of
            the training speakers of MiniVox, so that its test speakers stay unheard.
        words_per_minute: Speaking rate, lowest and highest.
        pitch: Pitch, lowest and highest, 0 to 99.
    """

    voices: tuple[str, ...] = espeak.VOICES
    words_per_minute: tuple[float, float] = (150.0, 195.0)
    pitch: tuple[float, float] = (30.0, 70.0)

    def __post_init__(self) -> None:
        """Refuses ranges that are none."""
        if not self.voices:
            raise UserError('Espeak.voices is empty; name variants, or ("",) for the plain voice.')
        for name, least, most in (("words_per_minute", 80, 450), ("pitch", 0, 99)):
            value = getattr(self, name)
            if len(value) != 2 or not least <= value[0] <= value[1] <= most:
                raise UserError(
                    f"Espeak.{name} is {value}; give the lowest and the highest, {least} to {most}."
                )

    def check(self, languages: Sequence[str]) -> None:
        """Refuses languages that espeak-ng does not speak; see `Synthesizer.check`."""
        if unknown := [code for code in languages if espeak.voice(code) is None]:
            raise UserError(
                f"espeak-ng has no voice for the language {unknown[0]!r}; leave its texts out of "
                "the stream, or give SpeechSynthesis another synthesizer."
            )

    def speak(self, text: str, language: str, rng: np.random.Generator) -> np.ndarray:
        """Speaks a text; see `Synthesizer.speak`."""
        variant = self.voices[int(rng.integers(len(self.voices)))]
        rate, pitch = rng.uniform(*self.words_per_minute), rng.uniform(*self.pitch)
        voice = espeak.voice(language) or language
        return espeak.synthesise(
            text, voice, variant=variant, words_per_minute=round(rate), pitch=round(pitch)
        ).audio


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpeechSynthesis:
    """The synthesised speech of a stream's texts: a batch then has it as `synthetic_audio`.

    It changes from epoch to epoch and is a function of the run's seed and of the text's place in
    the stream: neither restarts nor the number of processes change it.

    Attributes:
        audio_samples: Samples at 16 kHz that synthesised speech is padded to. Longer speech is left
            out, and counted as `<stream>/synthetic_over_long`; the example itself stays.
        synthesizer: What speaks.
        augmentation: What is done to the speech: rooms, noise, speeds; None for nothing.
        workers: Processes that speak ahead of the training; 0 to speak in the loader's own thread,
            as suits a synthesiser that uses threads or is too large to copy; None for one per core,
            at most 8.
    """

    audio_samples: int
    synthesizer: Synthesizer = Espeak()
    augmentation: AudioAugmentation | None = None
    workers: int | None = None

    def __post_init__(self) -> None:
        """Refuses what cannot be done."""
        if not isinstance(self.audio_samples, int) or self.audio_samples < 1:
            raise UserError(
                f"SpeechSynthesis.audio_samples is {self.audio_samples!r}; it must be 1 or more."
            )
        if self.augmentation is not None and self.augmentation.mix_probability:
            raise UserError(
                "SpeechSynthesis.augmentation has a mix_probability: synthesised speech is not "
                "mixed; leave it at 0."
            )
        if self.workers is not None and self.workers < 0:
            raise UserError(f"SpeechSynthesis.workers is {self.workers}; it must be 0 or more.")

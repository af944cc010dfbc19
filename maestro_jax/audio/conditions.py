"""Listening conditions for robustness tests: noise, rooms, speeds, the telephone, code-switching.

A condition changes the audio of a test set on the fly. What it draws depends on a seed and on the
id of the utterance alone: not on the order of decoding, nor on the number of processes.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import soundfile
from scipy import signal

from maestro_jax import espeak
from maestro_jax.audio import acoustics
from maestro_jax.audio.reading import resample
from maestro_jax.batches import SAMPLE_RATE
from maestro_jax.errors import UserError, near_misses

Transform = Callable[[np.ndarray, str], np.ndarray]
"""From int16 `[samples]` and the id of an utterance to int16 of any length."""

SIGNAL_TO_NOISE = (20, 10, 5, 0)
"""Decibels."""

_TELEPHONE_RATE = 8000
_TELEPHONE_BAND = (300.0, 3400.0)
_SPEED_OF_SYNTHESIS = (150, 200)
_PITCH_OF_SYNTHESIS = (30, 70)
_PAUSE_SECONDS = 0.2


@dataclasses.dataclass(frozen=True)
class Condition:
    """A change of the audio of an utterance that needs nothing but the audio.

    Attributes:
        name: Name on the command line.
        title: Row of a table.
        group: What it is one level of: `noise`, `babble`, `room`, `speed` or `telephone`.
        change: From a waveform, float64 `[samples]` of full scale 1, and a generator of random
            numbers to another waveform.
        lengthening: How many times longer the audio becomes.
    """

    name: str
    title: str
    group: str
    change: Callable[[np.ndarray, np.random.Generator], np.ndarray]
    lengthening: float = 1.0

    def apply(self, samples: np.ndarray, utterance_id: str, seed: int = 0) -> np.ndarray:
        """Changes the audio of an utterance.

        All levels of a group draw the same numbers for an utterance: the noise at 0 dB is that at
        20 dB, amplified.

        Args:
            samples: int16 `[samples]` at 16 kHz.
            utterance_id: Id of the utterance.
            seed: Seed of the test.

        Returns:
            int16 `[samples]`, scaled down where it would clip; empty audio stays empty.
        """
        if not len(samples):
            return samples
        wave = self.change(
            samples / np.float64(32768.0), _generator(seed, self.group, utterance_id)
        )
        return _as_samples(wave)


def add_noise(wave: np.ndarray, rng: np.random.Generator, *, kind: str, snr: float) -> np.ndarray:
    """Adds noise `snr` dB below the mean power of a waveform [samples], pauses included."""
    return acoustics.add_noise(wave, rng, kind=kind, snr=snr)


def reverberate(
    wave: np.ndarray,
    rng: np.random.Generator,
    *,
    decay_seconds: float,
    cubic_metres: float,
    metres: float,
) -> np.ndarray:
    """Places the speaker in a room.

    Args:
        wave: [samples].
        rng: Draws the reflections.
        decay_seconds: Reverberation time RT60.
        cubic_metres: Volume of the room.
        metres: Distance between speaker and microphone, both of which are taken to be
            omnidirectional.

    Returns:
        [samples], of the same energy. Reverberation after the end is cut off.

    Source: The ratio of direct to reverberant energy is the squared ratio of the critical distance
    to `metres`; the former is 0.057 sqrt(volume / RT60) in metres (Kuttruff, Room Acoustics,
    section 5.5).
    """
    critical = 0.057 * math.sqrt(cubic_metres / decay_seconds)
    return acoustics.reverberate(
        wave, rng, decay_seconds=decay_seconds, direct_ratio=20 * math.log10(critical / metres)
    )


def change_speed(wave: np.ndarray, rng: np.random.Generator, *, speed: float) -> np.ndarray:
    """Plays a waveform faster or slower, which changes its pitch by the same factor.

    Returns:
        `[ceil(samples / speed)]`.
    """
    percent = round(100 * speed)
    divisor = math.gcd(percent, 100)
    return resample(wave, percent // divisor, 100 // divisor).astype(np.float64)


def telephone(wave: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Sends a waveform over a telephone line: 300 to 3400 Hz, 8 kHz, mu-law of 8 bits (G.711).

    Returns:
        [samples] at 16 kHz again.
    """
    narrow = resample(wave, SAMPLE_RATE, _TELEPHONE_RATE).astype(np.float64)
    narrow = signal.sosfilt(_telephone_filter(), narrow)
    received = mu_law(_as_samples(narrow)) / np.float64(32768.0)
    wide = resample(received, _TELEPHONE_RATE, SAMPLE_RATE).astype(np.float64)
    return np.pad(wide, (0, max(0, len(wave) - len(wide))))[: len(wave)]


def mu_law(samples: np.ndarray) -> np.ndarray:
    """Codes int16 `[samples]` with 8 bits by G.711's mu-law, and decodes them again."""
    file = io.BytesIO()
    layout = {"samplerate": _TELEPHONE_RATE, "format": "RAW", "subtype": "ULAW"}
    soundfile.write(file, samples, **layout)
    file.seek(0)
    decoded, _ = soundfile.read(file, dtype="int16", channels=1, **layout)
    return decoded


@functools.cache
def _telephone_filter() -> np.ndarray:
    return signal.butter(4, _TELEPHONE_BAND, "bandpass", fs=_TELEPHONE_RATE, output="sos")


# Reverberation time in seconds, volume in cubic metres, distance in metres.
_ROOMS = {
    "office": (0.3, 40.0, 1.0),
    "meeting room": (0.6, 150.0, 1.5),
    "lecture hall": (1.0, 600.0, 2.5),
}

CONDITIONS: dict[str, Condition] = {
    condition.name: condition
    for condition in (
        *(
            Condition(
                f"{group}_{snr}db",
                f"{what}, {snr} dB",
                group,
                functools.partial(add_noise, kind=kind, snr=float(snr)),
            )
            for group, what, kind in (
                ("noise", "pink noise", "pink"),
                ("babble", "babble", "babble"),
            )
            for snr in SIGNAL_TO_NOISE
        ),
        *(
            Condition(
                f"room_{decay}s",
                f"{room}, RT60 {decay} s",
                "room",
                functools.partial(
                    reverberate, decay_seconds=decay, cubic_metres=volume, metres=metres
                ),
            )
            for room, (decay, volume, metres) in _ROOMS.items()
        ),
        *(
            Condition(
                f"speed_{speed}",
                f"speed {speed}",
                "speed",
                functools.partial(change_speed, speed=speed),
                lengthening=1 / speed,
            )
            for speed in (0.9, 1.1)
        ),
        Condition("telephone", "telephone, 8 kHz mu-law", "telephone", telephone),
    )
}
"""Conditions that need nothing but the audio, by name, in the order of tables."""


@dataclasses.dataclass(frozen=True)
class Utterance:
    """An utterance of a test set, for conditions that need more than its audio.

    Attributes:
        id: Its id, unique within its language.
        language: ISO 639-1 code of the speech.
        text: The reference transcript.
    """

    id: str
    language: str
    text: str


@dataclasses.dataclass(frozen=True)
class CodeSwitching:
    """Each utterance, followed after a pause by one in another language.

    The second kind of condition: what is heard is not the utterance alone, so the reference changes
    too. The drop is to be measured against the hypotheses of both utterances, joined like `join`.

    Attributes:
        name: Name on the command line.
        title: Row of a table.
    """

    name: str = "code_switched"
    title: str = "followed by another language"

    def partners(self, utterances: Sequence[Utterance], seed: int = 0) -> list[Utterance]:
        """Chooses who speaks after each utterance.

        Args:
            utterances: A test set of several languages.
            seed: Seed of the choice.

        Returns:
            An utterance in another language for each. The languages take turns, so that each
            follows the others about equally often.

        Raises:
            UserError: All are in one language.
        """
        by_language: dict[str, list[Utterance]] = {}
        for utterance in utterances:
            by_language.setdefault(utterance.language, []).append(utterance)
        if len(by_language) < 2:
            raise UserError(
                f"code-switched pairs need utterances in two languages; the test set has only "
                f"{', '.join(by_language) or 'none'}"
            )
        orders = {
            language: _generator(seed, self.name, language).permutation(len(members))
            for language, members in sorted(by_language.items())
        }
        used = dict.fromkeys(orders, 0)
        turns: dict[str, int] = {}
        chosen = []
        for utterance in utterances:
            others = [language for language in orders if language != utterance.language]
            turn = turns.get(utterance.language, 0)
            turns[utterance.language] = turn + 1
            language = others[turn % len(others)]
            order = orders[language]
            chosen.append(by_language[language][order[used[language] % len(order)]])
            used[language] += 1
        return chosen

    def join(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Joins int16 `[samples]` of two utterances at the level of the first, with a pause."""
        levels = [
            float(np.sqrt(np.mean(np.square(each, dtype=np.float64)))) if len(each) else 0.0
            for each in (first, second)
        ]
        gain = levels[0] / levels[1] if levels[0] and levels[1] else 1.0
        pause = np.zeros(round(_PAUSE_SECONDS * SAMPLE_RATE))
        parts = (first / np.float64(32768.0), pause, gain * second / np.float64(32768.0))
        return _as_samples(np.concatenate(parts))

    def join_texts(self, first: str, second: str) -> str:
        """Joins two references, or two hypotheses."""
        return " ".join(filter(None, (first.strip(), second.strip())))


@dataclasses.dataclass(frozen=True)
class SyntheticSpeech:
    """espeak-ng reads the reference, in place of the speaker.

    The second kind of condition: it needs the reference, which stays what is scored.

    Attributes:
        name: Name on the command line.
        title: Row of a table.
    """

    name: str = "synthetic"
    title: str = "synthetic speech (espeak-ng)"

    def speak(self, utterance: Utterance, seed: int = 0) -> np.ndarray:
        """Synthesises an utterance with a speed and a pitch of its own.

        Returns:
            int16 `[samples]` at 16 kHz; a tenth of a second of silence for an empty reference.

        Raises:
            UserError: espeak-ng is not installed, or does not have the language.
        """
        if not utterance.text.strip():
            return np.zeros(SAMPLE_RATE // 10, np.int16)
        rng = _generator(seed, self.name, utterance.id)
        return espeak.synthesise(
            utterance.text,
            utterance.language,
            words_per_minute=int(rng.integers(*_SPEED_OF_SYNTHESIS, endpoint=True)),
            pitch=int(rng.integers(*_PITCH_OF_SYNTHESIS, endpoint=True)),
        ).audio


CODE_SWITCHING = CodeSwitching()
SYNTHETIC_SPEECH = SyntheticSpeech()

ROBUSTNESS: Mapping[str, Condition | CodeSwitching | SyntheticSpeech] = {
    **CONDITIONS,
    CODE_SWITCHING.name: CODE_SWITCHING,
    SYNTHETIC_SPEECH.name: SYNTHETIC_SPEECH,
}
"""All conditions by name, in the order of tables."""


def find_conditions(names: Sequence[str]) -> list[Condition | CodeSwitching | SyntheticSpeech]:
    """Returns conditions by name, in the order of tables.

    Args:
        names: Names of conditions, names of groups (`noise`, `babble`, `room`, `speed`), or `all`.

    Raises:
        UserError: There is none of a name.
    """
    groups = {condition.group for condition in CONDITIONS.values()}
    known = {"all", *groups, *ROBUSTNESS}
    for name in names:
        if name not in known:
            listed = ", ".join(["all", *dict.fromkeys([*sorted(groups), *ROBUSTNESS])])
            raise UserError(
                f"there is no condition {name!r}; there are {listed}.{near_misses(name, known)}"
            )
    return [
        condition
        for condition in ROBUSTNESS.values()
        if not {"all", condition.name, getattr(condition, "group", "")}.isdisjoint(names)
    ]


def _generator(seed: int, *names: str) -> np.random.Generator:
    digest = hashlib.sha256("\0".join((str(seed), *names)).encode()).digest()
    return np.random.default_rng(np.frombuffer(digest, np.uint32))


def _as_samples(wave: np.ndarray) -> np.ndarray:
    peak = float(np.abs(wave).max(initial=0.0))
    return np.rint(wave * min(32768.0, 32767.0 / max(peak, 1e-12))).astype(np.int16)

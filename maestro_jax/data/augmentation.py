"""Augmentation of audio: other speeds, other speakers, rooms and noise.

What happens to an example is a function of the seed and of its position in its stream: the same for
any number of processes, and after a restart. SpecAugment is the model's business, not done here.
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import numpy as np

from maestro_jax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class AudioAugmentation:
    """What is done to the audio of a stream, in this order; by default nothing.

    Targets stay those of the example itself. A transcript does by nature; for the codes of
    untranscribed speech the loader hands on the clean audio beside what is heard, as the feature
    `clean_audio`, and the self-supervised objectives make their targets of it, as WavLM does.

    The published recipes are `speeds=(0.9, 1.0, 1.1)` (Ko et al., "Audio augmentation for speech
    recognition", Interspeech 2015) and `mix_probability=0.2, noise_probability=0.1, noise_snr=(-5,
    20)` (Chen et al., "WavLM", arXiv 2110.13900, with recorded noise).

    Attributes:
        speeds: One is drawn for each example, all with the same chance; tempo and pitch change
            together, as by resampling. An example that would grow out of its row by it keeps its
            speed.
        room_probability: The share of examples that get a room.
        room_decay_seconds: Reverberation time, lowest and highest.
        room_direct_ratio: Energy of the direct path over that of the reflections, in dB, lowest and
            highest.
        mix_probability: The share of examples into which a piece of another example of the same
            stream is mixed.
        mix_longest: The longest that the piece may be, as a share of the example.
        mix_energy_ratio: Power of the example over that of the other one, in dB, lowest and
            highest.
        noise_probability: The share of examples that get background noise.
        noise_snr: Power of the example over that of the noise, in dB, lowest and highest.
        noise_kinds: Of `maestro_jax.data.acoustics.NOISES`; one is drawn. Babble takes five times
            as long to make as pink noise.
    """

    speeds: tuple[float, ...] = (1.0,)
    room_probability: float = 0.0
    room_decay_seconds: tuple[float, float] = (0.15, 0.5)
    room_direct_ratio: tuple[float, float] = (0.0, 12.0)
    mix_probability: float = 0.0
    mix_longest: float = 0.5
    mix_energy_ratio: tuple[float, float] = (-5.0, 5.0)
    noise_probability: float = 0.0
    noise_snr: tuple[float, float] = (5.0, 20.0)
    noise_kinds: tuple[str, ...] = ("white", "pink", "babble")

    def __post_init__(self) -> None:
        """Refuse what cannot be done."""
        # Imported here, as below: a run without augmentation needs no signal processing.
        from maestro_jax.data.acoustics import NOISES

        for name in ("room_probability", "mix_probability", "noise_probability", "mix_longest"):
            value = getattr(self, name)
            if not 0.0 <= value <= 1.0:
                raise UserError(f"AudioAugmentation.{name} is {value}; it must lie in 0 ... 1.")
        for name in ("room_decay_seconds", "room_direct_ratio", "mix_energy_ratio", "noise_snr"):
            value = getattr(self, name)
            if len(value) != 2 or not value[0] <= value[1]:
                raise UserError(
                    f"AudioAugmentation.{name} is {value}; give the lowest and the highest."
                )
        if not self.room_decay_seconds[0] >= 0.01:
            raise UserError(
                f"AudioAugmentation.room_decay_seconds is {self.room_decay_seconds}; a room rings "
                "for 0.01 s at least."
            )
        if not self.speeds or not all(0.5 <= speed <= 2.0 for speed in self.speeds):
            raise UserError(
                f"AudioAugmentation.speeds is {self.speeds}; give factors of 0.5 ... 2."
            )
        if not self.noise_kinds or not set(self.noise_kinds) <= set(NOISES):
            raise UserError(
                f"AudioAugmentation.noise_kinds is {self.noise_kinds}; choose from "
                f"{', '.join(NOISES)}."
            )

    @property
    def disturbs(self) -> bool:
        """Whether anything may sound over the voice, so that clean audio is another one."""
        return any((self.room_probability, self.mix_probability, self.noise_probability))


class Augmented(NamedTuple):
    """An example after augmentation, sample by sample of the same moments.

    Attributes:
        audio: int16 `[samples]`, what is heard.
        clean: int16 `[samples]`, the voice alone at the same speed: no room, nobody else, no noise.
    """

    audio: np.ndarray
    clean: np.ndarray


def augment(
    audio: np.ndarray,
    config: AudioAugmentation,
    rng: np.random.Generator,
    *,
    longest: int,
    other: np.ndarray | None = None,
) -> Augmented:
    """Does to one example what was drawn for it.

    Args:
        audio: int16 `[samples]`, 16 kHz.
        config: What may be done.
        rng: Draws; one of the example's own.
        longest: No example that is shorter is made longer than this, in samples.
        other: int16 `[samples]`: what is mixed into it; None: nothing is.

    Returns:
        What is heard and what it was made of, each with as many samples as before unless the speed
        has changed, and made quieter where its peaks would be clipped.
    """
    from maestro_jax.data import acoustics

    # All choices come first, so that one does not depend on how many numbers another has used.
    speed = config.speeds[int(rng.integers(len(config.speeds)))]
    in_room, is_noisy = rng.random(2) < (config.room_probability, config.noise_probability)
    if not audio.size:
        return Augmented(audio, audio)
    wave = audio / np.float64(32768.0)
    if speed != 1.0 and not len(audio) <= longest < _samples_at(len(audio), speed):
        wave = _at_speed(wave, speed)
    clean = wave
    if in_room:
        # The direct path comes first, without a delay: frames stay those of the clean audio.
        wave = acoustics.reverberate(
            wave,
            rng,
            decay_seconds=rng.uniform(*config.room_decay_seconds),
            direct_ratio=rng.uniform(*config.room_direct_ratio),
        )
    if other is not None:
        wave = _mix(wave, other / np.float64(32768.0), config, rng)
    if is_noisy:
        kind = config.noise_kinds[int(rng.integers(len(config.noise_kinds)))]
        wave = acoustics.add_noise(wave, rng, kind=kind, snr=rng.uniform(*config.noise_snr))
    return Augmented(_as_samples(wave), _as_samples(clean))


def _as_samples(wave: np.ndarray) -> np.ndarray:
    peak = float(np.abs(wave).max())
    return np.rint(wave * min(32768.0, 32767.0 / max(peak, 1e-12))).astype(np.int16)


def _rates(speed: float) -> tuple[int, int]:
    """The rate that audio is taken to have, and the one it is converted to, without common factors.

    To a hundredth: the finer the ratio, the longer the filter.
    """
    percent = round(100 * speed)
    divisor = math.gcd(percent, 100)
    return percent // divisor, 100 // divisor


def _samples_at(samples: int, speed: float) -> int:
    rate, target = _rates(speed)
    return -(-samples * target // rate)


def _at_speed(wave: np.ndarray, speed: float) -> np.ndarray:
    from maestro_jax.data.audio import resample

    return resample(wave, *_rates(speed)).astype(np.float64)


def _mix(
    wave: np.ndarray, other: np.ndarray, config: AudioAugmentation, rng: np.random.Generator
) -> np.ndarray:
    """Adds a piece of another utterance somewhere."""
    longest = min(int(len(wave) * config.mix_longest), len(other))
    length = int(rng.integers(1, longest + 1)) if longest else 0
    begin, other_begin = (int(rng.integers(n - length + 1)) for n in (len(wave), len(other)))
    ratio = rng.uniform(*config.mix_energy_ratio)
    power, other_power = (float(np.mean(values**2)) for values in (wave, other))
    # Silence neither speaks into others nor is there anything to speak into.
    if not (length and power and other_power):
        return wave
    gain = math.sqrt(power / other_power) * 10 ** (-ratio / 20)
    mixed = wave.copy()
    mixed[begin : begin + length] += gain * other[other_begin : other_begin + length]
    return mixed

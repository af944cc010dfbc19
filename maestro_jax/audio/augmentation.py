"""Augments audio: changes speeds, mixes speakers, adds rooms and noise.

The augmentation of an example is a function of the seed and of its position in its stream: it does
not depend on the number of processes or on restarts. SpecAugment is part of the model.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from maestro_jax.audio import acoustics
from maestro_jax.audio.reading import resample
from maestro_jax.augmentation_config import AudioAugmentation


class Augmented(NamedTuple):
    """An example after augmentation, with its clean source, sample by sample.

    Attributes:
        audio: int16 `[samples]`, the augmented audio.
        clean: int16 `[samples]`, the voice alone at the same speed, without room, others or noise.
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
    """Applies randomly drawn augmentations to one example.

    Args:
        audio: int16 `[samples]`, 16 kHz.
        config: The possible augmentations.
        rng: Random generator of this example.
        longest: Samples beyond which no change of speed may lengthen a shorter example.
        other: int16 `[samples]`, another utterance to mix in; None for none.

    Returns:
        The augmented audio and its clean source. Both have as many samples as before unless the
        speed changes, and are scaled down if their peaks would clip.
    """
    # All choices come first, so that one does not depend on how many numbers another has used.
    speed = config.speeds[int(rng.integers(len(config.speeds)))]
    in_room, is_noisy = rng.random(2) < (config.room_probability, config.noise_probability)
    if not audio.size:
        return Augmented(audio, audio)
    wave = audio / np.float64(32768.0)
    if speed != 1.0 and not len(audio) <= longest < _samples_at(len(audio), speed):
        wave = resample(wave, *_rates(speed)).astype(np.float64)
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
    """Returns the assumed rate of audio and the rate to convert it to, without common factors.

    To a hundredth: the finer the ratio, the longer the filter.
    """
    percent = round(100 * speed)
    divisor = math.gcd(percent, 100)
    return percent // divisor, 100 // divisor


def _samples_at(samples: int, speed: float) -> int:
    rate, target = _rates(speed)
    return -(-samples * target // rate)


def _mix(
    wave: np.ndarray, other: np.ndarray, config: AudioAugmentation, rng: np.random.Generator
) -> np.ndarray:
    """Adds a piece of another utterance at a random position."""
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

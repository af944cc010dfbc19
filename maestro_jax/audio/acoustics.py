"""Simulates rooms, noise and recording levels.

All signals are float64 `[samples]` at 16 kHz, full scale 1.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import fft, signal

from maestro_jax.batches import SAMPLE_RATE


def loud_part(audio: np.ndarray, threshold: float = 0.01) -> slice:
    """Finds what remains without silence at both ends.

    Args:
        audio: `[samples]`.
        threshold: Fraction of the peak below which samples are silent.

    Returns:
        The slice from the first to the last sample that is not silent; empty for silence.
    """
    loud = np.flatnonzero(np.abs(audio) > threshold * np.abs(audio).max(initial=0.0))
    return slice(int(loud[0]), int(loud[-1]) + 1) if loud.size else slice(0, 0)


def reverberate(
    audio: np.ndarray, rng: np.random.Generator, *, decay_seconds: float, direct_ratio: float
) -> np.ndarray:
    """Adds reverberation.

    The impulse response is a direct path, followed by white noise that decays exponentially.

    Args:
        audio: `[samples]`.
        rng: Draws the reflections.
        decay_seconds: Reverberation time: after it, the tail is 60 dB down.
        direct_ratio: Energy of the direct path over that of the tail, in dB.

    Returns:
        `[samples]`, of the same energy; reverberation after the end is cut off.
    """
    length = int(decay_seconds * SAMPLE_RATE)
    tail = rng.standard_normal(length) * 10 ** (-3 * np.arange(length) / length)
    tail[: int(0.002 * SAMPLE_RATE)] = 0.0
    tail *= 10 ** (-direct_ratio / 20) / np.sqrt(np.sum(tail**2))
    tail[0] = 1.0
    wet = signal.fftconvolve(audio, tail)[: len(audio)]
    return wet * (_rms(audio) / max(_rms(wet), 1e-12))


def noise(length: int, rng: np.random.Generator, kind: str) -> np.ndarray:
    """Generates background noise of unit power.

    Args:
        length: Samples.
        rng: Draws the noise.
        kind: `white`, `pink` (equal power in every octave) or `babble` (four bands of noise with
            the average spectrum of speech, each modulated at the rate of syllables).
    """
    if kind == "white":
        drawn = rng.standard_normal(length)
    elif kind == "pink":
        drawn = _coloured(length, rng, lambda hertz: np.maximum(hertz, 50.0) ** -0.5)
    else:
        drawn = np.zeros(length)
        seconds = np.arange(length) / SAMPLE_RATE
        for _ in range(4):
            phase, syllables = rng.uniform(0, 2 * np.pi), rng.uniform(2.5, 5.0)
            envelope = 0.55 + 0.45 * np.sin(2 * np.pi * syllables * seconds + phase)
            drawn += envelope * _coloured(length, rng, _speech_spectrum)
    return drawn / max(_rms(drawn), 1e-12)


def add_noise(audio: np.ndarray, rng: np.random.Generator, *, kind: str, snr: float) -> np.ndarray:
    """Adds background noise, `snr` dB below the mean power of the audio."""
    return audio + noise(len(audio), rng, kind) * (_rms(audio) * 10 ** (-snr / 20))


def record(audio: np.ndarray, *, level: float, peak: float = 0.9) -> np.ndarray:
    """Scales a signal to a recording level.

    Args:
        audio: `[samples]`.
        level: Mean power in dB below full scale, e.g. -25.
        peak: Largest sample; signals whose peaks would exceed it are scaled down further.

    Returns:
        int16 `[samples]`.
    """
    gain = 10 ** (level / 20) / max(_rms(audio), 1e-12)
    gain = min(gain, peak / max(np.abs(audio).max(initial=0.0), 1e-12))
    return np.rint(audio * gain * 32767).astype(np.int16)


def _coloured(
    length: int, rng: np.random.Generator, shape: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    # A length with small prime factors: a transform of a prime length takes ten times as long.
    longer = fft.next_fast_len(length, real=True)
    spectrum = fft.rfft(rng.standard_normal(longer))
    hertz = fft.rfftfreq(longer, 1 / SAMPLE_RATE)
    return fft.irfft(spectrum * shape(hertz), longer)[:length]


def _speech_spectrum(hertz: np.ndarray) -> np.ndarray:
    """Returns amplitudes: flat from 100 to 500 Hz, then falling by 9 dB per octave."""
    return np.where(hertz < 100, 0.0, np.minimum(1.0, (500 / np.maximum(hertz, 1.0)) ** 1.5))


def _rms(audio: np.ndarray) -> float:
    return float(np.sqrt(np.mean(audio**2))) if audio.size else 0.0

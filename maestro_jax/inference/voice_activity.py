"""Detects speech in frames of 20 ms, by their level alone.

The level of a frame is a mean over eight bands of the voice, in decibels, so that one loud band (a
hum, a beep) changes it little. A frame is speech if its level

- exceeds the noise floor, a low percentile of the levels of the 20 seconds around it. Digital
  silence does not count, and recordings on both sides of it are taken to be different ones: each
  piece of at least a second has its own floor, and
- is not part of a second of constant level, nor of half a second of constant level well below the
  voices around it. Voices never keep a level for that long; fans, hiss and hum do, even when they
  begin suddenly and the floor has not risen yet.

No level is absolute, apart from that of digital silence, so that the decisions do not depend on the
recording's gain. Every decision depends on at most `CONTEXT` frames to either side.
"""

from __future__ import annotations

import functools

import numpy as np
from scipy import ndimage

from maestro_jax.batches import SAMPLE_RATE

FRAME = SAMPLE_RATE // 50
"""Samples per frame."""

SECOND = SAMPLE_RATE // FRAME
"""Frames per second."""

CONTEXT = 10 * SECOND + SECOND
"""Number of frames to either side on which a decision may depend."""

_BLOCK = 5 * SECOND  # Frames that are decided together.

LAG = CONTEXT + _BLOCK + SECOND
"""Largest number of frames by which decisions lag."""

_BANDS = 8
_LOWEST, _HIGHEST = 200.0, 4000.0  # Hz
_SILENCE = -100.0  # dB of full scale: the level of a frame of zeros.
_DIGITAL = -92.0  # Below is digital silence: zeros, or dither of the last of 16 bits.
_SEPARATOR = SECOND // 5  # Frames of digital silence that separate two pieces.
_FLOOR_PERCENTILE = 5.0
_FLOOR_WINDOW = 10 * SECOND
# White and brown noise stays within 4 dB of its 5th percentile, within 5 dB in a second, and within
# 3.5 dB in half a second.
_MARGIN = 4.0
_STEADY_SECOND = 5.0
_STEADY_HALF = 3.5
_LOUD_PERCENTILE = 95.0
_QUIETER = 10.0  # dB below the loudest: quieter than any drawn-out vowel.
# Frames of a median filter: clicks of one or two frames are not speech.
_SMOOTHING = 5


def frame_levels(samples: np.ndarray) -> np.ndarray:
    """Computes the level of each frame in the bands of the voice.

    Args:
        samples: Float samples within -1 to 1 at 16 kHz, `[samples]`. An incomplete last frame is
            padded with zeros.

    Returns:
        Decibels of full scale, float32 `[ceil(samples / FRAME)]`, at least -100: the mean over
        bands of the level of white noise that has the band's power.
    """
    count = -(-len(samples) // FRAME)
    frames = np.zeros((count, FRAME), np.float32)
    frames.reshape(-1)[: len(samples)] = samples
    window, bands = _filters()
    power = np.square(np.abs(np.fft.rfft(frames * window, axis=1)))
    return (10.0 * np.log10(power @ bands + 10.0 ** (_SILENCE / 10))).mean(axis=1)


@functools.cache
def _filters() -> tuple[np.ndarray, np.ndarray]:
    """Returns a Hann window `[FRAME]` and bands `[FRAME // 2 + 1, _BANDS]`."""
    window = np.hanning(FRAME).astype(np.float32)
    frequencies = np.fft.rfftfreq(FRAME, 1 / SAMPLE_RATE)
    edges = np.geomspace(_LOWEST, _HIGHEST, _BANDS + 1)
    inside = (frequencies[:, None] >= edges[:-1]) & (frequencies[:, None] < edges[1:])
    bands = inside / inside.sum(axis=0) / np.square(window).sum()
    return window, bands.astype(np.float32)


def speech_frames(levels: np.ndarray) -> np.ndarray:
    """Decides for each frame of a recording whether it is speech.

    Args:
        levels: Levels of the recording, from `frame_levels`, `[frames]`.

    Returns:
        Bool `[frames]`.
    """
    return _decide(levels, 0, len(levels))


def _decide(levels: np.ndarray, begin: int, end: int) -> np.ndarray:
    """Decides for the frames from `begin`, a multiple of a second, to `end`."""
    first = max(0, begin - CONTEXT)
    levels = levels[first : end + CONTEXT]
    smooth = ndimage.median_filter(levels, _SMOOTHING, mode="nearest")
    pieces = _pieces(levels)
    floor = np.full(len(levels), np.inf)
    loud = np.full(len(levels), np.inf)
    for at in range(begin - first, end - first, SECOND):
        window = slice(max(0, at - _FLOOR_WINDOW), at + SECOND + _FLOOR_WINDOW)
        second = slice(at, at + SECOND)
        for piece in np.unique(pieces[second]):
            if piece == 0:
                continue
            same = pieces[window] == piece
            if np.count_nonzero(same) < SECOND:
                same = pieces[window] > 0
            percentiles = np.percentile(levels[window][same], (_FLOOR_PERCENTILE, _LOUD_PERCENTILE))
            floor[second][pieces[second] == piece] = percentiles[0]
            loud[second][pieces[second] == piece] = percentiles[1]
    steady = _steady(smooth, SECOND, _STEADY_SECOND)
    steady |= _steady(smooth, SECOND // 2, _STEADY_HALF) & (smooth < loud - _QUIETER)
    return ((smooth > floor + _MARGIN) & ~steady)[begin - first : end - first]


def _pieces(levels: np.ndarray) -> np.ndarray:
    """Numbers the pieces between digital silences from 1 on; digital silence is 0."""
    silent = levels <= _DIGITAL
    # Shorter silences separate nothing: clean voices have them between words.
    separators = ndimage.binary_opening(silent, np.ones(_SEPARATOR))
    return np.where(silent, 0, ndimage.label(~separators)[0])


def _steady(levels: np.ndarray, frames: int, decibels: float) -> np.ndarray:
    """Tells which frames are in a window in which the level varies by less than some decibels."""
    highest = ndimage.maximum_filter1d(levels, frames, mode="nearest")
    lowest = ndimage.minimum_filter1d(levels, frames, mode="nearest")
    steady = highest - lowest < decibels
    # A frame is in all windows around it; the origin mirrors the off-centre middle of even windows.
    origin = 0 if frames % 2 else -1
    return ndimage.maximum_filter1d(steady.astype(np.uint8), frames, origin=origin) > 0


class VoiceActivityDetector:
    """Decides as `speech_frames` does, while the recording is being read, in constant memory.

    Decisions lag by up to `LAG` frames.
    """

    def __init__(self) -> None:
        self._levels = np.zeros(0, np.float32)
        self._decided = 0  # Number of frames of `_levels` that have been decided.

    def push(self, levels: np.ndarray, *, final: bool = False) -> np.ndarray:
        """Adds the levels of the next frames.

        Args:
            levels: `[frames]`.
            final: Whether the recording ends with them.

        Returns:
            The decisions that have become possible, bool `[decided]`, in the order of frames.
        """
        self._levels = np.concatenate([self._levels, levels])
        end = len(self._levels)
        if not final:
            # Whole seconds, so that floors are computed where `speech_frames` computes them.
            end = max(self._decided, (end - CONTEXT) // SECOND * SECOND)
            if end < self._decided + _BLOCK:
                return np.zeros(0, bool)
        decisions = _decide(self._levels, self._decided, end)
        dropped = max(0, end - CONTEXT) // SECOND * SECOND
        self._levels = self._levels[dropped:]
        self._decided = end - dropped
        return decisions

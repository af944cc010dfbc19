"""Where somebody speaks: a decision for each 20 ms of a recording, by its level alone.

The level of a frame is a mean over eight bands of the voice, in decibels, so that one loud band (a
hum, a beep) moves it little. A frame is speech if its level

- stands out of the noise floor, a low percentile of the levels of the 20 seconds around it.
  Digital silence does not count there, and what it parts was recorded apart: each piece of a second
  and more has a floor of its own, and
- is not part of a second of constant level, nor of half a second that is quieter than voices
  there. Voices never keep a level for so long; fans, hiss and hum do, also where they begin
  suddenly and the floor is still that of before.

No level is absolute but that of digital silence, so a quiet recording has the same speech as a
loud one. Every decision depends on at most `CONTEXT` frames to either side.
"""

from __future__ import annotations

import functools

import numpy as np
from scipy import ndimage

from maestro_jax.batches import SAMPLE_RATE

FRAME = SAMPLE_RATE // 50
"""Samples of a frame."""

SECOND = SAMPLE_RATE // FRAME
"""Frames of a second."""

CONTEXT = 10 * SECOND + SECOND
"""Frames to either side that may bear on a decision."""

_BLOCK = 5 * SECOND  # frames that are decided upon together

LAG = CONTEXT + _BLOCK + SECOND
"""Frames that a detector waits for at most."""

_BANDS = 8
_LOWEST, _HIGHEST = 200.0, 4000.0  # Hz
_SILENCE = -100.0  # dB of full scale: the level of a frame of zeros
_DIGITAL = -92.0  # what lies below is digital silence: zeros, or dither of the last of 16 bits
_PARTING = SECOND // 5  # frames of digital silence between two pieces
_FLOOR_PERCENTILE = 5.0
_FLOOR_WINDOW = 10 * SECOND
# White and brown noise stays within 4 dB of its 5th percentile, within 5 dB in a second, and within
# 3.5 dB in half a second.
_MARGIN = 4.0
_STEADY_SECOND = 5.0
_STEADY_HALF = 3.5
_LOUD_PERCENTILE = 95.0
_QUIETER = 10.0  # dB below the loudest: no vowel that is drawn out
# Frames of the median: clicks of one or two frames are no speech.
_SMOOTHING = 5


def frame_levels(samples: np.ndarray) -> np.ndarray:
    """The level of each frame in the bands of the voice.

    Args:
        samples: Float samples within -1 to 1 at 16 kHz, `[samples]`. A last frame that is not
            whole is filled up with zeros.

    Returns:
        Decibels of full scale, float32 `[ceil(samples / FRAME)]`, -100 at least: the mean over
        bands of what the whole spectrum would have if it were like the band.
    """
    count = -(-len(samples) // FRAME)
    frames = np.zeros((count, FRAME), np.float32)
    frames.reshape(-1)[: len(samples)] = samples
    window, bands = _filters()
    power = np.square(np.abs(np.fft.rfft(frames * window, axis=1)))
    return (10.0 * np.log10(power @ bands + 10.0 ** (_SILENCE / 10))).mean(axis=1)


@functools.cache
def _filters() -> tuple[np.ndarray, np.ndarray]:
    """A Hann window `[FRAME]` and the bands `[FRAME // 2 + 1, _BANDS]`, for white noise of 0 dB."""
    window = np.hanning(FRAME).astype(np.float32)
    frequencies = np.fft.rfftfreq(FRAME, 1 / SAMPLE_RATE)
    edges = np.geomspace(_LOWEST, _HIGHEST, _BANDS + 1)
    inside = (frequencies[:, None] >= edges[:-1]) & (frequencies[:, None] < edges[1:])
    bands = inside / inside.sum(axis=0) / np.square(window).sum()
    return window, bands.astype(np.float32)


def speech_frames(levels: np.ndarray) -> np.ndarray:
    """Decides for each frame of a recording whether it is speech.

    Args:
        levels: What `frame_levels` gives for the recording, `[frames]`.

    Returns:
        bool `[frames]`.
    """
    return _decide(levels, 0, len(levels))


def _decide(levels: np.ndarray, begin: int, end: int) -> np.ndarray:
    """The decisions for some frames, of which the first begins a second."""
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
    """Numbers the pieces between digital silences, from 1 on; 0 for digital silence itself."""
    silent = levels <= _DIGITAL
    # Shorter ones part nothing: a clean voice has them between words.
    parting = ndimage.binary_opening(silent, np.ones(_PARTING))
    return np.where(silent, 0, ndimage.label(~parting)[0])


def _steady(levels: np.ndarray, frames: int, decibels: float) -> np.ndarray:
    """Whether a frame belongs to so many frames in which the level moves by less than that."""
    highest = ndimage.maximum_filter1d(levels, frames, mode="nearest")
    lowest = ndimage.minimum_filter1d(levels, frames, mode="nearest")
    steady = highest - lowest < decibels
    # Mirrored: each frame asks all windows that it is in. An even window has its middle late.
    origin = 0 if frames % 2 else -1
    return ndimage.maximum_filter1d(steady.astype(np.uint8), frames, origin=origin) > 0


class VoiceActivityDetector:
    """Decides as `speech_frames` does, while the recording is still being read.

    Decisions lag up to `LAG` frames behind, and levels are kept as long as they bear on one: memory
    does not grow with the recording.
    """

    def __init__(self) -> None:
        self._levels = np.zeros(0, np.float32)
        self._decided = 0  # Frames of `_levels` that have been decided upon.

    def push(self, levels: np.ndarray, *, final: bool = False) -> np.ndarray:
        """Takes the levels of the next frames.

        Args:
            levels: `[frames]`.
            final: Whether the recording ends with them.

        Returns:
            The decisions that are now possible, bool `[decided]`, in the order of the frames.
        """
        self._levels = np.concatenate([self._levels, levels])
        end = len(self._levels)
        if not final:
            # Whole seconds, so that floors are taken where `speech_frames` takes them.
            end = max(self._decided, (end - CONTEXT) // SECOND * SECOND)
            if end < self._decided + _BLOCK:
                return np.zeros(0, bool)
        decisions = _decide(self._levels, self._decided, end)
        dropped = max(0, end - CONTEXT) // SECOND * SECOND
        self._levels = self._levels[dropped:]
        self._decided = end - dropped
        return decisions

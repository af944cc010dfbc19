"""Cut a recording of any length into the stretches of speech that a model can take.

Silence is left out. What is longer than the model's room is cut in its longest pauses. Where nobody
pauses, two segments overlap, so that every word is whole in one of them:
`maestro_jax.inference.segment_joining` joins what is heard in both.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator

import numpy as np
from scipy import ndimage

from maestro_jax.inference.voice_activity import FRAME, SECOND, VoiceActivityDetector, frame_levels

PAUSE = SECOND // 5
"""Frames of the shortest pause that is cut in."""

SILENCE = SECOND
"""Frames of a pause that always ends a segment, whatever room is left."""

PADDING = SECOND // 10
"""Frames of silence that stay with the speech before and after it."""

_SMALLEST = 2 * SECOND // 5
_LONGEST_OVERLAP = 2 * SECOND
_QUIET_PERCENTILE, _QUIET_MARGIN = 10.0, 3.0  # dB


@dataclasses.dataclass(frozen=True, kw_only=True)
class Segment:
    """A stretch of a recording.

    Attributes:
        start: Sample of the recording at which it begins.
        samples: Float samples at 16 kHz, `[samples]`.
        overlap: How many of its first samples are the last ones of the segment before.
    """

    start: int
    samples: np.ndarray
    overlap: int = 0

    @property
    def end(self) -> int:
        """Sample of the recording at which it ends."""
        return self.start + len(self.samples)


@dataclasses.dataclass(frozen=True)
class _Cut:
    """Frames of the next segment, and where to look for the one after it.

    `begin` and `end` are equal where there is no segment: nobody speaks before `resume`.
    """

    begin: int
    end: int
    resume: int


def segments(chunks: Iterable[np.ndarray], longest: int) -> Iterator[Segment]:
    """Cuts a recording while it is read, in memory that does not grow with it.

    Every frame that `maestro_jax.inference.voice_activity` takes for speech is in a segment, and
    up to `PADDING` frames around it. A pause of `SILENCE` frames ends a segment. What is still
    longer than a segment may be is cut in its longest pause of `PAUSE` frames at least; of pauses
    shorter than twice the padding each side gets half. Only where there is none, and the level
    does not fall for as long, the next segment begins before the end of the last one: by a quarter
    of the longest segment, two seconds at most, around the quietest place.

    Args:
        chunks: The recording: float samples at 16 kHz, each `[samples]`.
        longest: Most samples of a segment.

    Yields:
        The segments in order; none if nobody speaks. How the recording comes in chunks does not
        matter.

    Raises:
        ValueError: If a segment could not hold 0.4 s.
    """
    room = longest // FRAME
    if room < _SMALLEST:
        raise ValueError(
            f"A segment must hold {_SMALLEST * FRAME} samples at least, not {longest}."
        )
    return _segments(chunks, room)


def _segments(chunks: Iterable[np.ndarray], room: int) -> Iterator[Segment]:
    detector = VoiceActivityDetector()
    samples = np.zeros(0, np.float32)  # from the frame `position` on
    levels_to = 0  # samples of them whose levels are known
    speech = np.zeros(0, bool)  # decisions from `position` on
    levels = np.zeros(0, np.float32)  # and levels
    position, last_end = 0, 0
    for chunk in itertools.chain(chunks, [None]):
        final = chunk is None
        if chunk is not None:
            samples = np.concatenate([samples, chunk.astype(np.float32, copy=False)])
        whole = len(samples) if final else len(samples) // FRAME * FRAME
        fresh = frame_levels(samples[levels_to:whole])
        levels_to = whole
        levels = np.concatenate([levels, fresh])
        speech = np.concatenate([speech, detector.push(fresh, final=final)])
        used = 0
        while (cut := _next_cut(speech[used:], levels[used:], room, final=final)) is not None:
            begin, end = used + cut.begin, used + cut.end
            if cut.begin < cut.end:
                start = position + begin
                yield Segment(
                    start=start * FRAME,
                    samples=samples[begin * FRAME : end * FRAME],
                    overlap=max(0, last_end - start) * FRAME,
                )
                last_end = position + end
            used += cut.resume
        position += used
        samples, speech, levels = samples[used * FRAME :], speech[used:], levels[used:]
        levels_to -= min(levels_to, used * FRAME)


def _next_cut(speech: np.ndarray, levels: np.ndarray, room: int, *, final: bool) -> _Cut | None:
    """The next segment; None if more must be read first, or nothing is left.

    Args:
        speech: Decisions from where to look on, `[frames]`.
        levels: In dB, at least as many.
        room: Most frames of a segment.
        final: Whether the recording ends with these frames.
    """
    known = len(speech)
    if not speech.any():
        return _Cut(0, 0, known - PADDING) if known > PADDING and not final else None
    first = int(np.argmax(speech))
    begin = max(0, first - PADDING)
    limit = begin + room
    if known < limit + SILENCE and not final:
        return None
    pauses = [(a, b) for a, b in _runs(~speech[: limit + SILENCE]) if first < a <= limit]
    pause = next((p for p in pauses if p[1] - p[0] >= SILENCE), None)
    last = known - int(np.argmax(speech[::-1]))
    if pause is None and last <= limit and final:
        return _Cut(begin, min(last + PADDING, limit, known), known)
    pause = pause or _longest(pauses)
    if pause is not None:
        middle = sum(pause) // 2
        return _Cut(begin, min(pause[0] + PADDING, middle, limit), middle)
    # The detector's floor is that of 20 seconds; here may be more noise than elsewhere.
    quiet = levels[:limit] < np.percentile(levels[begin:limit], _QUIET_PERCENTILE) + _QUIET_MARGIN
    pause = _longest([(a, b) for a, b in _runs(quiet) if a > first])
    if pause is not None:
        middle = sum(pause) // 2
        return _Cut(begin, middle, middle)
    # The overlap lies around the quietest place of the second half: words are seldom torn there.
    overlap = min(room // 4, _LONGEST_OVERLAP)
    middles = slice(begin + room // 2, limit - overlap // 2 + 1)
    quietest = middles.start + int(np.argmin(ndimage.uniform_filter1d(levels, PAUSE)[middles]))
    return _Cut(begin, quietest + overlap // 2, quietest - overlap // 2)


def _longest(pauses: Iterable[tuple[int, int]]) -> tuple[int, int] | None:
    """The longest of the pauses that are long enough to cut in, the last one of those."""
    return max(
        (pause for pause in pauses if pause[1] - pause[0] >= PAUSE),
        key=lambda pause: (pause[1] - pause[0], pause),
        default=None,
    )


def _runs(flags: np.ndarray) -> Iterator[tuple[int, int]]:
    """Begin and end of each run of true flags."""
    steps = np.flatnonzero(np.diff(np.concatenate([[0], flags.astype(np.int8), [0]])))
    yield from zip(steps[::2].tolist(), steps[1::2].tolist(), strict=True)

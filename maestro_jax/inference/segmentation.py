"""Cuts recordings into segments that a model can decode, and joins what was decoded.

`cut_segments` leaves silence out, and cuts stretches of speech that are longer than the model's
room in their longest pauses. Without a pause, two segments overlap, so that every word is complete
in one of them; `join_segments` then joins their tokens where they agree.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from scipy import ndimage

from maestro_jax.batches import SAMPLE_RATE
from maestro_jax.inference.timed_words import (
    WORD_START,
    NBestEntry,
    TimedToken,
    Transcript,
    delayed,
    transcript_words,
)
from maestro_jax.inference.voice_activity import FRAME, SECOND, VoiceActivityDetector, frame_levels

PAUSE = SECOND // 5
"""Shortest pause in which to cut, in frames."""

SILENCE = SECOND
"""Pause that always ends a segment, in frames."""

PADDING = SECOND // 10
"""Silence that is kept before and after speech, in frames."""

_SMALLEST = 2 * SECOND // 5
_LONGEST_OVERLAP = 2 * SECOND
_QUIET_PERCENTILE, _QUIET_MARGIN = 10.0, 3.0  # dB

_TOLERANCE = 0.5
"""Largest difference between the times of one token in two segments, in seconds."""

_SHORTEST_RUN = 3
"""Least number of tokens in a row that must agree; fewer may agree by chance."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Segment:
    """A stretch of a recording.

    Attributes:
        start: Sample of the recording at which it begins.
        samples: Float samples at 16 kHz, `[samples]`.
        overlap: Number of its first samples that are the last ones of the segment before.
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
    """The frames of the next segment, and the frame from which to search for the one after it.

    If `begin` and `end` are equal there is no segment: nobody speaks before `resume`.
    """

    begin: int
    end: int
    resume: int


def cut_segments(chunks: Iterable[np.ndarray], longest: int) -> Iterator[Segment]:
    """Cuts a recording while it is being read, in constant memory.

    Every frame that `maestro_jax.inference.voice_activity` takes for speech is in a segment, with
    up to `PADDING` frames around it. A pause of `SILENCE` frames ends a segment. Longer speech is
    cut in its longest pause of at least `PAUSE` frames; of a pause shorter than twice the padding
    each side gets half. Without a pause, it is cut where the level falls for as long. Without that
    either, the next segment begins before the end of the last one: by a quarter of the longest
    segment, two seconds at most, around the quietest place.

    Args:
        chunks: The recording: float samples at 16 kHz, each `[samples]`. The result does not depend
            on how it is divided into chunks.
        longest: Largest number of samples per segment.

    Yields:
        The segments in order; none if nobody speaks.

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
    # Buffers that begin at the frame `position` of the recording.
    samples = np.zeros(0, np.float32)
    levels_to = 0  # Number of samples whose levels are known.
    speech = np.zeros(0, bool)
    levels = np.zeros(0, np.float32)
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
    """Finds the next segment; None if more must be read first, or nothing is left.

    Args:
        speech: Decisions whether frames are speech, `[frames]`.
        levels: Levels in dB, of at least as many frames.
        room: Largest number of frames per segment.
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
    # The noise here may be louder than the detector's floor, which is that of 20 seconds.
    quiet = levels[:limit] < np.percentile(levels[begin:limit], _QUIET_PERCENTILE) + _QUIET_MARGIN
    pause = _longest([(a, b) for a, b in _runs(quiet) if a > first])
    if pause is not None:
        middle = sum(pause) // 2
        return _Cut(begin, middle, middle)
    # Overlap around the quietest place of the second half, which is seldom within a word.
    overlap = min(room // 4, _LONGEST_OVERLAP)
    middles = slice(begin + room // 2, limit - overlap // 2 + 1)
    quietest = middles.start + int(np.argmin(ndimage.uniform_filter1d(levels, PAUSE)[middles]))
    return _Cut(begin, quietest + overlap // 2, quietest - overlap // 2)


def _longest(pauses: Iterable[tuple[int, int]]) -> tuple[int, int] | None:
    """Returns the longest pause of at least `PAUSE` frames, of equally long ones the last."""
    return max(
        (pause for pause in pauses if pause[1] - pause[0] >= PAUSE),
        key=lambda pause: (pause[1] - pause[0], pause),
        default=None,
    )


def _runs(flags: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yields begin and end of each run of True."""
    steps = np.flatnonzero(np.diff(np.concatenate([[0], flags.astype(np.int8), [0]])))
    yield from zip(steps[::2].tolist(), steps[1::2].tolist(), strict=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecodedSegment:
    """The hypotheses of one segment.

    Attributes:
        start: Sample of the recording at which it begins.
        end: Sample at which it ends.
        overlap: Number of its first samples that are the last ones of the segment before.
        ids: Token ids of the best hypothesis.
        alternatives: The hypotheses, best first; at least one.
    """

    start: int
    end: int
    overlap: int
    ids: Sequence[int]
    alternatives: tuple[NBestEntry, ...]


def join_segments(
    segments: Sequence[DecodedSegment],
    *,
    samples: int,
    decode: Callable[[Sequence[int]], str],
    target_language: str | None,
) -> Transcript:
    """Joins decoded segments to the transcript of a recording.

    Args:
        segments: The segments in order.
        samples: Length of the recording.
        decode: Converts token ids to text.
        target_language: The language of the translation; None for a transcript.

    Returns:
        The transcript, with times from the beginning of the recording. Texts of segments are joined
        with one space, segments that overlap by `join_overlap`. Scores are those of whole segments.
    """
    # Stretches without a gap: a word may begin in one segment and end in the next if they overlap.
    pieces: list[tuple[list[int], list[TimedToken]]] = []
    for segment in segments:
        ids = list(segment.ids)
        tokens = list(delayed(segment.alternatives[0].tokens, segment.start / SAMPLE_RATE))
        if segment.overlap and pieces:
            left_ids, left_tokens = pieces[-1]
            keep, skip = join_overlap(
                left_tokens,
                tokens,
                segment.start / SAMPLE_RATE,
                (segment.start + segment.overlap) / SAMPLE_RATE,
            )
            left_ids[keep:], left_tokens[keep:] = ids[skip:], tokens[skip:]
        else:
            pieces.append((ids, tokens))
    return Transcript(
        text=" ".join(" ".join(decode(ids) for ids, _ in pieces).split()),
        seconds=samples / SAMPLE_RATE,
        score=sum(segment.alternatives[0].score for segment in segments),
        segments=len(segments),
        target_language=target_language,
        spans=tuple(
            (round(segment.start / SAMPLE_RATE, 3), round(segment.end / SAMPLE_RATE, 3))
            for segment in segments
        ),
        words=tuple(word for _, tokens in pieces for word in transcript_words(tokens)),
        tokens=tuple(token for _, tokens in pieces for token in tokens),
        alternatives=tuple(segment.alternatives for segment in segments),
    )


def join_overlap(
    left: Sequence[TimedToken], right: Sequence[TimedToken], begin: float, end: float
) -> tuple[int, int]:
    """Finds where to change from the tokens of one segment to those of the next.

    Both segments contain the overlap, the left one without what follows it, the right one without
    what precedes it. They are joined in the middle of the longest run of tokens in which they
    agree, of at least `_SHORTEST_RUN`. Without one, words that begin in the first half of the
    overlap are taken from the left segment and the others from the right one. If tokens have no
    times either, nothing is dropped.

    Args:
        left: Tokens of the earlier segment; seconds from the beginning of the recording.
        right: Tokens of the later segment.
        begin: Second at which the overlap begins.
        end: Second at which it ends.

    Returns:
        The number of tokens of the left segment to keep, and of the right one to skip.
    """
    timed = all(token.start is not None for token in (*left, *right))
    run = _longest_run(left, right, begin, end) if timed else _longest_run(left, right)
    if run is not None:
        at_left, at_right, length = run
        return at_left + length // 2, at_right + length // 2
    if not timed:
        return len(left), 0
    middle = (begin + end) / 2
    return _words_before(left, middle), _words_before(right, middle)


def _longest_run(
    left: Sequence[TimedToken],
    right: Sequence[TimedToken],
    begin: float | None = None,
    end: float | None = None,
) -> tuple[int, int, int] | None:
    """Finds the longest run of equal tokens, of equally long ones the last.

    With times, only tokens of the overlap are compared, and their times must agree to `_TOLERANCE`.
    Without times, a run must be in the second half of the left tokens and the first half of the
    right ones.

    Returns:
        Its index in both and its length, or None.
    """
    if begin is not None and end is not None:
        i_from = sum(_before(token, begin - _TOLERANCE) for token in left)
        j_to = sum(_before(token, end + _TOLERANCE) for token in right)
    else:
        i_from, j_to = len(left) // 2, -(-len(right) // 2)
    best: tuple[int, int, int] | None = None
    # lengths[j + 1] is the length of the run that ends with left[i] and right[j].
    lengths = [0] * (j_to + 1)
    for i in range(i_from, len(left)):
        previous = lengths
        lengths = [0] * (j_to + 1)
        for j in range(j_to):
            if not _same(left[i], right[j]):
                continue
            length = lengths[j + 1] = previous[j] + 1
            if length >= max(_SHORTEST_RUN, best[2] if best else 0):
                best = (i - length + 1, j - length + 1, length)
    return best


def _same(left: TimedToken, right: TimedToken) -> bool:
    if left.text != right.text:
        return False
    if left.start is None or right.start is None:
        return True
    return abs(left.start - right.start) <= _TOLERANCE


def _before(token: TimedToken, seconds: float) -> bool:
    return token.start is not None and token.start < seconds


def _words_before(tokens: Sequence[TimedToken], seconds: float) -> int:
    """Counts the tokens before the first word that begins at a time or later."""
    begins = [index for index, token in enumerate(tokens) if token.text.startswith(WORD_START)]
    if not any(begins):
        # A language without spaces: any token may be the first.
        return sum(_before(token, seconds) for token in tokens)
    return next((i for i in begins if not _before(tokens[i], seconds)), len(tokens))

"""Join what was heard in the segments of a recording to its transcript."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from maestro_jax.batches import SAMPLE_RATE
from maestro_jax.inference.transcripts import MARK, Alternative, Timed, Transcript, later, words_of

_SAME = 0.5
"""Seconds by which the times of one token in two segments may differ."""

_SHORTEST_RUN = 3
"""Tokens in a row that must agree: fewer are the same by chance."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeardSegment:
    """What was heard in one segment.

    Attributes:
        start: Sample of the recording at which it begins.
        end: Sample at which it ends.
        overlap: How many of its first samples are the last ones of the segment before.
        ids: Token ids of the best hypothesis.
        alternatives: The hypotheses, best first; at least one.
    """

    start: int
    end: int
    overlap: int
    ids: Sequence[int]
    alternatives: tuple[Alternative, ...]


def transcript_of(
    heard: Sequence[HeardSegment],
    *,
    samples: int,
    decode: Callable[[Sequence[int]], str],
    target_language: str | None,
) -> Transcript:
    """Joins segments to a transcript, its times counted from the beginning of the recording.

    Args:
        heard: The segments in order.
        samples: Length of the recording.
        decode: From token ids to text.
        target_language: The language translated into; None for a transcript.

    Returns:
        The transcript. Texts of segments are joined with one space, segments that overlap as
        `join_overlap` says. Scores are those of whole segments.
    """
    # Pieces of the transcript: a word reaches from one segment into the next where they overlap.
    pieces: list[tuple[list[int], list[Timed]]] = []
    for segment in heard:
        ids = list(segment.ids)
        tokens = list(later(segment.alternatives[0].tokens, segment.start / SAMPLE_RATE))
        if segment.overlap and pieces:
            before_ids, before_tokens = pieces[-1]
            keep, leave_out = join_overlap(
                before_tokens,
                tokens,
                segment.start / SAMPLE_RATE,
                (segment.start + segment.overlap) / SAMPLE_RATE,
            )
            before_ids[keep:], before_tokens[keep:] = ids[leave_out:], tokens[leave_out:]
        else:
            pieces.append((ids, tokens))
    return Transcript(
        text=" ".join(" ".join(decode(ids) for ids, _ in pieces).split()),
        seconds=samples / SAMPLE_RATE,
        score=sum(segment.alternatives[0].score for segment in heard),
        segments=len(heard),
        target_language=target_language,
        spans=tuple(
            (round(segment.start / SAMPLE_RATE, 3), round(segment.end / SAMPLE_RATE, 3))
            for segment in heard
        ),
        words=tuple(word for _, tokens in pieces for word in words_of(tokens)),
        tokens=tuple(token for _, tokens in pieces for token in tokens),
        alternatives=tuple(segment.alternatives for segment in heard),
    )


def join_overlap(
    left: Sequence[Timed], right: Sequence[Timed], begin: float, end: float
) -> tuple[int, int]:
    """Where to leave one segment's tokens and go on with those of the next.

    Both have heard the overlap, the left one without what follows it, the right one without what
    goes before. They are joined in the middle of the longest run of tokens in which they agree, of
    `_SHORTEST_RUN` at least. Where there is none, words that begin in the first half are the left
    one's, and the others the right one's; if tokens have no times either, nothing is dropped.

    Args:
        left: Tokens of the earlier segment; seconds from the beginning of the recording.
        right: Tokens of the later one.
        begin: Second at which the overlap begins.
        end: Second at which it ends.

    Returns:
        How many tokens of the left one to keep, and how many of the right one to leave out.
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
    left: Sequence[Timed],
    right: Sequence[Timed],
    begin: float | None = None,
    end: float | None = None,
) -> tuple[int, int, int] | None:
    """Begin in both and length of the longest run of equal tokens, of the last one of those.

    With times, tokens of the overlap are compared that were heard within `_SAME` seconds. Without,
    a run must not lie deeper in either segment than half of its tokens.
    """
    if begin is not None and end is not None:
        i_from = sum(_before(token, begin - _SAME) for token in left)
        j_to = sum(_before(token, end + _SAME) for token in right)
    else:
        i_from, j_to = len(left) // 2, -(-len(right) // 2)
    best: tuple[int, int, int] | None = None
    lengths = [0] * (j_to + 1)  # of the run that ends with the left token and the right one
    for i in range(i_from, len(left)):
        above = lengths
        lengths = [0] * (j_to + 1)
        for j in range(j_to):
            if not _same(left[i], right[j]):
                continue
            length = lengths[j + 1] = above[j] + 1
            if length >= max(_SHORTEST_RUN, best[2] if best else 0):
                best = (i - length + 1, j - length + 1, length)
    return best


def _same(left: Timed, right: Timed) -> bool:
    if left.text != right.text:
        return False
    if left.start is None or right.start is None:
        return True
    return abs(left.start - right.start) <= _SAME


def _before(token: Timed, seconds: float) -> bool:
    return token.start is not None and token.start < seconds


def _words_before(tokens: Sequence[Timed], seconds: float) -> int:
    """How many tokens there are up to the first word that begins at a time or later."""
    begins = [index for index, token in enumerate(tokens) if token.text.startswith(MARK)]
    if not any(begins):
        # A language without blanks: tokens are parted wherever the time falls.
        return sum(_before(token, seconds) for token in tokens)
    return next((i for i in begins if not _before(tokens[i], seconds)), len(tokens))

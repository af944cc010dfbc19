"""What was heard in a recording, and when."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

MARK = "\u2581"
"""What SentencePiece writes for a blank."""

_BYTES = re.compile(r"(<0x[0-9A-F]{2}>)+")
"""What it writes for bytes, as do vocabularies of bytes."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Timed:
    """A token or a word, and when it was heard.

    Attributes:
        text: The piece of the vocabulary, or the word.
        start: Seconds from the beginning of the recording to the frame that emitted it (its first
            token). A streaming model hears before it writes, so this is no boundary of a sound.
            None from an attention decoder, which has no alignment.
        score: Log-probability of the emission (of its tokens together), in nats.
    """

    text: str
    start: float | None
    score: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Alternative:
    """One of the hypotheses of a segment.

    Attributes:
        text: What it says.
        score: Its log-probability under the decoder, in nats.
        fused_score: What ranked it: with a language model, if there was one, and normalised by
            length, if the decoder attends.
        tokens: Its tokens; seconds count from the beginning of the segment.
    """

    text: str
    score: float
    fused_score: float
    tokens: tuple[Timed, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transcript:
    """What was heard in one recording.

    Attributes:
        text: The transcript, or its translation; empty if nobody speaks.
        seconds: Duration of the audio.
        score: Log-probability under the decoder, in nats, summed over segments: of the path
            taken by the greedy search, of all paths that a beam search saw.
        segments: Number of segments that were decoded.
        spans: Begin and end of each, in seconds of the recording. What is in none is silence, or
            noise without a voice.
        target_language: The language translated into; None for a transcript.
        words: Its words, as far as blanks part them.
        tokens: Its tokens.
        alternatives: For each segment its hypotheses, best first.
    """

    text: str
    seconds: float
    score: float
    segments: int
    target_language: str | None
    spans: tuple[tuple[float, float], ...] = ()
    words: tuple[Timed, ...] = ()
    tokens: tuple[Timed, ...] = ()
    alternatives: tuple[tuple[Alternative, ...], ...] = ()


def words_of(tokens: Sequence[Timed]) -> list[Timed]:
    """Joins the pieces of SentencePiece to words, at the marks that stand for blanks.

    Args:
        tokens: Pieces in order.

    Returns:
        The words: each starts where its first letter was written, and has the score of all its
        pieces, a mark that stands alone included. Pieces that are bytes are put together.
    """
    words: list[Timed] = []
    score, opens = 0.0, True
    for token in tokens:
        marked = token.text.startswith(MARK)
        letters = token.text.replace(MARK, "")
        if marked:
            score, opens = 0.0, True
        score += token.score
        if not letters:
            continue
        if opens or not words:
            words.append(Timed(text=letters, start=token.start, score=score))
        else:
            last = words[-1]
            words[-1] = dataclasses.replace(
                last, text=last.text + letters, score=last.score + token.score
            )
        score, opens = 0.0, False
    return [dataclasses.replace(word, text=_BYTES.sub(_spelled, word.text)) for word in words]


def _spelled(found: re.Match[str]) -> str:
    """Letters for pieces such as `<0xC3><0xA9>`."""
    return bytes.fromhex(re.sub("<0x|>", "", found[0])).decode("utf-8", errors="ignore")


def later(tokens: Sequence[Timed], seconds: float) -> tuple[Timed, ...]:
    """The same tokens, heard so many seconds later."""
    return tuple(
        token
        if token.start is None
        else dataclasses.replace(token, start=round(token.start + seconds, 3))
        for token in tokens
    )

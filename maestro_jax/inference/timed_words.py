"""Tokens and words with their times, of transcripts and of alignments.

A transcript knows when each token was emitted (`TimedToken`); an alignment also knows how long it
lasts (`AlignedToken`). Both group pieces of SentencePiece into words, at the mark that begins them.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence

from maestro_jax.text.vocabularies import Vocabulary

WORD_START = "\u2581"
"""SentencePiece's mark, which stands for a space: at the beginning of a piece, or alone."""

_BYTES = re.compile(r"(<0x[0-9A-F]{2}>)+")
"""SentencePiece's notation of bytes, which vocabularies of bytes share."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TimedToken:
    """A token or a word of a transcript, and when it was emitted.

    Attributes:
        text: The piece of the vocabulary, or the word.
        start: Seconds from the beginning of the recording to the frame that emitted it (of a word,
            its first token). A streaming model emits a token after its sound, so this is not a
            boundary of sounds. None from an attention decoder, which has no alignment.
        score: Log-probability of the emission (of a word, of all its tokens), in nats.
    """

    text: str
    start: float | None
    score: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class NBestEntry:
    """One of the hypotheses of a segment.

    Attributes:
        text: Its text.
        score: Its log-probability under the decoder, in nats.
        fused_score: The score that ranks it: with the language model, if there is one, and
            normalised by length, if the decoder is an attention decoder.
        tokens: Its tokens; seconds count from the beginning of the segment.
    """

    text: str
    score: float
    fused_score: float
    tokens: tuple[TimedToken, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transcript:
    """The transcript of one recording.

    Attributes:
        text: The transcript, or its translation; empty if nobody speaks.
        seconds: Duration of the audio.
        score: Log-probability under the decoder, in nats, summed over segments: of the path of
            greedy search, or of all paths that a beam search visited.
        segments: Number of segments that were decoded.
        target_language: The language of the translation; None for a transcript.
        heard: Code of the language that the text is written in, as its tokens tell; empty for an
            empty text, and where it is not known what the model's languages write.
        spans: Begin and end of each segment, in seconds of the recording. The rest is silence, or
            noise without a voice.
        words: Its words, as far as spaces separate them.
        tokens: Its tokens.
        alternatives: Hypotheses of each segment, best first.
    """

    text: str
    seconds: float
    score: float
    segments: int
    target_language: str | None
    heard: str = ""
    spans: tuple[tuple[float, float], ...] = ()
    words: tuple[TimedToken, ...] = ()
    tokens: tuple[TimedToken, ...] = ()
    alternatives: tuple[tuple[NBestEntry, ...], ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class AlignedToken:
    """A token of a known text, in time.

    Attributes:
        text: The piece of the vocabulary.
        start: Seconds.
        end: Seconds; equal to `start` if the next token is emitted in the same frame.
        confidence: Probability of the token in the frame that emits it, given the tokens before,
            0 to 1; for a word the geometric mean over its tokens.
    """

    text: str
    start: float
    end: float
    confidence: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class AlignedWord(AlignedToken):
    """A word of a known text, in time.

    Attributes:
        first_token: Index of its first token, apart from a word-start mark that stands alone.
    """

    first_token: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class AlignedTranscript:
    """The alignment of a recording with its transcript.

    Attributes:
        text: The text as it was aligned, which may be normalised.
        seconds: Duration of the recording.
        frame_seconds: Duration of a frame: starts are multiples of it.
        score: Log-probability of the path, blanks included, in nats.
        tokens: In order; starts do not decrease.
        words: In order; there may be gaps between them.
    """

    text: str
    seconds: float
    frame_seconds: float
    score: float
    tokens: tuple[AlignedToken, ...]
    words: tuple[AlignedWord, ...]


def transcript_words(tokens: Sequence[TimedToken]) -> list[TimedToken]:
    """Joins the tokens of a transcript to words.

    Args:
        tokens: Pieces in order.

    Returns:
        The words. Each starts with its first letter and has the score of all its pieces, that of a
        mark that stands alone included. Pieces that are bytes are decoded together.
    """
    words: list[TimedToken] = []
    # Score of the marks since the last word, which belongs to the next one.
    score, is_start = 0.0, True
    for token in tokens:
        letters = token.text.replace(WORD_START, "")
        if token.text.startswith(WORD_START):
            score, is_start = 0.0, True
        score += token.score
        if not letters:
            continue
        if is_start or not words:
            words.append(TimedToken(text=letters, start=token.start, score=score))
        else:
            last = words[-1]
            words[-1] = dataclasses.replace(
                last, text=last.text + letters, score=last.score + token.score
            )
        score, is_start = 0.0, False
    return [dataclasses.replace(word, text=_BYTES.sub(_decoded, word.text)) for word in words]


def _decoded(match: re.Match[str]) -> str:
    """Decodes pieces such as `<0xC3><0xA9>`."""
    return bytes.fromhex(re.sub("<0x|>", "", match[0])).decode("utf-8", errors="ignore")


def delayed(tokens: Sequence[TimedToken], seconds: float) -> tuple[TimedToken, ...]:
    """Returns the tokens with times that are later by some seconds."""
    return tuple(
        token
        if token.start is None
        else dataclasses.replace(token, start=round(token.start + seconds, 3))
        for token in tokens
    )


def aligned_words(
    vocabulary: Vocabulary, ids: Sequence[int], tokens: Sequence[AlignedToken]
) -> tuple[AlignedWord, ...]:
    """Joins the tokens of an alignment to words.

    A word starts with its first token and lasts to the start of the next word. A mark that stands
    alone, as in vocabularies of letters, belongs to no word: it ends the word before it, unless
    that was emitted in the same frame, and is followed by a gap.

    Args:
        vocabulary: The model's vocabulary.
        ids: Token ids, `[tokens]`.
        tokens: The same tokens in time.

    Returns:
        The words in order.
    """
    groups: list[list[int]] = []
    is_start = True
    for index, token in enumerate(tokens):
        is_start = is_start or token.text.startswith(WORD_START)
        if token.text == WORD_START:
            continue
        if is_start:
            groups.append([])
        groups[-1].append(index)
        is_start = False
    bounds = [*(token.start for token in tokens), tokens[-1].end]
    words = []
    for group, following in zip(groups, [*groups[1:], [len(tokens)]], strict=True):
        start = bounds[group[0]]
        # Starts of the marks that stand alone, if any, and of the next word.
        ends = (bound for bound in bounds[group[-1] + 1 : following[0] + 1] if bound > start)
        confidence = math.prod(tokens[index].confidence for index in group)
        words.append(
            AlignedWord(
                text=vocabulary.decode([ids[index] for index in group]).strip(),
                start=start,
                end=next(ends, start),
                confidence=confidence ** (1 / len(group)),
                first_token=group[0],
            )
        )
    return tuple(words)

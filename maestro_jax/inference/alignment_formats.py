"""Time-aligned tokens and words as a table, as JSON and as a Praat TextGrid."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Unit:
    """A token or a word in time.

    Attributes:
        text: What is said; the piece of the vocabulary for a token.
        start: Seconds.
        end: Seconds; equal to `start` for what leaves its frame to what follows.
        confidence: Probability of the token where it was emitted, given what came before, 0 to 1;
            for a word the geometric mean over its tokens.
    """

    text: str
    start: float
    end: float
    confidence: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Word(Unit):
    """A word in time.

    Attributes:
        first_token: Index of its first token, that of a mark which stands alone left out.
    """

    first_token: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class TimedText:
    """The alignment of one recording.

    Attributes:
        text: The text as it was aligned, which may be folded.
        seconds: Duration of the recording.
        frame_seconds: Duration of a frame: starts are multiples of it.
        score: Log-probability of the path, blanks included, in nats.
        tokens: In order; starts do not decrease.
        words: In order; between them there may be gaps.
    """

    text: str
    seconds: float
    frame_seconds: float
    score: float
    tokens: tuple[Unit, ...]
    words: tuple[Word, ...]


def as_json(found: TimedText, *, file: str) -> str:
    """One JSON object, with the fields of `TimedText` and two more.

    | key | value |
    |---|---|
    | `file` | the recording, as it was named |
    | `text` | string: the text as it was aligned |
    | `seconds`, `frame_seconds` | numbers: duration of the recording and of a frame |
    | `score`, `score_per_token` | numbers: log-probability of the path in nats, and its share |
    | `tokens` | list of `{"text", "start", "end", "confidence"}`, times in seconds |
    | `words` | list of the same with `"first_token"`, an index into `tokens` |

    Args:
        found: The alignment.
        file: The name of the recording.

    Returns:
        Indented lines without a newline at the end.
    """
    record: dict[str, Any] = {"file": file} | dataclasses.asdict(found)
    record["score_per_token"] = found.score / max(len(found.tokens), 1)
    for unit in (*record["tokens"], *record["words"]):
        # Microseconds: multiples of a frame come without the noise of their last bits.
        unit |= {name: round(unit[name], 6) for name in ("start", "end", "confidence")}
    return json.dumps(record, indent=2, ensure_ascii=False)


def as_rows(found: TimedText) -> list[dict[str, str]]:
    """A row a token, for a table; a word stands beside its first token.

    Args:
        found: The alignment.

    Returns:
        Records of strings; times in seconds, padded so that their points stand below each other.
    """
    width = len(f"{found.seconds:.3f}")
    begins = {word.first_token: word.text for word in found.words}
    return [
        {
            "token": token.text,
            "start": f"{token.start:{width}.3f}",
            "end": f"{token.end:{width}.3f}",
            "confidence": f"{token.confidence:.3f}",
            "word": begins.get(index, ""),
        }
        for index, token in enumerate(found.tokens)
    ]


def as_textgrid(found: TimedText) -> str:
    """Praat's long text format with the interval tiers `words` and `tokens`.

    The intervals of a tier cover the recording without gap or overlap, as Praat demands: gaps are
    intervals without text, and what has no duration of its own takes the gap behind it or else
    shares the interval of what follows it, their texts separated by a space. A tier without units
    is one empty interval.

    Args:
        found: The alignment.

    Returns:
        The file's text, which is to be written as UTF-8.

    Source: "TextGrid file formats" in Praat's manual.
    """
    lines = [
        'File type = "ooTextFile"',
        'Object class = "TextGrid"',
        "",
        "xmin = 0",
        f"xmax = {_number(found.seconds)}",
        "tiers? <exists>",
        "size = 2",
        "item []:",
    ]
    for index, (name, units) in enumerate((("words", found.words), ("tokens", found.tokens)), 1):
        intervals = tile(units, found.seconds)
        lines += [
            f"    item [{index}]:",
            '        class = "IntervalTier"',
            f'        name = "{name}"',
            "        xmin = 0",
            f"        xmax = {_number(found.seconds)}",
            f"        intervals: size = {len(intervals)}",
        ]
        for number, (start, end, text) in enumerate(intervals, 1):
            escaped = text.replace('"', '""')
            lines += [
                f"        intervals [{number}]:",
                f"            xmin = {_number(start)}",
                f"            xmax = {_number(end)}",
                f'            text = "{escaped}"',
            ]
    return "\n".join(lines) + "\n"


def tile(units: Sequence[Unit], seconds: float) -> list[tuple[float, float, str]]:
    """Intervals that cover a recording: no gap, no overlap, none without duration.

    Args:
        units: In order, each starting no earlier than the one before it ends.
        seconds: Duration of the recording, above 0.

    Returns:
        Start, end and text of each interval. Every unit's text is in one that begins with the
        unit; at the very end of the recording, where none could, in the last.
    """
    intervals: list[tuple[float, float, str]] = []
    waiting: list[str] = []
    here = 0.0

    def close(end: float) -> None:
        nonlocal here
        if end > here:
            intervals.append((here, end, " ".join(waiting)))
            here = end
            waiting.clear()

    for unit in units:
        close(unit.start)
        waiting.append(unit.text)
        close(unit.end)
    close(seconds)
    if waiting:
        start, end, text = intervals.pop()
        intervals.append((start, end, " ".join([*filter(None, [text]), *waiting])))
    return intervals


def _number(seconds: float) -> str:
    return f"{seconds:.6f}".rstrip("0").rstrip(".")

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
        end: Seconds; equal to `start` for a token that leaves its frame to the next one.
        confidence: Probability of the token where it was emitted, given what came before, 0 to 1;
            for a word the geometric mean over its tokens.
    """

    text: str
    start: float
    end: float
    confidence: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class TimedText:
    """The alignment of one recording.

    Attributes:
        seconds: Duration of the recording.
        score: Log-probability of the path, blanks included, in nats.
        tokens: In order; starts do not decrease.
        words: In order; between them there may be gaps.
    """

    seconds: float
    score: float
    tokens: tuple[Unit, ...]
    words: tuple[Unit, ...]


def as_json(found: TimedText, *, file: str) -> str:
    """One JSON object.

    `{"file", "seconds", "score", "score_per_token", "tokens": [...], "words": [...]}`; a token or a
    word is `{"text", "start", "end", "confidence"}` with times in seconds.
    """
    record: dict[str, Any] = {"file": file} | dataclasses.asdict(found)
    record["score_per_token"] = found.score / max(len(found.tokens), 1)
    for kind in ("tokens", "words"):
        record[kind] = [
            {name: round(v, 4) if isinstance(v, float) else v for name, v in unit.items()}
            for unit in record[kind]
        ]
    return json.dumps(record, indent=2, ensure_ascii=False)


def as_rows(found: TimedText) -> list[dict[str, str | float]]:
    """A row a token, for `cli.table`; the word stands beside its first token."""
    begins = {}
    for word in found.words:
        begins.setdefault(word.start, []).append(word.text)
    rows: list[dict[str, str | float]] = []
    for token in found.tokens:
        visible = token.text.replace("▁", "").strip()
        words = begins.get(token.start, []) if visible else []
        rows.append(
            {
                "token": token.text,
                "start": f"{token.start:.2f}",
                "end": f"{token.end:.2f}",
                "confidence": f"{token.confidence:.2f}",
                "word": words.pop(0) if words else "",
            }
        )
    return rows


def as_textgrid(found: TimedText) -> str:
    """Praat's long text format with the interval tiers `words` and `tokens`.

    The intervals of a tier cover the recording without gap or overlap, as Praat demands: gaps are
    intervals without text, and what has no duration of its own shares the interval of what follows
    it, their texts separated by a space.
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
    """Intervals `(start, end, text)` from 0 to the end, without gap, overlap or empty interval."""
    intervals: list[tuple[float, float, str]] = []
    waiting: list[str] = []
    here = 0.0
    for unit in units:
        if unit.start > here:
            intervals.append((here, unit.start, ""))
            here = unit.start
        waiting.append(unit.text)
        if unit.end > here:
            intervals.append((here, unit.end, " ".join(waiting)))
            here, waiting = unit.end, []
    if waiting:
        # Nothing followed them: they join what came before.
        start, end, text = intervals.pop() if intervals else (0.0, seconds, "")
        intervals.append((start, end, " ".join([*filter(None, [text]), *waiting])))
        here = end
    if here < seconds:
        intervals.append((here, seconds, ""))
    return intervals


def _number(seconds: float) -> str:
    return f"{seconds:.6f}".rstrip("0").rstrip(".")

"""Writes alignments as a table, as JSON and as a Praat TextGrid."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from maestro_jax.inference.timed_words import AlignedToken, AlignedTranscript


def as_json(alignment: AlignedTranscript, *, file: str) -> str:
    """Formats an alignment as one JSON object: the fields of `AlignedTranscript` and two more.

    | key | value |
    |---|---|
    | `file` | name of the recording, as it was given |
    | `text` | string: the text as it was aligned |
    | `seconds`, `frame_seconds` | numbers: duration of the recording and of a frame |
    | `score`, `score_per_token` | numbers: log-probability of the path in nats, also per token |
    | `tokens` | list of `{"text", "start", "end", "confidence"}`, times in seconds |
    | `words` | list of the same with `"first_token"`, an index into `tokens` |

    Args:
        alignment: The alignment.
        file: The name of the recording.

    Returns:
        Indented lines without a newline at the end.
    """
    record: dict[str, Any] = {"file": file} | dataclasses.asdict(alignment)
    record["score_per_token"] = alignment.score / max(len(alignment.tokens), 1)
    for unit in (*record["tokens"], *record["words"]):
        # To microseconds, without the rounding errors of multiples of a frame.
        unit |= {name: round(unit[name], 6) for name in ("start", "end", "confidence")}
    return json.dumps(record, indent=2, ensure_ascii=False)


def as_rows(alignment: AlignedTranscript) -> list[dict[str, str]]:
    """Formats an alignment as a table, one row per token; a word is in the row of its first token.

    Returns:
        Records of strings; times in seconds, padded to align their decimal points.
    """
    width = len(f"{alignment.seconds:.3f}")
    words = {word.first_token: word.text for word in alignment.words}
    return [
        {
            "token": token.text,
            "start": f"{token.start:{width}.3f}",
            "end": f"{token.end:{width}.3f}",
            "confidence": f"{token.confidence:.3f}",
            "word": words.get(index, ""),
        }
        for index, token in enumerate(alignment.tokens)
    ]


def as_textgrid(alignment: AlignedTranscript) -> str:
    """Formats an alignment in Praat's long text format, with interval tiers `words` and `tokens`.

    The intervals of a tier cover the recording without gap or overlap, as Praat requires: gaps are
    intervals without text. A unit without duration takes the gap after it, or else shares the
    interval of the next unit, their texts separated by a space. A tier without units is one empty
    interval.

    Returns:
        The content of the file, to be written as UTF-8.

    Source: "TextGrid file formats" in Praat's manual.
    """
    lines = [
        'File type = "ooTextFile"',
        'Object class = "TextGrid"',
        "",
        "xmin = 0",
        f"xmax = {_number(alignment.seconds)}",
        "tiers? <exists>",
        "size = 2",
        "item []:",
    ]
    tiers = (("words", alignment.words), ("tokens", alignment.tokens))
    for index, (name, units) in enumerate(tiers, 1):
        intervals = tile(units, alignment.seconds)
        lines += [
            f"    item [{index}]:",
            '        class = "IntervalTier"',
            f'        name = "{name}"',
            "        xmin = 0",
            f"        xmax = {_number(alignment.seconds)}",
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


def tile(units: Sequence[AlignedToken], seconds: float) -> list[tuple[float, float, str]]:
    """Converts units to intervals that cover a recording: no gap, no overlap, no empty interval.

    Args:
        units: In order, each starting no earlier than the one before it ends.
        seconds: Duration of the recording, above 0.

    Returns:
        Start, end and text of each interval. The text of a unit is in the interval that begins with
        it, or, at the very end of the recording, in the last one.
    """
    intervals: list[tuple[float, float, str]] = []
    waiting: list[str] = []
    begin = 0.0

    def close(end: float) -> None:
        nonlocal begin
        if end > begin:
            intervals.append((begin, end, " ".join(waiting)))
            begin = end
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

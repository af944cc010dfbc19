"""Alignments as pages: the TextGrid is read back by an independent parser."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from praatio import textgrid

from maestro_jax.cli.table import table
from maestro_jax.evaluation.alignment_formats import (
    TimedText,
    Unit,
    as_json,
    as_rows,
    as_textgrid,
    tile,
)


def unit(text, start, end, confidence=0.5):
    return Unit(text=text, start=start, end=end, confidence=confidence)


# "ab" and 'say "c"' with two letters on one frame and silence in front.
FOUND = TimedText(
    seconds=1.0,
    score=-6.0,
    tokens=(
        unit("▁", 0.2, 0.2),
        unit("a", 0.2, 0.28),
        unit("b", 0.28, 0.4),
        unit("▁", 0.4, 0.6),
        unit('"c"', 0.6, 1.0),
    ),
    words=(unit("ab", 0.2, 0.4), unit('"c"', 0.6, 1.0)),
)


def test_praat_reads_the_textgrid(tmp_path):
    path = tmp_path / "speech.TextGrid"
    path.write_text(as_textgrid(FOUND), encoding="utf-8")
    grid = textgrid.openTextgrid(str(path), includeEmptyIntervals=True)
    assert grid.tierNames == ("words", "tokens")
    assert (grid.minTimestamp, grid.maxTimestamp) == (0.0, 1.0)
    words = [tuple(entry) for entry in grid.getTier("words").entries]
    assert words == [(0, 0.2, ""), (0.2, 0.4, "ab"), (0.4, 0.6, ""), (0.6, 1.0, '"c"')]
    tokens = [tuple(entry) for entry in grid.getTier("tokens").entries]
    assert tokens == [
        (0, 0.2, ""),
        (0.2, 0.28, "▁ a"),
        (0.28, 0.4, "b"),
        (0.4, 0.6, "▁"),
        (0.6, 1.0, '"c"'),
    ]


@given(
    starts=st.lists(st.integers(0, 10), min_size=1, max_size=12).map(sorted),
    end=st.integers(11, 13),
)
def test_intervals_cover_the_recording_and_lose_no_text(starts, end):
    times = [float(start) for start in starts]
    units = [
        unit(f"t{i}", a, b) for i, (a, b) in enumerate(zip(times, [*times[1:], 11.0], strict=True))
    ]
    intervals = tile(units, float(end))
    assert intervals[0][0] == 0.0 and intervals[-1][1] == end
    assert all(start < stop for start, stop, _ in intervals)
    assert all(a[1] == b[0] for a, b in zip(intervals, intervals[1:], strict=False))
    spoken = [text for _, _, texts in intervals for text in texts.split()]
    assert spoken == [u.text for u in units]
    for start, _, texts in intervals:
        for text in texts.split():
            assert units[int(text[1:])].start == start


def test_units_without_duration_at_the_end_join_what_came_before():
    assert tile([unit("a", 0.0, 1.0), unit("b", 1.0, 1.0)], 1.0) == [(0.0, 1.0, "a b")]
    assert tile([unit("a", 0.0, 0.0)], 1.0) == [(0.0, 1.0, "a")]


def test_json():
    record = json.loads(as_json(FOUND, file="speech.wav"))
    assert list(record) == ["file", "seconds", "score", "tokens", "words", "score_per_token"]
    assert record["score_per_token"] == pytest.approx(-1.2)
    assert record["words"][0] == {"text": "ab", "start": 0.2, "end": 0.4, "confidence": 0.5}


def test_a_word_stands_beside_its_first_visible_token():
    rows = as_rows(FOUND)
    assert [row["word"] for row in rows] == ["", "ab", "", "", '"c"']
    assert table(rows).splitlines()[0].split() == ["token", "start", "end", "confidence", "word"]

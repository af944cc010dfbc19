"""Alignments as pages: the TextGrid is read back by an independent parser."""

from __future__ import annotations

import dataclasses
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from praatio import textgrid

from maestro_jax.inference.alignment_formats import (
    as_json,
    as_rows,
    as_textgrid,
    tile,
)
from maestro_jax.inference.timed_words import AlignedToken, AlignedTranscript, AlignedWord
from maestro_jax.tables import table


def unit(text, start, end, confidence=0.5):
    return AlignedToken(text=text, start=start, end=end, confidence=confidence)


def word(text, start, end, first_token):
    return AlignedWord(text=text, start=start, end=end, confidence=0.5, first_token=first_token)


# "ab" and '"c"' with two letters on one frame and silence in front.
FOUND = AlignedTranscript(
    text='ab "c"',
    frame_seconds=0.04,
    seconds=1.0,
    score=-6.0,
    tokens=(
        unit("▁", 0.2, 0.2),
        unit("a", 0.2, 0.28),
        unit("b", 0.28, 0.4),
        unit("▁", 0.4, 0.6),
        unit('"c"', 0.6, 1.0),
    ),
    words=(word("ab", 0.2, 0.4, 1), word('"c"', 0.6, 1.0, 4)),
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
    bounds=st.lists(st.integers(0, 10), min_size=2, max_size=24).map(sorted),
    contiguous=st.booleans(),
    end=st.integers(11, 13),
)
def test_intervals_cover_the_recording_and_lose_no_text(bounds, contiguous, end):
    times = [float(bound) for bound in bounds]
    pairs = list(zip(times, times[1:], strict=False))[:: 1 if contiguous else 2]
    units = [unit(f"t{i}", a, b) for i, (a, b) in enumerate(pairs)]
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
    assert tile([unit("a", 0.0, 1.0), unit("b", 1.0, 1.0)], 2.0)[1] == (1.0, 2.0, "b")
    assert tile([unit("a", 0.0, 0.0)], 1.0) == [(0.0, 1.0, "a")]
    assert tile([], 1.0) == [(0.0, 1.0, "")]


def test_json():
    record = json.loads(as_json(FOUND, file="speech.wav"))
    documented = set(re.findall(r"`(\w+)`(?=[^|]*\|)", as_json.__doc__)) - {"AlignedTranscript"}
    assert set(record) == documented
    assert (record["file"], record["text"]) == ("speech.wav", 'ab "c"')
    assert record["score_per_token"] == pytest.approx(-1.2)
    times = {"text": "ab", "start": 0.2, "end": 0.4, "confidence": 0.5}
    assert record["words"][0] == times | {"first_token": 1}
    assert record["tokens"][2] == times | {"text": "b", "start": 0.28}


def test_a_word_stands_beside_its_first_token():
    rows = as_rows(FOUND)
    assert [row["word"] for row in rows] == ["", "ab", "", "", '"c"']
    assert [row["start"] for row in rows] == ["0.200", "0.200", "0.280", "0.400", "0.600"]
    assert table(rows).splitlines()[0].split() == ["token", "start", "end", "confidence", "word"]
    # Two words on one frame.
    tokens = (unit("▁a", 0.0, 0.0), unit("b", 0.0, 0.0), unit("▁c", 0.0, 12.0))
    words = (word("ab", 0.0, 0.0, 0), word("c", 0.0, 12.0, 2))
    rows = as_rows(dataclasses.replace(FOUND, seconds=12.0, tokens=tokens, words=words))
    assert [row["word"] for row in rows] == ["ab", "", "c"]
    assert {len(row["end"]) for row in rows} == {6}

"""Overlapping hypotheses: joined as a search over all joins says, with nothing said twice."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maestro_jax.inference.segmentation import DecodedSegment, join_overlap, join_segments
from maestro_jax.inference.timed_words import NBestEntry, TimedToken

MARK = "\u2581"
RATE = 16_000


def timed(pairs):
    return [TimedToken(text=text, start=start, score=-1.0) for text, start in pairs]


def letters(text: str, start: float, step: float = 0.1):
    return timed((letter, start + step * i) for i, letter in enumerate(text))


def longest_common_run(left, right, begin, end):
    """Length of the longest run of equal tokens at nearly equal times, by trying all of them."""
    left = [token for token in left if token.start >= begin - 0.5]
    right = [token for token in right if token.start < end + 0.5]
    runs = (
        length
        for i, j in itertools.product(range(len(left)), range(len(right)))
        for length in range(1, min(len(left) - i, len(right) - j) + 1)
        if all(
            left[i + k].text == right[j + k].text
            and abs(left[i + k].start - right[j + k].start) <= 0.5
            for k in range(length)
        )
    )
    return max(runs, default=0)


@given(
    left=st.text("ab", max_size=9),
    right=st.text("ab", max_size=9),
    shift=st.sampled_from([0.0, 0.3, 1.0]),
)
def test_joined_in_the_middle_of_the_longest_run(left, right, shift):
    a, b = letters(left, 0.0), letters(right, shift)
    length = longest_common_run(a, b, 0.0, 1.5)
    keep, leave_out = join_overlap(a, b, 0.0, 1.5)
    if length >= 3:
        # On both sides of the join is what both have heard.
        before, after = length // 2, length - length // 2
        for k in range(before):
            assert a[keep - 1 - k].text == b[leave_out - 1 - k].text
        for k in range(after):
            assert a[keep + k].text == b[leave_out + k].text
    assert 0 <= keep <= len(a) and 0 <= leave_out <= len(b)


def test_words_torn_at_the_edges_are_left_out():
    left = timed([("a", 0.1), (MARK, 0.9), ("b", 1.0), ("c", 1.1), (MARK, 1.4), ("x", 1.5)])
    right = timed([("y", 0.9), (MARK, 0.95), ("b", 1.02), ("c", 1.1), (MARK, 1.4), ("d", 1.6)])
    keep, leave_out = join_overlap(left, right, 0.8, 1.6)
    joined = "".join(token.text for token in left[:keep] + right[leave_out:])
    assert joined == f"a{MARK}bc{MARK}d"


def test_without_agreement_words_are_shared_out_by_time():
    left = timed([(MARK + "one", 0.2), (MARK + "two", 1.1), (MARK + "tree", 1.9)])
    right = timed([(MARK + "to", 1.0), ("o", 1.2), (MARK + "three", 1.8), (MARK + "four", 2.4)])
    assert join_overlap(left, right, 1.0, 2.0) == (2, 2)
    # Without blanks, tokens instead of words.
    left, right = letters("abcd", 1.0, 0.25), letters("efgh", 1.0, 0.25)
    assert join_overlap(left, right, 1.0, 2.0) == (2, 2)


def test_repeated_words_stay_repeated():
    """Times tell which of several equal words are the same one."""
    words = [(MARK + "no", t) for t in (0.0, 1.0, 2.0, 3.0, 4.0)]
    left, right = timed(words[:4]), timed(words[2:])
    keep, leave_out = join_overlap(left, right, 2.0, 3.2)
    joined = left[:keep] + right[leave_out:]
    assert [token.start for token in joined] == [0.0, 1.0, 2.0, 3.0, 4.0]


def test_without_times_a_run_must_be_long():
    left = list(timed((c, None) for c in "the cat sat"))
    keep, leave_out = join_overlap(left, timed((c, None) for c in "at sat on"), 0, 1)
    assert "the cat sat"[:keep] + "at sat on"[leave_out:] == "the cat sat on"
    assert join_overlap(left, timed((c, None) for c in "xyz"), 0, 1) == (11, 0)
    assert join_overlap([], [], 0, 1) == (0, 0)


def decoded(text: str, start: float, end: float, overlap: float = 0.0) -> DecodedSegment:
    """A segment with a token each 0.1 s, from its beginning on."""
    alternative = NBestEntry(
        text=text, score=-2.0, fused_score=-2.0, tokens=tuple(letters(text, 0.0))
    )
    return DecodedSegment(
        start=round(start * RATE),
        end=round(end * RATE),
        overlap=round(overlap * RATE),
        ids=[ord(letter) for letter in text],
        alternatives=(alternative,),
    )


def joined(*parts: DecodedSegment, seconds: float = 9.0):
    return join_segments(
        parts,
        samples=round(seconds * RATE),
        decode=lambda ids: "".join(map(chr, ids)).replace(MARK, " "),
        target_language=None,
    )


def test_segments_become_one_transcript_with_one_space_between_them():
    found = joined(
        decoded(f"{MARK}a{MARK}b{MARK}", 1.0, 2.0), decoded("", 3, 4), decoded(" c", 5.0, 6.0)
    )
    assert found.text == "a b c"
    assert [(word.text, word.start) for word in found.words][:2] == [("a", 1.1), ("b", 1.3)]
    assert found.tokens[-1].start == pytest.approx(5.1)
    assert found.spans == ((1.0, 2.0), (3.0, 4.0), (5.0, 6.0))
    assert (found.segments, found.seconds, found.score) == (3, 9.0, -6.0)


def test_what_overlaps_is_said_once_and_words_reach_over_the_cut():
    first = decoded("abcdefghij", 0.0, 1.0)
    second = decoded("ghijklmnop", 0.6, 1.6, overlap=0.4)
    third = decoded("mnopqr", 1.2, 1.8, overlap=0.4)
    found = joined(first, second, third)
    assert found.text == "abcdefghijklmnopqr"
    assert [word.text for word in found.words] == [found.text]
    starts = [token.start for token in found.tokens]
    assert starts == pytest.approx([0.1 * i for i in range(18)])


def test_nothing_heard_is_an_empty_transcript():
    found = joined()
    assert (found.text, found.segments, found.words, found.score) == ("", 0, (), 0)

"""Nothing is lost when text is cut."""

from __future__ import annotations

import unicodedata

import hypothesis
import hypothesis.strategies as st
import pytest

from maestro_jax.data.corpora.text_files import sentences


@pytest.mark.parametrize(
    "text,expected",
    [
        ("One. Two!  Three?", ["One.", "Two!", "Three?"]),
        ('He said "no." And left.', ['He said "no."', "And left."]),
        ("3.14 is pi", ["3.14 is pi"]),
        ("one\ntwo", ["one", "two"]),
        ("今天很好。明天呢？好！", ["今天很好。", "明天呢？", "好！"]),
        ("कल। आज।", ["कल।", "आज।"]),
        ("a\n---\nb", ["a ---", "b"]),
        ("... a", ["... a"]),
        ("?!", ["?!"]),
        (" \n ", []),
    ],
)
def test_sentences(text: str, expected: list[str]) -> None:
    assert list(sentences(text)) == expected


def test_long_sentences_are_cut_between_words_and_the_rest_is_kept() -> None:
    text = " ".join(f"word{number}" for number in range(100))
    pieces = list(sentences(text, max_characters=50))
    assert " ".join(pieces) == text
    assert all(len(piece) <= 50 for piece in pieces)
    # No piece could have taken the next word.
    for piece, following in zip(pieces, pieces[1:], strict=False):
        assert len(piece) + 1 + len(following.split()[0]) > 50
    assert list(sentences("字" * 120, max_characters=50)) == ["字" * 50, "字" * 50, "字" * 20]


@hypothesis.given(st.text(alphabet="ab.!? \n\"'。)字-"), st.integers(1, 12))
def test_pieces_are_the_text(text: str, longest: int) -> None:
    pieces = list(sentences(text, longest))
    assert "".join("".join(pieces).split()) == "".join(text.split())
    assert all(len(piece) <= longest for piece in pieces)
    for piece, following in zip(pieces, pieces[1:], strict=False):
        if not (any(map(str.isalnum, piece)) and any(map(str.isalnum, following))):
            assert len(piece) + 1 + len(following) > longest
    assert list(pieces) == [" ".join(piece.split()) for piece in pieces]


def test_leaders_of_dots_are_cut_in_linear_time() -> None:
    # An index or a table of contents; each dot ends a sentence.
    text = "Chapter one " + ". " * 200_000 + "Page 9."
    pieces = list(sentences(text))
    assert max(map(len, pieces)) <= 256
    assert pieces[0].startswith("Chapter one .") and pieces[-1].endswith("Page 9.")


@pytest.mark.parametrize("letter", ["ก\u0e31", "क\u094d\u200dष\u093e", "e\u0301\u0323", "เก"])
def test_a_piece_of_a_long_word_begins_with_a_letter(letter: str) -> None:
    word = "x" + letter * 50
    for longest in range(8, 20):
        pieces = list(sentences(word, longest))
        assert "".join(pieces) == word and max(map(len, pieces)) <= longest
        assert all(unicodedata.category(piece[0])[0] == "L" for piece in pieces)
        assert not any(piece.endswith("เ") for piece in pieces)

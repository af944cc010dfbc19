"""Forms of a letter that nobody can tell apart score alike, and are spelled alike."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maestro_jax.text.characters import standard_forms
from maestro_jax.text.normalizers import normalize


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # Thai and Lao am: as one character, as two, and as it is typed, with the tone in between.
        ("น้ำ", "น้ำ"),
        ("น\u0e49\u0e4d\u0e32", "น้ำ"),
        ("น\u0e4d\u0e49\u0e32", "น้ำ"),
        ("ນ\u0ec9\u0ecd\u0eb2", "ນ້ຳ"),
        ("ນ\u0ecd\u0ec9\u0eb2", "ນ້ຳ"),
        ("\u0ecd", "\u0ecd"),
        # Arabic in its shapes; a ligature of letters is its letters, one of words is kept.
        ("\ufefb", "لا"),
        ("\ufeb3\ufefc\ufee1", "سلام"),
        ("\ufdfa", "\ufdfa"),
        # Widths. A half-width jamo is a letter by itself, as its full-width form is.
        ("ＡＢＣ ２０", "ABC 20"),
        ("ｶﾞｷﾞ ﾊﾟ", "ガギ パ"),
        ("\uffa1", "\u3131"),
        # Composed, as in any script.
        ("\u1112\u1161\u11ab", "한"),
        ("\uf93d", "綠"),
        ("\u0958", "\u0915\u093c"),
        # Not alike.
        ("x² ½ ℃ ﬁ 𝒳 ①", "x² ½ ℃ ﬁ 𝒳 ①"),
        ("！ ：", "！ ："),
    ],
)
def test_by_hand(text, expected) -> None:
    assert standard_forms(text) == expected


@given(st.text())
def test_idempotent_composed_and_the_same_under_nfkc(text) -> None:
    found = standard_forms(text)
    assert standard_forms(found) == found == unicodedata.normalize("NFC", found)
    # Unicode takes more characters for one another, but never these for others.
    assert _folded(found) == _folded(text)


def _folded(text: str) -> str:
    text = unicodedata.normalize("NFKC", text)
    # NFKC parts am into two characters, and leaves a tone mark where it was typed.
    return "".join(sorted(text))


def test_scores_do_not_see_the_form() -> None:
    for language, one, other in (
        ("lo", "ນ້ຳ", "ນ\u0ecd\u0ec9\u0eb2"),
        ("th", "น้ำ", "น\u0e4d\u0e49\u0e32"),
        ("ar", "سلام", "\ufeb3\ufefc\ufee1"),
        ("ja", "ガ 20", "ｶﾞ ２０"),
    ):
        assert normalize(one, language) == normalize(other, language) == one

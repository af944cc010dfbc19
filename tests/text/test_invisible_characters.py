"""What is neither seen nor heard goes, in every script; what is spelled stays."""

from __future__ import annotations

import sys
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maestro_jax.text.characters import without_invisible

EVERYTHING = [chr(point) for point in range(sys.maxunicode + 1)]

# Words as dictionaries and the Unicode Standard spell them, chapters 9, 12 and 13.
SPELLED = {
    "Persian, I want": "می\u200cخواهم",
    "Persian, books": "کتاب\u200cها",
    "Persian, conversation": "گفت\u200cو\u200cگو",
    "Persian, with a vowel sign before it": "میِ\u200cخواهم",
    "Hindi, half ka before ssa": "क\u094d\u200dष",
    "Hindi, ka with visible virama": "क\u094d\u200cष",
    "Marathi, eyelash ra": "द\u0930\u094d\u200dया",
    "Bengali, RAB": "র\u200d\u09cdযাব",
    "Kannada, ra without repha": "ರ\u200d\u0ccdಕ",
    "Malayalam, chillu at the end": "അവന\u0d4d\u200d",
    "Malayalam, software": "സോഫ\u0d4d\u200cറ്റ്",
    "Telugu, software": "సాఫ్ట\u0c4d\u200cవేర్",
    "Tamil, ksha apart": "க\u0bcd\u200cஷ",
    "Sinhala, sri": "ශ\u0dca\u200dරී",
    "Sinhala, touching letters": "ම\u200d\u0dcaම",
    "Mongolian, black": "ᠬᠠᠷ\u180eᠠ",
}
MARKS = "\u200e\u200f\u061c\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff\u00ad\u2060"
SENTENCES = {
    "Arabic": "صباحُ الخيرِ يا صديقي",
    "Hebrew": "בֹּקֶר טוב לכולם",
    "Persian": "این کتاب\u200cها را می\u200cخواهم",
    "Hindi": "नमस्ते दुनिया",
    "Thai": "สวัสดีตอนเช้า",
    "Vietnamese": "chào buổi sáng",
    "English": "good morning",
    "Chinese": "早上好",
    "Korean": "좋은 아침",
}


@pytest.mark.parametrize("word", SPELLED.values(), ids=SPELLED)
def test_joiners_that_spell_a_word_stay(word: str) -> None:
    assert without_invisible(word) == word
    assert without_invisible(f"\u2067{word}\u2069\ufeff") == word


@pytest.mark.parametrize("plain", SENTENCES.values(), ids=SENTENCES)
def test_marks_change_no_text(plain: str) -> None:
    for mark in MARKS:
        assert without_invisible(mark.join(plain)) == plain
        assert without_invisible(f"{mark}{plain}{mark}") == plain


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("Auf\u200clage of\u200cfice", "Auflage office"),
        ("\u200cمی \u200cکتاب\u200c ", "می کتاب "),
        ("می\u200c\u200c\u200fخواهم", "می\u200cخواهم"),
        ("क\u200dष a\u200db", "कष ab"),
        ("బస\u0c4d\u200c లో", "బస\u0c4d లో"),
        ("\U0001f468\u200d\U0001f469\u200d\U0001f467", "\U0001f468\U0001f469\U0001f467"),
        ("\u2764\ufe0f", "\u2764"),
        ("\U0001f3f4\U000e0067\U000e0062\U000e007f", "\U0001f3f4"),
        ("葛\U000e0100城", "葛城"),
        ("a\u034f\u0301", "a\u0301"),
        ("\ue000\U000f0000\ufdd0\U000e1000", ""),
        ("\u3164\uffa0\u115f\u1160\u17b4", ""),
        ("half \ud83d of it, and \udc00", "half  of it, and "),
        (
            "tab\tline\nnext\u0085\u2028\u00a0\u3000\x1f",
            "tab\tline\nnext\u0085\u2028\u00a0\u3000\x1f",
        ),
        ("be\x00ll\x07\x7f\x9b", "bell"),
    ],
)
def test_what_goes(text: str, left: str) -> None:
    assert without_invisible(text) == left


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("สวัสดี\u200bตอนเช้า", "สวัสดี ตอนเช้า"),
        ("ສະບາຍດີ\u200bຕອນ", "ສະບາຍດີ ຕອນ"),
        ("ភាសា\u200b\u200bខ្មែរ", "ភាសា ខ្មែរ"),
        ("မြန်မာ\u200bစာ", "မြန်မာ စာ"),
        ("ปี\u200b2024", "ปี 2024"),
        ("http\u200bs", "https"),
        ("今天\u200b天气", "今天天气"),
        ("\u200bhello", "hello"),
    ],
)
def test_a_zero_width_space_parts_words_where_nothing_else_does(text: str, left: str) -> None:
    assert without_invisible(text) == left


def test_of_all_characters_only_those_that_show_are_left() -> None:
    shown = set(without_invisible("\n".join(EVERYTHING)))
    categories = {c: unicodedata.category(c) for c in shown}
    # What this Python's tables do not have yet, those of the rule may.
    assert not {c for c, name in categories.items() if name[0] == "C" and name != "Cn"} - set(
        "\t\n\x0b\x0c\r\x1c\x1d\x1e\x1f\x85"
    )
    gone = {c for c in EVERYTHING if c not in shown and unicodedata.category(c)[0] != "C"}
    # Letters and marks that Unicode says have no appearance of their own.
    names = {unicodedata.name(c) for c in gone}
    assert all(
        "VARIATION SELECTOR" in n or "FILLER" in n or "JOINER" in n or "KHMER" in n for n in names
    ), names
    "".join(shown).encode()


@settings(max_examples=500, derandomize=True, deadline=None)
@given(
    st.text(
        st.sampled_from(
            "\u200b\u200c\u200d\u180e\u200f\ud800 aب\u0627\u0640\u064e\u0915\u094d\u093e"
            "\u0e01\u1820."
        )
    )
)
def test_twice_is_once_and_words_are_untouched(text: str) -> None:
    once = without_invisible(text)
    assert without_invisible(once) == once
    visible = "aب\u0627\u0640\u064e\u0915\u094d\u093e\u0e01\u1820."
    assert [c for c in once if c in visible] == [c for c in text if c in visible]

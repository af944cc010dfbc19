"""The rules of VoxPopuli's transcripts, case by case, and the laws that any normaliser keeps."""

import sys
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maestro_jax.scoring.metrics import compute_score, get_metric
from maestro_jax.text.normalizers import base_language, normalize


@pytest.mark.parametrize(
    ("text", "language", "expected"),
    [
        ("Mr President, thank you!", "en", "mr president thank you"),
        ("It’s the Parliament's vote.", "en", "it's the parliament's vote"),
        ("«L’union européenne» — c’est nous…", "fr", "l'union européenne c'est nous"),
        ("EU-Länder/Staaten · heute – jetzt", "de", "eu länder staaten heute jetzt"),
        ("„Größe“ (sagte er) [laut]", "de", "größe sagte er laut"),
        ("¿Qué? ¡No!", "es", "qué no"),
        ("'tis the dogs' ''bone''", "en", "tis the dogs bone"),
        ("le XXᵉ siècle", "fr", "le xx siècle"),
        ("12.000 + 5 % = ≤ €7", "pl", "12000 5 7"),
        ("  two\twords\u00a0here\n", "en", "two words here"),
        ("INTERNET IÇİN Iğdır", "tr", "ınternet ıçin ığdır"),
        ("İstanbul", "en", "istanbul"),
        ("La col·lecció", "ca", "la col·lecció"),
        ("La col·lecció", "es", "la col lecció"),
        ("今天，天气很好。", "zh-CN", "今天天气很好"),
        ("می\u200cخواهم،", "fa", "می\u200cخواهم"),
        ("کتاب\u200c.", "fa", "کتاب"),
        ("\u202bصباح الخير\u202c \u200fيا", "ar", "صباح الخير يا"),
        ("ســلام \u0640\u064b مـَـد", "ar", "سلام مَد"),
        ("क्\u200dष", "hi", "क्\u200dष"),
        ("ශ්\u200dරී ලංකා", "si", "ශ්\u200dරී ලංකා"),
        ("ex\u00adtra", "en", "extra"),
        (
            "\U0001f468\u200d\U0001f469 \u2764\ufe0f \U0001f1e9\U0001f1ea \U0001f44d\U0001f3fd",
            "de",
            "",
        ),
        ("\u2139\ufe0f 1\ufe0f\u20e3 Uhr", "de", "1 uhr"),
        ("a\u3000b\u202fc\u2028d\u1680e\x1ff", "en", "a b c d e f"),
        ("\u0301accent .\u0301 '\u0301a", "en", "accent a"),
        ("e\u200f\u0301t\ufeffé", "fr", "été"),
        ("", "en", ""),
        ("— … !", "en", ""),
    ],
)
def test_rules(text, language, expected):
    assert normalize(text, language) == expected


def test_composed_and_decomposed_letters_score_alike():
    composed = "ŽENA MOŻE Å"
    decomposed = unicodedata.normalize("NFD", composed)
    assert composed != decomposed
    assert normalize(composed, "sl") == normalize(decomposed, "sl")


def test_a_transcript_as_voxpopuli_publishes_it_is_left_alone():
    transcript = "l'union n'a pas aujourd'hui de politique étrangère d'où ce débat"
    assert normalize(transcript, "fr") == transcript


@settings(max_examples=300, derandomize=True, deadline=None)
@given(st.text(), st.sampled_from(["en", "tr", "ca", "zh", "el"]))
def test_idempotent_single_spaced_and_composed(text, language):
    once = normalize(text, language)
    assert normalize(once, language) == once
    assert once == " ".join(once.split())
    assert unicodedata.is_normalized("NFC", once)


def test_what_is_no_letter_or_digit_alone_is_no_word():
    everything = [chr(point) for point in range(sys.maxunicode + 1)]
    kinds = {c: unicodedata.category(c) for c in everything}
    silent = [c for c in everything if kinds[c][0] in "CMPSZ" and kinds[c] != "Cn"]
    assert normalize(" ".join(silent), "en") == ""
    assert normalize("".join(c for c in silent if kinds[c][0] != "M"), "en") == ""
    # Inside a word, what is invisible parts nothing, but for white space.
    inside = [c for c in silent if kinds[c] in ("Cc", "Cf", "Co", "Cs") and not c.isspace()]
    assert set(normalize(" ".join(f"ab{c}cd" for c in inside), "en").split()) == {"abcd"}
    # Every letter and digit alone is a word, but for those that show nothing or are pictures.
    spoken = [c for c in everything if kinds[c][0] in "LN"]
    # The last two are marks of half-width Japanese, which voice the letter before them.
    lost = "\u0640\u07fa\u1d49\u2139\u115f\u1160\u3164\uffa0\u02bc\uff9e\uff9f"
    assert normalize(" ".join(lost), "en") == ""
    assert len(normalize(" ".join(spoken), "en").split()) == len(spoken) - len(lost)


@pytest.mark.parametrize("mark", ["\u202b", "\u2067", "\u061c", "\u202e", "\u200f", "\ufeff"])
def test_marks_of_direction_cost_no_errors(mark):
    plain = ["صباح الخير يا صديقي", "בוקר טוב", "این کتاب\u200cها را می\u200cخواهم"]
    marked = [f"{mark}{text}{mark}.".replace(" ", f"{mark} {mark}") for text in plain]
    normalized = [normalize(text, "ar") for text in marked]
    assert compute_score(get_metric("wer"), normalized, plain, bootstrap_samples=0).value == 0
    written = [f"{text}." for text in plain]
    assert compute_score(get_metric("bleu"), marked, written, language="ar").value == pytest.approx(
        100
    )


def test_base_language():
    assert [base_language(code) for code in ("sv-SE", "zh_CN", "de")] == ["sv", "zh", "de"]

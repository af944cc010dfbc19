"""The rules of VoxPopuli's transcripts, case by case, and the laws that any normaliser keeps."""

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maestro_jax.evaluation.normalizers import base_language, normalize


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
        ("ex\u00adtra", "en", "extra"),
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


def test_base_language():
    assert [base_language(code) for code in ("sv-SE", "zh_CN", "de")] == ["sv", "zh", "de"]

"""Written sentences and how they are said, by hand, in several languages."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from maestro_jax.cli.main import main
from maestro_jax.errors import UserError
from maestro_jax.text import normalizers
from maestro_jax.text.normalizers import (
    find_rules,
    normalize,
    spelled_out,
    spoken_text,
    without_parentheses,
)

SPOKEN = [
    ("en", "It’s agreed – 21 of 28!", "it's agreed twenty one of twenty eight"),
    ("en", "the 2nd, 3rd and 50th", "the second third and fiftieth"),
    ("en", "H1N1 costs $10", "h one n one costs ten"),
    ("en", "12,000,000 people", "twelve million people"),
    ("en", "at 10:45 on 18.4.", "at ten forty five on eighteen four"),
    ("en", "the years 2010-2014", "the years two thousand and ten two thousand and fourteen"),
    ("en", "3,5% (or so [more])", "three five"),
    ("de", "Am 3. Mai waren es 12.000 (zwölftausend).", "am drei mai waren es zwölftausend"),
    ("de", "§ 21", "einundzwanzig"),
    ("fr", "L’article 71 de l'accord", "l'article soixante et onze de l'accord"),
    ("es", "¿22 ó 31?", "veintidós ó treinta y uno"),
    ("pl", "15 krajów", "piętnaście krajów"),
    ("it", "Sono 23 Paesi.", "sono ventitré paesi"),
    ("ro", "27 de state", "douăzeci și șapte de state"),
    ("hu", "15 ország", "tizenöt ország"),
    ("cs", "tedy 12 zemí", "tedy dvanáct zemí"),
    ("nl", "21 landen", "eenentwintig landen"),
    ("fi", "12 maata", "kaksitoista maata"),
    ("sl", "11 držav", "enajst držav"),
    ("lt", "10 šalių", "dešimt šalių"),
    ("pt-PT", "16 países", "dezasseis países"),
]


@pytest.mark.parametrize(("language", "written", "said"), SPOKEN)
def test_as_it_is_said(language: str, written: str, said: str) -> None:
    found = spoken_text(written, language)
    assert found == said
    assert normalize(found, language) == found
    assert not any(character.isdigit() for character in found)


def test_text_without_numbers_is_normalised_like_a_transcript() -> None:
    # Croatian is not a language of num2words; only numbers need it.
    for language, text in [("hr", "Hvala, gospodine predsjedniče!"), ("en", "We don't — do we?")]:
        assert spoken_text(text, language) == normalize(text, language)
    with pytest.raises(UserError, match="spells no numbers in 'hr'"):
        spoken_text("Imamo 28 država", "hr")


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("a (b) c", "a   c"),
        ("a (b [c] (d)) e", "a   e"),
        ("one (two", "one (two"),
        ("one) two (three)", "one) two  "),
    ],
)
def test_parentheses(text: str, left: str) -> None:
    assert without_parentheses(text) == left


def test_numbers_that_are_too_large_are_said_digit_by_digit() -> None:
    assert spelled_out("9" * 60, "en").split() == ["nine"] * 60
    # Beyond the largest word that the language has.
    assert set(spelled_out("1" * 40, "de").split()) <= {"eins"} or "eins" not in spelled_out(
        "1" * 40, "de"
    )


def test_without_num2words_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    normalizers._speller.cache_clear()
    monkeypatch.setitem(sys.modules, "num2words", None)
    with pytest.raises(UserError, match=r"pip install maestro_jax\[minivox\]"):
        spelled_out("1", "en")
    normalizers._speller.cache_clear()


def test_rules_by_name() -> None:
    assert find_rules("spoken") is spoken_text
    with pytest.raises(
        UserError, match="rules 'spokn'; choose 'transcript' or 'spoken'.*Did you mean"
    ):
        find_rules("spokn")


def test_texts_are_prepared_by_the_rules_that_are_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import tensorflow_datasets as tfds

    source = tmp_path / "texts"
    (source / "en").mkdir(parents=True)
    (source / "en" / "train.txt").write_text("It has 27 members (today).\nNone.\n")
    command = ["prepare", "text_files", "--source_dir", str(source), "--data_dir", str(tmp_path)]
    for rules, expected in [
        ("transcript", ["it has 27 members today", "none"]),
        ("spoken", ["it has twenty seven members", "none"]),
    ]:
        assert main([*command, "--name", rules, "--text_rules", rules, "--workers", "1"]) == 0
        directory = tmp_path / rules / "en" / "1.0.0"
        records = tfds.builder_from_directory(directory).as_data_source("train")
        assert [records[number]["text"].decode() for number in range(2)] == expected
        assert records[0]["raw_text"].decode() == "It has 27 members (today)."
    capsys.readouterr()
    command[1] = "librispeech"
    assert main([*command, "--text_rules", "spoken"]) == 2
    assert "--text_rules does not apply to librispeech" in capsys.readouterr().err

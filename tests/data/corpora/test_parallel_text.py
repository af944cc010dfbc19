"""Pairs of translated files, to records and batches."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
from layouts_text import TRANSLATED, lay_out_parallel
from spoken import prepared, problems, records
from streamed import epoch, make_vocabulary

from maestro_jax.cli.main import main
from maestro_jax.data.corpora.corpus import find_corpus
from maestro_jax.data.corpora.issues import IssueLog
from maestro_jax.errors import UserError

GERMAN = ["guten morgen", "es ist acht uhr", "die sonne scheint"]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = tmp_path_factory.mktemp("parallel")
    lay_out_parallel(source)
    return source


def test_lines(source: Path, tmp_path: Path) -> None:
    corpus = find_corpus("parallel_text")
    assert corpus.configs(source) == ["de_en"]
    assert corpus.configs(source, ["en_de"]) == ["en_de"]
    result = prepared(corpus, source, "de_en", tmp_path)
    train, test = result.splits
    assert (train.listed, train.utterances) == (6, 3)
    assert train.issues == {"empty text": 2, "empty translation": 1}
    assert (test.split, test.utterances) == ("test", 2)
    assert ("empty translation", "train", "train.de-en:4") in problems(result)
    found = records(result, "train")
    assert [(e["raw_text"], e["translation"]) for e in found] == TRANSLATED
    assert [entry["text"] for entry in found] == GERMAN
    assert {entry["language"] for entry in found} == {"de"}

    first = next(corpus.utterances(source, "en_de", IssueLog()))
    assert (first.text, first.translation) == ("good morning", "Guten Morgen!")
    assert (first.id, first.language) == ("newstest2014.de-en:1", "en")


def test_files_that_do_not_fit(tmp_path: Path) -> None:
    corpus = find_corpus("parallel_text")
    with pytest.raises(UserError, match="no pairs of languages"):
        corpus.configs(tmp_path)
    (tmp_path / "train.de-en.de").write_text("Eins.\nZwei.\n")
    with pytest.raises(UserError, match=r"there is no file .*train\.de-en\.en"):
        corpus.configs(tmp_path)
    (tmp_path / "train.de-en.en").write_text("One.\nTwo.\nThree.\n")
    with pytest.raises(UserError, match=r"de-en\.de has 2 lines and train\.de-en\.en has 3"):
        prepared(corpus, tmp_path, "de_en", tmp_path / "data")
    with pytest.raises(UserError, match="'fr_en' is not among the pairs of languages"):
        corpus.configs(tmp_path, ["fr_en"])


def test_command_and_stream(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["prepare", "parallel_text", "--source_dir", str(source)]
    command += ["--data_dir", str(tmp_path), "--workers", "1"]
    assert main([*command, "--languages", "de-en"]) == 0
    assert "1 empty translation" in capsys.readouterr().out
    make_vocabulary(tmp_path, [*GERMAN, *(translation for _, translation in TRANSLATED)])
    examples = epoch(tmp_path, "parallel_text_mt_de_en", "mt", 3)
    expected = sorted(zip(GERMAN, (english for _, english in TRANSLATED), strict=True))
    assert [(example["text"], example["translation"]) for example in examples] == expected
    assert {(e["language"], e["target_language"]) for e in examples} == {("de", "en")}


def test_translations_are_composed(tmp_path: Path) -> None:
    """A file in Unicode's form NFD, as macOS writes names and some publishers their texts."""
    for code, line in (("de", "Grüße, Zoë!"), ("vi", "Tiếng Việt «\u00a0ạ\u00a0»")):
        text = unicodedata.normalize("NFD", line) + "\n"
        (tmp_path / f"train.de-vi.{code}").write_text(text, encoding="utf-8")
    result = prepared(find_corpus("parallel_text"), tmp_path, "de_vi", tmp_path / "data")
    [record] = records(result, "train")
    assert record["translation"] == "Tiếng Việt « ạ »"
    assert record["text"] == "grüße zoë"
    assert record["raw_text"] == unicodedata.normalize("NFD", "Grüße, Zoë!")

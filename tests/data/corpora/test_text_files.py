"""mC4, other files of text and pairs of translated files, to records and batches; sentences."""

from __future__ import annotations

import gzip
import logging
import unicodedata
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import pytest
from layouts_text import TRANSLATED, lay_out_files, lay_out_mc4, lay_out_parallel
from spoken import issues_of, prepared, read_examples, records

from maestro_jax.cli.main import main
from maestro_jax.data.corpora.corpus import find_corpus
from maestro_jax.data.corpora.issues import IssueLog
from maestro_jax.data.corpora.text_files import sentences, split_of
from maestro_jax.errors import UserError

MC4 = [
    "guten morgen",
    "es ist zb",
    "acht uhr",
    "die sonne scheint endlich",
    "ein satz",
    "noch einer",
    "drei",
]


@pytest.mark.parametrize(
    "name,split",
    [
        ("c4-de.tfrecord-00000-of-02048.json.gz", "train"),
        ("c4-de-validation.tfrecord-00000-of-00002.json.gz", "validation"),
        ("newstest2014.de-en.de", "test"),
        ("tst2013.de-en.de", "test"),
        ("latest.txt", "train"),
        ("device.txt", "train"),
    ],
)
def test_splits(name: str, split: str) -> None:
    assert split_of(name) == split


def test_mc4(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = tmp_path / "c4"
    lay_out_mc4(source)
    corpus = find_corpus("text_files")
    with caplog.at_level(logging.WARNING):
        assert corpus.configs(source) == ["de", "xh"] == corpus.configs(source / "multilingual")
    assert not caplog.text
    result = prepared(corpus, source, "de", tmp_path)
    train, validation = result.splits
    assert (train.listed, train.utterances, train.hours) == (8, 7, 0.0)
    assert train.issues == {"empty text": 2, "bad row": 1, "bad value": 1}
    place = "multilingual/c4-de.tfrecord-00000-of-00002.json.gz"
    assert ("empty text", "train", f"{place}:5:1") in issues_of(result)
    found = records(result, "train")
    assert [entry["text"] for entry in found] == MC4
    assert [entry["id"] for entry in found[:4]] == [f"{place}:1:{n}" for n in range(1, 5)]
    assert found[3]["raw_text"] == "Die Sonne scheint -- endlich."
    assert found[4]["raw_text"] == "Ein Satz. ***"
    assert not any(len(entry["audio"]) for entry in found)
    assert [entry["text"] for entry in records(result, "validation")] == ["vier"]


def test_files_are_read_line_by_line(tmp_path: Path) -> None:
    path = tmp_path / "de" / "a.txt.gz"
    path.parent.mkdir()
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.write("Eins. Zwei.\n" * 30_000)
    # Cut off in the middle: what is before it can be read, if nothing waits for the whole.
    path.write_bytes(path.read_bytes()[:-8])
    corpus = find_corpus("text_files")
    utterances = corpus.utterances(tmp_path, "de", IssueLog())
    assert [next(utterances).text for _ in range(3)] == ["eins", "zwei", "eins"]
    with pytest.raises(UserError, match=r"a\.txt\.gz cannot be read to its end"):
        list(utterances)


def test_command_and_streams(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "texts"
    lay_out_files(source)
    command = ["prepare", "text_files", "--source_dir", str(source), "--data_dir", str(tmp_path)]
    assert main([*command, "--workers", "1", "--name", "web"]) == 0
    assert "web/zh" in capsys.readouterr().out

    from maestro_jax.tasks.text_tasks import add_texts

    german, chinese = add_texts("web", ["de", "zh"])
    assert (german, chinese) == ("web_text_de", "web_text_zh")
    examples = read_examples(tmp_path, german, "text", 5)
    assert [example["text"] for example in examples] == ["acht", "drei", "eins", "vier", "zwei"]
    examples = read_examples(tmp_path, chinese, "text", 2)
    assert [example["text"] for example in examples] == ["今天很好", "明天呢"]
    # The same tasks are there under the name of the corpus, once it is prepared under that.
    (tmp_path / "web").rename(tmp_path / "text_files")
    assert len(read_examples(tmp_path, "text_files_text_zh", "text", 2)) == 2


GERMAN = ["guten morgen", "es ist acht uhr", "die sonne scheint"]


@pytest.fixture(scope="module")
def parallel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = tmp_path_factory.mktemp("parallel")
    lay_out_parallel(source)
    return source


def test_parallel_lines(parallel: Path, tmp_path: Path) -> None:
    corpus = find_corpus("parallel_text")
    assert corpus.configs(parallel) == ["de_en"]
    assert corpus.configs(parallel, ["en_de"]) == ["en_de"]
    result = prepared(corpus, parallel, "de_en", tmp_path)
    train, test = result.splits
    assert (train.listed, train.utterances) == (6, 3)
    assert train.issues == {"empty text": 2, "empty translation": 1}
    assert (test.split, test.utterances) == ("test", 2)
    assert ("empty translation", "train", "train.de-en:4") in issues_of(result)
    found = records(result, "train")
    assert [(e["raw_text"], e["translation"]) for e in found] == TRANSLATED
    assert [entry["text"] for entry in found] == GERMAN
    assert {entry["language"] for entry in found} == {"de"}

    first = next(corpus.utterances(parallel, "en_de", IssueLog()))
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


def test_parallel_command_and_stream(
    parallel: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["prepare", "parallel_text", "--source_dir", str(parallel)]
    command += ["--data_dir", str(tmp_path), "--workers", "1"]
    assert main([*command, "--languages", "de-en"]) == 0
    assert "1 empty translation" in capsys.readouterr().out
    examples = read_examples(tmp_path, "parallel_text_mt_de_en", "mt", 3)
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

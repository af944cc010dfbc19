"""MLS in flac and opus, its ten hours and its text, from the official layout to a run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from layouts_mls import GERMAN, POLISH, TEXT, lay_out
from spoken import issues_of, prepared, read_examples, records, say, sizes

from maestro_jax.cli import main as cli
from maestro_jax.data.corpora.corpus import find_corpus
from maestro_jax.data.corpora.mls import LANGUAGES
from maestro_jax.data.corpora.prepare import PreparedConfig
from maestro_jax.errors import UserError


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = tmp_path_factory.mktemp("mls")
    lay_out(source)
    return source


@pytest.fixture(scope="module")
def german(source: Path, tmp_path_factory: pytest.TempPathFactory) -> PreparedConfig:
    return prepared(find_corpus("mls"), source, "de", tmp_path_factory.mktemp("data"))


def test_every_utterance_is_written_or_accounted_for(german: PreparedConfig) -> None:
    splits = {split.split: split for split in german.splits}
    for folder, split in (("train", "train"), ("dev", "validation"), ("test", "test")):
        found = records(german, split)
        assert [entry["id"] for entry in found] == list(GERMAN[folder])
        for entry in found:
            assert entry["raw_text"] == GERMAN[folder][entry["id"]]
            assert entry["text"] == entry["raw_text"].replace("-", " ")
            assert entry["speaker"] == entry["id"].split("_")[0]
            assert entry["language"] == "de"
            said = say(entry["raw_text"], "de")
            np.testing.assert_allclose(entry["audio"] / 32768.0, said, atol=2 / 32768)
    train = splits["train"]
    assert (train.listed, train.utterances) == (8, 4)
    assert train.issues == {
        "bad row": 1,
        "bad value": 1,
        "empty text": 1,
        "duplicate id": 1,
        "no counterpart": 1,
        "missing audio": 1,
        "unreadable audio": 1,
    }
    lines = issues_of(german)
    assert ("bad row", "train", "transcripts.txt:6") in lines
    assert ("bad value", "train", "transcripts.txt:7") in lines
    assert ("no counterpart", "train", "transcripts.txt") in lines
    table = (german.directory / "problems.tsv").read_text(encoding="utf-8")
    assert "\t10 lines for 11 of " in table
    assert ("no counterpart", "train_9h", "9009_90_000000") in lines
    assert train.published == 469_942 and train.published_hours == 1966.51
    assert "469934 fewer in the tables than published" in train.explanation()


def test_ten_hours(german: PreparedConfig) -> None:
    root = german.directory.parents[2]
    assert [entry["text"] for entry in records(german, "train_10min_0")] == ["drei"]
    assert [entry["text"] for entry in records(german, "train_9h")] == ["vier fünf"]
    assert sizes(root, "mls_paired_de_10min") == {"train": 1, "validation": 1, "test": 1}
    [example] = read_examples(root, "mls_paired_de_9h", "paired", 1)
    assert example["text"] == "vier fünf" and example["language"] == "de"
    said = say("vier-fünf", "de")
    np.testing.assert_allclose(example["audio"] / 32768.0, said, atol=2 / 32768)


def test_the_command(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--source_dir", str(source), "--data_dir", str(tmp_path), "--workers", "1"]
    assert cli.main(["prepare", "mls", *arguments, "--languages", "pl"]) == 0
    assert "25043" in capsys.readouterr().out
    [example] = read_examples(tmp_path, "mls_paired_pl", "paired", 1)
    [words] = POLISH["train"].values()
    assert example["text"] == words and example["language"] == "pl"
    # Opus at 48 kHz comes back as 16 kHz of the same length and nearly the same waveform.
    said = say(words, "pl")
    assert abs(len(example["audio"]) - len(said)) <= 16
    length = min(len(said), len(example["audio"]))
    assert np.corrcoef(said[:length], example["audio"][:length])[0, 1] > 0.95
    assert sizes(tmp_path, "mls_speech_pl") == {"train": 1, "validation": 1, "test": 1}


def test_text(source: Path, tmp_path: Path) -> None:
    result = prepared(find_corpus("mls_text"), source, "de", tmp_path)
    found = read_examples(tmp_path, "mls_text_de", "text", 2)
    # A hyphen is no word, here as in VoxPopuli.
    assert sorted(example["text"] for example in found) == ["ein erster satz", "und ein zweiter"]
    [prepared_line] = [r for r in records(result, "train") if r["id"] == "2"]
    assert prepared_line["raw_text"] == TEXT[1]


def test_where_the_languages_are(source: Path, tmp_path: Path) -> None:
    corpus = find_corpus("mls")
    assert corpus.configs(source) == ["de", "pl"]
    assert corpus.configs(source / "mls_polish_opus") == ["pl"]
    with pytest.raises(UserError, match="'fr' is not among the languages of MLS"):
        corpus.configs(source, ["fr"])
    with pytest.raises(UserError, match="there are no languages of MLS"):
        corpus.configs(tmp_path)
    (tmp_path / "mls_dutch").mkdir()
    with pytest.raises(UserError, match="mls_dutch has no train, dev or test"):
        prepared(corpus, tmp_path, "nl", tmp_path / "data")
    text = find_corpus("mls_text")
    assert text.configs(source) == text.configs(source / "mls_lm_german") == ["de"]
    with pytest.raises(UserError, match="there are no text files"):
        text.configs(tmp_path)


def test_published_sizes() -> None:
    hours = {code: find_corpus("mls").published(Path(), code) for code in LANGUAGES.values()}
    # The abstract of the paper: about 44.5 thousand hours of English and 6 of the others.
    train = {code: splits["train"].hours for code, splits in hours.items()}
    assert train.pop("en") == pytest.approx(44_500, rel=0.01)
    assert sum(train.values()) == pytest.approx(6_000, rel=0.01)
    # A segment has 10 to 20 seconds.
    for splits in hours.values():
        for split in splits.values():
            assert 10 < split.hours * 3600 / split.utterances < 20

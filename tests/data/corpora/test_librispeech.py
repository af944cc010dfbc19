"""LibriSpeech and its text, from the official layout to the examples of a run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from layouts_librispeech import LINES, SPOKEN, lay_out
from spoken import issues_of, prepared, read_examples, records, say, sizes

from maestro_jax.cli import main as cli
from maestro_jax.data.corpora.corpus import find_corpus
from maestro_jax.data.corpora.prepare import PreparedConfig
from maestro_jax.errors import UserError

WORDS = {
    name: words.lower() for utterances in SPOKEN.values() for name, words in utterances.items()
}
TRAIN = [name for folder in list(SPOKEN)[:3] for name in SPOKEN[folder]]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = tmp_path_factory.mktemp("libri")
    lay_out(source)
    return source


@pytest.fixture(scope="module")
def result(source: Path, tmp_path_factory: pytest.TempPathFactory) -> PreparedConfig:
    corpus = find_corpus("librispeech")
    assert corpus.configs(source) == corpus.configs(source, ["en"]) == ["en"]
    return prepared(corpus, source, "en", tmp_path_factory.mktemp("data"))


def root_of(result: PreparedConfig) -> Path:
    return result.directory.parents[2]


def test_every_utterance_is_written_or_accounted_for(result: PreparedConfig) -> None:
    splits = {split.split: split for split in result.splits}
    assert list(splits) == [folder.replace("-", "_") for folder in SPOKEN]
    for folder, utterances in SPOKEN.items():
        split = folder.replace("-", "_")
        found = records(result, split)
        assert [entry["id"] for entry in found] == list(utterances)
        for entry in found:
            assert entry["raw_text"] == utterances[entry["id"]]
            assert entry["text"] == WORDS[entry["id"]]
            assert entry["speaker"] == entry["id"].split("-")[0]
            assert entry["language"] == "en"
            said = say(entry["text"])
            np.testing.assert_allclose(entry["audio"] / 32768.0, said, atol=2 / 32768)
    # An apostrophe at the beginning of a word is the corpus' own spelling.
    assert WORDS["103-1240-0001"] == "'tis five o'clock"

    clean = splits["train_clean_100"]
    assert (clean.listed, clean.utterances) == (8, 4)
    assert clean.issues == {
        "no counterpart": 3,
        "empty text": 1,
        "missing audio": 1,
        "duplicate id": 1,
        "unreadable audio": 1,
    }
    assert clean.listed - 4 == clean.utterances
    assert not any(split.issues for name, split in splits.items() if name != clean.split)
    lines = issues_of(result)
    for item in ("103-1240-0005", "103-1242-0000", "SPEAKERS.TXT:6"):
        assert ("no counterpart", "train_clean_100", item) in lines
    assert ("missing audio", "train_clean_100", "103-1240-0003") in lines
    assert result.lines == {"bad row": 1}
    assert ("bad row", "", "SPEAKERS.TXT:11") in lines


def test_published_sizes_stand_beside_it(result: PreparedConfig) -> None:
    published = {split.split: split.published for split in result.splits}
    # The 281,241 utterances and 960 hours that every paper names.
    train = [split for split in result.splits if split.split.startswith("train")]
    assert sum(split.published for split in train) == 281_241
    assert sum(split.published_hours for split in train) == pytest.approx(960.9)
    assert published["test_other"] == 2939
    [clean] = [split for split in result.splits if split.split == "train_clean_100"]
    assert clean.explanation().startswith("28531 fewer in the tables than published, ")


def test_tasks(result: PreparedConfig) -> None:
    root = root_of(result)
    assert sizes(root, "librispeech_paired_en") == {"train": 7, "validation": 1, "test": 1}
    assert sizes(root, "librispeech_paired_en_clean100")["train"] == 4
    assert sizes(root, "librispeech_paired_en_clean460")["train"] == 5
    found = read_examples(root, "librispeech_paired_en", "paired", 7)
    assert sorted(example["text"] for example in found) == sorted(WORDS[name] for name in TRAIN)
    for example in found:
        said = say(example["text"])
        np.testing.assert_allclose(example["audio"] / 32768.0, said, atol=2 / 32768)
    [speech] = read_examples(root, "librispeech_speech_en", "speech", 1)
    assert speech["language"] == "en" and len(speech["audio"])


def test_the_sum_of_splits(result: PreparedConfig) -> None:
    from maestro_jax.data.data_dir import data_scope
    from maestro_jax.data.indexed_source import IndexedTfdsSource
    from maestro_jax.data.task_registry import get_task_or_mixture

    with data_scope(root_of(result)):
        for ending, word in (("", "go"), ("_other", "stop")):
            task = get_task_or_mixture(f"librispeech_paired_en{ending}")
            dataset = task.get_dataset(split="train", shuffle=False)
            assert [example["id"].decode() for example in dataset.as_numpy_iterator()] == TRAIN
            [example] = task.get_dataset(split="validation").as_numpy_iterator()
            assert example["text_pretokenized"].decode() == word
        parts = ("train_clean_360", "train_other_500")
        splits = {"both": "+".join(parts), "wrong": "dev_clean+nothing"}
        source = IndexedTfdsSource("librispeech/en", splits | {name: name for name in parts}, "x")
        opened = {name: source.open_split(name) for name in ("both", *parts)}
        # What decides whether a split is kept in memory.
        assert opened["both"].num_bytes == sum(opened[name].num_bytes for name in parts) > 0
        with pytest.raises(UserError, match="no split 'nothing'; run `x`"):
            source.open_split("wrong")


def test_the_command(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def prepare(source: Path, *more: str) -> int:
        options = ("--source_dir", str(source), "--data_dir", str(tmp_path), "--workers", "1")
        return cli.main(["prepare", "librispeech", *options, *more])

    assert prepare(source / "LibriSpeech", "--languages", "en") == 0
    table = capsys.readouterr().out
    assert "28539" in table and "3 no counterpart" in table
    assert "librispeech/en, lines of no split: 1 bad row" in table
    assert prepare(source, "--languages", "de") == 2
    assert "'de' is not among the splits of LibriSpeech" in capsys.readouterr().err
    assert prepare(tmp_path) == 2
    assert "there are no splits of LibriSpeech in" in capsys.readouterr().err


def test_lines_of_text_are_numbered(source: Path, tmp_path: Path) -> None:
    result = prepared(find_corpus("librispeech_text"), source, "en", tmp_path)
    found = records(result, "train")
    assert [entry["raw_text"] for entry in found] == [LINES[0], LINES[2]]
    assert [entry["id"] for entry in found] == ["1", "3"]
    [train] = result.splits
    assert (train.listed, train.utterances, train.issues) == (3, 2, {"empty text": 1})
    assert issues_of(result) == [("empty text", "train", "2")]
    drawn = read_examples(tmp_path, "librispeech_text_en", "text", 2)
    assert sorted(example["text"] for example in drawn) == ["a first line", "the widow's two"]

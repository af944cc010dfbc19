"""Common Voice as it is unpacked, through `prepare`, to batches."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from layouts_common_voice import GERMAN, NEW, SWEDISH, clip_row, lay_out, speak_clip, write_table
from spoken import issues_of, likeness, prepared, records

from maestro_jax.data.corpora import tables
from maestro_jax.data.corpora.common_voice import CommonVoice
from maestro_jax.data.corpora.corpus import published_sizes
from maestro_jax.data.corpora.covost2 import INTO_ENGLISH
from maestro_jax.data.corpora.issues import IssueLog
from maestro_jax.errors import UserError


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lay_out(tmp_path_factory.mktemp("downloads"))


def test_languages_with_and_without_their_regions(release: Path) -> None:
    corpus = CommonVoice()
    assert corpus.configs(release) == ["de", "eo", "sv", "zh", "zh_tw"]
    # The directory of all releases will do, as long as there is one of them.
    assert corpus.configs(release.parent, ["sv-SE", "zh-TW"]) == ["sv", "zh_tw"]
    assert corpus.configs(release, ["de_other", "de"]) == ["de_other", "de"]
    with pytest.raises(UserError, match="'fr' is not among the languages"):
        corpus.configs(release, ["fr"])
    assert corpus.configs(release, ["eo"]) == ["eo"]


def test_all_is_written_or_accounted_for(release: Path, tmp_path: Path) -> None:
    result = prepared(CommonVoice(), release, "de", tmp_path)
    train, validation, test = result.splits
    assert (train.listed, train.utterances) == (8, 3)
    assert train.issues == {
        "bad value": 1,
        "bad row": 1,
        "duplicate id": 1,
        "empty text": 1,
        "missing audio": 1,
        "unreadable audio": 1,
        "empty audio": 1,
    }
    assert train.utterances + sum(train.issues.values()) - 2 == train.listed
    assert ("missing audio", "train", "common_voice_de_4") in issues_of(result)
    # The release is read off the name of its directory.
    assert (train.published, validation.published, test.published) == (589_100, 16_183, 16_183)
    assert "589092 fewer in the tables than published" in train.explanation()
    assert (validation.utterances, test.utterances) == (1, 1)

    found = records(result, "train")
    assert [entry["id"] for entry in found] == [f"common_voice_de_{n}" for n in (1, 2, 3)]
    assert [entry["raw_text"] for entry in found] == list(GERMAN.values())[:3]
    assert [entry["text"] for entry in found] == ["das ist gut ja", "eins zwei", "drei undvier"]
    assert [entry["speaker"] for entry in found] == ["speaker1", "speaker2", "speaker3"]
    assert {entry["language"] for entry in found} == {"de"}
    everything = [*found, *records(result, "validation"), *records(result, "test")]
    for entry in everything:
        alike = {s: likeness(entry["audio"], s, "de") for s in GERMAN.values()}
        assert max(alike, key=alike.get) == entry["raw_text"]
        assert alike[entry["raw_text"]] > 0.98


def test_published_sizes(release: Path, tmp_path: Path) -> None:
    # CoVoST-2 took the development and test sets of the fourth release as they are.
    locales = {"zh": "zh-CN", "sv": "sv-SE"}
    for language in (*INTO_ENGLISH, "en"):
        fourth = published_sizes("common_voice/4", locales.get(language, language))
        translated = published_sizes("covost2", f"{language}_en" if language != "en" else "en_x")
        for split in ("validation", "test"):
            assert fourth[split] == translated[split]
    corpus = CommonVoice()
    assert corpus.published(release, "sv")["test"].utterances == 5259
    assert corpus.published(release.parent, "zh_tw")["test"].utterances == 4982
    assert corpus.published(release / "de", "de")["validation"].utterances == 16_183
    # Of what is beside the splits, and of releases without a name or with another one.
    assert corpus.published(release, "de_other") == {}
    for name in ("cv", "cv-corpus-17.1-2024-06-01", "cv-corpus-5-singleword"):
        speak_clip(tmp_path / name / "de", "common_voice_de_1.mp3", "ja", "de")
        assert corpus.published(tmp_path / name, "de") == {}


def test_older_tables_and_names_without_an_ending(release: Path, tmp_path: Path) -> None:
    result = prepared(CommonVoice(), release / "sv-SE", "sv", tmp_path)
    # Its dev.tsv is not there, though the release has one.
    assert [split.utterances for split in result.splits] == [1, 0, 1]
    assert not issues_of(result)
    [train], [test] = records(result, "train"), records(result, "test")
    first, second = SWEDISH.values()
    assert (train["text"], train["language"]) == ("ett två", "sv")
    assert likeness(train["audio"], first, "sv") > 0.98
    assert likeness(test["audio"], second, "sv") > 0.98


def test_what_is_beside_the_splits_is_prepared_when_it_is_named(
    release: Path, tmp_path: Path
) -> None:
    for config, clip in (("de_validated", 21), ("de_other", 31)):
        result = prepared(CommonVoice(), release, config, tmp_path)
        [split] = result.splits
        assert (split.split, split.listed, split.utterances) == ("train", 1, 1)
        assert [entry["id"] for entry in records(result, "train")] == [f"common_voice_de_{clip}"]


@pytest.mark.extended
def test_from_the_command_to_batches(
    release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from maestro_jax.batches import StreamConfig
    from maestro_jax.cli.main import main
    from maestro_jax.data.evaluation_examples import evaluation_examples
    from maestro_jax.data.loader import StreamLoader
    from maestro_jax.text.languages import LANGUAGES
    from maestro_jax.text.vocabularies import train_sentencepiece

    command = ["prepare", "common_voice", "--source_dir", str(release), "--data_dir", str(tmp_path)]
    assert main([*command, "--languages", "de,sv-SE,de_other", "--workers", "1"]) == 0
    printed = capsys.readouterr().out
    assert "common_voice/de_other" in printed and "1 missing audio" in printed

    sentences = ["das ist gut ja eins zwei drei undvier fünf sechs ett två tre"]
    vocabulary = train_sentencepiece(
        sentences, tmp_path / "vocabularies" / "multilingual.model", 40, "char"
    )
    streams = {
        "paired": StreamConfig(
            mixture="common_voice_paired_de", batch_size=3, audio_samples=60_000, text_tokens=40
        ),
        "speech": StreamConfig(
            mixture="common_voice_speech_de_other", batch_size=1, audio_samples=60_000
        ),
    }
    with StreamLoader(streams, seed=1, data_dir=tmp_path) as loader:
        batch = next(loader)
    paired = batch["paired"]
    heard = {
        vocabulary.decode(paired["text"][row, : paired["text_length"][row]].tolist()): row
        for row in range(3)
    }
    assert set(heard) == {"das ist gut ja", "eins zwei", "drei undvier"}
    row = heard["eins zwei"]
    audio = paired["audio"][row, : paired["audio_length"][row]]
    assert likeness(audio, GERMAN["common_voice_de_2.mp3"], "de") > 0.98
    assert (paired["language"] == LANGUAGES.index("de")).all()
    audio = batch["speech"]["audio"][0, : batch["speech"]["audio_length"][0]]
    assert likeness(audio, GERMAN["common_voice_de_31.mp3"], "de") > 0.98

    [example] = evaluation_examples("common_voice_paired_sv", "test", tmp_path)
    assert example.languages == {"language": LANGUAGES.index("sv")}
    assert example.strings["text"] == "tre" and example.strings["target_language"] == ""


def test_what_is_no_common_voice_is_one_line(release: Path, tmp_path: Path) -> None:
    corpus = CommonVoice()
    with pytest.raises(UserError, match="there are no languages in"):
        corpus.configs(tmp_path)
    for name in ("cv-corpus-4", "cv-corpus-5"):
        write_table(tmp_path / name / "de" / "train.tsv", NEW, [])
    with pytest.raises(UserError, match="de is both in .*name one release"):
        corpus.configs(tmp_path)
    only = tmp_path / "only" / "de"
    write_table(only / "train.tsv", ["client_id", "path"], [])
    with pytest.raises(UserError, match="no column 'sentence'"):
        prepared(corpus, only.parent, "de", tmp_path / "data")
    (only / "train.tsv").unlink()
    (only / "clips").mkdir()
    with pytest.raises(UserError, match=r"none of train\.tsv, dev\.tsv, test\.tsv"):
        prepared(corpus, only.parent, "de", tmp_path / "data")
    unpacked = tmp_path / "Downloads"
    write_table(unpacked / "train.tsv", NEW, [])
    with pytest.raises(UserError, match="the language of .* is not known"):
        corpus.configs(unpacked)
    # A clip does.
    write_table(unpacked / "train.tsv", NEW, [clip_row("common_voice_sv-SE_1.mp3", "ett")])
    assert corpus.configs(unpacked) == ["sv"]


@pytest.mark.parametrize(
    "cells",
    [
        ["plain", "text"],
        ["a\tb", "c"],
        ["two\nlines", "and\\a backslash"],
        ["ends with \\", "\\"],
        ["\\\t\n", 'quo"tes'],
    ],
)
def test_escapes_are_read_as_they_are_written(tmp_path: Path, cells: list[str]) -> None:
    columns = ["one", "two"]
    write_table(
        tmp_path / "x.tsv", columns, [dict(zip(columns, cells, strict=True)), {"one": "last"}]
    )
    wrong = IssueLog()
    found = list(tables.rows(tmp_path / "x.tsv", wrong, escape="\\"))
    assert [list(row.values()) for _, row in found] == [cells, ["last", ""]]
    assert not wrong.issues
    with (tmp_path / "x.tsv").open(newline="") as file:
        peer = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE, escapechar="\\"))
    assert peer[1] == cells
    (tmp_path / "x.tsv").write_text("one\ttwo\na\tb\\\n")
    assert list(tables.rows(tmp_path / "x.tsv", wrong, escape="\\")) == []
    assert [issue.item for issue in wrong.issues] == ["x.tsv:2"]


def test_clips_are_variable_mp3_at_48_kilohertz(tmp_path: Path) -> None:
    import soundfile

    speak_clip(tmp_path, "common_voice_de_1.mp3", "Das ist gut", "de")
    info = soundfile.info(tmp_path / "clips" / "common_voice_de_1.mp3")
    assert (info.samplerate, info.format) == (48_000, "MP3")

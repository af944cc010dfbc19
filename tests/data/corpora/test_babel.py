"""Babel in the layout of its releases, to records and batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
from layouts_babel import CALL, MARKED, RELEASE, SHORTENED, lay_out
from spoken import issues_of, prepared, read_examples, records

from maestro_jax.audio.reading import read_audio, resample
from maestro_jax.cli.main import main
from maestro_jax.data.corpora.babel import LANGUAGE_CODES, words
from maestro_jax.data.corpora.corpus import find_corpus
from maestro_jax.errors import UserError
from maestro_jax.text.languages import LANGUAGES

TEXTS = ["labas rytas", "vienas du", "kaip sek"]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = tmp_path_factory.mktemp("babel")
    lay_out(source)
    return source


@pytest.mark.parametrize(
    "transcript,expected",
    [
        ("<no-speech> 喂 <no-speech>", ("喂", True)),
        ("*labas* ry- - ~", ("labas ry-", True)),
        ("F_B_I <click> việt_nam", ("F B I việt nam", True)),
        ("a (()) b", ("a b", False)),
        ("a <foreign> b <overlap>", ("a b", False)),
        ('a <foreign lang="English"> okay </foreign> b', ("a okay b", True)),
        ("<male-to-female> <lipsmack> (())", ("", False)),
    ],
)
def test_marks(transcript: str, expected: tuple[str, bool]) -> None:
    assert words(transcript) == expected


def test_languages(source: Path, tmp_path: Path) -> None:
    assert set(LANGUAGE_CODES.values()) <= set(LANGUAGES)
    corpus = find_corpus("babel")
    for directory in (source, source / RELEASE, (source / RELEASE).parent):
        assert corpus.configs(directory) == ["lt"]
    with pytest.raises(UserError, match="no languages"):
        corpus.configs(tmp_path)
    (tmp_path / "BABEL_OP9_999" / "conversational").mkdir(parents=True)
    with pytest.raises(UserError, match="unknown language, 999"):
        corpus.configs(tmp_path)


def test_segments(source: Path, tmp_path: Path) -> None:
    result = prepared(find_corpus("babel"), source, "lt", tmp_path)
    splits = {split.split: split for split in result.splits}
    assert {name: split.utterances for name, split in splits.items()} == {
        "train": 7,
        "sub_train": 3,
        "validation": 3,
    }
    train = splits["train"]
    assert train.issues == {
        "set aside": 4,
        "partly transcribed": 4,
        "bad row": 3,
        "bad value": 1,
        "no counterpart": 1,
        "missing audio": 1,
        "unreadable audio": 1,
    }
    assert "4 partly transcribed (kept)" in train.explanation()
    # Everything that was listed is there, or has a reason not to be.
    assert train.listed == train.utterances + 2
    assert ("no counterpart", "train", "BABEL_OP2_304_60001_20131025_190000_inLine") in issues_of(
        result
    )
    table = (result.directory / "problems.tsv").read_text()
    [line] = [line for line in table.splitlines() if line.startswith("unreadable audio")]
    assert SHORTENED in line and "compressed by shorten" in line and "sph2pipe -p -f sph" in line

    found = [entry for entry in records(result, "train") if entry["id"].startswith(CALL)]
    assert [entry["text"] for entry in found] == TEXTS * 2
    assert [entry["raw_text"] for entry in found] == MARKED * 2
    assert [entry["speaker"] for entry in found] == ["10033-inLine"] * 3 + ["10033-outLine"] * 3
    path = source / RELEASE / "conversational/training/audio" / f"{CALL}_inLine.sph"
    whole, rate = soundfile.read(path)
    assert rate == 8000
    at = rate
    for entry in found[:3]:
        samples = (len(entry["audio"]) + 1) // 2
        expected = resample(whole[at : at + samples], rate)
        np.testing.assert_allclose(entry["audio"] / 32768, expected, atol=2 / 32768)
        at += samples
    assert len(whole) - at == rate


def test_what_is_marked_on_purpose_is_not_strictly_wrong(source: Path, tmp_path: Path) -> None:
    release = tmp_path / "BABEL_OP2_304" / "conversational"
    release.mkdir(parents=True)
    (release / "dev").symlink_to(source / RELEASE / "conversational" / "dev")
    result = prepared(find_corpus("babel"), tmp_path, "lt", tmp_path / "data", strict=True)
    [validation] = result.splits
    assert validation.issues == {"set aside": 2, "partly transcribed": 2}


def test_shorten_is_named(source: Path) -> None:
    path = source / RELEASE / "conversational/training/audio" / f"{SHORTENED}.sph"
    with pytest.raises(UserError, match="compressed by shorten, which is not read; put"):
        read_audio(path)
    with pytest.raises(UserError, match="compressed by shorten"):
        read_audio(path, [(0.0, 0.5)])


@pytest.mark.extended
def test_command_and_streams(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["prepare", "babel", "--source_dir", str(source), "--data_dir", str(tmp_path)]
    assert main([*command, "--workers", "1"]) == 0
    table = capsys.readouterr().out
    assert "babel/lt" in table and "4 set aside" in table and "sub_train" in table
    examples = read_examples(tmp_path, "babel_paired_lt", "paired", 7)
    assert [example["text"] for example in examples] == sorted([*TEXTS * 2, "labas"])
    assert {example["language"] for example in examples} == {"lt"}
    speech = read_examples(tmp_path, "babel_speech_lt", "speech", 7)
    lengths = sorted(len(example["audio"]) for example in speech)
    assert lengths == sorted(len(example["audio"]) for example in examples)

    import seqio

    from maestro_jax.data.data_dir import data_scope

    with data_scope(tmp_path):
        source_of = seqio.TaskRegistry.get("babel_paired_lt").source
        assert source_of.num_input_examples("limited") == 3

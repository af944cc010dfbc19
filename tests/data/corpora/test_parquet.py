"""Parquet files with audio inside: the mirrors of CoVoST-2 and VoxPopuli, and anything else."""

from __future__ import annotations

from pathlib import Path

import layouts_covost2
import pyarrow as pa
import pytest
from layouts_parquet import lay_out_covost2, lay_out_voxpopuli, spoken_bytes, write
from spoken import issues_of, likeness, prepared, record, records, say

from maestro_jax.cli.main import main
from maestro_jax.data.corpora import parquet
from maestro_jax.data.corpora.corpus import Embedded
from maestro_jax.data.corpora.covost2 import Covost2
from maestro_jax.data.corpora.issues import IssueLog
from maestro_jax.data.corpora.parquet import Parquet
from maestro_jax.data.corpora.voxpopuli import VoxPopuli
from maestro_jax.errors import UserError


@pytest.fixture(scope="module")
def covost(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lay_out_covost2(tmp_path_factory.mktemp("covost") / "mirror")


def test_directions_of_a_mirror(covost: Path) -> None:
    corpus = Covost2()
    assert corpus.configs(covost) == ["de_en", "en_zh"]
    assert corpus.configs(covost, ["de-en"]) == ["de_en"]
    # The directory of one direction by itself.
    assert corpus.configs(covost / "de_en") == ["de_en"]
    with pytest.raises(UserError, match="'fr' is not among the directions .*Parquet"):
        corpus.configs(covost, ["fr"])


def test_a_mirror_is_read_as_the_tables_are(covost: Path, tmp_path: Path) -> None:
    """The same rows as the layout of the publisher, so the same records and issues come out."""
    result = prepared(Covost2(), covost, "de_en", tmp_path / "mirror")
    train, validation, test = result.splits
    assert train.issues == {
        "set aside": 2,
        "incomplete": 1,
        "missing audio": 1,
        "duplicate id": 1,
        "unreadable audio": 1,
    }
    assert (train.listed, train.utterances) == (5, 3)
    assert (validation.utterances, validation.issues) == (1, {})
    assert (test.utterances, test.issues) == (2, {"incomplete": 1})
    assert (test.published, train.published) == (13511, 127834)
    assert "13509 fewer in the tables than published" in test.explanation()
    found = issues_of(result)
    assert ("missing audio", "train", "train-00001-of-00002.parquet:3") in found
    assert ("unreadable audio", "train", "common_voice_de_9") in found
    problems = (tmp_path / "mirror/covost2/de_en/1.0.0/problems.tsv").read_text()
    assert "row 2 of" in problems and "train-00001-of-00002.parquet" in problems
    assert "maestro_audio_" not in problems

    official = layouts_covost2.lay_out(tmp_path / "official")
    tables = prepared(Covost2(), official, "de_en", tmp_path / "tables")
    for split in ("train", "validation", "test"):
        ours, theirs = (
            {
                entry["id"]: {key: entry[key] for key in entry if key != "audio"}
                for entry in records(which, split)
            }
            for which in (result, tables)
        )
        assert ours == theirs
    for number, sentence, _, split in layouts_covost2.GERMAN:
        name = {"train_covost": "train", "dev": "validation"}.get(split, split)
        [entry] = [e for e in records(result, name) if e["id"] == f"common_voice_de_{number}"]
        assert likeness(entry["audio"], sentence, "de") > 0.98


def test_what_the_hub_converts(covost: Path, tmp_path: Path) -> None:
    result = prepared(Covost2(), covost, "en_zh", tmp_path)
    assert not issues_of(result)
    # A part of the training split is a part of it, as its published size tells.
    assert "fewer in the tables than published" in result.splits[0].explanation()
    [entry] = records(result, "test")
    assert (entry["raw_text"], entry["translation"]) == ("Five six.", "五六。")


def test_voxpopuli(tmp_path: Path) -> None:
    source = lay_out_voxpopuli(tmp_path / "mirror")
    assert VoxPopuli().configs(source) == ["sl"]
    result = prepared(VoxPopuli(), source, "sl", tmp_path / "data")
    assert issues_of(result) == [("empty text", "train", "20190114-0900-PLENARY_sl_3")]
    [entry] = records(result, "test")
    assert (entry["id"], entry["text"], entry["raw_text"]) == (
        *("20190114-0900-PLENARY_sl_2", "pet šest", "Pet šest."),
    )
    # Python's None, as the corpus writes it.
    assert (entry["language"], entry["speaker"]) == ("sl", "")
    assert likeness(entry["audio"], "pet šest", "sl") > 0.98


def test_columns_of_any_name_through_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bytes without a path, class labels for languages, and no ids."""
    speech = [spoken_bytes(tmp_path / "s", text, "en", ".flac") for text in ("one two", "three")]
    rows = [
        {"speech": speech[0], "line": "One, two!", "tongue": 1},
        {"speech": speech[1], "line": "Three.", "tongue": 0},
    ]
    labels = {"tongue": ["de", "en"]}
    write(tmp_path / "source" / "test.parquet", rows, audio=pa.binary(), labels=labels)
    options = ["--source_dir", str(tmp_path / "source"), "--data_dir", str(tmp_path / "data")]
    command = ["prepare", "parquet", *options, "--name", "talks", "--workers", "1"]
    assert main([*command, "--columns", "audio=speech,text=line,language=tongue"]) == 0
    assert "talks/de" in capsys.readouterr().out
    assert (tmp_path / "data" / "talks" / "en" / "1.0.0" / "summary.json").is_file()
    for columns, message in (
        ("audio=sound,text=line", "has no column 'sound'; it has speech, line, tongue"),
        ("audio", "--columns has 'audio'; write FIELD=NAME"),
        ("txt=line", "Did you mean 'text'"),
    ):
        assert main([*command, "--overwrite", "--columns", columns, "--languages", "en"]) == 2
        assert message in capsys.readouterr().err
    assert main(["prepare", "fleurs", *options, "--columns", "text=line"]) == 2
    assert "--columns is for parquet, covost2, voxpopuli" in capsys.readouterr().err


def test_one_file_with_several_languages(tmp_path: Path) -> None:
    clip = spoken_bytes(tmp_path / "s", "eins", "de", ".wav")
    rows = [
        {"id": str(number), "audio": {"bytes": clip, "path": None}, "text": t, "language": code}
        for number, (t, code) in enumerate(
            (("Eins.", "de"), ("Grüezi.", "de-CH"), ("One.", "en"), ("Hm.", "klingon"))
        )
    ]
    write(tmp_path / "source" / "data" / "train-00000-of-00001.parquet", rows)
    corpus = Parquet()
    source = tmp_path / "source"
    assert corpus.configs(source) == ["de", "en"]
    assert corpus.configs(source, ["de-CH"]) == ["de_ch"]
    issues = IssueLog()
    assert [u.raw_text for u in corpus.utterances(source, "de_ch", issues)] == ["Grüezi."]
    dialects = [u.raw_text for u in corpus.utterances(source, "de", IssueLog())]
    assert dialects == ["Eins.", "Grüezi."]
    assert [(i.kind, i.item) for i in issues.issues] == [
        ("bad value", "train-00000-of-00001.parquet:4")
    ]


def test_paths_beside_the_file(tmp_path: Path) -> None:
    record(tmp_path / "de" / "clips" / "1.flac", say("eins zwei", "de"))
    rows = [
        {"audio": {"bytes": None, "path": "clips/1.flac"}, "text": "Eins zwei."},
        {"audio": {"bytes": None, "path": "clips/2.flac"}, "text": "Weg."},
    ]
    write(tmp_path / "de" / "test.parquet", rows)
    write(
        tmp_path / "nl" / "test.parquet",
        [{"audio": "../de/clips/1.flac", "text": "x"}],
        audio=pa.string(),
    )
    corpus = Parquet()
    assert corpus.configs(tmp_path) == ["de", "nl"]
    result = prepared(corpus, tmp_path, "de", tmp_path / "data")
    assert issues_of(result) == [("missing audio", "test", "2")]
    [entry] = records(result, "test")
    assert entry["id"] == "1" and likeness(entry["audio"], "eins zwei", "de") > 0.98
    [utterance] = corpus.utterances(tmp_path, "nl", IssueLog())
    assert Path(utterance.audio).resolve() == tmp_path / "de" / "clips" / "1.flac"


def test_recordings_are_read_in_any_order(tmp_path: Path) -> None:
    """Across groups and batches, forwards and back."""
    contents = [f"recording {number}".encode() * (number + 1) for number in range(70)]
    rows = [{"audio": {"bytes": content, "path": None}} for content in contents]
    path = write(tmp_path / "test.parquet", rows, rows_per_group=40)
    for row in (0, 1, 15, 16, 39, 40, 69, 3, 41, 2, 2, 68):
        assert parquet.read_embedded(str(path), Embedded("audio", row)) == contents[row]
    # A file of the same name with other content is another file.
    write(path, rows[::-1], rows_per_group=7)
    path.touch()
    assert parquet.read_embedded(str(path), Embedded("audio", 0)) == contents[-1]


def test_some_recordings_inside_and_some_outside(tmp_path: Path) -> None:
    inside = spoken_bytes(tmp_path / "s", "eins", "de", ".wav")
    rows = [
        {"audio": {"bytes": inside, "path": "1.wav"}, "text": "a"},
        {"audio": {"bytes": None, "path": "2.wav"}, "text": "b"},
        {"audio": None, "text": "c"},
        {"audio": {"bytes": inside, "path": "4.wav"}, "text": "d"},
    ]
    path = write(tmp_path / "de" / "test.parquet", rows, rows_per_group=3)
    found = [(r.embedded, r.lacks_audio) for r in parquet.read_rows(tmp_path / "de")]
    assert found == [
        (Embedded("audio", 0), False),
        (None, False),
        (None, True),
        (Embedded("audio", 3), False),
    ]
    assert parquet.read_embedded(str(path), Embedded("audio", 3)) == inside


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "test.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(UserError, match="test.parquet is no Parquet file"):
        list(parquet.read_rows(tmp_path))
    numbers = [{"audio": [1.0, 2.0], "text": "x"}]
    write(tmp_path / "test.parquet", numbers, audio=pa.list_(pa.float32()))
    with pytest.raises(UserError, match=r"'audio' of .* is of type list.*--columns audio=NAME"):
        list(parquet.read_rows(tmp_path))
    write(tmp_path / "test.parquet", [{"sound": b"x", "words": "x"}])
    with pytest.raises(UserError, match="no column of text among sound, words; name it: --columns"):
        list(parquet.read_rows(tmp_path, {"audio": "sound"}, required=("audio", "text")))
    with pytest.raises(UserError, match="says the language; name it"):
        Parquet().configs(tmp_path)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UserError, match="no Parquet files of splits"):
        Parquet().configs(empty)

"""Manifests and their quoted cells, and the corpora of SpeechStew that come as manifests."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from spoken import issues_of, prepared, read_examples, records, speak_to

from maestro_jax.cli.main import main
from maestro_jax.data.corpora import tables
from maestro_jax.data.corpora.corpus import find_corpus
from maestro_jax.data.corpora.issues import IssueLog
from maestro_jax.data.corpora.manifest import Manifest
from maestro_jax.data.corpora.tables import has_quoted_cells, quoted_rows
from maestro_jax.errors import UserError

HEADER = ["id", "text", "language", "translation"]


def write_lines(path: Path, lines: list[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def read(path: Path) -> list[list[str]]:
    """The rows below the header, without issues."""
    found = IssueLog(strict=True)
    return [list(row.values()) for _, row in tables.rows(path, found, quoted=True)]


# Not both in a row: a line within a cell could then look like a row of its own.
ROWS = st.one_of(
    st.tuples(*[st.text(st.sampled_from(f'ab "{mark},'), max_size=8)] * 4) for mark in "\t\n"
)


@settings(max_examples=100, derandomize=True, deadline=None)
@given(
    st.lists(ROWS, max_size=6),
    st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
)
def test_what_the_csv_module_wrote_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str, str, str]], quoting: int
) -> None:
    rows = [("x" + first, *others) for first, *others in rows]
    path = tmp_path_factory.getbasetemp() / "quoted.tsv"
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter="\t", quoting=quoting).writerows([HEADER, *rows])
    assert read(path) == [list(row) for row in rows]


@pytest.mark.parametrize(
    "cells",
    [
        ['"Nein, sagte er.', "Ja.", 'Er sagte: "Ja."'],
        ["\"Mba'éichapa", "Che aguata.", 'hógape"', '"oho" ha "oho"'],
        ['"Nein!"', 'Sie sagte "ja".'],
        ['"', '""a', 'a"'],
    ],
)
def test_quotation_marks_of_a_table_without_quoting_stay(tmp_path: Path, cells: list[str]) -> None:
    rows = [["x", cell, "de", "a"] for cell in cells]
    path = write_lines(tmp_path / "train.tsv", ["\t".join(row) for row in [HEADER, *rows]])
    assert read(path) == rows


def test_a_stray_mark_in_a_quoted_table_swallows_nothing(tmp_path: Path) -> None:
    lines = [
        "id\ttext\tlanguage\ttranslation",
        '1\t"Sie sagte ""ja""."\tde\tYes.',
        '2\t"Nein, sagte er.\tde\tNo.',
        '3\tEr sagte: "ja"\tde\tYes.',
        '4\t"zwei\nZeilen"\tde\tTwo',
    ]
    assert [row[1] for row in read(write_lines(tmp_path / "train.tsv", lines))] == [
        'Sie sagte "ja".',
        '"Nein, sagte er.',
        'Er sagte: "ja"',
        "zwei\nZeilen",
    ]
    numbered = list(enumerate("\n".join(lines).split("\n"), start=1))
    assert [row.number for row in quoted_rows(numbered, "\t")] == [1, 2, 3, 4, 5]
    assert has_quoted_cells(numbered, "\t") and not has_quoted_cells(numbered[2:4], "\t")


def test_a_nemo_manifest_takes_its_language_from_the_command(tmp_path: Path) -> None:
    line = json.dumps({"text": "Good morning.", "duration": 1.0, "id": "a"})
    write_lines(tmp_path / "in" / "train.json", [line])
    corpus = Manifest()
    with pytest.raises(UserError, match=r'train.json:1 has no field "language".*--languages en'):
        corpus.configs(tmp_path / "in")
    with pytest.raises(UserError, match="unknown language 'english'"):
        corpus.configs(tmp_path / "in", ["english"])
    assert corpus.configs(tmp_path / "in", ["en-GB"]) == ["en_gb"]
    [record] = records(prepared(corpus, tmp_path / "in", "en_gb", tmp_path), "train")
    assert (record["text"], record["language"]) == ("good morning", "en-GB")
    write_lines(tmp_path / "said" / "train.jsonl", ['{"text": "Guten Tag", "lang": "de"}'])
    assert corpus.configs(tmp_path / "said") == ["de"]


def test_lines_of_no_known_language_are_entries(tmp_path: Path) -> None:
    lines = [
        {"text": "Guten Tag", "language": "de"},
        {"text": "x", "language": "xyz"},
        {"text": "y"},
    ]
    source = tmp_path / "in"
    write_lines(source / "train.jsonl", [json.dumps(line) for line in lines])
    corpus = Manifest()
    assert corpus.configs(source) == ["de"] == corpus.configs(source, ["de"])
    result = prepared(corpus, source, "de", tmp_path)
    assert len(records(result, "train")) == 1
    assert issues_of(result) == [
        ("bad value", "train", "train.jsonl:2"),
        ("bad value", "train", "train.jsonl:3"),
    ]
    for languages in ([], ["xyz"]):
        write_lines(source / "train.jsonl", [json.dumps(lines[1])])
        with pytest.raises(UserError, match="unknown language 'xyz'"):
            corpus.configs(source, languages)


def test_a_dialect_is_prepared_when_it_is_requested(tmp_path: Path) -> None:
    lines = [
        {"text": "Grüezi", "language": "de_ch", "id": "a"},
        {"text": "Guten Tag", "language": "deu", "id": "b"},
        {"text": "Allillanchu", "language": "quz", "id": "c"},
    ]
    source = tmp_path / "in"
    write_lines(source / "train.jsonl", [json.dumps(line) for line in lines])
    corpus = Manifest()
    assert corpus.configs(source) == ["de", "quz"]
    assert corpus.configs(source, ["de-CH", "quz"]) == ["de_ch", "quz"]
    expected = {"de": ["a", "b"], "de_ch": ["a"], "quz": ["c"]}
    for config, ids in expected.items():
        found = records(prepared(corpus, source, config, tmp_path), "train")
        assert [record["id"] for record in found] == ids
        assert {record["language"] for record in found} == {config.replace("_ch", "-CH")}
    with pytest.raises(UserError, match="'de_at' is not among the languages"):
        corpus.configs(source, ["de-AT"])


def test_a_line_without_anything_is_an_entry(tmp_path: Path) -> None:
    lines = ['{"language": "de", "sentence": "Ja."}', '{"language": "de", "text": "Ja."}']
    write_lines(tmp_path / "in" / "train.jsonl", [*lines, "[" * 100_000, "[1]", "{"])
    result = prepared(Manifest(), tmp_path / "in", "de", tmp_path)
    assert [(kind, item) for kind, _, item in issues_of(result)] == [
        ("bad value", "train.jsonl:1"),
        ("bad row", "train.jsonl:3"),
        ("bad row", "train.jsonl:4"),
        ("bad row", "train.jsonl:5"),
    ]


def test_a_file_without_a_line_is_named_with_its_first_issue(tmp_path: Path) -> None:
    write_lines(tmp_path / "train.json", ['[{"text": "Ja.", "language": "de"}]'])
    with pytest.raises(UserError, match=r"can be read \(train.json:1: bad row, no JSON object"):
        Manifest().configs(tmp_path)
    write_lines(tmp_path / "train.json", [])
    with pytest.raises(UserError, match=r"no line of the manifests in \S+ can be read\."):
        Manifest().configs(tmp_path)


def test_half_a_character_is_left_out_and_told(tmp_path: Path) -> None:
    fields = {
        "text": "Halb \ud83d da.",
        "translation": "Half \udc00.",
        "speaker": "\ud800",
        "id": "a\ud800",
    }
    write_lines(tmp_path / "in" / "train.jsonl", [json.dumps({**fields, "language": "de"})])
    result = prepared(Manifest(), tmp_path / "in", "de", tmp_path)
    [record] = records(result, "train")
    found = {name: record[name] for name in ("text", "raw_text", "translation", "speaker", "id")}
    assert found == {
        "text": "halb da",
        "raw_text": "Halb  da.",
        "translation": "Half .",
        "speaker": "",
        "id": "a",
    }
    table = (result.directory / "problems.tsv").read_text(encoding="utf-8")
    assert table.count("broken character") == 4 and r"'Halb \ud83d da.'" in table
    with pytest.raises(UserError, match="broken character"):
        prepared(Manifest(), tmp_path / "in", "de", tmp_path / "strict", strict=True)


def test_invisible_characters_are_in_no_text(tmp_path: Path) -> None:
    texts = ["\u202bصباح\u202c", "\U0001f468\u200d\U0001f469", "\u200f", "می\u200cخواهم"]
    lines = [{"text": t, "translation": f"\ufeff{t}x", "language": "fa"} for t in texts]
    write_lines(tmp_path / "in" / "train.jsonl", [json.dumps(line) for line in lines])
    result = prepared(Manifest(), tmp_path / "in", "fa", tmp_path)
    found = records(result, "train")
    assert [r["text"] for r in found] == ["صباح", "می\u200cخواهم"]
    assert [r["translation"] for r in found] == ["صباحx", "می\u200cخواهمx"]
    assert [kind for kind, _, _ in issues_of(result)] == ["empty text"] * 2


def test_bytes_that_are_no_utf8_are_told_with_their_line(tmp_path: Path) -> None:
    for name in ("train.jsonl", "train.tsv"):
        (tmp_path / name).write_bytes(b'language\ttext\n{"language": "d\xed\xa0\xbde"}\n')
        with pytest.raises(UserError, match=rf"{name}:2 is not UTF-8; convert the file"):
            Manifest().configs(tmp_path)
        (tmp_path / name).unlink()


CORPORA = {
    "ami": "test_distant",
    "broadcast_news": "",
    "switchboard_fisher": "test_callhome",
    "wsj": "",
}


@pytest.mark.parametrize("name,more", CORPORA.items())
def test_names_splits_and_recipes(
    name: str, more: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = find_corpus(name)
    assert corpus.name == name
    assert corpus.splits == tuple(split for split in ("train", "validation", "test", more) if split)
    command = ["prepare", name, "--source_dir", str(tmp_path), "--data_dir", str(tmp_path / "data")]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "there is no manifest in" in error
    assert "write a line for each" in error


def test_a_second_test_set(tmp_path: Path) -> None:
    source = tmp_path / "ami"
    for split in ("train", "test", "test_distant"):
        speak_to(source / "audio" / f"{split}.flac", split)
        line = {"audio": f"audio/{split}.flac", "text": split, "language": "en"}
        (source / f"{split}.jsonl").write_text(json.dumps(line) + "\n")
    result = prepared(find_corpus("ami"), source, "en", tmp_path)
    assert [split.split for split in result.splits] == ["train", "test", "test_distant"]
    assert records(result, "test_distant")[0]["raw_text"] == "test_distant"
    assert [
        example["text"] for example in read_examples(tmp_path, "ami_paired_en", "paired", 1)
    ] == ["train"]
    # A manifest of a split that a corpus does not have is not one of its own.
    assert find_corpus("wsj").splits == ("train", "validation", "test")

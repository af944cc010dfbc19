"""What a directory of recordings holds, in each layout."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest

from maestro_jax.data.corpora.speech_directory import read_speech_directory
from maestro_jax.data.corpora.speech_entries import Entry, names_language, split_of_name
from maestro_jax.errors import UserError


def touch(path: Path, content: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")
    return path


def write_lines(path: Path, lines: list[dict]) -> None:
    touch(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def by_id(root: Path) -> dict[str, Entry]:
    return {entry.id: entry for entry in read_speech_directory(root).entries}


def test_manifests_of_three_splits(tmp_path: Path) -> None:
    line = {"id": "a", "audio": "clips/a.wav", "text": "ja", "language": "de", "speaker": "s1"}
    write_lines(tmp_path / "train.jsonl", [line, {"audio": "clips/b.wav", "language": "de"}])
    write_lines(tmp_path / "dev.jsonl", [{**line, "id": "c", "audio": "clips/c.wav"}])
    touch(tmp_path / "test.tsv", "id\taudio\ttext\ttranslation\nd\tclips/d.wav\tnein\tno\n")
    found = read_speech_directory(tmp_path)
    assert found.layout == "manifest" and not found.issues
    assert {entry.id: entry.split for entry in found.entries} == {
        "a": "train",
        "train.jsonl:2": "train",
        "c": "validation",
        "d": "test",
    }
    entries = by_id(tmp_path)
    assert entries["a"] == Entry(
        id="a",
        audio=str(tmp_path / "clips/a.wav"),
        text="ja",
        language="de",
        speaker="s1",
        split="train",
    )
    assert (entries["d"].translation, entries["train.jsonl:2"].text) == ("no", "")


def test_manifest_of_nemo_is_one_split_less_corpus(tmp_path: Path) -> None:
    lines = [
        {"audio_filepath": "a.wav", "duration": 2.5, "text": "eins", "lang": "de"},
        {"audio_filepath": "long.wav", "offset": 3.0, "duration": 2.0, "text": "zwei"},
        {"audio_filepath": "long.wav", "offset": -1, "duration": 2.0, "text": "drei"},
    ]
    write_lines(tmp_path / "train_manifest.json", lines)
    found = read_speech_directory(tmp_path)
    # The duration of a whole file is no part of it.
    assert [entry.span for entry in found.entries] == [None, (3.0, 5.0)]
    assert {entry.split for entry in found.entries} == {""}
    assert [(issue.kind, issue.item) for issue in found.issues] == [
        ("bad value", "train_manifest.json:3")
    ]


def test_manifest_may_be_one_json_list(tmp_path: Path) -> None:
    lines = [{"audio": "a.wav", "text": "one"}, {"audio": "b.wav", "text": "two"}, 3]
    touch(tmp_path / "data.json", json.dumps(lines, indent=1))
    found = read_speech_directory(tmp_path)
    assert [entry.text for entry in found.entries] == ["one", "two"]
    assert [issue.item for issue in found.issues] == ["data.json:3"]


def test_one_json_object_per_line_of_a_list(tmp_path: Path) -> None:
    touch(tmp_path / "all.json", '[\n{"audio": "a.wav", "text": "1"},\n{"audio": "b.wav"}\n]\n')
    assert [entry.text for entry in read_speech_directory(tmp_path).entries] == ["1", ""]


def test_lines_that_nobody_wrote_by_hand(tmp_path: Path) -> None:
    line = '{"AUDIO": "clips\\\\a b.wav", "Text": "ja", "speaker": NaN, "language": "und"}'
    touch(tmp_path / "clips" / "a b.wav")
    content = f'\ufeff{{"audio": \r\n\r\n{line}\r\n[1]\r\n'
    touch(tmp_path / "data.jsonl", content)
    found = read_speech_directory(tmp_path)
    [entry] = found.entries
    assert (entry.audio, entry.text) == (str(tmp_path / "clips/a b.wav"), "ja")
    assert (entry.speaker, entry.language, entry.id) == ("", "", "data.jsonl:3")
    # A first line that is broken does not make it another file.
    assert [issue.item for issue in found.issues] == ["data.jsonl:1", "data.jsonl:4"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("train.tsv", "client_id\tpath\tsentence\tlocale\tage\nanna\ta.wav\tja, ja\tde\t9\n"),
        ("metadata.csv", 'file_name,transcription,lang,spk_id\na.wav,"ja, ja",de,anna\n'),
        ("all.csv", "wav;wrd;language;speaker\na.wav;ja, ja;de;anna\n"),
        (
            "train.json",
            '{"u": {"wav": "{root}/a.wav", "wrd": "ja, ja", "lang": "de", "spk": "anna"}}',
        ),
    ],
)
def test_manifests_of_other_toolkits(tmp_path: Path, name: str, content: str) -> None:
    touch(tmp_path / "clips" / "a.wav")
    touch(tmp_path / name, content)
    found = read_speech_directory(tmp_path)
    [entry] = found.entries
    assert (found.layout, found.issues) == ("manifest", ())
    assert entry.audio == str(tmp_path / "clips" / "a.wav")
    assert (entry.text, entry.language, entry.speaker) == ("ja, ja", "de", "anna")
    # Names that were guessed are told, and what is not read.
    [note] = found.notes
    assert note.startswith(f"{name}: audio is ")
    assert note.endswith("; not read: age.") == ("age" in content.split())


def test_values_that_are_no_text_are_named(tmp_path: Path) -> None:
    lines = [
        {"audio": "a.wav", "text": ["a", "b"]},
        {"audio": {"path": "b.wav", "bytes": None}, "text": 7},
        {"audio": "c.wav", "text": "c", "translation": {"fr": "ce", "en": "see"}},
        {"audio": "~nobody/d.wav", "text": "d", "offset": "soon"},
    ]
    write_lines(tmp_path / "all.jsonl", lines)
    found = read_speech_directory(tmp_path, "en")
    assert [(entry.text, entry.translation) for entry in found.entries] == [("7", ""), ("c", "see")]
    assert found.entries[1].target_language == "en"
    assert [issue.detail for issue in found.issues] == [
        "text is a list, and not a text",
        "offset is 'soon', and not seconds",
    ]


def test_manifests_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    write_lines(tmp_path / "train.jsonl", [{"audio": "a.wav", "text": "ja", "language": "de"}])
    touch(tmp_path / "test.jsonl")
    touch(tmp_path / "speakers.csv", "name,age\nanna,30\n")
    touch(tmp_path / "config.json", '{"rate": 16000}')
    touch(tmp_path / "._train.jsonl", "\0")
    issues = {issue.item: issue.detail for issue in read_speech_directory(tmp_path).issues}
    assert issues.keys() == {"test.jsonl", "speakers.csv"}
    assert "it has name, age; it needs audio and text" in issues["speakers.csv"]
    for content in ("audio\ttext\nb.wav\tschön\n".encode("latin-1"), "audio\n".encode("utf-16")):
        (tmp_path / "dev.tsv").write_bytes(content)
        with pytest.raises(UserError, match=r"dev\.tsv:\d is not UTF-8"):
            read_speech_directory(tmp_path)


def test_one_layout_is_read_and_the_others_are_named(tmp_path: Path) -> None:
    touch(tmp_path / "a.wav")
    touch(tmp_path / "b.wav")
    touch(tmp_path / "wav.scp", "u1 a.wav\n")
    touch(tmp_path / "text", "u1 nein\n")
    write_lines(tmp_path / "data.jsonl", [{"audio": "a.wav", "text": "ja"}])
    write_lines(tmp_path / "more.jsonl", [{"text": "nur geschrieben"}])
    found = read_speech_directory(tmp_path)
    assert [entry.text for entry in found.entries] == ["ja", "nur geschrieben"]
    assert [note.split(":")[0] for note in found.notes] == ["wav.scp", "b.wav"]


def test_manifests_may_be_in_folders(tmp_path: Path) -> None:
    for split in ("train", "validation", "test"):
        touch(tmp_path / split / "a.wav")
        touch(tmp_path / split / "metadata.csv", "file_name,text\na.wav,ja\n")
    found = read_speech_directory(tmp_path)
    splits = {entry.audio: entry.split for entry in found.entries}
    assert splits == {
        str(tmp_path / each / "a.wav"): each for each in ("train", "validation", "test")
    }


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train.jsonl", "train"),
        ("trainset", "train"),
        ("val_manifest.json", "validation"),
        ("DevOther", "validation"),
        ("test-clean.tsv", "test"),
        ("eval.jsonl", "eval"),
        ("latest.jsonl", ""),
        ("devices", ""),
        ("validated.tsv", ""),
        ("dataset.json", ""),
    ],
)
def test_splits_by_name(name: str, split: str) -> None:
    assert split_of_name(name) == split


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("train", "dev", "eval"), ["train", "validation", "test"]),
        (("train", "eval", "test"), ["train", "validation", "test"]),
        (("train", "eval"), ["train", "test"]),
        (("train", "val"), ["train", "validation"]),
    ],
)
def test_what_an_eval_set_is(tmp_path: Path, names: tuple[str, ...], expected: list[str]) -> None:
    for name in names:
        write_lines(tmp_path / f"{name}.jsonl", [{"audio": f"{name}.wav", "text": "ja"}])
    found = {entry.audio: entry.split for entry in read_speech_directory(tmp_path).entries}
    assert [found[str(tmp_path / f"{name}.wav")] for name in names] == expected


def test_words_are_no_languages() -> None:
    assert all(map(names_language, ("de", "pt-BR", "yue")))
    # Codes of Bashkir, Rawang, Waka, Allar.
    assert not any(map(names_language, ("bak", "raw", "wav", "all", "news")))
    assert names_language("quz", "quz")


def test_kaldi_directories_of_splits(tmp_path: Path) -> None:
    for split in ("train", "dev", "test"):
        folder = tmp_path / "data" / split
        touch(tmp_path / "wavs" / f"{split}.wav")
        touch(folder / "wav.scp", f"r1 wavs/{split}.wav\nr2 sox x.wav y.wav -t wav - | cat |\n")
        touch(
            folder / "segments", "u1 r1 0.5 1.75\nu2 r1 2.0 -1\nu3 r2 0 1\nu4 r9 0 1\nu5 r1 x y\n"
        )
        touch(folder / "text", "u1 guten tag\nu2 auf wiedersehen\nu3 c\nlost text\n")
        touch(folder / "text.en", "u1 good day\n")
        touch(folder / "utt2spk", "u1 anna\nu2 bert\n")
        touch(folder / "utt2lang", "u1 de\n")
    found = read_speech_directory(tmp_path / "data")
    assert found.layout == "kaldi"
    train = [entry for entry in found.entries if entry.split == "train"]
    assert [(e.text, e.span, e.speaker) for e in train] == [
        ("guten tag", (0.5, 1.75), "anna"),
        ("auf wiedersehen", (2.0, math.inf), "bert"),
    ]
    # Kaldi's paths are relative to where the recipe runs.
    assert train[0].audio == str(tmp_path / "wavs/train.wav")
    assert (train[0].translation, train[0].target_language) == ("good day", "en")
    assert {entry.split for entry in found.entries} == {"train", "validation", "test"}
    issues = [(i.kind, i.item) for i in found.issues if i.split == "train"]
    assert sorted(issues) == [
        ("bad row", "train/u5"),
        ("bad value", "train/r2"),
        ("no counterpart", "train/lost"),
        ("no counterpart", "train/u3"),
        ("no counterpart", "train/u4"),
    ]


def test_kaldi_reads_the_file_of_a_command_and_runs_none(tmp_path: Path) -> None:
    touch(tmp_path / "a.flac")
    touch(tmp_path / "wav.scp", "u1 flac -c -d -s a.flac |\nu2 rm -rf / |\n")
    touch(tmp_path / "text", "u1 ja\nu2 nein\n")
    found = read_speech_directory(tmp_path)
    assert [entry.audio for entry in found.entries] == [str(tmp_path / "a.flac")]
    assert [issue.item for issue in found.issues] == [f"{tmp_path.name}/u2"]


def test_audio_beside_texts(tmp_path: Path) -> None:
    for speaker, name, text in (
        ("anna", "1", "ja"),
        ("bert", "2", "nein\nnein"),
        ("bert", "3", ""),
    ):
        touch(tmp_path / "clips" / speaker / f"{name}.WAV")
        if text:
            touch(tmp_path / "clips" / speaker / f"{name}.txt", text)
    touch(tmp_path / "clips" / "anna" / "1.en.txt", "yes")
    found = by_id(tmp_path)
    assert found["clips/anna/1"].speaker == "anna"
    assert (found["clips/anna/1"].translation, found["clips/anna/1"].target_language) == (
        "yes",
        "en",
    )
    assert found["clips/bert/2"].text == "nein nein"
    assert found["clips/bert/3"].text == ""
    assert {entry.split for entry in found.values()} == {""}


def test_transcripts_of_many_recordings_in_one_file(tmp_path: Path) -> None:
    for name in ("wavs/1.wav", "wavs/2.wav", "b/x-3.flac", "b/x-4.flac"):
        touch(tmp_path / name)
    touch(tmp_path / "metadata.csv", "1|Ja, 5.|Ja, fünf.\nwavs/2.wav|Nein.|Nein.\n9|Lost.|Lost.\n")
    touch(tmp_path / "b" / "x.trans.txt", "x-3 JA JA\nx-4 NEIN\n")
    found = read_speech_directory(tmp_path)
    assert {entry.id: entry.text for entry in found.entries} == {
        "wavs/1": "Ja, 5.",
        "wavs/2": "Nein.",
        "b/x-3": "JA JA",
        "b/x-4": "NEIN",
    }
    assert [(issue.kind, issue.item) for issue in found.issues] == [
        ("no counterpart", "metadata.csv:3")
    ]


def test_texts_by_the_names_of_recordings(tmp_path: Path) -> None:
    for name in ("wavs/1.wav", "wavs/2.wav", "wavs/3.wav"):
        touch(tmp_path / name)
    touch(tmp_path / "text.csv", "id,speaker,text\n1,anna,ja\n2.wav,bert,nein\n9,bert,lost\n")
    found = read_speech_directory(tmp_path)
    assert {entry.audio: (entry.text, entry.speaker) for entry in found.entries} == {
        str(tmp_path / "wavs" / "1.wav"): ("ja", "anna"),
        str(tmp_path / "wavs" / "2.wav"): ("nein", "bert"),
    }
    assert [issue.item for issue in found.issues] == ["9"]
    assert [note.split(":")[0] for note in found.notes] == ["wavs/3.wav"]


def test_texts_under_other_names_and_in_the_folder_of_speech(tmp_path: Path) -> None:
    for folder, end in (("a", ".wav.txt"), ("b", ".lab"), ("speech", ".txt")):
        touch(tmp_path / folder / "1.wav")
        touch(tmp_path / folder / f"1{end}", folder)
    touch(tmp_path / "speech" / "2.wav")
    touch(tmp_path / "a" / "1.en.txt", "yes")
    touch(tmp_path / "a" / "1.fr.txt", "oui")
    touch(tmp_path / "a" / "._1.wav", "of a Mac")
    touch(tmp_path / "b" / "1.mp3")
    found = read_speech_directory(tmp_path, "fr")
    texts = {entry.id: (entry.text, entry.translation) for entry in found.entries}
    assert texts == {
        "a/1": ("a", "oui"),
        "b/1": ("b", ""),
        "speech/1": ("speech", ""),
        "speech/2.wav": ("", ""),
    }
    # The other translation and the other form of a recording are not read, and named.
    assert [issue.item for issue in found.issues] == ["b/1.mp3", "a/1.wav: 1.en.txt"]


def test_folders_may_be_languages(tmp_path: Path) -> None:
    for folder in ("de/anna", "fr"):
        touch(tmp_path / folder / "1.wav")
        touch(tmp_path / folder / "1.txt", "ja")
    touch(tmp_path / "speech" / "fr" / "2.wav")
    found = {key: (entry.language, entry.speaker) for key, entry in by_id(tmp_path).items()}
    expected = {"de/anna/1": ("de", "anna"), "fr/1": ("fr", ""), "speech/fr/2.wav": ("fr", "")}
    assert found == expected
    # One that is none makes speakers of all.
    touch(tmp_path / "bert" / "1.wav")
    assert by_id(tmp_path)["fr/1"].speaker == "fr"


def test_folders_may_be_splits(tmp_path: Path) -> None:
    for split in ("train", "valid", "test"):
        touch(tmp_path / split / "anna" / "1.wav")
        touch(tmp_path / split / "anna" / "1.txt", "ja")
    found = by_id(tmp_path)
    assert {key: (entry.split, entry.speaker) for key, entry in found.items()} == {
        "train/anna/1": ("train", "anna"),
        "valid/anna/1": ("validation", "anna"),
        "test/anna/1": ("test", "anna"),
    }


def test_unpaired_speech_and_text(tmp_path: Path) -> None:
    write_lines(tmp_path / "train.jsonl", [{"audio": "a.wav", "text": "ja", "language": "de"}])
    touch(tmp_path / "speech" / "radio" / "one.mp3")
    touch(tmp_path / "text" / "de" / "news.txt", "Erster Satz.\n\nZweiter Satz.\n")
    touch(tmp_path / "more.txt", "Dritter Satz.\n")
    touch(tmp_path / "README.txt", "This is a corpus.\n")
    found = read_speech_directory(tmp_path)
    assert [entry.id for entry in found.entries if entry.audio and not entry.text] == [
        "speech/radio/one.mp3"
    ]
    texts = {entry.text: entry.language for entry in found.entries if not entry.audio}
    assert texts == {"Erster Satz.": "de", "Zweiter Satz.": "de", "Dritter Satz.": ""}


def test_lost_transcripts_and_double_recordings_are_named(tmp_path: Path) -> None:
    touch(tmp_path / "a.wav")
    touch(tmp_path / "a.txt", "ja")
    touch(tmp_path / "b.txt", "nein")
    [issue] = read_speech_directory(tmp_path).issues
    assert (issue.kind, issue.item) == ("no counterpart", "b.txt")
    line = {"audio": "a.wav", "text": "ja", "language": "de"}
    write_lines(tmp_path / "train.jsonl", [line, line, {**line, "offset": 1.0, "duration": 1.0}])
    found = read_speech_directory(tmp_path)
    assert [issue.kind for issue in found.issues if issue.kind != "no counterpart"] == [
        "duplicate id"
    ]
    assert sum(bool(entry.audio) for entry in found.entries) == 2


def test_texts_that_are_not_utf8_and_numbered_ids(tmp_path: Path) -> None:
    names = ["same", "same#2", "same"]
    lines = [{"id": name, "audio": f"{number}.wav"} for number, name in enumerate(names)]
    write_lines(tmp_path / "data.jsonl", lines)
    (tmp_path / "old.txt").write_bytes("schön\n".encode("latin-1"))
    touch(tmp_path / "text" / "all.txt", "ja\n")
    found = read_speech_directory(tmp_path)
    assert [entry.id for entry in found.entries] == [*names[:2], "same#3", "text/all.txt:1"]
    assert found.entries[-1].language == ""
    assert [issue.item for issue in found.issues] == ["old.txt"]
    assert found.notes == ("text/all.txt: 1 lines, used as unspoken text.",)


def test_a_directory_without_recordings(tmp_path: Path) -> None:
    touch(tmp_path / "notes.md")
    with pytest.raises(UserError, match=r"notes\.md.*train\.jsonl"):
        read_speech_directory(tmp_path)
    with pytest.raises(UserError, match="not a directory"):
        read_speech_directory(tmp_path / "notes.md")


def test_lhotse_has_to_be_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lhotse", None)
    write_lines(tmp_path / "cuts.jsonl", [{"id": "a", "type": "MonoCut", "start": 0}])
    with pytest.raises(UserError, match=r"pip install maestro_jax\[lhotse\]"):
        read_speech_directory(tmp_path)


@pytest.mark.peers
def test_cuts_that_lhotse_writes(tmp_path: Path) -> None:
    import lhotse
    import numpy as np
    import soundfile

    soundfile.write(tmp_path / "a.wav", np.zeros(32_000), 16_000)
    recording = lhotse.Recording.from_file(tmp_path / "a.wav")
    supervisions = [
        lhotse.SupervisionSegment(
            id=f"s{index}",
            recording_id=recording.id,
            start=float(index),
            duration=1.0,
            text=text,
            language="de",
            speaker="anna",
            custom={"translation": text.upper()},
        )
        for index, text in enumerate(("eins", "zwei"))
    ]
    cuts = lhotse.CutSet.from_manifests(
        recordings=lhotse.RecordingSet.from_recordings([recording]),
        supervisions=lhotse.SupervisionSet.from_segments(supervisions),
    )
    cuts.to_file(tmp_path / "cuts.jsonl.gz")
    found = read_speech_directory(tmp_path)
    assert found.layout == "lhotse"
    assert [(e.text, e.span, e.speaker, e.language, e.translation) for e in found.entries] == [
        ("eins", (0.0, 1.0), "anna", "de", "EINS"),
        ("zwei", (1.0, 2.0), "anna", "de", "ZWEI"),
    ]

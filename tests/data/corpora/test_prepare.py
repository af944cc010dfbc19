"""From manifests and audio with everything wrong that can be, to records and a table of issues."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from clicks import clicking, clicks, coded, wav
from spoken import InProcess, issues_of, prepared, record, records, say, speak_to

from maestro_jax.cli.main import main
from maestro_jax.data.corpora import prepare
from maestro_jax.data.corpora.manifest import Manifest
from maestro_jax.data.corpora.prepare import remove_prepared
from maestro_jax.data.data_dir import data_scope
from maestro_jax.data.indexed_source import IndexedTfdsSource
from maestro_jax.errors import UserError

TEXTS = ["One, two!", "three", 'Four "five"', "six", "seven"]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five good utterances, one in another language, and eight that are not as they should be."""
    source = tmp_path_factory.mktemp("manifests")
    for number, text in enumerate(TEXTS):
        speak_to(source / "audio" / f"{number}.flac", text)
    speak_to(source / "audio" / "de.ogg", "eins", "de")
    (source / "broken.flac").write_bytes(b"fLaC and then nothing")
    (source / "nothing.wav").write_bytes(b"")
    whole = {"audio": "audio/0.flac", "text": "x", "language": "en"}
    seconds = len(say(TEXTS[0])) / 16000
    lines = [
        *(
            {"audio": f"audio/{number}.flac", "text": text, "language": "en", "speaker": "me"}
            for number, text in enumerate(TEXTS)
        ),
        {"audio_filepath": "audio/de.ogg", "text": "eins", "language": "de"},
        {**whole, "audio": "missing.flac"},
        {**whole, "audio": "broken.flac"},
        {**whole, "audio": "nothing.wav"},
        {**whole, "text": "?!"},
        {**whole, "id": "train.jsonl:1"},
        {**whole, "offset": 0.1, "duration": seconds, "id": "cut"},
        {**whole, "offset": 60.0, "duration": 1.0},
        {**whole, "offset": "soon"},
    ]
    content = "".join(json.dumps(line) + "\n" for line in lines)
    (source / "train.jsonl").write_text(content + "{broken\n")
    (source / "dev.tsv").write_text(
        'audio\ttext\tlanguage\toffset\naudio/2.flac\tFour "five"\ten-GB\t0.2\naudio/3.flac\tsix\n'
    )
    return source


def test_all_is_written_or_accounted_for(source: Path, tmp_path: Path) -> None:
    corpus = Manifest()
    assert corpus.configs(source) == ["de", "en"]
    result = prepared(corpus, source, "en", tmp_path)
    assert result.directory == tmp_path / "manifest" / "en" / "1.0.0"
    train, validation = result.splits
    assert (train.split, train.listed, train.utterances) == ("train", 12, 6)
    assert train.issues == {
        "bad value": 1,
        "bad row": 1,
        "missing audio": 1,
        "unreadable audio": 1,
        "empty audio": 1,
        "empty text": 1,
        "duplicate id": 1,
        "cut short": 1,
        "outside of audio": 1,
    }
    # Whatever was listed is there or has one reason not to be.
    left_out = sum(train.issues.values()) - train.issues["cut short"] - 2  # Two bad lines.
    assert train.utterances + left_out == train.listed
    assert validation.issues == {"bad row": 1} and validation.utterances == 1
    assert "1 cut short (kept)" in train.explanation()
    assert ("missing audio", "train", "train.jsonl:7") in issues_of(result)

    found = records(result, "train")
    assert [entry["id"] for entry in found] == [*(f"train.jsonl:{n}" for n in range(1, 6)), "cut"]
    assert [entry["raw_text"] for entry in found[:5]] == TEXTS
    assert [entry["text"] for entry in found[:3]] == ["one two", "three", "four five"]
    assert {entry["language"] for entry in found} == {"en"}
    for entry, text in zip(found[:5], TEXTS, strict=True):
        assert entry["audio"].dtype == np.int16
        np.testing.assert_allclose(entry["audio"] / 32768.0, say(text), atol=2 / 32768)
    # An offset without a duration goes to the end of the file.
    [rest] = records(result, "validation")
    np.testing.assert_allclose(rest["audio"] / 32768.0, say(TEXTS[2])[3200:], atol=2 / 32768)
    lengths = np.load(result.directory / "lengths_train.npy")
    assert lengths.tolist() == [
        [len(entry["audio"]), len(entry["text"]), len(entry["translation"])] for entry in found
    ]
    of_validation = np.load(result.directory / "lengths_validation.npy")
    assert of_validation.tolist() == [[len(rest["audio"]), len("four five"), 0]]
    assert not list(result.directory.glob("part-*"))
    hours = sum(len(entry["audio"]) for entry in found) / 16000 / 3600
    assert train.hours == pytest.approx(hours)


def test_tasks_of_text_read_no_audio(source: Path, tmp_path: Path) -> None:
    result = prepared(Manifest(), source, "en", tmp_path)
    splits = {"train": "train", "everything": "train+validation"}
    with data_scope(tmp_path):
        whole, texts = (
            IndexedTfdsSource("manifest/en", splits, "?", texts=texts) for texts in (False, True)
        )
        for split in splits:
            heard, written = whole.open_split(split), texts.open_split(split)
            assert len(heard) == len(written) > 0
            assert (written.lengths() == heard.lengths() * [0, 1, 1]).all()
            for number in range(len(heard)):
                one, other = dict(heard[number]), dict(written[number])
                assert len(one.pop("audio")) and not len(other.pop("audio"))
                assert one == other
            # Of the audio, two bytes a sample.
            assert heard.num_bytes - written.num_bytes >= 2 * heard.lengths()[:, 0].sum()
            found = whole.open_texts(split)
            assert found.num_bytes == written.num_bytes
        # What was prepared without them, as MiniVox is, has its texts with the audio.
        shutil.rmtree(result.directory / "texts")
        assert len(texts.open_split("train")[0]["audio"])


def test_speech_without_text_has_no_texts_apart(tmp_path: Path) -> None:
    source = tmp_path / "source"
    speak_to(source / "a.flac", "one")
    lines = [{"audio": "a.flac", "language": "en"}, {"text": "two", "language": "en"}]
    for split, line in zip(("train", "test"), lines, strict=True):
        (source / f"{split}.jsonl").write_text(json.dumps(line) + "\n")
    result = prepared(Manifest(), source, "en", tmp_path)
    assert [split.utterances for split in result.splits] == [1, 1]
    assert not (result.directory / "texts").exists()


def test_an_interrupted_preparation_goes_on(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = Manifest()
    whole = prepared(corpus, source, "en", tmp_path / "whole", workers=2)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(prepare, "_finish", stop)
    with pytest.raises(KeyboardInterrupt):
        prepared(corpus, source, "en", tmp_path / "stopped")
    monkeypatch.undo()
    begun = tmp_path / "stopped" / "manifest" / "en" / "1.0.0.incomplete"
    parts = {path: path.stat().st_mtime_ns for path in begun.glob("*.array_record")}
    assert len(parts) == 5
    # One was being written, one is of another version of the corpus.
    first, second, *kept = sorted(parts)
    first.unlink()
    account = second.with_suffix(".json")
    changed = json.loads(account.read_text()) | {"fingerprint": "other"}
    account.write_text(json.dumps(changed))

    written = []
    original = prepare.write_shard

    def spy(function: object, requests: object, **options: object) -> object:
        for path, utterances in requests:
            written.append(path.name)
            yield original(path, utterances)

    from maestro_jax.data.processes import Processes

    monkeypatch.setattr(Processes, "results", lambda self, *given, **more: spy(*given, **more))
    again = prepared(corpus, source, "en", tmp_path / "stopped", workers=1)
    assert written == [first.stem, second.stem]
    assert again.splits == whole.splits
    for split in ("train", "validation"):
        for one, other in zip(records(again, split), records(whole, split), strict=True):
            np.testing.assert_array_equal(one.pop("audio"), other.pop("audio"))
            assert one == other

    there = prepared(corpus, source, "en", tmp_path / "stopped")
    assert not there.fresh and there.splits == whole.splits
    remove_prepared(corpus, "en", tmp_path / "stopped")
    assert not there.directory.exists()


def test_what_an_earlier_version_prepared_is_read(source: Path, tmp_path: Path) -> None:
    made = prepared(Manifest(), source, "en", tmp_path)
    assert made.issues_path == made.directory / "problems.tsv"
    # Issues were called problems in the summary, as they still are in the name of their table.
    summary = made.directory / "summary.json"
    record = json.loads(summary.read_text())
    for split in record["splits"]:
        split["problems"] = split.pop("issues")
    summary.write_text(json.dumps(record))
    read = prepared(Manifest(), source, "en", tmp_path)
    assert not read.fresh and read.splits == made.splits
    assert read.issues_path == made.issues_path


def test_strict_names_the_first_thing_that_is_wrong(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train\.jsonl:10: empty text \(\?!\); correct it"):
        prepared(Manifest(), source, "en", tmp_path, strict=True)
    only = tmp_path / "only"
    record(only / "fine.wav", say("one"))
    fields = {"text": "one", "language": "en"}
    lines = [{"audio": "fine.wav", **fields}, {"audio": "gone.wav", **fields}]
    (only / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(UserError, match=r"train\.jsonl:2: missing audio"):
        prepared(Manifest(), only, "en", tmp_path / "data", strict=True)


def test_what_cannot_be_a_corpus_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no manifest"):
        Manifest().configs(tmp_path)
    (tmp_path / "train.tsv").write_text("audio\ttext\nx.wav\tx\n")
    with pytest.raises(UserError, match=r'train.tsv:2 has no field "language".* --languages en'):
        Manifest().configs(tmp_path)
    with pytest.raises(UserError, match="name one language for all lines, not several"):
        Manifest().configs(tmp_path, ["en", "de"])
    (tmp_path / "train.tsv").write_text("audio\ttext\tlanguage\nx.wav\tx\ten\n")
    with pytest.raises(UserError, match="'fr' is not among the languages"):
        Manifest().configs(tmp_path, ["fr"])
    causes = r"could be used: 1 missing audio; the first missing audio is train.tsv:2: .*x.wav"
    with pytest.raises(
        UserError, match=rf"no utterance of manifest/en {causes}\. All issues are in"
    ):
        prepared(Manifest(), tmp_path, "en", tmp_path / "data")


SPEECH = clicking(3)
LOSES_NOTHING = {
    "float.wav": (coded(np.rint(SPEECH * 32_768), "WAV/FLOAT"), "absurd level"),
    "inverted.flac": (coded(np.stack([SPEECH, -SPEECH], axis=1), "FLAC"), "cancelled channels"),
    "counted.wav": (wav(SPEECH, size=32_000, riff=32_036), "header mismatch"),
    "two.ogg": (coded(SPEECH[:16_000], "OGG/OPUS") + coded(SPEECH[16_000:], "OGG/OPUS"), ""),
    "pipe.wav": (wav(SPEECH, size=0xFFFFFFFF, riff=0xFFFFFFFF), ""),
}
CUT = {"cut.wav": wav(SPEECH)[:50_000], "cut.ogg": coded(SPEECH, "OGG/VORBIS")[:-6000]}
USELESS = {
    "silent.wav": "silent audio",
    "offset.flac": "silent audio",
    "page.mp3": "unreadable audio",
}


def write_manifest(source: Path, files: dict[str, bytes]) -> None:
    """Files and a manifest of them."""
    source.mkdir(exist_ok=True)
    for name, content in files.items():
        (source / name).write_bytes(content)
    lines = [{"audio": name, "id": name, "text": "one two", "language": "en"} for name in files]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (source / "train.jsonl").write_text(text)


def test_all_that_is_there_is_written_and_what_differs_told(tmp_path: Path) -> None:
    files = {name: content for name, (content, _) in LOSES_NOTHING.items()} | CUT
    files["silent.wav"] = wav(np.zeros(16_000))
    files["offset.flac"] = coded(np.full(16_000, 0.1), "FLAC")
    files["page.mp3"] = b"<html>404 Not Found</html>" * 9
    write_manifest(tmp_path / "source", files)
    result = prepared(Manifest(), tmp_path / "source", "en", tmp_path)
    found = {entry["id"]: entry["audio"] for entry in records(result, "train")}
    assert found.keys() == files.keys() - USELESS.keys()
    for name in LOSES_NOTHING:
        assert clicks(np.asarray(found[name]) / 32_768) == 3, name
    expected = {(kind, name) for name, (_, kind) in LOSES_NOTHING.items() if kind}
    expected |= {("cut short", name) for name in CUT} | {(k, name) for name, k in USELESS.items()}
    assert {(kind, name) for kind, _, name in issues_of(result)} == expected
    [train] = result.splits
    assert "2 cut short (kept)" in train.explanation()
    assert "1 unreadable audio," in train.explanation() + ","


def test_where_nothing_can_be_used_the_causes_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("maestro_jax.data.processes.Processes", InProcess)
    source = tmp_path / "source"
    write_manifest(source, {"a.wav": b"no audio\n" * 9, "b.wav": b"nor here\n" * 9, "c.wav": b""})
    command = ["prepare", "manifest", "--source_dir", str(source), "--data_dir", str(tmp_path)]
    assert main([*command, "--workers", "1"]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: no utterance of manifest/en could be used: ")
    assert "2 unreadable audio, 1 empty audio; the first unreadable audio is a.wav: " in error
    assert "it is text: 'no audio" in error and ".json" not in error
    table = Path(error.rpartition(" are in ")[2].rstrip("."))
    assert table.read_text().count("unreadable audio") == 2
    # Once it is mended, the same command reads it.
    write_manifest(source, dict.fromkeys(("a.wav", "b.wav", "c.wav"), wav(SPEECH)))
    assert main([*command, "--workers", "1"]) == 0


def test_what_was_mended_passes_strictly(tmp_path: Path) -> None:
    source = tmp_path / "source"
    write_manifest(source, {"a.wav": wav(SPEECH)[:-9000]})
    with pytest.raises(UserError, match=r"a\.wav: cut short .*0.28 of 3.00 seconds missing"):
        prepared(Manifest(), source, "en", tmp_path, strict=True)
    write_manifest(source, {"a.wav": wav(SPEECH)})
    [train] = prepared(Manifest(), source, "en", tmp_path, strict=True).splits
    assert (train.utterances, train.issues) == (1, {})

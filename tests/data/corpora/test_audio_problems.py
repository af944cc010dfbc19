"""What is wrong with audio, from the file to `issues.tsv` and the lines of the command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from clicks import clicking, clicks, coded, wav
from spoken import Here, prepared, problems, records

from maestro_jax.cli.main import main
from maestro_jax.data.corpora.manifest import Manifest
from maestro_jax.errors import UserError

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


def lay_out(source: Path, files: dict[str, bytes]) -> None:
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
    lay_out(tmp_path / "source", files)
    result = prepared(Manifest(), tmp_path / "source", "en", tmp_path)
    found = {entry["id"]: entry["audio"] for entry in records(result, "train")}
    assert found.keys() == files.keys() - USELESS.keys()
    for name in LOSES_NOTHING:
        assert clicks(np.asarray(found[name]) / 32_768) == 3, name
    expected = {(kind, name) for name, (_, kind) in LOSES_NOTHING.items() if kind}
    expected |= {("cut short", name) for name in CUT} | {(k, name) for name, k in USELESS.items()}
    assert {(kind, name) for kind, _, name in problems(result)} == expected
    [train] = result.splits
    assert "2 cut short (kept)" in train.explanation()
    assert "1 unreadable audio," in train.explanation() + ","


def test_where_nothing_can_be_used_the_causes_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("maestro_jax.data.processes.Processes", Here)
    source = tmp_path / "source"
    lay_out(source, {"a.wav": b"no audio\n" * 9, "b.wav": b"nor here\n" * 9, "c.wav": b""})
    command = ["prepare", "manifest", "--source_dir", str(source), "--data_dir", str(tmp_path)]
    assert main([*command, "--workers", "1"]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: no utterance of manifest/en could be used: ")
    assert "2 unreadable audio, 1 empty audio; the first unreadable audio is a.wav: " in error
    assert "it is text: 'no audio" in error and ".json" not in error
    table = Path(error.rpartition(" are in ")[2].rstrip("."))
    assert table.read_text().count("unreadable audio") == 2
    # Once it is mended, the same command reads it.
    lay_out(source, dict.fromkeys(("a.wav", "b.wav", "c.wav"), wav(SPEECH)))
    assert main([*command, "--workers", "1"]) == 0


def test_what_was_mended_passes_strictly(tmp_path: Path) -> None:
    source = tmp_path / "source"
    lay_out(source, {"a.wav": wav(SPEECH)[:-9000]})
    with pytest.raises(UserError, match=r"a\.wav: cut short .*0.28 of 3.00 seconds missing"):
        prepared(Manifest(), source, "en", tmp_path, strict=True)
    lay_out(source, {"a.wav": wav(SPEECH)})
    [train] = prepared(Manifest(), source, "en", tmp_path, strict=True).splits
    assert (train.utterances, train.issues) == (1, {})

"""Files, directories and standard input as recordings."""

from __future__ import annotations

import io
import os
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import soundfile

from maestro_jax.cli.audio_inputs import ReadingProgress, audio_input, audio_inputs
from maestro_jax.errors import UserError


def write(path: Path, seconds: float = 0.5) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    soundfile.write(path, 0.1 * rng.normal(size=round(16_000 * seconds)), 16_000)
    return path


def send(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    stream = types.SimpleNamespace(buffer=io.BytesIO(content), isatty=lambda: False)
    monkeypatch.setattr(sys, "stdin", stream)


def read(one) -> np.ndarray:
    return np.concatenate(list(one.chunks()))


def test_directories_give_their_recordings_in_order(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    for name in ("d/b.wav", "d/a.FLAC", "d/e/c.ogg", "d/.hidden.wav", "d/.git/x.wav", "z.wav"):
        write(Path(name))
    Path("d/notes.txt").write_text("no recording")
    with caplog.at_level("INFO", "maestro_jax"):
        found = audio_inputs(["z.wav", "d"])
    assert [one.name for one in found] == ["z.wav", "d/a.FLAC", "d/b.wav", "d/e/c.ogg"]
    assert all(len(read(one)) == 8000 for one in found)
    assert "d: 3 recordings; 1 other files are ignored" in caplog.text


def test_linked_directories_are_walked_once(tmp_path):
    (tmp_path / "all").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "b.flac").write_bytes(b"b")
    (tmp_path / "all" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "all")
    found = [Path(one.name).relative_to(tmp_path) for one in audio_inputs([str(tmp_path / "all")])]
    assert found == [Path("all/link/b.flac")]


def test_what_is_named_twice_is_read_once(tmp_path, caplog):
    file = write(tmp_path / "a.wav")
    (tmp_path / "link.wav").symlink_to(file)
    with caplog.at_level("INFO", "maestro_jax"):
        [one] = audio_inputs([str(file), str(tmp_path), f"{tmp_path}/../{tmp_path.name}/a.wav"])
    assert one.name == str(file) and "3 recordings are named more than once" in caplog.text


def test_standard_input_is_a_recording_of_any_format(tmp_path, monkeypatch):
    for name in ("a.wav", "a.flac", "a.ogg", "a.mp3"):
        send(monkeypatch, write(tmp_path / name).read_bytes())
        assert len(read(audio_input("-"))) == pytest.approx(8000, abs=1200)
    send(monkeypatch, b"")
    with pytest.raises(UserError, match="standard input is empty"):
        read(audio_input("-"))
    send(monkeypatch, b"no audio")
    with pytest.raises(UserError, match="standard input cannot be read") as error:
        read(audio_input("-"))
    assert str(tmp_path.root) + "tmp" not in str(error.value)
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(isatty=lambda: True))
    with pytest.raises(UserError, match="pipe one in"):
        read(audio_input("-"))


def test_what_is_missing_is_an_input_with_an_error(tmp_path):
    (tmp_path / "empty" / "below").mkdir(parents=True)
    found = audio_inputs([str(tmp_path / "absent.wav"), str(tmp_path / "empty")])
    said = [str(one.error) for one in found]
    assert "absent.wav does not exist" in said[0]
    assert "no recording in the directory" in said[1] and "*.flac" in said[1]
    with pytest.raises(UserError, match="is a directory; name a recording"):
        read(audio_input(str(tmp_path)))


def test_what_may_not_be_read(tmp_path, monkeypatch):
    write(tmp_path / "a.wav")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    [one] = audio_inputs([str(tmp_path / "a.wav")])
    with pytest.raises(UserError, match="permission denied"):
        read(one)


def test_progress_is_for_long_recordings(tmp_path, capsys):
    short, long = write(tmp_path / "a.wav"), tmp_path / "b.wav"
    soundfile.write(long, np.zeros(8000 * 90, np.int16), 8000)
    for names, shown in (([short, "-"], False), ([short, long, tmp_path / "absent"], True)):
        with ReadingProgress([str(name) for name in names]) as progress:
            progress.update(16_000)
            progress.wipe()
            progress.update(16_000 * 100)
        assert ("101/101" in capsys.readouterr().err) == shown

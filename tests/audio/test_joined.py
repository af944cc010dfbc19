"""Files that lie behind one another in one: `cat a.wav b.mp3 > c`."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from clicks import clicking, clicks, coded, kinds, read, wav

from maestro_jax.audio.containers import mpeg

SPEECH = clicking(2)
FILES = {
    name: coded(SPEECH, name)
    for name in ("WAV/PCM_16", "FLAC/PCM_16", "MP3", "OGG/VORBIS", "AIFF/PCM_16", "AU/PCM_16")
}
FILES["piped"] = wav(SPEECH, riff=0xFFFFFFFF, size=0xFFFFFFFF)
FILES["tagged"] = b"ID3\x04\0\0\0\0\x50\0" + bytes(10_240) + FILES["MP3"]
FILES["empty"] = coded(SPEECH[:0], "WAV/PCM_16")


@pytest.mark.parametrize("first", FILES)
def test_files_of_any_two_formats(tmp_path, first):
    for second in FILES:
        if first == second and first in ("FLAC/PCM_16", "OGG/VORBIS", "MP3", "tagged", "empty"):
            continue
        found = read(tmp_path / "a", FILES[first] + FILES[second])
        seconds = 2 * ((first != "empty") + (second != "empty"))
        assert len(found.samples) / 16_000 == pytest.approx(seconds, abs=0.2), second
        # Decoded as samples, compressed bytes would be noise; a click is counted once.
        assert clicks(found.samples) == seconds, second
        if {first, second} != {"MP3", "tagged"}:
            assert "header mismatch" in kinds(found), second


@pytest.mark.parametrize("first", ["WAV/PCM_16", "FLAC/PCM_16", "OGG/VORBIS", "AU/PCM_16"])
def test_frames_without_an_index_behind_another_file(tmp_path, first):
    content = FILES["MP3"]
    frames = content[mpeg._walk(content)[0][0].frames[0][0] :]
    assert b"Info" not in frames and b"Xing" not in frames
    found = read(tmp_path / "a", FILES[first] + frames)
    assert clicks(found.samples) == 4 and kinds(found) == ["header mismatch"]


@pytest.mark.parametrize("container", ["WAV/PCM_16", "AU/PCM_16", "AIFF/PCM_16"])
def test_a_thousand_files(tmp_path, container):
    ramp = np.arange(-160, 160) / 512
    found = read(tmp_path / "a", coded(ramp, container) * 1100)
    np.testing.assert_allclose(found.samples, np.tile(ramp, 1100), atol=1e-4)
    assert kinds(found) == ["header mismatch"]
    assert "1099 other files" in found.findings[0].detail


def test_formats_in_turns(tmp_path):
    found = read(tmp_path / "a", (FILES["WAV/PCM_16"] + FILES["FLAC/PCM_16"]) * 3)
    np.testing.assert_allclose(found.samples, np.tile(SPEECH, 6), atol=1.01 / 32768)


def test_headers_within_tags_are_no_files(tmp_path):
    content = FILES["FLAC/PCM_16"]
    # What `flac --keep-foreign-metadata` writes: the header of the wav file.
    foreign = b"riff" + FILES["WAV/PCM_16"][:44]
    block = b"\x02" + len(foreign).to_bytes(3, "big") + foreign
    found = read(tmp_path / "a.flac", content[:42] + block + content[42:])
    np.testing.assert_allclose(found.samples, SPEECH, atol=1.01 / 32768)
    assert not found.findings
    content = FILES["WAV/PCM_16"]
    content += b"id3 " + struct.pack("<I", len(FILES["MP3"])) + FILES["MP3"]
    found = read(tmp_path / "a.wav", content)
    assert len(found.samples) == len(SPEECH) and not found.findings
    # A tag without audio behind it.
    found = read(tmp_path / "a.wav", FILES["WAV/PCM_16"] + FILES["tagged"][:10_250])
    assert len(found.samples) == len(SPEECH) and not found.findings

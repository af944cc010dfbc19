"""MP3 without an index, with a wrong one, behind tags, and one behind another."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from clicks import clicking, clicks, coded, kinds, read

from maestro_jax.audio.containers import mpeg

SECONDS = 5
SPEECH = clicking(SECONDS)
VARIABLE = {"bitrate_mode": "VARIABLE", "compression_level": 0.5}
CONSTANT = {"bitrate_mode": "CONSTANT", "compression_level": 0.5}
TAG = b"ID3\x03\0\0\0\0\x03\0" + (b"\xff\xfb\x90\x64" + b"picture").ljust(384, b"\xff")
TAGS_BEHIND = b"APETAGEX" + struct.pack("<IIII", 2000, 32, 0, 0) + bytes(8) + b"TAG".ljust(128)


def frames(content: bytes) -> list[bytes]:
    """The frames of a file without tags, by the tables of ISO 11172-3 and 13818-3."""
    one = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
    two = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
    rates = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8000)}
    found, at = [], 0
    while at < len(content):
        version = content[at + 1] >> 3 & 3
        bits = (one if version == 3 else two)[content[at + 2] >> 4] * 1000
        rate = rates[version][content[at + 2] >> 2 & 3]
        end = at + (144 if version == 3 else 72) * bits // rate + (content[at + 2] >> 1 & 1)
        found.append(content[at:end])
        at = end
    return found


def with_count(content: bytes, count: int) -> bytes:
    """A file whose index counts so many frames."""
    at = max(content.find(b"Xing", 0, 200), content.find(b"Info", 0, 200))
    return content[: at + 8] + struct.pack(">I", count) + content[at + 12 :]


@pytest.mark.parametrize("mode", [VARIABLE, CONSTANT])
@pytest.mark.parametrize("rate", [8000, 16_000, 22_050, 44_100, 48_000])
def test_whole_files_are_read_without_a_word(tmp_path, rate, mode):
    content = coded(clicking(SECONDS, rate), "MP3", rate, **mode)
    found = read(tmp_path / "a.mp3", content)
    assert len(found.samples) == pytest.approx(len(SPEECH), abs=1)
    assert clicks(found.samples) == SECONDS and not found.findings
    layout = mpeg.examine(content)
    assert layout.is_seekable and layout.format == "mp3"


@pytest.mark.parametrize("mode", [VARIABLE, CONSTANT])
@pytest.mark.parametrize("rate,channels", [(16_000, 1), (48_000, 1), (44_100, 2)])
def test_without_an_index(tmp_path, rate, channels, mode):
    # Loud, then quiet: the first bit rates tell nothing of the others.
    rng = np.random.default_rng(0)
    loud, quiet = rng.normal(size=rate) * 0.3, clicking(SECONDS, rate)
    for signal in (np.r_[loud, quiet], np.r_[np.zeros(rate), quiet, loud]):
        wide = np.stack([signal] * channels, axis=1)
        found = read(tmp_path / "a.mp3", b"".join(frames(coded(wide, "MP3", rate, **mode))[1:]))
        seconds = len(signal) / rate
        # An encoder begins with its delay, and ends with a whole frame.
        assert seconds <= len(found.samples) / 16_000 < seconds + 0.2
        assert not found.findings
        span = read(tmp_path / "a.mp3", (tmp_path / "a.mp3").read_bytes(), spans=[(4.0, 5.5)])
        np.testing.assert_array_equal(span.samples, found.samples[64_000:88_000])


@pytest.mark.parametrize("mode", [VARIABLE, CONSTANT])
@pytest.mark.parametrize("count,kind", [(3, "header mismatch"), (9999, "cut short")])
def test_a_wrong_index(tmp_path, count, kind, mode):
    found = read(tmp_path / "a.mp3", with_count(coded(SPEECH, "MP3", **mode), count))
    assert kinds(found) == [kind] and clicks(found.samples) == SECONDS
    assert SECONDS <= len(found.samples) / 16_000 < SECONDS + 0.1


@pytest.mark.parametrize("mode", [VARIABLE, CONSTANT])
def test_a_cut_file(tmp_path, mode):
    content = coded(SPEECH, "MP3", **mode)
    all_frames = frames(content)
    half = len(all_frames) // 2
    for part in (b"".join(all_frames[:half]), content[: len(b"".join(all_frames[:half])) + 20]):
        found = read(tmp_path / "a.mp3", part)
        assert len(found.samples) == pytest.approx(half * 576, abs=2000)
        assert kinds(found) == ["cut short"]
    # Without an index, only a part of a frame tells.
    part = b"".join(all_frames[1:half]) + all_frames[half][:20]
    assert kinds(read(tmp_path / "a.mp3", part)) == ["cut short"]


def test_damage_loses_frames_and_not_what_follows(tmp_path):
    content = bytearray(coded(SPEECH, "MP3"))
    middle = len(content) // 2
    content[middle : middle + 1500] = bytes(1500)
    found = read(tmp_path / "a.mp3", bytes(content))
    assert "damaged audio" in kinds(found)
    assert len(found.samples) > len(SPEECH) - 16_000 and clicks(found.samples) >= SECONDS - 1


def test_tags_around_and_pictures_in_them(tmp_path):
    mp3 = coded(SPEECH, "MP3")
    for content in (TAG + mp3, TAG + TAG + mp3 + TAGS_BEHIND, mp3 + TAGS_BEHIND, bytes(99) + mp3):
        found = read(tmp_path / "a.mp3", content)
        assert len(found.samples) == len(SPEECH) and not found.findings
    # And around other formats.
    for container in ("WAV", "FLAC", "OGG/VORBIS", "AIFF"):
        found = read(tmp_path / "a", TAG + coded(SPEECH, container))
        assert len(found.samples) == len(SPEECH) and not found.findings


def test_files_one_behind_another(tmp_path):
    other = np.stack([clicking(3, 44_100)] * 2, axis=1)
    content = TAG + coded(SPEECH, "MP3", **VARIABLE) + TAGS_BEHIND
    content += TAG + coded(other, "MP3", 44_100, **CONSTANT) + coded(SPEECH, "MP3")
    found = read(tmp_path / "a.mp3", content)
    assert len(found.samples) == pytest.approx(13 * 16_000, abs=3)
    assert clicks(found.samples) == 13 and not found.findings


def test_chance_makes_no_mp3_of_other_bytes():
    noise = np.random.default_rng(0).integers(0, 256, 300_000, dtype=np.uint8).tobytes()
    assert mpeg.examine(noise).format == ""

"""Files whose header states another length than they have: all of it is read, and told."""

from __future__ import annotations

import contextlib
import struct

import numpy as np
import pytest
from clicks import clicking, clicks, coded, kinds, read, wav

from maestro_jax.audio.containers import flac
from maestro_jax.audio.reading import EmptyAudioError, read_audio, read_recording
from maestro_jax.errors import UserError

SECONDS = 6
SPEECH = clicking(SECONDS)
EXACT = ("WAV/PCM_16", "WAV/PCM_24", "WAV/PCM_32", "WAV/FLOAT", "WAVEX/PCM_16", "RF64/PCM_16")
OTHERS = ("W64/PCM_16", "AIFF/PCM_16", "AIFF/FLOAT", "AU/PCM_16", "CAF/PCM_16", "NIST/PCM_16")
CONTAINERS = (*EXACT, *OTHERS, "FLAC/PCM_16", "FLAC/PCM_24")
# Two bytes of another file at the end are too few to be samples.
JUNK = b"\x12\x34" * 100


@pytest.mark.parametrize("container", CONTAINERS)
def test_whole_files_are_read_without_a_word(tmp_path, container):
    found = read(tmp_path / "a", coded(SPEECH, container))
    np.testing.assert_allclose(found.samples, SPEECH, atol=1.01 / 32768)
    assert not found.findings


@pytest.mark.parametrize("container", CONTAINERS)
def test_what_is_there_of_a_cut_file_is_read_and_the_rest_told(tmp_path, container):
    content = coded(SPEECH, container)
    found = read(tmp_path / "a", content[: len(content) // 2])
    assert kinds(found) == ["cut short"]
    here = len(found.samples)
    np.testing.assert_allclose(found.samples, SPEECH[:here], atol=1.01 / 32768)
    # A frame of FLAC, or a header of a few kilobytes, is a quarter of a second.
    assert here / 16_000 == pytest.approx(SECONDS / 2, abs=0.3)
    missing = float(found.findings[0].detail.split()[0])
    assert missing == pytest.approx(SECONDS - here / 16_000, abs=0.01)


@pytest.mark.parametrize("container", CONTAINERS)
def test_bytes_behind_the_samples_are_no_samples(tmp_path, container):
    found = read(tmp_path / "a", coded(SPEECH, container) + JUNK)
    assert len(found.samples) == len(SPEECH) and not found.findings


@pytest.mark.parametrize("container", CONTAINERS)
def test_a_second_file_behind_the_first_is_read_as_well(tmp_path, container):
    content = coded(SPEECH, container) + coded(SPEECH[:32_000], container)
    found = read(tmp_path / "a", content)
    both = np.concatenate([SPEECH, SPEECH[:32_000]])
    np.testing.assert_allclose(found.samples, both, atol=1.01 / 32768)
    # Streams of FLAC may follow one another.
    assert kinds(found) == ([] if "FLAC" in container else ["header mismatch"])


@pytest.mark.parametrize("riff", [0, 36, 0x80000024, 0xFFFFFFFF])
@pytest.mark.parametrize("size", [0, 0x7FFFF000, 0x80000000, 0xFFFFFFFF])
def test_wav_from_a_pipe_is_whole(tmp_path, riff, size):
    found = read(tmp_path / "a.wav", wav(SPEECH, riff=riff, size=size))
    np.testing.assert_allclose(found.samples, SPEECH, atol=1.01 / 32768)
    assert not found.findings


def test_more_samples_than_the_header_counts(tmp_path):
    content = wav(SPEECH, riff=36 + 2 * 32_000, size=2 * 32_000)
    found = read(tmp_path / "a.wav", content)
    np.testing.assert_allclose(found.samples, SPEECH, atol=1.01 / 32768)
    assert kinds(found) == ["header mismatch"]
    assert "states 2.00 seconds, 6.00 are there" in found.findings[0].detail
    content = bytearray(coded(SPEECH, "AU/PCM_16"))
    content[8:12] = struct.pack(">I", 2 * 32_000)
    found = read(tmp_path / "a.au", bytes(content))
    assert clicks(found.samples) == SECONDS and kinds(found) == ["header mismatch"]


SIZES = {"AIFF": ("SSND", 4, ">I"), "CAF": ("data", 4, ">Q"), "W64": ("data", 16, "<Q")}
SIZES |= {"AU": (".snd", 8, ">I"), "WAV": ("data", 4, "<I"), "RF64": ("ds64", 16, "<Q")}


def with_size(container: str, size: int) -> bytes:
    """A file whose header states so many bytes of samples; 16-bit ones of `SPEECH` are there."""
    content = bytearray(coded(SPEECH, container))
    letters, after, field = SIZES[container.split("/")[0]]
    struct.pack_into(field, content, content.index(letters.encode()) + after, size)
    return bytes(content)


@pytest.mark.parametrize("name", SIZES)
def test_a_size_that_is_too_small_or_unknown(tmp_path, name):
    found = read(tmp_path / "a", with_size(f"{name}/PCM_16", 8000))
    np.testing.assert_allclose(found.samples, SPEECH, atol=1.01 / 32768)
    assert kinds(found) == ["header mismatch"]
    assert "states 0.25 seconds, 6.00 are there" in found.findings[0].detail
    sizes = {"AIFF": (0, 8, 2**32 - 1), "CAF": (0, 2**64 - 1), "W64": (0, 24, 2**64 - 1)}
    for size in sizes.get(name, (0,)):
        found = read(tmp_path / "a", with_size(f"{name}/PCM_16", size))
        np.testing.assert_allclose(found.samples, SPEECH, atol=1.01 / 32768)
        assert not found.findings, size


@pytest.mark.parametrize("first", [0, 4])
def test_samples_before_the_end_of_the_header_are_no_loop(tmp_path, first):
    content = bytearray(coded(SPEECH[:16_000], "AU/PCM_16"))
    struct.pack_into(">II", content, 4, first, 0)
    with contextlib.suppress(UserError):
        read(tmp_path / "a", bytes(content))


@pytest.mark.parametrize("container", ["AIFF/PCM_16", "CAF/PCM_16", "W64/PCM_16", "AU/PCM_16"])
def test_a_header_alone_holds_no_samples(tmp_path, container):
    with pytest.raises(EmptyAudioError):
        read(tmp_path / "a", coded(SPEECH[:0], container))


def test_chunks_behind_the_samples_are_no_samples(tmp_path):
    chunk = b"LIST" + struct.pack("<I", 20_000) + b"INFO".ljust(20_000, b"x")
    found = read(tmp_path / "a.wav", wav(SPEECH) + chunk)
    assert len(found.samples) == len(SPEECH) and not found.findings
    with pytest.raises(EmptyAudioError):
        read(tmp_path / "none.wav", wav(SPEECH[:0]) + chunk)
    with pytest.raises(EmptyAudioError):
        read(tmp_path / "empty.wav", wav(SPEECH[:0]))


@pytest.mark.parametrize("wrong", [{"channels": 2}, {"bits": 24}, {"bits": 8}])
def test_a_header_of_two_minds_is_told_and_mended(tmp_path, wrong):
    found = read(tmp_path / "a.wav", wav(SPEECH, **wrong))
    assert kinds(found) == ["header mismatch"]
    np.testing.assert_allclose(found.samples, SPEECH, atol=1.01 / 32768)


def test_another_rate_than_the_bytes_a_second_say_is_told(tmp_path):
    found = read(tmp_path / "a.wav", wav(SPEECH, rate=48_000))
    assert kinds(found) == ["header mismatch"]
    assert "48000 samples a second" in found.findings[0].detail


@pytest.mark.parametrize("rate", [0, 1, 50, 2**31 - 1])
def test_a_rate_that_no_speech_has_is_refused(tmp_path, rate):
    content = bytearray(wav(SPEECH))
    content[24:28] = struct.pack("<I", rate)
    with pytest.raises(UserError, match="cannot be read as audio"):
        read(tmp_path / "a.wav", bytes(content))


def with_total(content: bytes, total: int) -> bytes:
    """A FLAC file whose header counts so many samples."""
    field = int.from_bytes(content[18:26], "big") >> 36 << 36 | total
    return content[:18] + field.to_bytes(8, "big") + content[26:]


@pytest.mark.parametrize(
    "total,expected", [(0, []), (32_000, ["header mismatch"]), (500_000, ["cut short"])]
)
def test_flac_with_another_count(tmp_path, total, expected):
    pytest.importorskip("miniaudio")
    content = coded(SPEECH, "FLAC")
    assert flac.examine(content).is_indexed
    content = with_total(content, total)
    assert not flac.examine(content).is_indexed
    found = read(tmp_path / "a.flac", content)
    np.testing.assert_allclose(found.samples, SPEECH, atol=1.01 / 32768)
    assert kinds(found) == expected


@pytest.mark.parametrize("rate,length", [(8000, 70_001), (44_100, 50_000), (96_000, 200_003)])
def test_the_last_frame_of_flac_counts_all_samples(rate, length):
    assert flac.examine(coded(clicking(length / rate, rate)[:length], "FLAC", rate)).is_indexed


def test_flac_is_read_past_damage(tmp_path):
    pytest.importorskip("miniaudio")
    content = bytearray(coded(SPEECH, "FLAC"))
    middle = len(content) // 2
    content[middle : middle + 1000] = bytes(1000)
    found = read(tmp_path / "a.flac", bytes(content))
    assert kinds(found) == ["cut short"] and clicks(found.samples) >= SECONDS - 1
    assert len(found.samples) > len(SPEECH) - 16_000


def test_spans_of_a_file_in_which_no_decoder_finds_them(tmp_path):
    spans = [(3.2, 4.1), (0.25, 1.5), (5.0, 99.0)]
    expected = np.concatenate([SPEECH[51_200:65_600], SPEECH[4000:24_000], SPEECH[80_000:]])
    files = {
        "pipe.wav": wav(SPEECH, size=0, riff=0),
        "more.wav": wav(SPEECH, size=32_000, riff=32_036),
        "count.flac": with_total(coded(SPEECH, "FLAC"), 0),
        "two.aiff": coded(SPEECH[:48_000], "AIFF") + coded(SPEECH[48_000:], "AIFF"),
    }
    for name, content in files.items():
        found = read(tmp_path / name, content, spans=spans)
        np.testing.assert_allclose(found.samples, expected, atol=1.01 / 32768)
        # It says nothing of a part that is where it is looked for.
        assert not found.findings


def test_a_file_that_was_mended_is_read_anew(tmp_path):
    path = tmp_path / "a.wav"
    short = read(path, wav(SPEECH[:32_000], size=0), spans=[(0.0, 9.0)])
    whole = read(path, wav(SPEECH, size=0), spans=[(0.0, 9.0)])
    assert (len(short.samples), len(whole.samples)) == (32_000, len(SPEECH))


def test_a_pipe_is_read_to_its_end(tmp_path):
    import os
    import threading

    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(coded(SPEECH, "FLAC"),))
    writer.start()
    found = read_recording(pipe)
    writer.join()
    assert len(found.samples) == len(SPEECH)


def test_what_is_found_is_logged_in_one_line(tmp_path, caplog):
    path = tmp_path / "a.wav"
    path.write_bytes(wav(SPEECH)[: 44 + 32_000])
    assert len(read_audio(path)) == 16_000
    assert caplog.messages == [f"{path}: cut short: 5.00 of 6.00 seconds missing"]

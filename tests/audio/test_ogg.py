"""Ogg files of several streams, cut, damaged, or with time stamps that do not fit."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
import soundfile
from clicks import clicking, clicks, coded, kinds, read

from maestro_jax.audio.containers import ogg

SECONDS = 5
SPEECH = clicking(SECONDS)
CODINGS = ("OGG/VORBIS", "OGG/OPUS")
PAGE = struct.Struct("<4sBBqIIIB")


def pages(content: bytes) -> list[bytes]:
    """The pages of a healthy file."""
    found, at = [], 0
    while at < len(content):
        segments = content[at + 26]
        end = at + 27 + segments + sum(content[at + 27 : at + 27 + segments])
        found.append(content[at:end])
        at = end
    return found


def checked(page: bytes) -> bytes:
    """A page with its checksum, bit by bit as RFC 3533 defines it."""
    page = page[:22] + bytes(4) + page[26:]
    value = 0
    for byte in page:
        value ^= byte << 24
        for _ in range(8):
            value = (value << 1 ^ 0x04C11DB7) & 0xFFFFFFFF if value >> 31 else value << 1
    return page[:22] + struct.pack("<I", value) + page[26:]


@pytest.mark.parametrize(
    "coding,rate",
    [
        *(("OGG/VORBIS", rate) for rate in (8000, 16_000, 44_100, 48_000)),
        *(("OGG/OPUS", rate) for rate in (8000, 16_000, 24_000, 48_000)),
    ],
)
def test_whole_files_are_read_without_a_word(tmp_path, coding, rate):
    content = coded(clicking(SECONDS, rate), coding, rate)
    found = read(tmp_path / "a", content)
    assert len(found.samples) == len(SPEECH) and clicks(found.samples) == SECONDS
    assert not found.findings and ogg.examine(content).is_seekable


@pytest.mark.parametrize("first", CODINGS)
@pytest.mark.parametrize("second", CODINGS)
def test_streams_one_after_the_other(tmp_path, first, second):
    two = np.stack([clicking(3, 48_000)] * 2, axis=1)
    content = coded(SPEECH, first) + coded(two, second, 48_000) + coded(SPEECH[:16_000], first)
    found = read(tmp_path / "a.ogg", content)
    assert len(found.samples) == pytest.approx(9 * 16_000, abs=2)
    assert clicks(found.samples) == 9 and not found.findings
    # A span of the second stream.
    span = read(tmp_path / "a.ogg", content, spans=[(5.0, 8.0)])
    np.testing.assert_array_equal(span.samples, found.samples[80_000:128_000])


@pytest.mark.parametrize("coding", CODINGS)
def test_a_cut_file_is_told(tmp_path, coding):
    content = coded(SPEECH, coding)
    for share in (0.5, 0.8):
        found = read(tmp_path / "a.ogg", content[: round(len(content) * share)])
        # Up to the last packet that is whole: those of headers are no audio.
        assert share * SECONDS - 1 < len(found.samples) / 16_000 < share * SECONDS + 0.2
        assert kinds(found) == ["cut short"]
    found = read(tmp_path / "a.ogg", content[:-1])
    assert len(found.samples) > len(SPEECH) - 1600 and clicks(found.samples) == SECONDS
    assert kinds(found) == ["cut short"]
    found = read(tmp_path / "a.ogg", b"".join(pages(content)[:-1]))
    assert kinds(found) == ["cut short"]


@pytest.mark.parametrize("coding", CODINGS)
def test_damage_loses_pages_and_not_what_follows(tmp_path, coding):
    content = bytearray(coded(SPEECH, coding))
    middle = len(content) // 2
    content[middle : middle + 50] = bytes(50)
    found = read(tmp_path / "a.ogg", bytes(content))
    assert kinds(found) == ["damaged audio"]
    assert SECONDS - 2 <= clicks(found.samples) < SECONDS


@pytest.mark.parametrize("coding", CODINGS)
def test_bytes_between_pages_are_passed_over(tmp_path, coding):
    content = b"OggS and junk".join(pages(coded(SPEECH, coding)))
    found = read(tmp_path / "a.ogg", b"ID3" + bytes(7) + content)
    assert len(found.samples) == len(SPEECH) and not found.findings


def stamped(content, stamps):
    """An Ogg file with other time stamps from its third page on; its headers are before."""
    changed = []
    for number, page in enumerate(pages(content)):
        head = list(PAGE.unpack_from(page))
        if number > 1:
            head[3] = stamps(number, head[3])
        changed.append(checked(PAGE.pack(*head) + page[PAGE.size :]))
    return b"".join(changed)


@pytest.mark.parametrize(
    "stamps",
    [
        lambda number, granule: granule + 30_000 * (number > 3),
        lambda number, granule: granule + number * 97,
        lambda number, granule: granule - number * 97,
        lambda number, granule: granule + 96_000,
        lambda number, granule: granule + number * 7919 % 331 - 160,
    ],
)
def test_time_stamps_of_opus_with_gaps(tmp_path, stamps):
    """As recordings of browsers have them that were put into Ogg."""
    whole = coded(SPEECH, "OGG/OPUS")
    content = stamped(whole, stamps)
    found = read(tmp_path / "a.ogg", content)
    # What libsndfile makes of the file before, within the samples to drop at its end.
    expected, _ = soundfile.read(io.BytesIO(whole), dtype="float32")
    length = min(len(found.samples), len(expected))
    assert len(found.samples) == pytest.approx(len(expected), abs=330)
    np.testing.assert_allclose(found.samples[:length], expected[:length], atol=1e-5)
    assert not found.findings
    span = read(tmp_path / "a.ogg", content, spans=[(1.0, 3.5)])
    np.testing.assert_array_equal(span.samples, found.samples[16_000:56_000])


def test_one_of_two_streams_side_by_side_is_read(tmp_path):
    one, other = (pages(coded(SPEECH, coding)) for coding in CODINGS)
    together = [one[0], other[0]]
    for left, right in zip(one[1:], other[1:], strict=False):
        together += [left, right]
    rest = one[len(other) :] + other[len(one) :]
    found = read(tmp_path / "a.ogg", b"".join(together + rest))
    assert len(found.samples) == len(SPEECH) and kinds(found) == ["several tracks"]


@pytest.mark.parametrize(
    "stamps",
    [
        lambda number, granule: granule + 96_000,
        lambda number, granule: granule + 50_000 * (number > 3),
        lambda number, granule: granule + number * 100,
        lambda number, granule: granule // 2,
        lambda number, granule: granule - 20_000 * (number > 4),
    ],
)
def test_time_stamps_of_vorbis_that_do_not_fit(tmp_path, stamps):
    whole = coded(SPEECH, "OGG/VORBIS")
    content = stamped(whole, stamps)
    found = read(tmp_path / "a.ogg", content)
    expected, _ = soundfile.read(io.BytesIO(whole), dtype="float32")
    # The end of a last packet is dropped by a stamp that fits alone.
    assert len(SPEECH) <= len(found.samples) < len(SPEECH) + 2048
    np.testing.assert_allclose(found.samples[: len(expected)], expected, atol=1e-5)
    assert not found.findings
    span = read(tmp_path / "a.ogg", content, spans=[(1.0, 3.5)])
    np.testing.assert_array_equal(span.samples, found.samples[16_000:56_000])


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("rate", [8000, 16_000, 44_100])
@pytest.mark.parametrize("quality", [0.0, 0.5, 0.9])
def test_vorbis_packets_are_counted_as_the_encoder_does(rate, channels, quality):
    decay = np.exp(-np.arange(rate * 2 + 17) / rate * 4)[:, None]
    noise = np.random.default_rng(0).normal(size=(rate * 2 + 17, channels)) * 0.3 * decay
    content = coded(noise, "OGG/VORBIS", rate, compression_level=quality)
    assert ogg.examine(content).is_seekable

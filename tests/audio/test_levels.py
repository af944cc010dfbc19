"""Levels that no speech has, channels that cancel each other out, and silence."""

from __future__ import annotations

import numpy as np
import pytest
from clicks import clicking, coded, kinds, read

from maestro_jax.audio.reading import to_int16

SPEECH = clicking(4)
LOSSY = ("MP3", "OGG/VORBIS", "OGG/OPUS")


def correlation(found: np.ndarray, expected: np.ndarray) -> float:
    length = min(len(found), len(expected))
    return float(np.corrcoef(found[:length], expected[:length])[0, 1])


@pytest.mark.parametrize("bits", [16, 24, 32])
@pytest.mark.parametrize("container", ["WAV/FLOAT", "WAV/DOUBLE", "AIFF/FLOAT", "CAF/FLOAT"])
def test_integers_that_were_written_as_floats(tmp_path, container, bits):
    scale = 2 ** (bits - 1)
    for samples in (np.rint(SPEECH * scale), SPEECH * (scale - 1), np.rint(SPEECH * scale) * 0.1):
        found = read(tmp_path / "a", coded(samples, container))
        assert kinds(found) == ["absurd level"]
        np.testing.assert_allclose(found.samples, samples / scale, atol=1e-6)
        assert not np.any(np.abs(to_int16(found.samples)) == 32_767)
    # Spans that are quieter than the rest have the same scale.
    content = coded(np.rint(SPEECH * 0.3 * scale), container)
    found = read(tmp_path / "a", content, spans=[(0.0, 0.4), (2.0, 2.4)])
    if bits == 16:
        expected = 0.3 * np.r_[SPEECH[:6400], SPEECH[32_000:38_400]]
        np.testing.assert_allclose(found.samples, expected, atol=1 / scale)


def test_other_levels(tmp_path):
    loudest = np.abs(SPEECH).max()
    # Beyond full scale by 8 times; normalised to a deviation of 1; somewhat beyond.
    for peak, expected in ((8.0, ["absurd level"]), (3.0, ["absurd level"]), (1.5, [])):
        found = read(tmp_path / "a.wav", coded(SPEECH / loudest * peak, "WAV/FLOAT"))
        assert kinds(found) == expected
        np.testing.assert_allclose(found.samples, SPEECH / loudest, atol=1e-6)
    # Divided twice: 16 bits would leave nothing.
    found = read(tmp_path / "a.wav", coded(SPEECH / 32_768, "WAV/FLOAT"))
    assert kinds(found) == ["absurd level"]
    np.testing.assert_allclose(found.samples, SPEECH, atol=1e-6)
    assert kinds(read(tmp_path / "a.wav", coded(SPEECH / 1000, "WAV/FLOAT"))) == ["absurd level"]
    # One sample is a click, and no reason to make the rest quiet.
    click = SPEECH.copy()
    click[99] = 1000.0
    found = read(tmp_path / "a.wav", coded(click, "WAV/FLOAT"))
    assert kinds(found) == ["absurd level"]
    np.testing.assert_allclose(found.samples[100:], SPEECH[100:], atol=1e-6)
    assert found.samples.max() == 1.0


def test_what_was_clipped_before_is_told(tmp_path):
    clipped = np.clip(SPEECH * 300, -1, 1)
    assert np.mean(np.abs(clipped) == 1) > 0.5
    for container in ("WAV/PCM_16", "FLAC/PCM_16", "WAV/FLOAT"):
        assert kinds(read(tmp_path / "a", coded(clipped, container))) == ["absurd level"]


@pytest.mark.parametrize("container", ["WAV/PCM_16", "FLAC/PCM_16", *LOSSY])
def test_an_inverted_channel(tmp_path, container):
    noise = np.random.default_rng(1).normal(size=len(SPEECH)) * 0.003
    for other in (-SPEECH, -0.5 * SPEECH, noise - SPEECH, 0.1 - SPEECH * 0.8):
        content = coded(np.stack([SPEECH, other], axis=1), container)
        found = read(tmp_path / "a", content)
        assert kinds(found) == ["cancelled channels"]
        assert correlation(found.samples, SPEECH) > 0.95
        span = read(tmp_path / "a", content, spans=[(1.0, 3.0)])
        assert kinds(span) == ["cancelled channels"]
        np.testing.assert_allclose(span.samples, found.samples[16_000:48_000], atol=1e-4)


def test_channels_that_cancel_in_part(tmp_path):
    halves = np.stack([SPEECH, np.where(np.arange(len(SPEECH)) < 32_000, 1, -1) * SPEECH], axis=1)
    four = np.stack([SPEECH, -SPEECH, 0.9 * SPEECH, -0.9 * SPEECH], axis=1)
    for samples in (halves, four):
        found = read(tmp_path / "a.wav", coded(samples, "WAV"))
        assert kinds(found) == ["cancelled channels"]
        np.testing.assert_allclose(found.samples, SPEECH, atol=1.01 / 32768)


def test_ordinary_channels_are_averaged(tmp_path):
    rng = np.random.default_rng(0)
    delayed = np.r_[np.zeros(8), SPEECH[:-8]]
    pairs = (
        (SPEECH, SPEECH),
        (SPEECH, np.zeros(len(SPEECH))),
        (SPEECH, 0.3 * delayed),
        (rng.normal(size=len(SPEECH)) * 0.1, rng.normal(size=len(SPEECH)) * 0.1),
        (np.where(np.arange(len(SPEECH)) < 32_000, SPEECH, 0), SPEECH[::-1]),
    )
    for pair in pairs:
        found = read(tmp_path / "a.wav", coded(np.stack(pair, axis=1), "WAV/FLOAT"))
        assert not found.findings
        np.testing.assert_allclose(found.samples, np.mean(pair, axis=0), atol=1e-6)


@pytest.mark.parametrize("container", ["WAV/PCM_16", "FLAC/PCM_16", *LOSSY])
def test_silence_and_offsets(tmp_path, container):
    rng = np.random.default_rng(0)
    silent = [np.zeros(32_000), np.full((32_000, 2), 0.0)]
    if "OPUS" not in container:  # It has no offset to keep.
        silent.append(np.full(32_000, 0.25))
    if container in ("WAV/PCM_16", "FLAC/PCM_16"):
        silent.append(rng.integers(-1, 2, 32_000) / 32_768)
    for samples in silent:
        assert kinds(read(tmp_path / "a", coded(samples, container))) == ["silent audio"]
    # Quiet, with an offset, or almost all silence: but something.
    quiet = rng.normal(size=32_000) * 1e-3
    word = np.zeros(160_000)
    word[80_000:80_800] = SPEECH[8000:8800]
    for samples in (quiet, word, quiet + 0.1):
        assert not read(tmp_path / "a", coded(samples, container)).findings


def test_a_silent_span(tmp_path):
    samples = np.r_[SPEECH, np.zeros(32_000)]
    content = coded(samples, "FLAC")
    assert kinds(read(tmp_path / "a", content, spans=[(4.1, 5.9)])) == ["silent audio"]
    assert not read(tmp_path / "a", content, spans=[(3.0, 5.0)]).findings


@pytest.mark.parametrize("subtype", ["FLOAT", "DOUBLE"])
def test_spans_of_floats_have_the_scale_of_their_file(tmp_path, subtype):
    rng = np.random.default_rng(0)
    quiet, loud = rng.integers(-31, 32, 16_000), np.rint(SPEECH * 32_767)
    content = coded(np.r_[quiet, loud], f"WAV/{subtype}")
    found = read(tmp_path / "a.wav", content, spans=[(0.0, 1.0)])
    np.testing.assert_allclose(found.samples, quiet / 32_768, atol=1e-7)
    # Of a file that is within full scale, a quiet part stays as it is.
    content = coded(np.r_[quiet / 2**26, loud / 32_768], f"WAV/{subtype}")
    found = read(tmp_path / "a.wav", content, spans=[(0.0, 1.0)])
    np.testing.assert_allclose(found.samples, quiet / 2**26, atol=1e-12)
    assert kinds(found) == ["silent audio"]


def test_integers_that_overshoot(tmp_path):
    loudest = np.abs(SPEECH).max()
    for peak in (32_768.0, 33_500.0, 60_000.0, 9e6, 2.5e9):
        found = read(tmp_path / "a.wav", coded(SPEECH / loudest * peak, "WAV/FLOAT"))
        assert kinds(found) == ["absurd level"]
        np.testing.assert_allclose(found.samples, SPEECH / loudest, atol=1e-5)


@pytest.mark.parametrize(
    ("container", "bits"),
    [("WAV/PCM_32", 16), ("AIFF/PCM_32", 24), ("WAV/PCM_24", 16), ("FLAC/PCM_24", 16)],
)
def test_integers_of_fewer_bits_than_the_file_has(tmp_path, container, bits):
    if "FLAC" in container:
        pytest.importorskip("miniaudio")
    name = int(container[-2:])
    integers = np.rint(SPEECH * 2 ** (bits - 1)).astype(np.int32)
    content = coded(integers << (32 - name), container)
    for spans in (None, [(0.0, 4.0)]):
        found = read(tmp_path / "a", content, spans=spans)
        np.testing.assert_allclose(found.samples, integers / 2.0 ** (bits - 1), atol=1e-6)
        assert kinds(found) == ["absurd level"]
    # A quiet part of a file that has its bits, and 16 bits of nothing but the last one.
    whole = np.r_[integers << (32 - name), np.rint(SPEECH * 2**31).astype(np.int32)]
    found = read(tmp_path / "a", coded(whole, container), spans=[(0.0, 4.0)])
    np.testing.assert_allclose(found.samples, integers / 2.0 ** (name - 1), atol=1e-7)
    dither = np.random.default_rng(0).integers(-1, 2, 32_000).astype(np.int32) << 16
    assert kinds(read(tmp_path / "a", coded(dither, container))) == ["silent audio"]

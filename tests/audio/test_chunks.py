"""Files in chunks: the same samples and findings as the whole file at once."""

from __future__ import annotations

import numpy as np
import pytest
import soundfile

from maestro_jax.audio import chunks as module
from maestro_jax.audio.chunks import audio_chunks, stated_seconds
from maestro_jax.audio.reading import read_recording
from maestro_jax.errors import UserError


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """Files of a second count as long, and a chunk is a second; tells which were read in blocks."""
    whole = []

    def read(path):
        whole.append(path)
        return read_recording(path)

    monkeypatch.setattr(module, "LONG", 1.0)
    monkeypatch.setattr(module, "_SMALL", 3_000)
    module._looked_at.cache_clear()
    monkeypatch.setattr(module, "_CHUNK", 1)
    monkeypatch.setattr(module, "read_recording", read)
    return whole


def sound(seconds: float, rate: int, channels: int = 1) -> np.ndarray:
    time = np.arange(round(seconds * rate))[:, None] / rate
    tones = np.sin(2 * np.pi * time * (300 + 400 * np.arange(channels)))
    return 0.3 * tones * (1.2 + np.sin(2 * np.pi * 3 * time)) / 2


def read(path) -> tuple[np.ndarray, list[str]]:
    found = list(audio_chunks(path))
    assert all(len(one.samples) <= 2 * 16_000 for one in found)
    return (
        np.concatenate([one.samples for one in found]),
        [finding.kind for one in found for finding in one.findings],
    )


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3", "aiff", "w64"])
@pytest.mark.parametrize(("rate", "channels"), [(16_000, 1), (44_100, 2), (8_000, 1)])
def test_chunks_are_the_file(tmp_path, short, suffix, rate, channels):
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, sound(4.3, rate, channels), rate)
    samples, findings = read(path)
    expected = read_recording(path)
    assert len(samples) == len(expected.samples) and findings == []
    np.testing.assert_allclose(samples, expected.samples, atol=2e-4)
    assert short == [], "it was read as a whole"


def test_files_that_are_short_or_floats_are_read_as_a_whole(tmp_path, short):
    soundfile.write(tmp_path / "short.wav", sound(0.5, 16_000), 16_000)
    soundfile.write(tmp_path / "float.wav", 1.5 * sound(3, 16_000), 16_000, subtype="FLOAT")
    for name in ("short.wav", "float.wav"):
        samples, _ = read(tmp_path / name)
        np.testing.assert_array_equal(samples, read_recording(tmp_path / name).samples)
    assert [path.name for path in short] == ["short.wav", "float.wav"]


def test_the_level_of_24_bits_is_that_of_the_file(tmp_path):
    tone = sound(2, 16_000)
    for name, parts in (("a", (tone, tone / 256)), ("b", (tone / 256, tone)), ("c", (tone / 256,))):
        path = tmp_path / f"{name}.wav"
        soundfile.write(path, np.concatenate(parts), 16_000, subtype="PCM_24")
        samples, findings = read(path)
        np.testing.assert_array_equal(samples, read_recording(path).samples)
        assert findings == (["absurd level"] if name == "c" else [])


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_files_that_are_cut_give_what_they_have_and_say_so(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, sound(6, 16_000), 16_000)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    samples, findings = read(path)
    expected = read_recording(path)
    np.testing.assert_allclose(samples, expected.samples, atol=2e-4)
    assert findings == [finding.kind for finding in expected.findings]


def test_a_decoder_that_stops_early_is_not_believed(tmp_path, monkeypatch):
    path = tmp_path / "a.wav"
    soundfile.write(path, sound(6, 16_000), 16_000)
    whole = soundfile.SoundFile.read

    def stops(self, *arguments, **options):
        if options.get("dtype") and self.tell() >= 32_000 and arguments:
            raise soundfile.LibsndfileError(1)
        return whole(self, *arguments, **options)

    monkeypatch.setattr(soundfile.SoundFile, "read", stops)
    samples, _ = read(path)
    np.testing.assert_array_equal(samples, read_recording(path).samples)


def test_findings_are_told_once(tmp_path):
    stereo = sound(5, 16_000)
    soundfile.write(tmp_path / "inverted.wav", np.hstack([stereo, -stereo]), 16_000)
    soundfile.write(tmp_path / "silent.wav", np.zeros(80_000), 16_000)
    half = np.concatenate([np.zeros((48_000, 1)), stereo])
    soundfile.write(tmp_path / "half.wav", half, 16_000)
    for name in ("inverted.wav", "silent.wav", "half.wav"):
        expected = read_recording(tmp_path / name)
        assert read(tmp_path / name)[1] == [finding.kind for finding in expected.findings]


def test_seconds_are_known_before_reading(tmp_path, capfd):
    soundfile.write(tmp_path / "a.flac", sound(3, 8_000), 8_000)
    (tmp_path / "zeros.wav").write_bytes(bytes(5_000))
    (tmp_path / "small.wav").write_bytes(bytes(1_600))
    found = [stated_seconds(tmp_path / name) for name in ("a.flac", "zeros.wav", "small.wav", "b")]
    assert found == [3.0, 0.0, 0.05, 0.0]
    assert capfd.readouterr() == ("", "")


def test_what_cannot_be_read_is_an_error(tmp_path):
    (tmp_path / "a.wav").write_text("no audio")
    with pytest.raises(UserError, match=r"a\.wav cannot be read"):
        list(audio_chunks(tmp_path / "a.wav"))
    with pytest.raises(UserError, match="does not exist"):
        list(audio_chunks(tmp_path / "b.wav"))

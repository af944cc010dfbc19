import numpy as np
import pytest
import soundfile

from maestro_jax.audio.containers.decoding import decode_vorbis
from maestro_jax.audio.reading import read_audio, resample, to_int16
from maestro_jax.errors import UserError

FREQUENCY = 440.0


def sine(rate, seconds=1.0, amplitude=0.5):
    return amplitude * np.sin(2 * np.pi * FREQUENCY * np.arange(round(rate * seconds)) / rate)


def fitted(samples):
    """Amplitude and residual of the best sine of the known frequency, away from the edges."""
    times = np.arange(samples.size) / 16_000
    inside = slice(1600, samples.size - 1600)
    phases = 2 * np.pi * FREQUENCY * times[inside]
    basis = np.stack([np.sin(phases), np.cos(phases)], axis=1)
    values = samples[inside].astype(np.float64)
    weights, *_ = np.linalg.lstsq(basis, values, rcond=None)
    return np.hypot(*weights), np.sqrt(np.mean((values - basis @ weights) ** 2))


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 22050, 44100, 48000])
@pytest.mark.parametrize("suffix,tolerance", [("wav", 0.003), ("flac", 0.003), ("ogg", 0.05)])
def test_sine_survives(tmp_path, rate, suffix, tolerance):
    path = tmp_path / f"sine.{suffix}"
    soundfile.write(path, sine(rate), rate)
    samples = read_audio(path)
    assert samples.dtype == np.float32
    assert samples.shape == (16_000,)
    amplitude, residual = fitted(samples)
    assert amplitude == pytest.approx(0.5, rel=tolerance)
    assert residual < 0.5 * tolerance


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000])
def test_mp3(tmp_path, rate):
    path = tmp_path / "sine.mp3"
    soundfile.write(path, sine(rate), rate, format="MP3")
    samples = read_audio(path)
    frames = soundfile.info(path).frames
    assert samples.shape == (-(-frames * 16_000 // rate),)
    amplitude, residual = fitted(samples)
    assert amplitude == pytest.approx(0.5, rel=0.03)
    assert residual < 0.03


@pytest.mark.parametrize("length,rate", [(1, 44100), (7, 48000), (12345, 22050), (999, 8000)])
def test_length_is_exact(length, rate):
    assert resample(np.ones(length), rate).shape == (-(-length * 16_000 // rate),)


@pytest.mark.parametrize("suffix", ["ogg", "flac", "mp3", "wav"])
def test_spans_are_the_samples_of_the_whole_file(tmp_path, suffix):
    path = tmp_path / f"noise.{suffix}"
    noise = np.convolve(np.random.default_rng(0).normal(size=16_000 * 7), np.ones(8) / 50, "same")
    soundfile.write(path, noise, 16_000)
    whole = read_audio(path)
    # Several of them, backwards too: decoders carry a state from one seek to the next.
    spans = [(0.2, 1.1), (1.31, 1.94), (4.0, 4.5), (2.14, 2.85), (0.0, 0.01), (6.5, 99.0)]
    pieces = [whole[round(begin * 16_000) : round(end * 16_000)] for begin, end in spans]
    np.testing.assert_allclose(read_audio(path, spans), np.concatenate(pieces), atol=1e-6)


def test_channels_are_averaged(tmp_path):
    left, right = sine(16_000), 0.25 * np.ones(16_000)
    soundfile.write(tmp_path / "s.wav", np.stack([left, right], axis=1), 16_000, subtype="FLOAT")
    samples = read_audio(tmp_path / "s.wav")
    np.testing.assert_allclose(samples, (left + right) / 2, atol=1e-6)


def test_what_lies_above_the_new_nyquist_frequency_is_removed(tmp_path):
    rate = 48_000
    tone = 0.5 * np.sin(2 * np.pi * 11_000 * np.arange(rate) / rate)
    soundfile.write(tmp_path / "t.wav", tone, rate, subtype="FLOAT")
    assert np.abs(read_audio(tmp_path / "t.wav")[800:-800]).max() < 0.005


def test_int16_round_trip(tmp_path):
    values = np.array([-32768, -1, 0, 1, 1234, 32767], np.int16)
    soundfile.write(tmp_path / "v.wav", values, 16_000, subtype="PCM_16")
    assert (to_int16(read_audio(tmp_path / "v.wav")) == values).all()
    assert to_int16(np.array([2.0, -2.0])).tolist() == [32767, -32768]


def test_useful_messages(tmp_path):
    (tmp_path / "empty.wav").touch()
    (tmp_path / "text.wav").write_text("this is no audio at all, only a few words\n" * 20)
    soundfile.write(tmp_path / "short.wav", np.zeros(0), 16_000)
    broken = np.array([0.0, np.nan, 0.5], np.float32)
    soundfile.write(tmp_path / "nan.wav", broken, 16_000, subtype="FLOAT")
    cases = {
        "missing.wav": "does not exist",
        "empty.wav": "is empty",
        "text.wav": "cannot be read as audio",
        "short.wav": "zero length",
        "nan.wav": "not finite",
        "": "is a directory",
    }
    for name, message in cases.items():
        with pytest.raises(UserError, match=message) as caught:
            read_audio(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("rate", [8000, 16000, 44100, 48000])
def test_both_vorbis_decoders_agree(tmp_path, rate, channels):
    pytest.importorskip("miniaudio", reason="libsndfile alone decodes where miniaudio is missing")
    path = tmp_path / "noise.ogg"
    noise = np.random.default_rng(0).normal(size=(rate * 2 + 17, channels)) / 10
    soundfile.write(path, noise, rate, format="OGG", subtype="VORBIS")
    samples, found_rate = decode_vorbis(path)
    expected, _ = soundfile.read(path, dtype="float32", always_2d=True)
    assert found_rate == rate
    np.testing.assert_allclose(samples, expected, atol=1e-6)


def test_only_vorbis_goes_to_the_vorbis_decoder(tmp_path):
    for name, settings in {"a.wav": {}, "a.ogg": {"format": "OGG", "subtype": "OPUS"}}.items():
        soundfile.write(tmp_path / name, sine(16_000), 16_000, **settings)
        assert decode_vorbis(tmp_path / name) is None


@pytest.mark.parametrize("rate", [22050, 44100, 48000])
def test_no_tone_above_8_khz_is_folded_below_it(rate):
    times = np.arange(rate) / rate
    for tone in (8500.0, 10_500.0):
        folded = resample(np.sin(2 * np.pi * tone * times), rate)[1600:-1600]
        assert np.abs(folded).max() < 1e-3

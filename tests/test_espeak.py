"""The espeak-ng library: deterministic speech, and clear errors where it is missing."""

import sys
import types

import numpy as np
import pytest

from maestro_jax import espeak
from maestro_jax.errors import UserError
from maestro_jax.espeak import phonemes
from maestro_jax.minivox.speech import record

# The second and third draw noise: breath of a formant voice, and a Klatt synthesiser.


def say(text, language, **options):
    return espeak.synthesise(text, language, **options).audio


VOICES = ("", "f2", "Reed", "whisper", "m3")


def test_a_sentence_sounds_the_same_after_any_other():
    first = [say("one two", "en", variant=voice).tobytes() for voice in VOICES]
    say("Etwas ganz anderes.", "de", variant="croak", words_per_minute=300, pitch=90)
    again = [say("one two", "en", variant=voice).tobytes() for voice in VOICES[::-1]]
    assert again[::-1] == first
    assert len(set(first)) == len(VOICES)


def test_rate_and_pitch_do_what_they_say():
    slow = say("twenty one minutes", "en", words_per_minute=120)
    fast = say("twenty one minutes", "en", words_per_minute=240)
    assert len(slow) > 1.5 * len(fast)
    assert _pitch(say("mama", "en", pitch=90)) > 1.2 * _pitch(say("mama", "en", pitch=10))


def _pitch(audio):
    """Hertz, by the highest peak of the autocorrelation between 60 and 300 Hz."""
    audio = audio.astype(float)
    spectrum = np.abs(np.fft.rfft(audio, 2 * len(audio))) ** 2
    lags = np.fft.irfft(spectrum)[16_000 // 300 : 16_000 // 60]
    return 16_000 / (16_000 // 300 + int(np.argmax(lags)))


@pytest.mark.parametrize(
    ("text", "language"), [("sixty six, please", "en"), ("zwei Uhr dreißig", "de")]
)
def test_phonemes_follow_each_other_from_the_first_sample_to_the_last(text, language):
    spoken = espeak.synthesise(text, language, variant="f2")
    ends = [0, *(phoneme.end for phoneme in spoken.phonemes)]
    assert ends == [*(phoneme.begin for phoneme in spoken.phonemes), len(spoken.audio)]
    assert all(phoneme.begin < phoneme.end for phoneme in spoken.phonemes)
    [written] = phonemes([text], language)
    assert "".join(p.symbol for p in spoken.phonemes) == written.replace(" ", "")


def test_a_hiss_sounds_where_an_s_is_said():
    """Most of an `s` lies above 3 kHz and little of a vowel does, which espeak does not tell."""
    found = record("see sixty six oceans", "en")
    shares = {True: [], False: []}
    for phoneme in found.phonemes:
        audio = found.audio[phoneme.begin : phoneme.end].astype(float)
        if phoneme.symbol == "":
            # Nothing is said before and after the voice.
            assert np.abs(audio).mean() < 0.02 * np.abs(found.audio).max()
            continue
        power = np.abs(np.fft.rfft(audio * np.hanning(len(audio)))) ** 2
        high = power[np.fft.rfftfreq(len(audio), 1 / 16_000) > 3000].sum() / power.sum()
        if phoneme.symbol in "sz" or phoneme.symbol[0] in "aeiouɪəɒ":
            shares[phoneme.symbol in "sz"].append(high)
    assert len(shares[True]) >= 4 and len(shares[False]) >= 5
    assert min(shares[True]) > 2 * max(shares[False])


def test_neither_room_nor_noise_moves_a_phoneme():
    plain, wet = (
        record("nine fifteen", "en", rng=np.random.default_rng(3), room=both, noisy=both)
        for both in (False, True)
    )
    assert plain.phonemes == wet.phonemes
    assert plain.phonemes[-1].end == len(plain.audio) == len(wet.audio)
    assert plain.phonemes[0].symbol == plain.phonemes[-1].symbol == ""


def test_other_languages_are_recorded_too():
    speech = record("dobrý den", "cs", variant="f2", noisy=True, room=True, min_seconds=2.0)
    assert speech.audio.dtype == np.int16
    assert len(speech.audio) >= 2.0 * 16_000


def test_unknown_voice_is_named():
    with pytest.raises(UserError, match="no voice 'xx'"):
        say("hello", "xx")


def test_missing_package_names_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(UserError, match=r"pip install maestro_jax\[minivox\]"):
        say("hello", "en")


def test_corrupt_library_names_the_remedy(monkeypatch, tmp_path):
    broken = tmp_path / "libespeak-ng.so"
    broken.write_bytes(b"not a library")
    loader = types.SimpleNamespace(
        get_library_path=lambda: str(broken), get_data_path=lambda: str(tmp_path)
    )
    monkeypatch.setitem(sys.modules, "espeakng_loader", loader)
    with pytest.raises(UserError, match=r"does not load.*pip install maestro_jax\[minivox\]"):
        say("hello", "en")


def test_missing_voice_data_names_the_remedy(monkeypatch, tmp_path):
    import espeakng_loader

    monkeypatch.setattr(espeakng_loader, "get_data_path", lambda: str(tmp_path / "nothing"))
    with pytest.raises(UserError, match=r"voice data.*pip install maestro_jax\[minivox\]"):
        say("hello", "en")


def test_long_data_paths_work(monkeypatch, tmp_path):
    import espeakng_loader

    expected = say("hello", "en")
    long = tmp_path / ("a" * 100) / ("b" * 100)
    long.parent.mkdir()
    long.symlink_to(espeakng_loader.get_data_path())
    monkeypatch.setattr(espeakng_loader, "get_data_path", lambda: str(long))
    assert np.array_equal(say("hello", "en"), expected)

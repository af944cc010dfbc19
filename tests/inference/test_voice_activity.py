"""Speech, silence and noise of signals whose speech is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maestro_jax.inference.voice_activity import (
    CONTEXT,
    FRAME,
    LAG,
    SECOND,
    VoiceActivityDetector,
    frame_levels,
    speech_frames,
)

RATE = 16_000


def voice(seconds: float, rng: np.random.Generator, decibels: float = -20.0) -> np.ndarray:
    """Noise whose level moves by 30 dB four times a second, as that of syllables does."""
    time = np.arange(round(seconds * RATE)) / RATE
    envelope = 10 ** ((decibels - 15 + 15 * np.sin(2 * np.pi * 4 * time)) / 20)
    return envelope * rng.normal(size=len(time))


def noise(seconds: float, rng: np.random.Generator, decibels: float, kind: str) -> np.ndarray:
    white = rng.normal(size=round(seconds * RATE))
    if kind == "brown":
        spectrum = np.fft.rfft(white)
        spectrum[1:] /= np.arange(1, len(spectrum))
        spectrum[:20] = 0
        white = np.fft.irfft(spectrum, len(white))
    if kind == "hum":
        time = np.arange(len(white)) / RATE
        white = np.sin(2 * np.pi * 50 * time) + 0.3 * np.sin(2 * np.pi * 350 * time) + 0.01 * white
    return white / white.std() * 10 ** (decibels / 20)


def decide(samples: np.ndarray) -> np.ndarray:
    return speech_frames(frame_levels(samples))


@pytest.mark.parametrize("kind", ["white", "brown", "hum"])
@pytest.mark.parametrize("decibels", [-90, -60, -45, -30, -10])
def test_noise_alone_is_no_speech(kind, decibels):
    sound = noise(12, np.random.default_rng(0), decibels, kind)
    assert not decide(np.round(sound * 32768) / 32768).any()


def test_nothing_and_digital_silence_are_no_speech():
    assert len(decide(np.zeros(0))) == 0
    assert not decide(np.zeros(10 * RATE)).any()
    # A click, as of a switch, in digital silence.
    clicked = np.zeros(3 * RATE)
    clicked[RATE : RATE + 100] = 0.5
    assert not decide(clicked).any()


@pytest.mark.parametrize("floor", [None, -60, -45, -30])
@pytest.mark.parametrize("gain", [1.0, 0.01, 0.003])
def test_a_voice_is_speech_above_any_floor(floor, gain):
    rng = np.random.default_rng(1)
    bursts = [voice(2, rng, -8.0), np.zeros(2 * RATE), voice(1, rng, -8.0), np.zeros(3 * RATE)]
    sound = np.concatenate(bursts)
    if floor is not None:
        sound = sound + noise(8, rng, floor, "white")
    speech = decide(np.round(sound * gain * 32768) / 32768).reshape(-1, SECOND)
    # Nearly all of a syllable's cycle stands out of a low floor, the louder half of it of -30 dB.
    assert (speech[[0, 1, 4]].mean(axis=1) > 0.45).all()
    # A frame at the edge of a burst may belong to it.
    assert not speech[[2, 3, 5, 6, 7]][:, 3:-3].any()


# Half a second as loud as the voice may be a vowel.
@pytest.mark.parametrize(
    ("decibels", "seconds"), [(-60, 0.6), (-40, 0.6), (-60, 3.0), (-40, 3.0), (-20, 3.0)]
)
def test_noise_between_clean_voices_is_a_pause(decibels, seconds):
    """The floor of the 20 seconds around is that of the clean voices; the noise is steady."""
    rng = np.random.default_rng(2)
    parts = [voice(3, rng, -8.0), noise(seconds, rng, decibels, "white"), voice(3, rng, -8.0)]
    speech = decide(np.concatenate(parts))
    begin, end = 3 * SECOND, round((3 + seconds) * SECOND)
    assert not speech[begin + 3 : end - 3].any()
    assert speech[:begin].mean() > 0.7 and speech[end:].mean() > 0.7


@given(
    chunks=st.lists(st.integers(0, 900), max_size=12),
    seed=st.integers(0, 3),
)
def test_decisions_while_reading_are_those_over_the_whole(chunks, seed):
    rng = np.random.default_rng(seed)
    levels = rng.choice([-100.0, -50.0, -30.0, -10.0], size=(sum(chunks) + 24) // 25).repeat(25)
    levels = (levels + rng.normal(size=len(levels)))[: sum(chunks)]
    detector = VoiceActivityDetector()
    at, found = 0, []
    for size in chunks:
        found.append(detector.push(levels[at : at + size]))
        at += size
        assert at - sum(map(len, found)) <= LAG
        assert len(detector._levels) <= CONTEXT + LAG + SECOND
    found.append(detector.push(np.zeros(0), final=True))
    np.testing.assert_array_equal(np.concatenate(found), speech_frames(levels))


def test_a_last_frame_that_is_not_whole_counts():
    assert len(frame_levels(np.ones(FRAME + 1))) == 2

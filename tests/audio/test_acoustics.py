"""Rooms and noise, compared with what their definitions say."""

import numpy as np
import pytest

from maestro_jax.audio import acoustics
from maestro_jax.augmentation_config import NOISES


@pytest.mark.parametrize("kind", NOISES)
def test_noise_has_unit_power_and_its_colour(kind):
    drawn = acoustics.noise(64_000, np.random.default_rng(0), kind)
    assert np.mean(drawn**2) == pytest.approx(1.0)
    power = np.abs(np.fft.rfft(drawn)) ** 2
    hertz = np.fft.rfftfreq(64_000, 1 / 16_000)

    def octave(low):
        return power[(hertz >= low) & (hertz < 2 * low)].mean()

    # Density falls by this factor an octave: white not at all, pink by 2, babble by 8 (9 dB).
    expected = {"white": 1.0, "pink": 2.0, "babble": 8.0}[kind]
    assert octave(1000) / octave(2000) == pytest.approx(expected, rel=0.15)


def test_signal_to_noise_ratio_is_kept():
    voice = np.sin(np.arange(32_000) * 0.1)
    mixed = acoustics.add_noise(voice, np.random.default_rng(0), kind="pink", snr=12.0)
    ratio = np.mean(voice**2) / np.mean((mixed - voice) ** 2)
    assert 10 * np.log10(ratio) == pytest.approx(12.0)


def test_a_room_decays_as_told():
    click = np.zeros(16_000)
    click[0] = 1.0
    wet = acoustics.reverberate(
        click, np.random.default_rng(0), decay_seconds=0.5, direct_ratio=6.0
    )
    assert np.sum(wet**2) == pytest.approx(np.sum(click**2))
    assert wet[0] ** 2 / np.sum(wet[1:] ** 2) == pytest.approx(10**0.6, rel=1e-6)
    # Half a second takes 60 dB, so a tenth takes 12 dB.
    early, late = (np.mean(wet[start : start + 800] ** 2) for start in (800, 2400))
    assert 10 * np.log10(early / late) == pytest.approx(12.0, abs=1.5)
    assert not np.abs(wet[8000:]).max() > 1e-9


def test_recording_level_and_peak():
    voice = np.sin(np.arange(16_000) * 0.1)
    recorded = acoustics.record(voice, level=-25.0).astype(float) / 32768
    assert 10 * np.log10(np.mean(recorded**2)) == pytest.approx(-25.0, abs=0.01)
    spiky = np.zeros(16_000)
    spiky[8000] = 1.0
    assert np.abs(acoustics.record(spiky, level=-25.0)).max() == round(0.9 * 32767)
    assert not acoustics.record(np.zeros(100), level=-25.0).any()


def test_the_loud_part_leaves_silence_out_at_the_ends():
    audio = np.concatenate([np.zeros(50), np.ones(10), np.zeros(20), np.ones(10), np.zeros(99)])
    assert acoustics.loud_part(audio) == slice(50, 90)
    assert not np.zeros(10)[acoustics.loud_part(np.zeros(10))].size

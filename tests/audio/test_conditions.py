"""Robustness conditions, measured: signal-to-noise ratio, reverberation time, bands, codes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from maestro_jax.audio import conditions
from maestro_jax.audio.conditions import (
    CODE_SWITCHING,
    CONDITIONS,
    SYNTHETIC_SPEECH,
    Utterance,
    find_conditions,
)
from maestro_jax.errors import UserError

RATE = 16_000


def voice(seconds: float = 1.0, level: float = 3000.0) -> np.ndarray:
    """Harmonics of 150 Hz whose amplitude moves, as int16."""
    time = np.arange(int(seconds * RATE)) / RATE
    wave = sum(np.sin(2 * np.pi * 150 * n * time + n) / n for n in range(1, 40))
    return np.rint(level * wave * (0.6 + 0.4 * np.sin(2 * np.pi * 3 * time))).astype(np.int16)


@pytest.mark.parametrize("group", ["noise", "babble"])
def test_noise_is_as_far_below_the_speech_as_told(group: str) -> None:
    clean = voice().astype(np.float64)
    noises = {}
    for snr in (20, 10, 5, 0):
        noises[snr] = CONDITIONS[f"{group}_{snr}db"].apply(voice(), "u") - clean
        ratio = np.mean(clean**2) / np.mean(noises[snr] ** 2)
        assert 10 * np.log10(ratio) == pytest.approx(snr, abs=0.02)
    # All levels are levels of the same noise.
    assert np.corrcoef(noises[20], noises[0])[0, 1] > 0.999


def test_what_would_clip_is_scaled_down() -> None:
    loud = CONDITIONS["noise_0db"].apply(voice(level=15_000.0), "u")
    assert np.abs(loud.astype(int)).max() == 32767
    assert np.mean(np.abs(loud.astype(int)) == 32767) < 1e-3


@pytest.mark.parametrize("seconds", [0.3, 0.6, 1.0])
def test_rooms_decay_as_long_as_told(seconds: float) -> None:
    click = np.zeros(2 * RATE, np.int16)
    click[0] = 32767
    response = CONDITIONS[f"room_{seconds}s"].apply(click, "u").astype(np.float64)
    # Schroeder (1965): the energy that is still to come falls by 60 dB in the reverberation time.
    # As ISO 3382 does, from 5 to 25 dB below the beginning.
    left = 10 * np.log10(np.cumsum(response[::-1] ** 2)[::-1] / np.sum(response**2) + 1e-12)
    first, last = (int(np.argmax(left < level)) for level in (-5, -25))
    slope = np.polyfit(np.arange(first, last) / RATE, left[first:last], 1)[0]
    assert -60 / slope == pytest.approx(seconds, rel=0.06)
    assert np.sum(response[1:] ** 2) > response[0] ** 2


@pytest.mark.parametrize("speed", [0.9, 1.1])
def test_speeds_change_duration_and_pitch(speed: float) -> None:
    tone = np.rint(8000 * np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE)).astype(np.int16)
    condition = CONDITIONS[f"speed_{speed}"]
    heard = condition.apply(tone, "u")
    assert len(heard) == pytest.approx(RATE / speed, abs=1)
    assert len(heard) == pytest.approx(RATE * condition.lengthening, abs=1)
    peak = np.argmax(np.abs(np.fft.rfft(heard))) * RATE / len(heard)
    assert peak == pytest.approx(440 * speed, abs=2)


def test_the_telephone_passes_its_band_alone() -> None:
    noise = np.random.default_rng(0).normal(0, 3000, 2 * RATE)
    sent = np.clip(np.rint(noise), -32767, 32767).astype(np.int16)
    heard = CONDITIONS["telephone"].apply(sent, "u")
    assert len(heard) == len(sent)
    hertz = np.fft.rfftfreq(len(sent), 1 / RATE)
    density = [np.abs(np.fft.rfft(each.astype(np.float64))) ** 2 for each in (sent, heard)]

    def decibels(low: float, high: float) -> float:
        band = (hertz >= low) & (hertz < high)
        return 10 * np.log10(density[1][band].sum() / density[0][band].sum())

    assert decibels(600, 2800) == pytest.approx(0.0, abs=0.3)
    assert decibels(10, 100) < -25
    assert decibels(4200, 8000) < -40


def test_the_telephone_codes_by_mu_law() -> None:
    coded = conditions.mu_law(np.arange(-32768, 32768, dtype=np.int32).astype(np.int16))
    # G.711, whose 14-bit values are multiplied by four here: two zeros share a level, so that 8
    # bits write 255. Steps double from each of the eight segments to the next; between two segments
    # they are the mean of both.
    values = np.unique(coded)
    assert len(values) == 255 and (values == -values[::-1]).all() and values.max() == 32124
    steps = np.diff(values[values >= 0])
    expected = [[8 * 2**n] * 15 + [12 * 2**n] for n in range(8)]
    assert steps.tolist() == list(itertools.chain(*expected))[:-1]
    assert (conditions.mu_law(coded) == coded).all()


def test_draws_depend_on_seed_and_utterance_alone() -> None:
    for name, condition in CONDITIONS.items():
        first = condition.apply(voice(0.3), "u1", seed=1)
        assert first.dtype == np.int16
        assert (condition.apply(voice(0.3), "u1", seed=1) == first).all(), name
        drawn = condition.group in ("noise", "babble", "room")
        for other in (("u2", 1), ("u1", 2)):
            assert (condition.apply(voice(0.3), *other) == first).all() != drawn, name
        assert len(condition.apply(np.zeros(0, np.int16), "u")) == 0
        assert not condition.apply(np.zeros(400, np.int16), "u").any()


def test_each_utterance_is_followed_by_another_language() -> None:
    utterances = [
        Utterance(f"{language}{i}", language, f"{language} {i}")
        for language, count in (("de", 6), ("en", 4), ("sl", 2))
        for i in range(count)
    ]
    partners = CODE_SWITCHING.partners(utterances)
    pairs = [(a.language, b.language) for a, b in zip(utterances, partners, strict=True)]
    assert all(a != b for a, b in pairs)
    # The two other languages take turns.
    counts = {pair: pairs.count(pair) for pair in set(pairs)}
    assert counts == {
        (a, b): {"de": 3, "en": 2, "sl": 1}[a]
        for a, b in itertools.permutations(("de", "en", "sl"), 2)
    }
    # No utterance is heard twice before all of its language were heard.
    assert len({b.id for b in partners if b.language == "de"}) == 3
    assert partners == CODE_SWITCHING.partners(utterances)
    assert partners != CODE_SWITCHING.partners(utterances, seed=1)
    with pytest.raises(UserError, match="only de"):
        CODE_SWITCHING.partners(utterances[:6])


def test_pairs_are_joined_at_one_level_with_a_pause() -> None:
    joined = CODE_SWITCHING.join(voice(0.5, 1000.0), voice(0.25, 8000.0)).astype(np.float64)
    assert len(joined) == 0.95 * RATE
    parts = np.split(joined, [int(0.5 * RATE), int(0.7 * RATE)])
    assert not parts[1].any()
    assert np.mean(parts[2] ** 2) == pytest.approx(np.mean(parts[0] ** 2), rel=0.01)
    assert CODE_SWITCHING.join_texts("guten tag", " good day") == "guten tag good day"
    assert CODE_SWITCHING.join_texts("", "good day") == "good day"


def test_espeak_reads_the_reference() -> None:
    pytest.importorskip("espeakng_loader")
    hello = Utterance("u1", "de", "guten tag")
    first = SYNTHETIC_SPEECH.speak(hello)
    assert first.dtype == np.int16 and 0.3 < len(first) / RATE < 3 and first.any()
    assert (SYNTHETIC_SPEECH.speak(hello) == first).all()
    other = SYNTHETIC_SPEECH.speak(Utterance("u2", "de", "guten tag"))
    assert len(other) != len(first)
    assert not SYNTHETIC_SPEECH.speak(Utterance("u1", "de", " ")).any()


def test_conditions_are_found_by_name_and_group() -> None:
    def named(*names: str) -> list[str]:
        return [condition.name for condition in find_conditions(names)]

    assert named("telephone", "noise_20db") == ["noise_20db", "telephone"]
    assert named("room") == ["room_0.3s", "room_0.6s", "room_1.0s"]
    assert len(named("all")) == 16 and named("all")[-2:] == ["code_switched", "synthetic"]
    with pytest.raises(UserError, match="no condition 'nois'.*Did you mean 'noise'"):
        find_conditions(["nois"])

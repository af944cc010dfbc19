"""Cutting recordings: all speech is there, sizes are in bounds, cuts fall into pauses."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maestro_jax.inference.segmentation import PADDING, Segment, cut_segments
from maestro_jax.inference.voice_activity import FRAME, LAG, frame_levels, speech_frames

RATE = 16_000


def voice(seconds: float, rng: np.random.Generator) -> np.ndarray:
    """Noise whose level moves by 20 dB five times a second, as that of syllables does."""
    time = np.arange(round(seconds * RATE)) / RATE
    return 10 ** ((-25 + 10 * np.sin(2 * np.pi * 5 * time)) / 20) * rng.normal(size=len(time))


def recording(parts: list[float], floor: float | None, rng: np.random.Generator) -> np.ndarray:
    """Voices and pauses in turn, so many seconds each, above a floor in dB."""
    sound = np.concatenate(
        [
            voice(seconds, rng) if number % 2 == 0 else np.zeros(round(seconds * RATE))
            for number, seconds in enumerate(parts)
        ]
    )
    if floor is not None:
        sound += 10 ** (floor / 20) * rng.normal(size=len(sound))
    return sound.astype(np.float32)


def chunked(sound: np.ndarray, size: int) -> list[np.ndarray]:
    return [sound[at : at + size] for at in range(0, len(sound), size)]


def check(found: list[Segment], sound: np.ndarray, longest: int) -> None:
    """What holds of any segmentation."""
    covered = np.zeros(len(sound), bool)
    for segment in found:
        assert 0 < len(segment.samples) <= longest
        np.testing.assert_array_equal(segment.samples, sound[segment.start : segment.end])
        covered[segment.start : segment.end] = True
    speech = speech_frames(frame_levels(sound)).repeat(FRAME)[: len(sound)]
    assert covered[speech].all()
    for before, after in itertools.pairwise(found):
        assert after.start > before.start and after.end > before.end
        assert after.overlap == max(0, before.end - after.start)


@given(
    parts=st.lists(st.sampled_from([0.3, 0.7, 1.5, 4.0]), min_size=1, max_size=12),
    floor=st.sampled_from([None, -90, -60, -40]),
    seconds=st.sampled_from([0.4, 1.0, 2.5, 6.0]),
    size=st.sampled_from([700, 16_000, 10**7]),
    seed=st.integers(0, 9),
)
def test_all_speech_is_in_segments_that_fit(parts, floor, seconds, size, seed):
    sound = recording(parts, floor, np.random.default_rng(seed))
    longest = round(seconds * RATE)
    found = list(cut_segments(chunked(sound, size), longest))
    check(found, sound, longest)
    # How the recording comes does not matter.
    whole = list(cut_segments([sound], longest))
    assert [(s.start, s.end) for s in found] == [(s.start, s.end) for s in whole]


@pytest.mark.parametrize("floor", [None, -90, -60, -45])
@pytest.mark.parametrize("pause", [0.3, 0.5, 1.0, 5.0])
def test_cuts_lie_in_pauses_and_speech_is_padded(floor, pause):
    parts = [1.8, pause] * 8
    sound = recording(parts, floor, np.random.default_rng(3))
    found = list(cut_segments([sound], 3 * RATE))
    check(found, sound, 3 * RATE)
    period = round((1.8 + pause) * RATE)
    assert len(found) == 8
    for number, segment in enumerate(found):
        begin, end = segment.start - number * period, segment.end - number * period
        assert -(PADDING + 1) * FRAME <= begin <= 0
        assert 0 <= end - round(1.8 * RATE) <= (PADDING + 1) * FRAME
        assert segment.overlap == 0


def test_the_longest_pause_is_cut_in():
    """Of digital silence as well, where all 20 ms are equally quiet."""
    rng = np.random.default_rng(4)
    parts = [1.0, 0.3, 1.0, 0.6, 1.0, 0.3, 1.0, 0.3, 1.0]
    found = list(cut_segments([recording(parts, None, rng)], 5 * RATE))
    assert len(found) == 2 and found[0].overlap == found[1].overlap == 0
    assert 2.3 <= found[0].end / RATE <= 2.9 and 2.3 <= found[1].start / RATE <= 2.9


def test_pauses_above_the_floor_of_a_quiet_neighbourhood():
    """Noise that comes with a voice is no floor of the 20 seconds; the voice still pauses."""
    rng = np.random.default_rng(5)
    quiet = recording([4.0, 1.5] * 4, -75, rng)
    noisy = recording([1.5, 0.3] * 4, -42, rng)
    sound = np.concatenate([quiet, noisy, quiet])
    found = list(cut_segments([sound], 5 * RATE))
    check(found, sound, 5 * RATE)
    assert not any(segment.overlap for segment in found)


def test_segments_overlap_where_nobody_pauses():
    sound = recording([20.0], None, np.random.default_rng(6))
    found = list(cut_segments([sound], 6 * RATE))
    check(found, sound, 6 * RATE)
    overlap = RATE * 3 // 2 // FRAME // 2 * 2 * FRAME
    assert [segment.overlap for segment in found] == [0] + [overlap] * (len(found) - 1)
    assert found[-1].end == len(sound)


def test_overlaps_lie_around_the_quietest_place():
    sound = recording([20.0], None, np.random.default_rng(6))
    # Too short for a pause: 160 ms, 20 dB down.
    sound[4 * RATE : 4 * RATE + 2560] *= 0.1
    first, second = list(cut_segments([sound], 6 * RATE))[:2]
    assert (second.start + first.end) / 2 == pytest.approx(4.08 * RATE, abs=2 * FRAME)


@pytest.mark.parametrize("seconds", [0.0, 0.01, 1.0, 10.0, 100.0])
@pytest.mark.parametrize("floor", [None, -60, -30])
def test_silence_has_no_segments(seconds, floor):
    sound = recording([0.0, seconds], floor, np.random.default_rng(7))
    assert list(cut_segments(chunked(sound, RATE), 3 * RATE)) == []


def test_what_is_held_does_not_grow_with_the_recording():
    """The buffer is as long after ten minutes as after one."""
    rng = np.random.default_rng(8)
    minute = recording([1.0, 0.2, 3.0, 0.8, 2.0, 13.0, 9.0, 0.1, 0.9] * 2, -60, rng)
    held: list[int] = []

    def chunks(count):
        for _ in range(count):
            for chunk in chunked(minute, RATE):
                held.append(max(0, read[0] - taken[0]))
                read[0] += len(chunk)
                yield chunk

    for count in (1, 10):
        read, taken = [0], [0]
        for segment in cut_segments(chunks(count), 5 * RATE):
            taken[0] = segment.end
    # The longest silence, the longest segment, and what a decision waits for.
    assert max(held) <= (13 + 5 + 2) * RATE + LAG * FRAME


def test_a_limit_too_small_to_cut_in():
    with pytest.raises(ValueError, match="6400 samples at least"):
        cut_segments([], 6_399)

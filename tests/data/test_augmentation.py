"""Augmented audio, held against what was drawn for it; the same for any number of processes."""

from __future__ import annotations

import collections
import dataclasses
import itertools

import numpy as np
import pytest

from maestro_jax.audio.augmentation import AudioAugmentation, augment
from maestro_jax.batches import Buckets, StreamConfig, batch_shapes, synthetic_batch
from maestro_jax.errors import UserError

RATE = 16_000
SECONDS = np.arange(RATE) / RATE
TONE = np.rint(8000 * np.sin(2 * np.pi * 440 * SECONDS)).astype(np.int16)
OTHER = np.rint(3000 * np.sin(2 * np.pi * 1234 * SECONDS[:12_000])).astype(np.int16)


def changed(config, *, seed=0, audio=TONE, longest=10 * RATE, other=None):
    rng = np.random.default_rng(seed)
    return augment(audio, config, rng, longest=longest, other=other).audio


def decibels(signal, reference):
    return 10 * np.log10(np.mean(np.float64(signal) ** 2) / np.mean(np.float64(reference) ** 2))


def test_nothing_is_done_by_default():
    np.testing.assert_array_equal(changed(AudioAugmentation()), TONE)
    assert changed(AudioAugmentation(noise_probability=1.0), audio=TONE[:0]).size == 0


@pytest.mark.parametrize("speed", [0.9, 1.1])
def test_speed_changes_length_and_pitch(speed):
    config = AudioAugmentation(speeds=(speed,))
    audio = changed(config)
    assert len(audio) == int(np.ceil(RATE / speed))
    spectrum = np.abs(np.fft.rfft(audio * np.hanning(len(audio))))
    hertz = np.argmax(spectrum) * RATE / len(audio)
    assert hertz == pytest.approx(440 * speed, abs=2)
    # Where there is no room for more, nothing is made longer; what is too long anyway may be.
    room = changed(config, longest=RATE + 100)
    assert len(room) == (RATE if speed < 1 else len(audio))
    assert len(changed(config, longest=RATE - 1)) == len(audio)


def test_speeds_are_drawn_equally_often():
    config = AudioAugmentation(speeds=(0.9, 1.0, 1.1))
    lengths = collections.Counter(
        len(changed(config, seed=seed, audio=TONE[:900])) for seed in range(600)
    )
    assert set(lengths) == {1000, 900, 819}
    assert min(lengths.values()) > 150


@pytest.mark.parametrize("kind", ["white", "babble"])
def test_noise_is_as_loud_as_asked_for(kind):
    config = AudioAugmentation(noise_probability=1.0, noise_snr=(3.0, 9.0), noise_kinds=(kind,))
    ratios = [decibels(TONE, changed(config, seed=s).astype(float) - TONE) for s in range(20)]
    assert 3.0 <= min(ratios) < 5.0 and 7.0 < max(ratios) <= 9.01


def test_a_room_keeps_the_power_and_is_audible():
    config = AudioAugmentation(room_probability=1.0, room_direct_ratio=(0.0, 0.0))
    audio = changed(config)
    assert decibels(audio, TONE) == pytest.approx(0.0, abs=0.05)
    assert decibels(audio.astype(float) - TONE, TONE) > -20


def test_a_room_delays_nothing():
    """The direct path comes first, so that a frame of what is heard is the frame of the target."""
    voice = np.rint(3000 * np.random.default_rng(0).standard_normal(RATE)).astype(np.int16)
    config = AudioAugmentation(room_probability=1.0, room_direct_ratio=(0.0, 0.0))
    for seed in range(5):
        heard = changed(config, seed=seed, audio=voice).astype(float)
        spectrum = np.fft.rfft(heard) * np.conj(np.fft.rfft(voice.astype(float)))
        assert np.argmax(np.fft.irfft(spectrum)) == 0


@pytest.mark.parametrize("speed", [1.0, 0.9, 1.1])
def test_the_clean_audio_is_the_example_at_its_speed(speed):
    disturbing = AudioAugmentation(
        speeds=(speed,), room_probability=1.0, mix_probability=1.0, noise_probability=1.0
    )
    found = augment(TONE, disturbing, np.random.default_rng(0), longest=10 * RATE, other=OTHER)
    np.testing.assert_array_equal(found.clean, changed(AudioAugmentation(speeds=(speed,))))
    assert len(found.audio) == len(found.clean)
    assert decibels(found.audio.astype(float) - found.clean, found.clean) > -10
    assert disturbing.disturbs and not AudioAugmentation(speeds=(speed,)).disturbs


def test_a_piece_of_another_utterance():
    config = AudioAugmentation(mix_energy_ratio=(-2.0, 4.0), mix_longest=0.25)
    lengths, ratios, begins = [], [], []
    for seed in range(40):
        difference = changed(config, seed=seed, other=OTHER).astype(float) - TONE
        touched = np.flatnonzero(np.abs(difference) > 1)
        begin, end = touched[0], touched[-1] + 1
        piece = difference[begin:end]
        lengths.append(len(piece))
        begins.append(begin)
        if len(piece) < 400:
            continue
        # A tone of the other's pitch, and of the power that the ratio of the whole files asks for.
        amplitude = np.abs(np.exp(-2j * np.pi * 1234 * SECONDS[: len(piece)]) @ piece) * 2
        gain = amplitude / len(piece) / 3000
        ratios.append(decibels(TONE, OTHER * gain))
    assert max(lengths) <= RATE // 4 + 1 and len(set(lengths)) > 30 and len(set(begins)) > 30
    assert -2.2 <= min(ratios) < 0.0 and 2.0 < max(ratios) <= 4.2
    np.testing.assert_array_equal(changed(config, other=np.zeros(500, np.int16)), TONE)
    assert len(changed(config, other=OTHER[:3])) == RATE


def test_loud_audio_is_not_clipped():
    loud = np.where(np.arange(RATE) // 20 % 2, 32767, -32768).astype(np.int16)
    config = AudioAugmentation(noise_probability=1.0, noise_snr=(0.0, 0.0), noise_kinds=("white",))
    audio = changed(config, audio=loud).astype(float)
    assert np.abs(audio).max() == 32767
    # Clipped, most samples would be of this size; and as much noise as signal is left.
    assert (np.abs(audio) == 32767).sum() < 5
    assert np.corrcoef(audio, loud)[0, 1] == pytest.approx(np.sqrt(0.5), abs=0.02)


def test_shares_are_those_of_the_configuration():
    config = AudioAugmentation(noise_probability=0.25)
    noisy = sum(
        not np.array_equal(changed(config, seed=s, audio=TONE[:200]), TONE[:200])
        for s in range(1000)
    )
    assert 200 < noisy < 300


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"noise_probability": 1.5}, "noise_probability is 1.5"),
        ({"mix_longest": -1.0}, "mix_longest is -1"),
        ({"noise_snr": (9.0, 3.0)}, "noise_snr.*lowest and the highest"),
        ({"noise_snr": (9.0,)}, "noise_snr"),
        ({"room_decay_seconds": (0.0, 1.0)}, "0.01 s at least"),
        ({"speeds": ()}, "speeds"),
        ({"speeds": (1.0, 3.0)}, "factors of 0.5"),
        ({"noise_kinds": ("brown",)}, "choose from white, pink, babble"),
    ],
)
def test_what_cannot_be_done(changes, message):
    with pytest.raises(UserError, match=message):
        AudioAugmentation(**changes)
    with pytest.raises(UserError, match="no audio to augment"):
        StreamConfig(mixture="m", batch_size=2, text_tokens=4, augmentation=AudioAugmentation())


EVERYTHING = AudioAugmentation(
    speeds=(0.9, 1.0, 1.1),
    room_probability=0.3,
    room_decay_seconds=(0.01, 0.02),
    mix_probability=0.5,
    noise_probability=0.3,
)
STREAMS = {
    "speech": StreamConfig(
        mixture="tinyvox_speech", batch_size=4, audio_samples=450, augmentation=EVERYTHING
    ),
    "paired": StreamConfig(
        mixture="tinyvox_paired",
        batch_size=8,
        audio_samples=450,
        text_tokens=40,
        augmentation=EVERYTHING,
        buckets=Buckets(batch_sizes=(12,), audio_samples=(250,)),
    ),
}
CACHED, INDEXED = {}, {"cache_bytes": 0}


def take(corpus, streams, steps, **arguments):
    from maestro_jax.data.loader import StreamLoader

    with StreamLoader(streams, data_dir=corpus.root, **({"seed": 3} | arguments)) as loader:
        return list(itertools.islice(loader, steps))


@pytest.fixture(scope="module")
def through(corpus):
    return take(corpus, STREAMS, 30)


@pytest.mark.parametrize(
    ("how", "start", "processes"),
    [(INDEXED, 0, 1), (CACHED, 17, 1), (INDEXED, 17, 2), (CACHED, 5, 4)],
)
def test_batches_are_the_same_however_they_are_made(corpus, through, how, start, processes):
    parts = [
        take(corpus, STREAMS, 4, start_step=start, process_index=i, process_count=processes, **how)
        for i in range(processes)
    ]
    for step in range(4):
        for stream, features in through[start + step].items():
            for name, values in features.items():
                joined = np.concatenate([part[step][stream][name] for part in parts])
                np.testing.assert_array_equal(values, joined, err_msg=f"{stream} {name}")


def test_only_audio_is_changed_and_every_time_in_another_way(corpus, through):
    plain = {n: dataclasses.replace(s, augmentation=None) for n, s in STREAMS.items()}
    different = rows = 0
    seen = collections.defaultdict(set)
    for augmented, batch in zip(through, take(corpus, plain, 30), strict=True):
        for name, values in batch["paired"].items():
            if not name.startswith("audio"):
                np.testing.assert_array_equal(values, augmented["paired"][name])
        pairs = zip(batch["speech"]["audio"], augmented["speech"]["audio"], strict=True)
        for before, after in pairs:
            rows += 1
            different += not np.array_equal(before, after)
            seen[tuple(before.tolist())].add(tuple(after.tolist()))
        lengths = batch["paired"]["audio_length"] / augmented["paired"]["audio_length"]
        assert ((lengths > 0.89) & (lengths < 1.11)).all()
        assert (augmented["paired"]["audio_length"] > 0).all()
    # Nothing happens to 1/3 * 0.7 * 0.5 * 0.7 of the examples, and to those that mix with silence.
    assert 0.8 < different / rows < 0.98
    assert sum(map(len, seen.values())) > 4 * len(seen)


@pytest.mark.parametrize("crop", [300, 450])
def test_clean_audio_is_the_audio_without_augmentation(corpus, crop):
    """Cropped where that is cropped, to the sample; whichever bucket it is in."""
    disturbing = dataclasses.replace(EVERYTHING, speeds=(1.0,))
    speech = StreamConfig(
        mixture="tinyvox_speech",
        batch_size=4,
        audio_samples=crop,
        augmentation=disturbing,
        buckets=Buckets(batch_sizes=(6,), audio_samples=(250,)),
    )
    plain = dataclasses.replace(speech, augmentation=None)
    pairs = zip(*(take(corpus, {"speech": s}, 20) for s in (speech, plain)), strict=True)
    different = 0
    for augmented, batch in ((one["speech"], other["speech"]) for one, other in pairs):
        assert tuple(augmented) == ("audio", "audio_length", "clean_audio", "language")
        np.testing.assert_array_equal(augmented["clean_audio"], batch["audio"])
        np.testing.assert_array_equal(augmented["audio_length"], batch["audio_length"])
        different += (augmented["audio"] != batch["audio"]).any(axis=1).sum()
    assert different > 40


def test_only_disturbed_untranscribed_speech_comes_with_clean_audio(through):
    assert through[0]["speech"].keys() - through[0]["paired"].keys() == {"clean_audio"}
    quiet = dataclasses.replace(
        STREAMS["speech"], augmentation=AudioAugmentation(speeds=(0.9, 1.1))
    )
    for streams in (STREAMS, {"speech": quiet}):
        shapes, batch = batch_shapes(streams), synthetic_batch(streams, 0, 20)
        for name, features in shapes.items():
            wanted = name == "speech" and streams is STREAMS
            assert ("clean_audio" in features) == wanted
            assert {f: (x.shape, x.dtype) for f, x in batch[name].items()} == {
                f: (x.shape, x.dtype) for f, x in features.items()
            }
            assert {f: x.dtype for f, x in through[0][name].items() if wanted} == {
                f: x.dtype for f, x in features.items() if wanted
            }
    silent = np.arange(450) >= batch_lengths(synthetic_batch(STREAMS, 0, 20)["speech"])
    assert not synthetic_batch(STREAMS, 0, 20)["speech"]["clean_audio"][silent].any()


def batch_lengths(features):
    return features["audio_length"][:, None]


def test_mixing_needs_random_access(corpus):
    import seqio

    from maestro_jax.data.stream_tasks import add_stream_task

    source = seqio.FunctionDataSource(lambda split, shuffle_files: None, splits=("train",))
    add_stream_task("in_order", stream="speech", source=source, languages=("de",))
    speech = dataclasses.replace(STREAMS["speech"], mixture="in_order")
    with pytest.raises(UserError, match="'in_order' has no random access.*mixed"):
        take(corpus, {"speech": speech}, 1)
    buckets = Buckets(batch_sizes=(4,), audio_samples=(200,))
    with pytest.raises(UserError, match="'in_order' has no random access.*buckets"):
        take(corpus, {"speech": dataclasses.replace(speech, augmentation=None, buckets=buckets)}, 1)

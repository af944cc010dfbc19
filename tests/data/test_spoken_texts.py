"""Texts that are spoken while a run reads them: the same speech however it comes about."""

from __future__ import annotations

import dataclasses
import itertools
import sys

import numpy as np
import pytest

from maestro_jax import espeak
from maestro_jax.audio.synthesis import spoken
from maestro_jax.augmentation_config import AudioAugmentation
from maestro_jax.batches import StreamConfig, batch_shapes, check_streams, synthetic_batch
from maestro_jax.errors import UserError
from maestro_jax.speech_synthesis import Espeak, SpeechSynthesis

SAMPLES = 12_000


@dataclasses.dataclass(frozen=True)
class Beeps:
    """Speaks each character as a tone of its own, at a random rate; tells whom it was asked for."""

    longest: int = 10**9

    def check(self, languages):
        """Refuses one language."""
        if "sl" in languages and self.longest == 1:
            raise UserError("no voice for sl")

    def speak(self, text, language, rng):
        """Returns 100 samples or more a character."""
        samples = np.arange(int(rng.integers(100, 120)))
        tones = [np.sin(samples * ord(character) / 100) for character in text[: self.longest]]
        return np.rint(9000 * np.concatenate(tones)).astype(np.int16)


def synthesis(**changes):
    settings = {"audio_samples": SAMPLES, "synthesizer": Beeps(), "workers": 0}
    return SpeechSynthesis(**(settings | changes))


def streams(config):
    shape = {"text_tokens": 40, "synthesis": config}
    return {
        "text": StreamConfig(mixture="tinyvox_text", batch_size=4, **shape),
        "paired": StreamConfig(mixture="tinyvox_paired", batch_size=4, audio_samples=450, **shape),
    }


def take(corpus, config, steps, **arguments):
    from maestro_jax.data.loader import StreamLoader

    with StreamLoader(streams(config), data_dir=corpus.root, **({"seed": 3} | arguments)) as loader:
        batches = list(itertools.islice(loader, steps))
        return batches, loader


@pytest.fixture(scope="module")
def through(corpus):
    return take(corpus, synthesis(), 12)


def test_the_speech_depends_on_neither_restarts_nor_processes(corpus, through):
    start, processes = 3, 2
    parts = [
        take(
            corpus,
            synthesis(),
            3,
            start_step=start,
            process_index=index,
            process_count=processes,
            cache_bytes=0,
        )[0]
        for index in range(processes)
    ]
    for step in range(3):
        for stream, features in through[0][start + step].items():
            for name, values in features.items():
                joined = np.concatenate([part[step][stream][name] for part in parts])
                np.testing.assert_array_equal(values, joined, err_msg=f"{stream} {name}")


@pytest.mark.extended
def test_other_processes_speak_the_same(corpus):
    # A class that other processes can import.
    config = synthesis(synthesizer=Espeak(voices=("f1", "m1")), audio_samples=80_000)
    [here], _ = take(corpus, config, 1)
    [there], _ = take(corpus, dataclasses.replace(config, workers=1), 1)
    for stream, features in here.items():
        assert (features["synthetic_audio_length"] > 3000).all()
        for name, values in features.items():
            np.testing.assert_array_equal(values, there[stream][name], err_msg=f"{stream} {name}")


def test_each_row_is_its_own_text_and_sounds_different_every_time(through):
    rates = {}
    for batch in through[0]:
        for stream in ("text", "paired"):
            rows = batch[stream]
            samples = rows["synthetic_audio_length"]
            tokens = [
                tuple(row[:length])
                for row, length in zip(rows["text"], rows["text_length"], strict=True)
            ]
            for length, text in zip(samples, tokens, strict=True):
                rates.setdefault(text, set()).add(int(length))
    assert all(min(lengths) > 1600 for lengths in rates.values())
    assert sum(len(lengths) > 1 for lengths in rates.values()) > len(rates) / 2


def test_shapes_are_those_that_a_run_expects(through):
    config = streams(synthesis())
    for batch in (through[0][0], synthetic_batch(config, 0, 20)):
        for stream, features in batch_shapes(config).items():
            assert {f: (x.shape, x.dtype) for f, x in batch[stream].items()} == {
                f: (x.shape, x.dtype) for f, x in features.items()
            }
    valid = np.arange(SAMPLES) < batch["text"]["synthetic_audio_length"][:, None]
    assert not batch["text"]["synthetic_audio"][~valid].any()


def test_speech_that_is_too_long_leaves_the_text(corpus):
    # Silence around the voice is 0.1 to 0.4 s; all texts have 3 characters or more.
    [batch], loader = take(corpus, synthesis(audio_samples=1000), 1)
    assert not batch["text"]["synthetic_audio_length"].any()
    assert batch["text"]["text_length"].all()
    assert loader.counters["text/synthetic_over_long"] == 4
    assert loader.counters["text/over_long"] == 0


def test_a_recording_is_as_loud_as_one_and_augmented_like_one():
    config = synthesis()
    plain = spoken(config, "abc", "de", (1, 2))
    assert len(plain) == len(spoken(config, "abc", "de", (1, 2))) != 0
    levels = [
        10 * np.log10(np.mean((spoken(config, "abc", "de", (1, n)) / 32768.0) ** 2))
        for n in range(20)
    ]
    assert -33 < min(levels) < -28 and -24 < max(levels) < -19
    noise = AudioAugmentation(noise_probability=1.0, noise_snr=(0.0, 0.0), noise_kinds=("white",))
    noisy = spoken(synthesis(augmentation=noise), "abc", "de", (1, 2))
    difference = noisy.astype(float) - plain
    assert np.mean(difference**2) == pytest.approx(np.mean(plain.astype(float) ** 2), rel=0.1)
    assert spoken(config, "  ", "de", (1, 2)).size == 0


def test_espeak_speaks_the_languages_it_has_in_the_voices_it_is_given():
    rng = np.random.default_rng(0)
    audio = Espeak(voices=("f2",), words_per_minute=(175, 175), pitch=(50, 50)).speak(
        "eins zwei", "de-AT", rng
    )
    expected = espeak.synthesise("eins zwei", "de", variant="f2", words_per_minute=175, pitch=50)
    np.testing.assert_array_equal(audio, expected.audio)
    assert espeak.voice("zh") == "cmn" and espeak.voice("en-US") == "en-us"
    voices = {Espeak().speak("ja", "de", np.random.default_rng(n)).tobytes() for n in range(8)}
    assert len(voices) == 8


def test_what_cannot_be_spoken(corpus, monkeypatch):
    Espeak().check(["de", "sl"])
    with pytest.raises(UserError, match="no voice for the language 'zu'.*another synthesizer"):
        Espeak().check(["de", "zu"])
    with pytest.raises(UserError, match="no voice for sl"):
        take(corpus, synthesis(synthesizer=Beeps(longest=1)), 1)
    espeak._phonemes_library.cache_clear()
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(UserError, match=r"espeak-ng library; pip install maestro_jax\[minivox\]"):
        take(corpus, synthesis(synthesizer=Espeak()), 1)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: synthesis(audio_samples=0), "audio_samples is 0"),
        (lambda: synthesis(workers=-1), "workers is -1"),
        (lambda: synthesis(augmentation=AudioAugmentation(mix_probability=0.1)), "not mixed"),
        (lambda: Espeak(voices=()), "voices is empty"),
        (lambda: Espeak(pitch=(50, 20)), "lowest and the highest, 0 to 99"),
        (
            lambda: check_streams(
                {
                    "speech": StreamConfig(
                        mixture="m", batch_size=1, audio_samples=9, synthesis=synthesis()
                    )
                }
            ),
            "only texts of text and paired are spoken",
        ),
    ],
)
def test_settings_that_make_no_sense(build, message):
    with pytest.raises(UserError, match=message):
        build()


def test_phonemes_are_not_read_aloud(corpus):
    from maestro_jax.data.indexed_source import IndexedTfdsSource
    from maestro_jax.data.stream_tasks import (
        PreparedVocabulary,
        add_stream_task,
        stream_preprocessors,
    )

    add_stream_task(
        "tinyvox_pronounced",
        stream="text",
        source=IndexedTfdsSource("tinyvox/small", {"train": "text_de_train"}, "x"),
        languages=("de",),
        vocabulary=PreparedVocabulary("vocabularies/tinyvox.model", "x"),
        preprocessors=stream_preprocessors("text", phonemes=True),
    )
    from maestro_jax.data.loader import StreamLoader

    text = dataclasses.replace(streams(synthesis())["text"], mixture="tinyvox_pronounced")
    with pytest.raises(UserError, match="'tinyvox_pronounced' are phonemes"):
        StreamLoader({"text": text}, data_dir=corpus.root, seed=0)

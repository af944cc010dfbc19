"""Buckets against brute force; batches whatever the order; segments of over-long audio."""

from __future__ import annotations

import itertools
import logging

import numpy as np
import pytest
from answering import Answering

from maestro_jax.batches import SAMPLE_RATE
from maestro_jax.evaluation.decoding import TestSetDecoder, bucket_lengths, choose_buckets
from maestro_jax.scoring.metrics import Kind


def example(index, samples, kind: Kind = "asr", text="eins"):
    from maestro_jax.data.evaluation_examples import EvaluationExample

    values = np.asarray(samples, np.int16 if kind != "mt" else np.int32)
    strings = dict.fromkeys(("raw_text", "target_language", "speaker"), "") | {
        "task": "toy",
        "id": str(index),
        "text": text,
        "translation": text,
        "language": "de",
    }
    return EvaluationExample(
        index=index,
        strings=strings,
        features={"text" if kind == "mt" else "audio": values},
        languages={"language": 3, "target_language": 5},
    )


def padded(limits, lengths):
    return sum(min(limit for limit in limits if limit >= length) for length in lengths)


@pytest.mark.parametrize("seed", range(5))
def test_buckets_leave_as_little_padding_as_any(seed):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 60, 30)
    limits = bucket_lengths(lengths, longest=80, multiple=4)
    top = -(-max(lengths) // 4) * 4
    assert limits[-1] == top and all(limit % 4 == 0 for limit in limits)
    choices = range(4, top, 4)
    best = min(
        padded((*inner, top), lengths) for inner in itertools.combinations(choices, len(limits) - 1)
    )
    assert padded(limits, lengths) == best
    # One bucket fewer leaves more than a twentieth.
    if len(limits) > 1:
        fewer = min(
            padded((*inner, top), lengths)
            for inner in itertools.combinations(choices, len(limits) - 2)
        )
        assert fewer > 1.05 * sum(lengths)


def test_a_bucket_must_be_worth_its_compilation():
    lengths = np.asarray([10] * 50 + [100])
    assert bucket_lengths(lengths, longest=100, multiple=1) == [10, 100]
    # 50 utterances of 10 in place of 100 save 4500.
    assert bucket_lengths(lengths, longest=100, multiple=1, worth_compiling=4500) == [10, 100]
    assert bucket_lengths(lengths, longest=100, multiple=1, worth_compiling=4501) == [100]


def test_what_is_longer_than_the_model_knows_is_not_in_a_bucket():
    assert bucket_lengths(np.asarray([5, 5, 500]), longest=50, multiple=1)[-1] == 50
    assert bucket_lengths(None, longest=512, multiple=8) == [64, 128, 256, 512]


def test_rows_fill_a_batch_and_no_more_than_there_are_utterances():
    lengths = np.asarray([SAMPLE_RATE] * 1000 + [8 * SAMPLE_RATE] * 1000)
    buckets = choose_buckets(
        lengths, longest=8 * SAMPLE_RATE, multiple=1280, units=64, unit=SAMPLE_RATE
    )
    assert [(b.length // 1000, b.rows) for b in buckets] == [(16, 32), (128, 8)]
    few = choose_buckets(
        lengths[:10], longest=SAMPLE_RATE, multiple=1280, units=64, unit=SAMPLE_RATE
    )
    assert [b.rows for b in few] == [2]


@pytest.mark.parametrize("shards", [1, 3, 8])
def test_each_utterance_is_decoded_once_in_a_fitting_batch(shards):
    rng = np.random.default_rng(0)
    lengths = rng.integers(10, 8 * SAMPLE_RATE, 101)
    answering = Answering(lambda audio, _: str(len(audio)), samples=130_000, data_shards=shards)
    decoder = TestSetDecoder(answering, "asr", lengths)
    decoder.fit_memory()
    answering.shapes.clear()
    predictions = list(decoder.decode(example(n, np.zeros(size)) for n, size in enumerate(lengths)))
    assert sorted(p.index for p in predictions) == list(range(101))
    assert all(p.hypothesis == str(lengths[p.index]) for p in predictions)
    assert all(p.seconds == pytest.approx(lengths[p.index] / SAMPLE_RATE) for p in predictions)
    allowed = {(b.rows * shards, b.length) for b in decoder.buckets}
    assert set(answering.shapes) <= allowed
    statistics = decoder.statistics
    assert statistics.utterances == 101
    assert statistics.audio_seconds == pytest.approx(lengths.sum() / SAMPLE_RATE)
    batches = sum(rows * length for rows, length in answering.shapes)
    assert statistics.padded_seconds == pytest.approx(batches / SAMPLE_RATE)


def test_over_long_audio_is_cut_at_its_pauses():
    """Voices with pauses between them, three times as long as the model has room for."""
    rng = np.random.default_rng(1)
    # The level moves by 20 dB five times per second, as that of syllables does.
    level = 10 ** (0.5 * np.sin(10 * np.pi * np.arange(SAMPLE_RATE) / SAMPLE_RATE) - 1.25)
    burst, pause = 32768 * level * rng.normal(size=SAMPLE_RATE), np.zeros(SAMPLE_RATE // 2)
    burst = np.clip(burst, -32768, 32767)
    audio = np.concatenate([pause, *[burst, pause] * 6])
    room = 4 * SAMPLE_RATE
    heard = []

    def answer(samples, _):
        heard.append(len(samples))
        return f"piece {len(heard)}"

    decoder = TestSetDecoder(Answering(answer, samples=room), "asr", np.asarray([len(audio)] * 2))
    decoder.fit_memory()
    first, second = decoder.decode([example(0, audio), example(1, burst)])
    first, second = sorted([first, second], key=lambda one: one.index)
    assert first.segments == len(heard) - 1 > 1 and second.segments == 1
    assert max(heard) <= room and sum(heard) >= 6 * SAMPLE_RATE
    assert first.hypothesis == " ".join(f"piece {n + 1}" for n in range(first.segments))
    assert first.seconds == pytest.approx(len(audio) / SAMPLE_RATE)


def test_silence_of_any_length_has_an_empty_hypothesis():
    decoder = TestSetDecoder(Answering(lambda *_: "noise", samples=10_000), "asr", None)
    [prediction] = decoder.decode([example(0, np.zeros(50_000))])
    assert (prediction.hypothesis, prediction.segments) == ("", 1)


def test_utterances_that_grew_get_a_bucket():
    """A change of the examples may make audio longer than the file of lengths says."""
    answering = Answering(lambda audio, _: str(len(audio)), samples=5000)
    decoder = TestSetDecoder(answering, "asr", np.asarray([1000]))
    [prediction] = decoder.decode([example(0, np.ones(3000))])
    assert prediction.hypothesis == "3000"
    assert prediction.seconds == pytest.approx(3000 / SAMPLE_RATE)


def test_texts_of_any_length_are_translated_whole():
    decoder = TestSetDecoder(
        Answering(lambda tokens, target: f"{len(tokens)} {target}"), "mt", np.asarray([3, 90])
    )
    found = decoder.decode([example(n, np.arange(size), "mt") for n, size in enumerate((3, 90))])
    assert {p.hypothesis for p in found} == {"3 5", "90 5"}


def test_batches_shrink_until_they_fit(monkeypatch, caplog):
    class Large(Answering):
        @property
        def memory_bytes(self):
            # 1 kB per row of the batches that have been compiled.
            return 1000 * max(rows for rows, _ in self.shapes[-1:])

    monkeypatch.setattr("maestro_jax.evaluation.decoding.device_memory", lambda: 10_000)
    decoder = TestSetDecoder(Large(lambda *_: ""), "asr", np.asarray([12_800] * 1000))
    assert decoder.buckets[-1].rows == 64
    with caplog.at_level(logging.INFO):
        decoder.fit_memory()
    assert decoder.buckets[-1].rows == 8
    assert "halved" in caplog.text

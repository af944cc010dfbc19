"""Buckets against brute force; batches whatever the order; segments of over-long audio."""

from __future__ import annotations

import itertools
import logging

import numpy as np
import pytest
from answering import Answering

from maestro_jax.batches import SAMPLE_RATE
from maestro_jax.evaluation.decoding import TestSetDecoder, choose_buckets
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


def decoding_time(limits, lengths, *, units, sequential):
    """What batches of these lengths take, each with as many utterances as `units` allow."""
    total, shorter = 0.0, 0
    for limit in limits:
        count = sum(shorter < length <= limit for length in lengths)
        batches = -(-count // max(1, units // limit))
        if count:
            total += batches * (-(-count // batches) + sequential) * limit
        shorter = limit
    return total


@pytest.mark.parametrize("sequential", [0, 2])
@pytest.mark.parametrize("seed", range(4))
def test_no_other_buckets_take_less_time(seed, sequential):
    rng = np.random.default_rng(seed)
    lengths, worth, units = rng.integers(1, 60, 30), 40, 150
    found = choose_buckets(
        lengths,
        longest=80,
        multiple=6,
        units=units,
        unit=1,
        sequential_rows=sequential,
        worth_compiling=worth,
    )
    limits, top = [bucket.length for bucket in found], -(-max(lengths) // 6) * 6
    assert limits[-1] == top and all(limit % 6 == 0 for limit in limits)

    def time(limits):
        taken = decoding_time(limits, lengths, units=units, sequential=sequential)
        return taken + worth * len(limits)

    choices = range(6, top, 6)
    assert time(limits) == min(
        time([*inner, top])
        for count in range(len(choices) + 1)
        for inner in itertools.combinations(choices, count)
    )
    assert 1 < len(limits) < len(choices)


def test_batches_are_as_large_as_allowed_and_evenly_filled():
    rng = np.random.default_rng(0)
    lengths = np.minimum(np.exp(rng.normal(2.1, 0.6, 90)), 31.0) * SAMPLE_RATE
    room = {"longest": 32 * SAMPLE_RATE, "multiple": 1280, "units": 64, "unit": SAMPLE_RATE}
    buckets = choose_buckets(lengths, **room, sequential_rows=2, worth_compiling=30)
    shorter, padded = 0, 0
    for bucket in buckets:
        count = int(((shorter < lengths) & (lengths <= bucket.length)).sum())
        batches = -(-count // bucket.rows)
        assert bucket.rows == 1 or bucket.rows * bucket.length <= 64 * SAMPLE_RATE
        assert batches * bucket.rows - count < batches
        shorter, padded = bucket.length, padded + batches * bucket.rows * bucket.length
    # Padding and empty rows of a quarter of an hour; it is less with more.
    assert padded < 1.15 * lengths.sum()


def test_a_bucket_must_be_worth_its_compilation():
    lengths = np.asarray([10] * 50 + [100])
    room = {"longest": 100, "multiple": 1, "units": 10_000, "unit": 1}
    # 50 utterances of 10 in place of 100 save 4500.
    for worth, limits in ((4499, [10, 100]), (4501, [100])):
        buckets = choose_buckets(lengths, **room, worth_compiling=worth)
        assert [bucket.length for bucket in buckets] == limits


def test_what_is_longer_than_the_model_knows_is_counted_as_its_segments():
    room = {"longest": 50, "multiple": 1, "units": 1000, "unit": 1}
    found = choose_buckets(np.asarray([5, 5, 500]), **room)
    assert [(bucket.length, bucket.rows) for bucket in found] == [(5, 2), (50, 10)]
    unknown = choose_buckets(None, **room | {"longest": 512, "multiple": 8})
    assert [(b.length, b.rows) for b in unknown] == [(64, 15), (128, 7), (256, 3), (512, 1)]


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


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_processes_share_whole_batches(count, shards):
    """As many as one process would have: only the last of a bucket may have empty rows."""
    lengths = np.random.default_rng(1).integers(SAMPLE_RATE, 8 * SAMPLE_RATE, 203)

    def decoder():
        answering = Answering(lambda audio, _: str(len(audio)), samples=130_000, data_shards=shards)
        return answering, TestSetDecoder(answering, "asr", lengths)

    everything, shapes, seconds = [], [], []
    for index in range(count):
        answering, part = decoder()
        chosen = np.flatnonzero(part.share(index, count, shards=shards))
        found = list(part.decode(example(n, np.zeros(lengths[n])) for n in chosen))
        assert [p.index for p in sorted(found, key=lambda p: p.index)] == chosen.tolist()
        everything += chosen.tolist()
        shapes += answering.shapes
        seconds.append(sum(rows * length for rows, length in answering.shapes) / SAMPLE_RATE)
    assert sorted(everything) == list(range(203))
    _, whole = decoder()
    shorter = 0
    for bucket in whole.buckets:
        members = int(((shorter < lengths) & (lengths <= bucket.length)).sum())
        rows = bucket.rows * shards
        assert shapes.count((rows, bucket.length)) == -(-members // rows)
        shorter = bucket.length
    # The parts differ by a batch.
    assert max(seconds) - min(seconds) <= max(b.rows * b.length for b in whole.buckets) * shards


def test_there_are_no_parts_of_unknown_lengths():
    assert TestSetDecoder(Answering(lambda *_: ""), "asr", None).share(0, 2, shards=1) is None


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
        def compile(self, features, target):
            # 1 kB per row.
            return 1000 * len(features["audio"])

    monkeypatch.setattr("maestro_jax.evaluation.decoding.device_memory", lambda: 10_000)
    answering = Large(lambda *_: "")
    decoder = TestSetDecoder(answering, "asr", np.asarray([12_800] * 1000))
    assert decoder.buckets[-1].rows == 77
    with caplog.at_level(logging.INFO):
        decoder.fit_memory()
    assert decoder.buckets[-1].rows == 4
    assert "halved" in caplog.text
    assert not answering.shapes

"""Batches of several lengths: every example as often as another, every host the same shapes."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import logging

import numpy as np
import pytest

from maestro_jax.batches import Buckets, StreamConfig
from maestro_jax.data.bucketing import BucketSchedule, assign_buckets
from maestro_jax.data.data_dir import data_scope
from maestro_jax.data.lengths import lengths_file, load_lengths, record_lengths
from maestro_jax.errors import UserError
from maestro_jax.text.vocabularies import load_vocabulary

STREAMS = {
    "speech": StreamConfig(
        mixture="tinyvox_speech",
        batch_size=4,
        audio_samples=450,
        buckets=Buckets(batch_sizes=(12, 8), audio_samples=(200, 300)),
    ),
    "paired": StreamConfig(
        mixture="tinyvox_paired",
        batch_size=4,
        audio_samples=450,
        text_tokens=40,
        buckets=Buckets(batch_sizes=(12, 8), audio_samples=(200, 300), text_tokens=(24, 32)),
    ),
    "mt": StreamConfig(
        mixture="tinyvox_mt",
        batch_size=4,
        text_tokens=40,
        translation_tokens=40,
        buckets=Buckets(batch_sizes=(8,), text_tokens=(20,), translation_tokens=(20,)),
    ),
    "text": StreamConfig(mixture="tinyvox_text", batch_size=4, text_tokens=40),
}
CACHED, INDEXED = {}, {"cache_bytes": 0}


def take(corpus, streams, steps, **arguments):
    from maestro_jax.data.loader import StreamLoader

    arguments = {"seed": 3, "data_dir": corpus.root} | arguments
    with StreamLoader(streams, **arguments) as loader:
        return list(itertools.islice(loader, steps))


@pytest.fixture(scope="module")
def through(corpus):
    """The first steps of an uninterrupted run."""
    return take(corpus, STREAMS, 40)


def assert_same(first, second):
    for stream in first:
        for name, values in first[stream].items():
            assert values.dtype == second[stream][name].dtype
            np.testing.assert_array_equal(values, second[stream][name], err_msg=f"{stream} {name}")


def joined(parts):
    return {
        stream: {name: np.concatenate([part[stream][name] for part in parts]) for name in features}
        for stream, features in parts[0].items()
    }


def brute_force(lengths, shapes, characters_per_token):
    chosen = []
    for audio, text, translation in lengths.tolist():
        long = {"audio": audio}
        for name, characters in (("text", text), ("translation", translation)):
            long[name] = -(-characters // characters_per_token) + 1
        fitting = [
            number
            for number, shape in enumerate(shapes)
            if all(long[name] <= limit for name, limit in shape.items())
        ]
        chosen.append((fitting[0] if fitting else len(shapes) - 1, not fitting))
    return chosen


def test_the_first_bucket_that_fits():
    lengths = np.random.default_rng(0).integers(0, [60, 110, 9], (500, 3), np.int32)
    shapes = [{"audio": 20, "text": 30}, {"audio": 20, "text": 40}, {"audio": 50, "text": 50}]
    for characters_per_token in (1, 2):
        buckets, over_long = assign_buckets(lengths, shapes, characters_per_token)
        expected = brute_force(lengths, shapes, characters_per_token)
        assert list(zip(buckets.tolist(), over_long.tolist(), strict=True)) == expected
    assert set(buckets.tolist()) == {0, 1, 2} and 0 < over_long.sum() < 500


WEIGHTS = {"speech": [5.0, 3.0, 2.0], "paired": [0.1, 0.0, 0.9], "st": [5.0, 3.0, 2.0], "mt": [7.0]}


def test_buckets_come_in_their_shares_and_few_combinations():
    schedule = BucketSchedule(WEIGHTS, seed=5)
    steps = 20_000
    drawn = {name: schedule.batches(name, 0, steps)[0] for name in WEIGHTS}
    for name, weights in WEIGHTS.items():
        counts = np.bincount(drawn[name], minlength=len(weights))
        expected = np.array(weights) / sum(weights) * steps
        # Shares are exact in blocks of 256, so that what is left is a matter of a few steps.
        np.testing.assert_allclose(counts, expected, atol=8)
    np.testing.assert_array_equal(drawn["speech"], drawn["st"])
    seen = collections.Counter(zip(*(drawn[name].tolist() for name in WEIGHTS), strict=True))
    # The ends of the buckets cut the line at .1, .5 and .8.
    shares = {(0, 0, 0, 0): 0.1, (0, 2, 0, 0): 0.4, (1, 2, 1, 0): 0.3, (2, 2, 2, 0): 0.2}
    assert seen.keys() == shares.keys()
    for combination, share in shares.items():
        assert seen[combination] == pytest.approx(share * steps, abs=8)
    runs = [len(list(run)) for _, run in itertools.groupby(drawn["speech"].tolist())]
    assert max(runs) < 40


def test_ordinals_count_the_batches_of_a_bucket_from_any_step():
    schedule = BucketSchedule(WEIGHTS, seed=5)
    for name in WEIGHTS:
        buckets, ordinals = schedule.batches(name, 0, 3000)
        seen = collections.Counter()
        for bucket, ordinal in zip(buckets.tolist(), ordinals.tolist(), strict=True):
            assert ordinal == seen[bucket]
            seen[bucket] += 1
        for begin in (1, 255, 256, 257, 1999):
            later = schedule.batches(name, begin, 1000)
            np.testing.assert_array_equal(later[0], buckets[begin : begin + 1000])
            np.testing.assert_array_equal(later[1], ordinals[begin : begin + 1000])
    assert (
        schedule.batches("paired", 0, 99)[0]
        != BucketSchedule(WEIGHTS, seed=6).batches("paired", 0, 99)[0]
    ).any()


def test_a_batch_holds_examples_of_its_bucket(corpus, through):
    shapes = collections.Counter()
    vocabulary = load_vocabulary(corpus.root / "vocabularies" / "tinyvox.model")
    for batch in through:
        shapes[tuple(batch[stream]["language"].size for stream in batch)] += 1
        for stream, features in batch.items():
            configs = STREAMS[stream].shapes()
            [number] = [
                number
                for number, shape in enumerate(configs)
                if all(
                    features[name].shape == (shape.batch_size, limit)
                    for name, limit in (
                        ("audio", shape.audio_samples),
                        ("text", shape.text_tokens),
                        ("translation", shape.translation_tokens),
                    )
                    if limit
                )
            ]
            if "audio" in features and number:
                # Nothing here would have fitted the shorter bucket.
                shorter = configs[number - 1]
                fits = features["audio_length"] <= shorter.audio_samples
                if "text_length" in features:
                    texts = zip(features["text"], features["text_length"], strict=True)
                    characters = [
                        len(vocabulary.decode(t[:length].tolist())) for t, length in texts
                    ]
                    fits &= np.array(characters) + 1 <= shorter.text_tokens
                assert not fits.any()
    # 3 buckets, 3 buckets, 2 buckets and 1: at most 1 + 2 + 2 + 1 combinations.
    assert 3 <= len(shapes) <= 6


def tasks_audio(corpus, stream, languages):
    return {
        tuple(record["audio"].tolist()): (language, number)
        for language in languages
        for number, record in enumerate(corpus.records[f"{stream}_{language}_train"])
    }


def counts_of(corpus, stream, config, steps):
    known = tasks_audio(corpus, stream, ("de", "sl"))
    counts = collections.Counter(dict.fromkeys(known.values(), 0))
    for batch in take(corpus, {stream: config}, steps):
        features = batch[stream]
        for audio, length in zip(features["audio"], features["audio_length"], strict=True):
            counts[known[tuple(audio[:length].tolist())]] += 1
    return counts


def test_every_example_is_seen_equally_often(corpus):
    """Without regard to its bucket, and to how many of them a batch holds."""
    counts = counts_of(corpus, "speech", STREAMS["speech"], 600)
    mean = sum(counts.values()) / len(counts)
    assert len(counts) == 16 and mean > 150
    assert max(counts.values()) - min(counts.values()) < 0.05 * mean


def test_the_rates_of_a_mixture_hold_over_all_buckets(corpus):
    config = dataclasses.replace(STREAMS["paired"], mixture="tinyvox_paired_even")
    counts = counts_of(corpus, "paired", config, 600)
    german = sum(count for (language, _), count in counts.items() if language == "de")
    assert german / sum(counts.values()) == pytest.approx(0.5, abs=0.01)
    for language in ("de", "sl"):
        of_language = [count for (name, _), count in counts.items() if name == language]
        assert max(of_language) - min(of_language) < 0.05 * np.mean(of_language)


@pytest.mark.extended
@pytest.mark.parametrize(
    ("how", "processes"), [(INDEXED, 2), (CACHED, 4)], ids=["2-indexed", "4-cached"]
)
def test_all_processes_together_have_the_bytes_of_one(corpus, through, how, processes):
    start = 7
    parts = [
        take(corpus, STREAMS, 6, start_step=start, process_index=i, process_count=processes, **how)
        for i in range(processes)
    ]
    for step in range(6):
        assert_same(through[start + step], joined([part[step] for part in parts]))


@pytest.mark.extended
@pytest.mark.parametrize(
    ("how", "start"), [(CACHED, 1), (INDEXED, 13), (CACHED, 31)], ids=["1", "13-indexed", "31"]
)
def test_a_restart_anywhere(corpus, through, how, start):
    for batch, again in zip(
        through[start:], take(corpus, STREAMS, 4, start_step=start, **how), strict=False
    ):
        assert_same(batch, again)


def counting(split, counts):
    """The split, which now counts the records that are read from it."""
    from maestro_jax.data.indexed_source import IndexedSplit

    class Counting(IndexedSplit):
        element_spec, num_bytes = split.element_spec, split.num_bytes

        def __len__(self):
            return len(split)

        def lengths(self):
            return split.lengths()

        def __getitem__(self, index):
            counts["read"] += 1
            return split[index]

    return Counting()


@pytest.mark.parametrize("buckets", [True, False], ids=["buckets", "one-shape"])
def test_starting_late_reads_no_more_than_starting_early(corpus, monkeypatch, buckets):
    from maestro_jax.data import index_plan, stream_reader

    streams = {name: STREAMS[name] for name in ("speech", "paired")}
    if not buckets:
        streams = {n: dataclasses.replace(s, buckets=None) for n, s in streams.items()}
    counts = collections.Counter()
    take(corpus, streams, 1)  # So that the lengths are there.
    opened = stream_reader.open_split
    monkeypatch.setattr(stream_reader, "open_split", lambda *a: counting(opened(*a), counts))
    make_table = index_plan.IndexPlan._make_table

    def spy(self, block):
        counts["planned"] += 1
        return make_table(self, block)

    monkeypatch.setattr(index_plan.IndexPlan, "_make_table", spy)
    work = {}
    for start in (0, 1_000_000):
        counts.clear()
        [batch] = take(corpus, streams, 1, start_step=start, **INDEXED)
        work[start] = dict(counts)
        assert batch["paired"]["audio_length"].any()
    # What is read ahead depends on how soon the first batch is taken. Before a million steps come
    # more than a million examples.
    assert max(each["read"] for each in work.values()) < 5_000
    assert work[1_000_000]["planned"] <= work[0]["planned"] + 60


def test_over_long_examples_are_told_at_the_start_and_counted(corpus, caplog):
    from maestro_jax.data.loader import StreamLoader

    buckets = Buckets(batch_sizes=(3,), audio_samples=(150,))
    streams = {
        "speech": dataclasses.replace(
            STREAMS["speech"], batch_size=2, audio_samples=250, buckets=buckets
        ),
        "paired": dataclasses.replace(
            STREAMS["paired"], batch_size=2, audio_samples=250, buckets=buckets
        ),
    }
    long = {
        stream: sum(
            len(record["audio"]) > 250
            for language in ("de", "sl")
            for record in corpus.records[f"{stream}_{language}_train"]
        )
        for stream in streams
    }
    with caplog.at_level(logging.INFO):
        loader = StreamLoader(streams, seed=1, data_dir=corpus.root)
    with loader:
        assert f"'speech': {long['speech']} examples are longer" in caplog.text
        assert f"'paired': {long['paired']} examples are longer" in caplog.text
        assert "in batches of 3 x 0.0 s, 40 tokens" in caplog.text
        empty = cropped = 0
        for batch in itertools.islice(loader, 60):
            empty += int((batch["paired"]["audio_length"] == 0).sum())
            cropped += int((batch["speech"]["audio_length"] == 250).sum())
        assert loader.counters == {"speech/cropped": cropped, "paired/over_long": empty}
        assert empty > 10 and cropped > 10


def test_lengths_are_counted_once_and_kept(corpus, monkeypatch):
    from maestro_jax.data.indexed_source import IndexedTfdsSource, _TfdsSplit

    with data_scope(corpus.root):
        source = IndexedTfdsSource("tinyvox/small", {"train": "paired_de_train"}, "?")
        split = source.open_split("train")
    path = lengths_file(corpus.root / "tinyvox" / "small" / "1.0.0", "paired_de_train")
    expected = [
        (len(r["audio"]), len(r["text"]), len(r["translation"]))
        for r in corpus.records["paired_de_train"]
    ]
    assert any("ü" in record["text"] for record in corpus.records["paired_de_train"])
    for spoilt in (None, b"", b"\x93NUMPY"):
        path.unlink(missing_ok=True)
        if spoilt is not None:
            path.write_bytes(spoilt)
        assert split.lengths().tolist() == [list(row) for row in expected]
        assert load_lengths(path, 13).tolist() == [list(row) for row in expected]
    assert load_lengths(path, 12) is None
    # A sum of splits has the lengths of one after the other.
    with data_scope(corpus.root):
        names = "paired_de_train+paired_sl_test"
        both = IndexedTfdsSource("tinyvox/small", {"train": names}, "?").open_split("train")
    audio = [len(both[index]["audio"]) for index in range(len(both))]
    assert len(both) == 15 and both.lengths()[:, 0].tolist() == audio

    def refuse(self, index):
        raise AssertionError("no record is needed")

    monkeypatch.setattr(_TfdsSplit, "__getitem__", refuse)
    assert len(split.lengths()) == 13
    assert record_lengths({"audio": [1, 2], "text": "čas".encode()}) == (2, 3, 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_sizes": ()}, "batch_sizes is empty"),
        ({"batch_sizes": (4,), "audio_samples": 200}, r"write a tuple: \(200,\)"),
        ({"batch_sizes": (4,), "audio_samples": (100, 200)}, "2 values, but batch_sizes 1"),
        ({"batch_sizes": (4, 0)}, "whole numbers above 0"),
        ({"batch_sizes": (4,), "characters_per_token": 0}, "characters_per_token is 0"),
        ({"batch_sizes": (4,), "audio_samples": (500,)}, "has 500 before 450"),
        ({"batch_sizes": (4, 4), "audio_samples": (300, 200)}, "has 300 before 200"),
        ({"batch_sizes": (4,), "audio_samples": (450,)}, "same lengths.*audio_samples 450"),
        ({"batch_sizes": (4,)}, "same lengths"),
    ],
)
def test_buckets_that_cannot_be(changes, message):
    with pytest.raises(UserError, match=message):
        StreamConfig(mixture="m", batch_size=2, audio_samples=450, buckets=Buckets(**changes))


def test_buckets_that_do_not_fit_the_stream_or_the_processes(corpus):
    buckets = Buckets(batch_sizes=(6,), audio_samples=(200,), text_tokens=(5,))
    with pytest.raises(UserError, match="text_tokens of 'tinyvox_speech' has 5 before 0"):
        dataclasses.replace(STREAMS["speech"], buckets=buckets)
    buckets = Buckets(batch_sizes=(6,), audio_samples=(200,))
    config = dataclasses.replace(STREAMS["speech"], buckets=buckets)
    with pytest.raises(UserError, match="has 6 examples, which 4 processes"):
        take(corpus, {"speech": config}, 1, process_count=4)

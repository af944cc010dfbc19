import collections
import dataclasses
import itertools
import shutil
import time

import numpy as np
import pytest

from maestro_jax.batches import StreamConfig, batch_shapes
from maestro_jax.errors import UserError
from maestro_jax.text.languages import LANGUAGES
from maestro_jax.text.vocabularies import load_vocabulary

STREAMS = {
    "speech": StreamConfig(mixture="tinyvox_speech", batch_size=4, audio_samples=450),
    "text": StreamConfig(mixture="tinyvox_text", batch_size=4, text_tokens=40),
    "paired": StreamConfig(
        mixture="tinyvox_paired", batch_size=8, audio_samples=450, text_tokens=40
    ),
    "mt": StreamConfig(mixture="tinyvox_mt", batch_size=4, text_tokens=40, translation_tokens=40),
    "st": StreamConfig(
        mixture="tinyvox_st", batch_size=4, audio_samples=450, translation_tokens=40
    ),
}
FEW = {name: STREAMS[name] for name in ("speech", "paired")}
CACHED, INDEXED = {}, {"cache_bytes": 0}


@pytest.fixture(scope="module")
def through(corpus):
    """The first steps of an uninterrupted run."""
    return take(corpus, STREAMS, 60)


def take(corpus, streams, steps, **arguments):
    from maestro_jax.data.loader import StreamLoader

    arguments = {"seed": 3, "data_dir": corpus.root} | arguments
    with StreamLoader(streams, **arguments) as loader:
        return list(itertools.islice(loader, steps))


def few(batch):
    return {stream: batch[stream] for stream in FEW}


def assert_same(first, second):
    assert list(first) == list(second)
    for stream in first:
        assert list(first[stream]) == list(second[stream])
        for name, values in first[stream].items():
            assert values.dtype == second[stream][name].dtype
            np.testing.assert_array_equal(values, second[stream][name], err_msg=f"{stream} {name}")


def rows(batches, stream):
    """The examples of a stream with their padding removed, in order."""
    for batch in batches:
        features = batch[stream]
        for row in range(len(features["language"])):
            example = {"language": int(features["language"][row])}
            for name in ("audio", "text", "translation"):
                if name in features:
                    length = features[f"{name}_length"][row]
                    assert not features[name][row, length:].any()
                    example[name] = features[name][row, :length].tolist()
            yield example


def audio_key(audio):
    return tuple(np.asarray(audio).tolist())


def test_batches_hold_the_corpus(corpus, through):
    batches = through[:10]
    shapes = batch_shapes(STREAMS)
    vocabulary = load_vocabulary(corpus.root / "vocabularies" / "tinyvox.model")
    english = LANGUAGES.index("en")
    for batch in batches:
        for stream, features in shapes.items():
            assert set(batch[stream]) == set(features)
            for name, spec in features.items():
                assert batch[stream][name].shape == spec.shape
                assert batch[stream][name].dtype == spec.dtype
        assert (batch["mt"]["target_language"] == english).all()
        assert (batch["st"]["target_language"] == english).all()
    known = {
        audio_key(record["audio"]): record
        for split, records in corpus.records.items()
        for record in records
        if split.startswith(("speech", "paired"))
    }
    for stream in ("speech", "paired", "st"):
        for example in rows(batches, stream):
            record = known[audio_key(example["audio"])]
            assert LANGUAGES[example["language"]] == record["language"]
            assert "train" in record["id"]
            if stream == "paired":
                assert vocabulary.decode(example["text"]) == record["text"]
                assert example["text"] == vocabulary.encode(record["text"])
            if stream == "st":
                assert vocabulary.decode(example["translation"]) == record["translation"]
    translations = {
        record["text"]: record["translation"]
        for split in ("mt_de_train", "mt_sl_train")
        for record in corpus.records[split]
    }
    for example in rows(batches, "mt"):
        text = vocabulary.decode(example["text"])
        assert translations[text] == vocabulary.decode(example["translation"])


@pytest.mark.parametrize("how", [CACHED, INDEXED], ids=["cached", "indexed"])
def test_every_example_once_an_epoch(corpus, how):
    config = {
        "paired": StreamConfig(
            mixture="tinyvox_paired_de", batch_size=13, audio_samples=450, text_tokens=40
        )
    }
    expected = sorted(audio_key(record["audio"]) for record in corpus.records["paired_de_train"])
    orders = []
    for batch in take(corpus, config, 4, **how):
        order = [audio_key(example["audio"]) for example in rows([batch], "paired")]
        assert sorted(order) == expected
        orders.append(tuple(order))
    assert len(set(orders)) == 4


@pytest.mark.extended
@pytest.mark.parametrize(
    "how,start",
    [(INDEXED, 0), (CACHED, 0), (CACHED, 58), (INDEXED, 58)],
    ids=["indexed", "again", "restart", "restart-indexed"],
)
def test_batches_are_the_same_however_they_are_reached(corpus, through, how, start):
    for first, second in zip(
        through[start : start + 2], take(corpus, STREAMS, 2, start_step=start, **how), strict=True
    ):
        assert_same(first, second)


@pytest.mark.parametrize("start", [1, 2, 3, 17, 41])
def test_a_restart_anywhere(corpus, through, start):
    [batch] = take(corpus, {"mt": STREAMS["mt"]}, 1, start_step=start)
    assert_same(batch, {"mt": through[start]["mt"]})


@pytest.mark.extended
@pytest.mark.parametrize(
    "how,processes", [(CACHED, 2), (INDEXED, 2), (CACHED, 4)], ids=["2", "2-indexed", "4"]
)
def test_the_global_batch_is_the_same_for_any_number_of_processes(corpus, through, how, processes):
    parts = [
        take(corpus, FEW, 3, start_step=5, process_index=i, process_count=processes, **how)
        for i in range(processes)
    ]
    for step, batch in enumerate(through[5:8]):
        joined = {
            stream: {
                name: np.concatenate([part[step][stream][name] for part in parts])
                for name in features
            }
            for stream, features in few(batch).items()
        }
        assert_same(few(batch), joined)


def test_seeds_and_streams_have_orders_of_their_own(corpus, through):
    first = through[0]
    [second] = take(corpus, {"speech": STREAMS["speech"]}, 1, seed=4)
    assert (first["speech"]["audio"] != second["speech"]["audio"]).any()
    orders = {
        stream: [example["audio"] for example in rows([first], stream)]
        for stream in ("paired", "st")
    }
    assert orders["paired"][:4] != orders["st"]


def test_rates_of_a_mixture(corpus):
    def languages(mixture):
        config = {
            "paired": StreamConfig(
                mixture=mixture, batch_size=64, audio_samples=450, text_tokens=40
            )
        }
        batches = take(corpus, config, 16)
        return collections.Counter(example["language"] for example in rows(batches, "paired"))

    german, slovene = LANGUAGES.index("de"), LANGUAGES.index("sl")
    # 1024 positions are 4 blocks of about 256, in which shares are exact to an example.
    sizes = languages("tinyvox_paired")
    assert abs(sizes[german] - 1024 * 13 / 20) <= 4
    even = languages("tinyvox_paired_even")
    assert abs(even[slovene] - 512) <= 4


@pytest.mark.parametrize("how", [CACHED, INDEXED], ids=["cached", "indexed"])
def test_over_long_examples(corpus, how):
    from maestro_jax.data.loader import StreamLoader

    limit = 250
    streams = {
        "speech": StreamConfig(mixture="tinyvox_speech_de", batch_size=11, audio_samples=limit),
        "paired": StreamConfig(
            mixture="tinyvox_paired_de", batch_size=13, audio_samples=limit, text_tokens=40
        ),
    }
    with StreamLoader(streams, seed=1, data_dir=corpus.root, **how) as loader:
        assert loader.counters == {"speech/cropped": 0, "paired/over_long": 0}
        batches = [next(loader) for _ in range(3)]
        counters = dict(loader.counters)
        assert loader.next_step == 3
    speech = [record["audio"] for record in corpus.records["speech_de_train"]]
    paired = [record["audio"] for record in corpus.records["paired_de_train"]]
    long_speech = [audio for audio in speech if len(audio) > limit]
    long_paired = [audio for audio in paired if len(audio) > limit]
    assert long_speech and len(long_paired) < len(paired)
    assert counters == {
        "speech/cropped": 3 * len(long_speech),
        "paired/over_long": 3 * len(long_paired),
    }
    whole = {audio_key(audio) for audio in paired}
    for batch in batches:
        kept = [example for example in rows([batch], "paired") if example["audio"]]
        assert len(kept) == len(paired) - len(long_paired)
        assert all(audio_key(example["audio"]) in whole for example in kept)
        empty = batch["paired"]["audio_length"] == 0
        assert empty.sum() == len(long_paired)
        assert (batch["paired"]["text_length"][empty] == 0).all()
    offsets = collections.defaultdict(set)
    for example in rows(batches, "speech"):
        window = np.array(example["audio"])
        [(number, offset)] = [
            (number, offset)
            for number, audio in enumerate(speech)
            for offset in range(max(1, len(audio) - limit + 1))
            if np.array_equal(audio[offset : offset + limit], window)
        ]
        offsets[number].add(offset)
    cropped = [places for number, places in offsets.items() if len(speech[number]) > limit + 20]
    assert all(len(places) > 1 for places in cropped)


def test_vocabulary(corpus):
    from maestro_jax.data.loader import StreamLoader

    streams = {name: STREAMS[name] for name in ("text", "speech")}
    with StreamLoader(streams, seed=0, data_dir=corpus.root) as loader:
        assert loader.vocabulary == load_vocabulary(corpus.root / "vocabularies" / "tinyvox.model")
    speech = {"speech": STREAMS["speech"]}
    with StreamLoader(speech, seed=0, data_dir=corpus.root) as loader:
        assert loader.vocabulary is None


def lines_task(tmp_path, corpus, name, **source_arguments):
    import seqio

    from maestro_jax.data.stream_tasks import PreparedVocabulary, add_stream_task

    for part in range(2):
        lines = [f"eins zwei {word}" for word in "drei vier fünf sechs sieben".split()]
        (tmp_path / f"lines{part}.txt").write_text(
            "".join(f"{line} {'acht' * part}\n" for line in lines)
        )
    source = seqio.TextLineDataSource(
        {"train": str(tmp_path / "lines*.txt")}, num_input_examples={"train": 10}
    )
    add_stream_task(
        name,
        stream="text",
        source=source,
        languages=("de",),
        vocabulary=PreparedVocabulary("vocabularies/tinyvox.model", "maestro prepare tinyvox"),
        preprocessors=[
            lambda dataset: dataset.map(lambda line: {"text": line}),
            lambda dataset: dataset.map(lambda example: {**example, "language": "de"}),
            seqio.preprocessors.tokenize,
        ],
    )


def test_sources_without_random_access(tmp_path, corpus, caplog):
    from maestro_jax.data.task_registry import add_language_mixture

    lines_task(tmp_path, corpus, "lines")
    add_language_mixture("lines_and_text", ["lines", "tinyvox_text_de"])
    streams = {"text": StreamConfig(mixture="lines_and_text", batch_size=8, text_tokens=40)}
    through = take(corpus, streams, 12)
    assert "no random access" in caplog.text
    resumed = take(corpus, streams, 5, start_step=7)
    for first, second in zip(through[7:], resumed, strict=True):
        assert_same(first, second)
    parts = [take(corpus, streams, 3, process_index=i, process_count=2) for i in range(2)]
    for step in range(3):
        joined = {
            "text": {
                name: np.concatenate([part[step]["text"][name] for part in parts])
                for name in through[step]["text"]
            }
        }
        assert_same(through[step], joined)
    lines = {"text": StreamConfig(mixture="lines", batch_size=10, text_tokens=40)}
    vocabulary = load_vocabulary(corpus.root / "vocabularies" / "tinyvox.model")
    texts = collections.Counter(
        vocabulary.decode(example["text"]) for example in rows(take(corpus, lines, 4), "text")
    )
    files = tmp_path.glob("lines*.txt")
    written = [line.strip() for file in files for line in file.read_text().splitlines()]
    assert set(texts) <= set(written) and len(texts) > 5


def test_a_preprocessor_that_drops_examples_is_refused(corpus):
    import seqio
    import tensorflow as tf

    task = seqio.TaskRegistry.get("tinyvox_text_de")
    name = "tinyvox_text_filtered"
    if name in seqio.TaskRegistry.names():
        seqio.TaskRegistry.remove(name)
    dropping = [
        *task.preprocessors,
        lambda dataset: dataset.filter(lambda example: tf.size(example["text"]) > 3),
    ]
    seqio.TaskRegistry.add_provider(name, task.replace(name=name, preprocessors=dropping))
    streams = {"text": StreamConfig(mixture=name, batch_size=2, text_tokens=40)}
    for how in (CACHED, INDEXED):
        with pytest.raises(UserError, match="tinyvox_text_filtered.*drops"):
            take(corpus, streams, 1, **how)


def test_an_error_while_reading_reaches_the_consumer(corpus):
    import seqio

    from maestro_jax.data.loader import StreamLoader

    task = seqio.TaskRegistry.get("tinyvox_text_de")
    name = "tinyvox_text_broken"
    if name in seqio.TaskRegistry.names():
        seqio.TaskRegistry.remove(name)

    def unknown_language(dataset):
        return dataset.map(lambda example: {**example, "language": "tlh"})

    seqio.TaskRegistry.add_provider(
        name, task.replace(name=name, preprocessors=[unknown_language, *task.preprocessors])
    )
    streams = {"text": StreamConfig(mixture=name, batch_size=2, text_tokens=40)}
    with pytest.raises(UserError, match="tinyvox_text_broken.*does not know the language"):
        take(corpus, streams, 1)
    with StreamLoader(streams, seed=0, data_dir=corpus.root, cache_bytes=0) as loader:
        for _ in range(2):
            with pytest.raises(UserError, match="does not know the language"):
                next(loader)


def test_close_is_quick_and_final(corpus):
    from maestro_jax.data.loader import StreamLoader

    for how in (CACHED, INDEXED):
        loader = StreamLoader(FEW, seed=0, data_dir=corpus.root, **how)
        next(loader)
        begin = time.monotonic()
        loader.close()
        loader.close()
        assert time.monotonic() - begin < 5
        with pytest.raises(ValueError, match="closed"):
            next(loader)


@pytest.mark.parametrize(
    "stream,changes,arguments,message",
    [
        ("text", {"mixture": "tinyvox_txt"}, {}, "unknown task.*Did you mean.*tinyvox_text"),
        ("text", {"mixture": "tinyvox_mt"}, {}, "is for stream 'mt'"),
        ("text", {}, {"split": "test"}, "no split 'test'|has a split 'test'"),
        ("text", {}, {"process_count": 3}, "multiple of 3"),
        ("paired", {"audio_samples": 0}, {}, "audio_samples > 0"),
    ],
)
def test_useful_messages(corpus, stream, changes, arguments, message):
    import dataclasses

    streams = {stream: dataclasses.replace(STREAMS[stream], **changes)}
    with pytest.raises(UserError, match=message):
        take(corpus, streams, 1, **arguments)


def test_data_that_are_not_prepared(corpus, tmp_path):
    from maestro_jax.data.loader import StreamLoader

    for stream in ("text", "speech"):
        with pytest.raises(UserError, match="run `maestro prepare tinyvox`"):
            StreamLoader({stream: STREAMS[stream]}, seed=0, data_dir=tmp_path)


@pytest.mark.parametrize("cache_bytes", [1 << 30, 0])
@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "missing"])
def test_a_damaged_shard_is_named_in_one_line(corpus, tmp_path, damage, cache_bytes):
    shutil.copytree(corpus.root, tmp_path / "data")
    [shard] = (tmp_path / "data").rglob("*paired_de_train.array_record*")
    content = bytearray(shard.read_bytes())
    if damage == "flipped":
        content[len(content) // 2] ^= 4
        content[100] ^= 4
    if damage == "missing":
        shard.unlink()
    else:
        shard.write_bytes({"cut": content[: len(content) // 2], "empty": b""}.get(damage, content))
    streams = {"paired": dataclasses.replace(STREAMS["paired"], mixture="tinyvox_paired_de")}
    with pytest.raises(UserError) as caught:
        take(corpus, streams, 20, data_dir=tmp_path / "data", cache_bytes=cache_bytes)
    message = str(caught.value)
    assert str(shard) in message and "run `maestro prepare tinyvox` with --overwrite" in message
    assert "\n" not in message and len(message) < 260 + len(str(shard))
    assert "node" not in message and caught.value.__context__ is None

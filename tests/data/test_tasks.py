"""Tasks through plain seqio, and the list of tasks."""

import importlib

import numpy as np
import pytest

from maestro_jax.batches import STREAM_FEATURES, StreamConfig
from maestro_jax.errors import UserError


@pytest.fixture
def scope(corpus):
    from maestro_jax.data.data_dir import data_scope

    with data_scope(corpus.root):
        yield corpus


def test_records_by_index(scope):
    import seqio

    source = seqio.TaskRegistry.get("tinyvox_paired_sl").source
    assert source.num_input_examples("train") == 7
    for index in (6, 0, 3):
        record = source.record("train", index)
        expected = scope.records["paired_sl_train"][index]
        np.testing.assert_array_equal(record["audio"], expected["audio"])
        assert record["text"].decode() == expected["text"]
    with pytest.raises(UserError, match="no split 'dev'"):
        source.record("dev", 0)


def test_parts_of_a_task(scope):
    """Its first examples and the rest: of training alone, and the first contain the fewer first."""
    from maestro_jax.data.task_readers import open_split
    from maestro_jax.data.task_registry import get_task_or_mixture

    whole = [record["id"] for record in scope.records["paired_sl_train"]]
    for name, expected in (("first3", whole[:3]), ("first5", whole[:5]), ("after3", whole[3:])):
        task = get_task_or_mixture(f"tinyvox_paired_sl:{name}")
        read = task.get_dataset(split="train", shuffle=False).as_numpy_iterator()
        assert [example["id"].decode() for example in read] == expected
        split = open_split(task, "train")
        assert len(split) == len(expected) == task.num_input_examples("train")
        lengths = [len(record["audio"]) for record in scope.records["paired_sl_train"]]
        kept = slice(3, None) if name == "after3" else slice(len(expected))
        assert split.lengths()[:, 0].tolist() == lengths[kept]
        assert task.num_input_examples("test") == 2
        assert (task.stream, task.languages) == ("paired", ("sl",))
        assert 0 < task.source.open_split("train").num_bytes
    for name in ("tinyvox_paired:first3", "tinyvox_paired_sl:first3:after2"):
        with pytest.raises(UserError, match=r"part of|no whole split 'train'"):
            get_task_or_mixture(name)


def test_the_audio_of_transcribed_speech_is_speech(scope):
    from maestro_jax.data.loader import StreamLoader
    from maestro_jax.data.task_registry import get_task_or_mixture

    whole = scope.records["paired_sl_train"]
    task = get_task_or_mixture("tinyvox_paired_sl:first3:audio")
    assert (task.stream, task.languages) == ("speech", ("sl",))
    assert set(task.output_features) == {"audio", "language"}
    read = list(task.get_dataset(split="train", shuffle=False).as_numpy_iterator())
    assert [example["audio"].tolist() for example in read] == [
        record["audio"].tolist() for record in whole[:3]
    ]
    name = "tinyvox_paired_sl:first3:audio"
    streams = {"speech": StreamConfig(mixture=name, batch_size=3, audio_samples=450)}
    with StreamLoader(streams, seed=0, data_dir=scope.root) as loader:
        batch = next(loader)["speech"]
    assert "text" not in batch
    lengths = [min(450, len(record["audio"])) for record in whole[:3]]
    assert sorted(batch["audio_length"].tolist()) == sorted(lengths)
    for name in ("tinyvox_paired:audio", "tinyvox_text_sl:audio"):
        with pytest.raises(UserError, match="no task with audio"):
            get_task_or_mixture(name)


def test_plain_seqio(scope):
    import seqio

    task = seqio.get_mixture_or_task("tinyvox_paired_de")
    ids = [
        example["id"].decode()
        for example in task.get_dataset(split="train", shuffle=False).as_numpy_iterator()
    ]
    assert ids == [record["id"] for record in scope.records["paired_de_train"]]
    orders = [
        [
            example["id"].decode()
            for example in task.get_dataset(shuffle=True, seed=seed).as_numpy_iterator()
        ]
        for seed in (1, 1, 2)
    ]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == sorted(orders[2]) == sorted(ids)
    shards = [
        example["id"].decode()
        for index in range(3)
        for example in task.get_dataset(
            shuffle=False, shard_info=seqio.ShardInfo(index, 3)
        ).as_numpy_iterator()
    ]
    assert sorted(shards) == sorted(ids)


def test_a_mixture_through_seqio(scope):
    import seqio

    dataset = seqio.get_dataset(
        "tinyvox_paired",
        {"audio": 450, "text": 40, "language": None},
        seqio.PassThroughFeatureConverter(),
        num_epochs=1,
        shuffle=True,
        seed=1,
    )
    examples = list(dataset.as_numpy_iterator())
    assert 7 < len(examples) <= 20
    for example in examples:
        assert len(example["audio"]) <= 450 and example["language"] in (b"de", b"sl")


def test_a_missing_vocabulary_names_the_remedy(tmp_path, corpus):
    import shutil

    from maestro_jax.data.loader import StreamLoader

    shutil.copytree(corpus.root / "tinyvox", tmp_path / "tinyvox")
    streams = {"text": StreamConfig(mixture="tinyvox_text", batch_size=2, text_tokens=40)}
    with pytest.raises(UserError, match="no vocabulary .*maestro prepare tinyvox"):
        StreamLoader(streams, seed=0, data_dir=tmp_path)


def test_list_of_tasks(corpus, tmp_path):
    import shutil

    from maestro_jax.data.task_registry import list_tasks

    rows = {row.name: row for row in list_tasks(corpus.root)}
    mixture, task = rows["tinyvox_paired"], rows["tinyvox_mt_sl"]
    assert (mixture.kind, mixture.stream, mixture.languages) == ("mixture", "paired", ("de", "sl"))
    assert mixture.examples == {"train": 20, "validation": 8, "test": 6}
    assert (task.kind, task.stream, task.languages) == ("task", "mt", ("sl",))
    assert task.examples == {"train": 4}
    assert mixture.ready and task.ready
    rows = {row.name: row for row in list_tasks(tmp_path)}
    assert not rows["tinyvox_paired"].ready
    assert rows["tinyvox_paired"].examples is None
    assert rows["tinyvox_paired"].missing == ("maestro prepare tinyvox",)
    # Prepared data are counted, whether or not there is a vocabulary.
    shutil.copytree(corpus.root / "tinyvox", tmp_path / "tinyvox")
    rows = {row.name: row for row in list_tasks(tmp_path)}
    assert not rows["tinyvox_paired"].ready and rows["tinyvox_paired"].missing
    assert rows["tinyvox_paired"].examples == mixture.examples
    assert rows["minivox_small_paired"].stream == "paired"


def test_shipped_names_and_reload(tmp_path):
    import seqio

    import maestro_jax.tasks.minivox_tasks as minivox_tasks
    import maestro_jax.tasks.mixtures as mixtures
    from maestro_jax.data.task_registry import get_task_or_mixture

    importlib.reload(minivox_tasks)
    importlib.reload(mixtures)
    for config in ("tiny", "small", "full"):
        for stream in STREAM_FEATURES:
            mixture = get_task_or_mixture(f"minivox_{config}_{stream}")
            for task in mixture.tasks:
                assert task.stream == stream
                assert task.name == f"minivox_{config}_{stream}_{task.languages[0]}"
                assert ("validation" in task.splits) == (stream in ("paired", "st"))
                assert not (stream in ("mt", "st") and task.languages == ("en",))
    assert "minivox_full_st_sl" in seqio.TaskRegistry.names()
    with pytest.raises(UserError, match="Did you mean 'minivox_small_paired_de'"):
        get_task_or_mixture("minivox_smal_paired_de")


def test_data_that_are_not_prepared_name_the_command(tmp_path):
    from maestro_jax.data.data_dir import data_scope
    from maestro_jax.data.task_registry import get_task_or_mixture

    with data_scope(tmp_path):
        for name in ("minivox_small_speech_de", "minivox_small_paired_de"):
            with pytest.raises(UserError, match="maestro prepare minivox --config small"):
                get_task_or_mixture(name).get_dataset(split="train")


@pytest.mark.parametrize("temperature,maximum", [(1.0, None), (3.0, None), (2.0, 10)])
def test_rates_are_those_of_seqio(scope, temperature, maximum):
    import seqio

    from maestro_jax.data.task_registry import examples_rate

    for name in ("tinyvox_paired_de", "tinyvox_paired_sl"):
        task = seqio.TaskRegistry.get(name)
        expected = seqio.mixing_rate_num_examples(task, maximum=maximum, temperature=temperature)
        assert examples_rate(task, temperature, maximum) == pytest.approx(expected)


def test_a_mixture_of_an_unknown_task_names_near_misses(corpus):
    from maestro_jax.data.task_registry import add_language_mixture

    with pytest.raises(UserError, match="'tinyvox_text_d'.*import.*mean 'tinyvox_text_de'"):
        add_language_mixture("broken", ["tinyvox_text_de", "tinyvox_text_d"])

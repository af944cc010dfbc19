"""From records to a trained model by batches of several shapes, stopped and taken up again."""

from __future__ import annotations

import dataclasses
import json
import logging

import numpy as np
import pytest
from etils import epath

from maestro_jax.batches import Buckets, StreamConfig
from maestro_jax.training.batch_feed import TaskBatches
from maestro_jax.training.trainer import train

TEXTS = ["ab", "abcd ef", "abc", "ba", "abcdefghij", "bcd", "a b c d e f", "fed", "cab", "bead"]
PLAIN = StreamConfig(mixture="bucketed_lines", batch_size=8, text_tokens=12)
STREAM = dataclasses.replace(PLAIN, buckets=Buckets(batch_sizes=(16,), text_tokens=(5,)))


class Stop(Exception):
    """The power went."""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A data root with the vocabulary of a task whose records are in memory."""
    import seqio
    import tensorflow as tf

    from maestro_jax.data.indexed_source import IndexedSource, IndexedSplit
    from maestro_jax.data.stream_tasks import (
        PreparedVocabulary,
        add_stream_task,
        stream_preprocessors,
    )
    from maestro_jax.text.vocabularies import BYTE_MODEL

    class Lines(IndexedSplit):
        num_bytes = 1000
        element_spec = {name: tf.TensorSpec((), tf.string) for name in ("text", "language")}

        def __len__(self):
            return len(TEXTS)

        def __getitem__(self, index):
            return {"text": TEXTS[index].encode(), "language": b"en"}

    class Source(IndexedSource):
        def open_split(self, split):
            return Lines()

        def is_ready(self):
            return True

    root = tmp_path_factory.mktemp("data")
    (root / "vocabularies").mkdir()
    (root / "vocabularies" / "bytes.model").write_bytes(BYTE_MODEL)
    add_stream_task(
        "bucketed_lines",
        stream="text",
        source=Source(("train",)),
        languages=("en",),
        vocabulary=PreparedVocabulary("vocabularies/bytes.model", "?"),
        preprocessors=stream_preprocessors("text"),
    )
    yield root
    seqio.TaskRegistry.remove("bucketed_lines")


def lines_of(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.extended
def test_an_interruption_changes_nothing(toy, root, tmp_path, caplog):
    run = toy.run(
        model=toy.Model(vocab_size=300),
        streams={"text": STREAM},
        steps=12,
        log_every=4,
        checkpoint_every=5,
    )
    with caplog.at_level(logging.INFO):
        expected = train(run, tmp_path / "whole", root)
    told = [line for line in caplog.messages if "compiling the training step" in line]
    assert sorted(line.split(": ")[1] for line in told) == ["text 16 x 5", "text 8 x 12"]

    def until_8(start):
        (tmp_path / "stopped").mkdir(exist_ok=True)
        source = TaskBatches(run, run.partitioning.mesh(), epath.Path(tmp_path / "stopped"), root)
        opened = source(start)
        source.save()
        for step, batch in enumerate(opened, start):
            if step >= 8:
                raise Stop
            yield batch

    with pytest.raises(Stop):
        train(run, tmp_path / "stopped", batches=until_8)
    assert [line["step"] for line in lines_of(tmp_path / "stopped")] == [4]
    state = train(run, tmp_path / "stopped", root)
    toy.assert_trees_equal(state, expected)

    plain = dataclasses.replace(run, streams={"text": PLAIN})
    train(plain, tmp_path / "plain", root)
    padding = {
        name: np.mean([line["text/token_padding"] for line in lines_of(tmp_path / name)])
        for name in ("whole", "plain")
    }
    # A text of n bytes is taken to have n + 1 tokens, so that those of less than 5 fit into 5.
    real = sum(map(len, TEXTS)) / len(TEXTS)
    assert padding["plain"] == pytest.approx(12 / real, rel=0.05)
    short = [len(text) for text in TEXTS if len(text) < 5]
    in_buckets = (len(short) * 5 + (len(TEXTS) - len(short)) * 12) / sum(map(len, TEXTS))
    assert padding["whole"] == pytest.approx(in_buckets, rel=0.25) and in_buckets < 1.7

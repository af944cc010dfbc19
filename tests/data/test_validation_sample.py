"""The sample that training validates on: of the right split, the same every time, not repeated."""

from __future__ import annotations

import collections
import types

import numpy as np
import pytest

from maestro_jax.batches import StreamConfig
from maestro_jax.training.batch_feed import fixed_sample, quotas
from maestro_jax.training.diagnostics import DiagnosticsConfig
from maestro_jax.training.partitioning import Partitioning


def drawn(corpus, examples=256, split="validation", mixture="tinyvox_paired", batch_size=16):
    stream = StreamConfig(mixture=mixture, batch_size=batch_size, audio_samples=400, text_tokens=40)
    partitioning = Partitioning(mesh_shape=(-1, 1, 1))
    run = types.SimpleNamespace(
        streams={"paired": stream},
        used_streams=("paired",),
        partitioning=partitioning,
        diagnostics=DiagnosticsConfig(),
        model=None,
        languages=(),
        init_from=None,
    )
    return fixed_sample(
        run,
        partitioning.mesh(),
        corpus.root / "no_model_yet",
        corpus.root,
        stream="paired",
        split=split,
        examples=examples,
    )


def texts(sample):
    return [
        sample.vocabulary.decode(row[:length].tolist())
        for batch in sample.batches
        for row, length in zip(batch["text"], batch["text_length"], strict=True)
    ]


def test_a_small_split_is_drawn_once(corpus):
    sample = drawn(corpus)
    records = [
        record["text"]
        for language in ("de", "sl")
        for record in corpus.records[f"paired_{language}_validation"]
    ]
    # Eight devices share as many rows as the split has examples.
    assert [len(batch["text"]) for batch in sample.batches] == [8]
    assert collections.Counter(texts(sample)) == collections.Counter(records)


def test_the_sample_is_fixed(corpus):
    first, second = drawn(corpus), drawn(corpus)
    for a, b in zip(first.batches, second.batches, strict=True):
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


def test_a_mixture_without_the_split_is_not_validated(corpus, caplog):
    assert drawn(corpus, split="dev") is None
    assert "no validation of the stream 'paired'" in caplog.text


def test_rows_divide_over_the_devices(corpus):
    sample = drawn(corpus, examples=3)
    assert [len(batch["text"]) for batch in sample.batches] == [8]
    assert sorted(np.flatnonzero(sample.batches[0]["audio_length"])) == [0, 1, 2]
    sample = drawn(corpus, examples=20, split="train", batch_size=8)
    assert [len(batch["text"]) for batch in sample.batches] == [8, 8, 8]
    assert sum(int((batch["text_length"] > 0).sum()) for batch in sample.batches) == 20


@pytest.mark.parametrize(
    ("total", "rates", "sizes", "expected"),
    [
        (8, (5, 3), (5, 3), [5, 3]),
        (100, (1, 1), (5, 3), [5, 3]),
        (4, (3, 1), (100, 100), [3, 1]),
        (10, (1, 1, 8), (100, 2, 100), [1, 1, 8]),
        (10, (1, 1), (2, None), [2, 8]),
        (5, (0, 1), (9, 9), [0, 5]),
    ],
)
def test_examples_are_divided_by_rates(total, rates, sizes, expected):
    assert quotas(total, rates, sizes) == expected

"""Which examples of a task are read, and when."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from maestro_jax.batches import StreamConfig
from maestro_jax.data import loader as loader_module
from maestro_jax.data import task_readers
from maestro_jax.data.loader import StreamLoader
from maestro_jax.data.task_readers import RememberingReader, first_uses


@pytest.mark.parametrize("seed", range(5))
def test_each_index_comes_once_in_the_order_of_first_use(seed: int) -> None:
    rng = np.random.default_rng(seed)
    count = 40
    epochs = itertools.chain.from_iterable(rng.permutation(count).tolist() for _ in range(10**6))
    epochs = itertools.islice(epochs, 17, None)  # As of a run that is continued.
    used, copies = itertools.tee(epochs)
    expected: list[int] = []
    for key in itertools.islice(copies, 2 * count):
        if key not in expected:
            expected.append(key)
    assert list(first_uses(used, count)) == expected
    assert sorted(expected) == list(range(count))


def test_indices_that_are_never_used_end_the_order() -> None:
    """Not the search for them: a process may have rows in which an example never is."""
    assert list(first_uses(itertools.cycle([7, 2, 5]), 9)) == [7, 2, 5, 0, 1, 3, 4, 6, 8]


def test_a_first_batch_reads_little_more_than_itself(corpus, monkeypatch) -> None:
    kept: list[RememberingReader] = []
    initialise = RememberingReader.__init__

    def remember(self: RememberingReader, *arguments) -> None:
        initialise(self, *arguments)
        kept.append(self)

    monkeypatch.setattr(RememberingReader, "__init__", remember)
    monkeypatch.setattr(task_readers, "_CHUNK", 1)
    monkeypatch.setattr(loader_module, "_PREFETCHED_BATCHES", 1)
    stream = StreamConfig(mixture="tinyvox_text", batch_size=2, text_tokens=40)
    with StreamLoader({"text": stream}, seed=0, data_dir=corpus.root) as loader:
        next(loader)
        # It, one that waits, and the one that is being made, of 23 examples.
        assert 2 <= sum(len(reader._examples) for reader in kept) <= 6
        # All are there when all have been used.
        for _ in range(60):
            next(loader)
        assert sum(len(reader._examples) for reader in kept) == 23

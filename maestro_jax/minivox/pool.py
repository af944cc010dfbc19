"""Examples made by several processes, in order."""

from __future__ import annotations

from collections.abc import Iterator

from maestro_jax.data.processes import Processes
from maestro_jax.minivox.config import CorpusConfig
from maestro_jax.minivox.corpus import Example, make_example

_CHUNK = 16


class Pool(Processes):
    """Processes that make examples.

    Example:
        >>> with Pool(workers=2) as pool:
        ...     for example in pool.examples(SMALL, "paired_de_train", 1500):
        ...         print(example.text)
    """

    def examples(self, config: CorpusConfig, split: str, count: int) -> Iterator[Example]:
        """Makes the first `count` examples of a split.

        Raises:
            UserError: espeak-ng or another package is missing.
            RuntimeError: A process died.
        """
        chunks = (
            (config, split, start, min(start + _CHUNK, count)) for start in range(0, count, _CHUNK)
        )
        for examples in self.results(make_examples, chunks):
            yield from examples


def make_examples(config: CorpusConfig, split: str, start: int, stop: int) -> list[Example]:
    """The examples of a split from one number up to another."""
    return [make_example(config, split, index) for index in range(start, stop)]

"""Which sentences a vocabulary is trained on: a bounded sample of the texts of seqio tasks.

Languages are drawn with a temperature, as a multilingual mixture draws them, so that the pieces of
a small language are not crowded out. The sentences of a task are taken at even distances through
the whole of it: the sample is the same in every run, and reading it needs no memory but its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

from maestro_jax.batches import Mixture
from maestro_jax.data.indexed_source import IndexedSource
from maestro_jax.data.stream_tasks import (
    UNDETERMINED,
    StreamTask,
    language_of,
    stream_of,
    target_language_of,
    tokenize,
)
from maestro_jax.data.task_registry import check_prepared, get_task_or_mixture, tasks_of
from maestro_jax.errors import UserError

MAX_REPEATS = 10
"""How often a sentence may be taken, for a language that has fewer than its share."""

_TOKENIZERS = (
    tokenize,
    seqio.preprocessors.tokenize,
    seqio.preprocessors.tokenize_and_append_eos,
)
_SPLIT = "train"
_CHUNK = 256


@dataclasses.dataclass(frozen=True)
class TextSource:
    """The texts, or the translations, of one task.

    Attributes:
        task: The task.
        field: `text` or `translation`.
        language: ISO 639-1 code; codes joined by `+` where a task mixes languages.
        sentences: Number of its sentences for training.
    """

    task: seqio.Task
    field: str
    language: str
    sentences: int

    def read(self, take: int) -> Iterator[str]:
        """Yields sentences at even distances, in their order; some of them empty.

        Args:
            take: Number of sentences; above `sentences`, they are repeated about equally often.
        """
        # As integers: the product outgrows the precision of floats.
        positions = np.arange(take, dtype=np.int64) * self.sentences // max(take, 1)
        indices, repeats = np.unique(positions, return_counts=True)
        for text, times in zip(_strings(self.task, self.field, indices), repeats, strict=True):
            for _ in range(int(times)):
                yield text


def text_sources(names: Sequence[str | Mixture]) -> list[TextSource]:
    """Finds the texts and translations that tasks and mixtures train on, each once.

    Tasks of several streams often read the same texts; these are counted for the first of them.

    Args:
        names: Tasks and mixtures.

    Raises:
        UserError: One is unknown, not prepared, or has no text to train on.
    """
    sources: dict[tuple[str, ...], TextSource] = {}
    for name in names:
        texts = 0
        provider = get_task_or_mixture(name)
        check_prepared(provider)
        for task in tasks_of(provider):
            fields = [f for f in ("text", "translation") if f in task.output_features]
            if not fields or _SPLIT not in task.splits:
                continue
            texts += 1
            for field in fields:
                called = [getattr(step, "__qualname__", repr(step)) for step in task.preprocessors]
                # The language of translations changes no text.
                steps = [step for step in called if not step.startswith("add_target_language.")]
                # Two functions may have one name; sources of other kinds are only like themselves.
                indexed = isinstance(task.source, IndexedSource)
                source = repr(task.source) if indexed else f"{id(task.source)}"
                key = (source, field, *steps)
                if key not in sources:
                    sources[key] = _text_source(task, field)
        if not texts:
            raise UserError(
                f"{str(name)!r} has no text to train a vocabulary on (stream "
                f"{stream_of(provider) or 'unknown'!r}); name tasks with texts."
            )
    return list(sources.values())


def shares(sizes: Sequence[int], total: int, temperature: float) -> list[int]:
    """Computes the number of sentences to take of each language.

    In proportion to `size ** (1 / temperature)`. No sentence is taken more than `MAX_REPEATS`
    times; what a language cannot give for that reason is shared by the others.

    Args:
        sizes: Number of sentences of each language.
        total: Number of sentences to take in all; no more than there are, repeats counted.
        temperature: 1 follows the sizes, infinity takes all equally often.

    Returns:
        Numbers that add up to `total`, or to `MAX_REPEATS` times all sizes if that is less.
    """
    limits = np.asarray(sizes, np.int64) * MAX_REPEATS
    total = min(total, int(limits.sum()))
    weights = np.where(limits > 0, np.asarray(sizes, np.float64) ** (1.0 / temperature), 0.0)
    ideal = np.zeros(len(limits))
    is_open = limits > 0
    # Who has too few gives all, and the rest is shared anew among the others.
    while is_open.any():
        left = total - limits[~is_open].sum()
        ideal[is_open] = left * weights[is_open] / weights[is_open].sum()
        exceeds = is_open & (ideal > limits)
        if not exceeds.any():
            break
        ideal[exceeds] = limits[exceeds]
        is_open &= ~exceeds
    taken = np.minimum(np.floor(ideal).astype(np.int64), limits)
    # What rounding has left goes to those that lost most by it.
    for place in np.argsort(taken - ideal, kind="stable"):
        if taken.sum() == total:
            break
        taken[place] += taken[place] < limits[place]
    return taken.tolist()


@dataclasses.dataclass(frozen=True)
class Sample:
    """What is read of each language.

    Attributes:
        language: ISO 639-1 code.
        sources: Sources, each with the number of sentences to take.
        sentences: Number of sentences available.
        taken: Number of sentences taken.
    """

    language: str
    sources: tuple[tuple[TextSource, int], ...]
    sentences: int
    taken: int


def plan(sources: Sequence[TextSource], sentences: int, temperature: float) -> list[Sample]:
    """Shares a sample among languages, and the part of each among its sources by their sizes.

    Args:
        sources: Result of `text_sources`.
        sentences: The size of the sample; everything, at most.
        temperature: See `shares`.

    Returns:
        One entry a language, in the order of the sources.
    """
    by_language: dict[str, list[TextSource]] = {}
    for source in sources:
        by_language.setdefault(source.language, []).append(source)
    sizes = [sum(source.sentences for source in own) for own in by_language.values()]
    total = min(sentences, sum(sizes))
    samples = []
    for (language, own), size, taken in zip(
        by_language.items(), sizes, shares(sizes, total, temperature), strict=True
    ):
        parts = shares([source.sentences for source in own], taken, 1.0)
        samples.append(Sample(language, tuple(zip(own, parts, strict=True)), size, taken))
    return samples


def read(samples: Sequence[Sample], seen: Callable[[str, str], None]) -> Iterator[str]:
    """Yields the sentences of a sample, language by language.

    Args:
        samples: Result of `plan`.
        seen: Function that is called with language and sentence, before each.
    """
    for sample in samples:
        for source, take in sample.sources:
            for text in source.read(take):
                seen(sample.language, text)
                yield text


def _text_source(task: seqio.Task, field: str) -> TextSource:
    examples = task.num_input_examples(_SPLIT)
    if not examples:
        raise UserError(
            f"the size of task {task.name!r} is unknown, so its texts cannot be sampled; prepare "
            "it as a data set with random access."
        )
    if field == "text" and isinstance(task, StreamTask):
        codes = task.languages
    elif field == "text":
        dataset = _until_tokens(task, _records(task, np.zeros(1, np.int64)))
        codes = (language_of(task, next(dataset.as_numpy_iterator())) or UNDETERMINED,)
    elif isinstance(task, StreamTask) and task.target_language:
        codes = (task.target_language,)
    else:
        dataset = _until_tokens(task, _records(task, np.zeros(1, np.int64)))
        codes = (target_language_of(task, next(dataset.as_numpy_iterator())) or UNDETERMINED,)
    return TextSource(task, field, "+".join(codes), examples)


def _records(task: seqio.Task, indices: np.ndarray) -> tf.data.Dataset:
    """Returns the records of the training split with these indices, which rise."""
    if isinstance(task.source, IndexedSource):
        opened = task.source.open_texts(_SPLIT)
        return opened.dataset(tf.data.Dataset.from_tensor_slices(indices))
    sought = tf.constant(indices)
    dataset = task.source.get_dataset(_SPLIT, shuffle=False).enumerate()
    last = int(indices[-1]) + 1 if len(indices) else 0
    return (
        dataset.take(last)
        .filter(lambda number, _: sought[tf.searchsorted(sought, number[None])[0]] == number)
        .map(lambda _, record: record)
    )


def _until_tokens(task: seqio.Task, dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Runs the steps of a task that come before its texts become tokens.

    There may be no vocabulary yet, and what these steps make of a text is what it will encode.
    """
    for step in task.preprocessors:
        if step in _TOKENIZERS:
            break
        dataset = seqio.utils.add_kwargs_to_transform(
            step, sequence_length=None, output_features=task.output_features
        )(dataset)
    return dataset


def _strings(task: seqio.Task, field: str, indices: np.ndarray) -> Iterator[str]:
    """Yields a text of each of some examples."""

    def text(example: dict[str, Any]) -> tf.Tensor:
        value = example.get(field)
        if value is None or value.dtype != tf.string:
            raise UserError(
                f"task {task.name!r} has no string {field!r} before it is tokenised; let "
                "seqio.preprocessors.tokenize be the step that makes tokens of it."
            )
        return value

    dataset = _until_tokens(task, _records(task, indices)).map(text).batch(_CHUNK)
    for chunk in dataset.prefetch(1).as_numpy_iterator():
        for content in chunk:
            yield content.decode("utf-8")

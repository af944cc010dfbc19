"""Readers of one seqio task: the preprocessed example at a given ordinal.

Three kinds, chosen by `open_reader`: small indexed tasks are preprocessed once and kept in memory,
large ones are read by index as they are needed, and tasks without random access are read from the
beginning, skipping on resume.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import seqio
import tensorflow as tf

from maestro_jax.data.indexed_source import IndexedSource, IndexedSplit, records_dataset
from maestro_jax.errors import UserError

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class ReaderSpec:
    """What to read from a task.

    Attributes:
        task: The task.
        split: Its split.
        sequences: Features with a length, such as audio.
        identities: Scalar features.
        sequence_length: What preprocessors are told about the padded lengths.
        seed: Of preprocessors that draw random numbers, and of the shuffle of sequential tasks.
    """

    task: seqio.Task
    split: str
    sequences: tuple[str, ...]
    identities: tuple[str, ...]
    sequence_length: Mapping[str, int]
    seed: int


class TaskReader(Protocol):
    """Gives the examples of a task in rising order of their ordinals."""

    def example(self, ordinal: int) -> Mapping[str, np.ndarray]:
        """The features of the example: arrays `[length]` and scalars, read-only."""
        ...


def open_split(task: seqio.Task, split: str) -> IndexedSplit | None:
    """Opens a split of a task for random access; None when its source has none.

    Raises:
        UserError: The task has no such split, the data are not prepared, or the split is empty.
    """
    if split not in task.splits:
        raise UserError(f"task {task.name!r} has no split {split!r}; it has {list(task.splits)}.")
    if not isinstance(task.source, IndexedSource):
        return None
    opened = task.source.open_split(split)
    if not len(opened):
        raise UserError(f"split {split!r} of task {task.name!r} is empty; leave the task out.")
    return opened


def preprocess(spec: ReaderSpec, split: IndexedSplit, indices: tf.data.Dataset) -> tf.data.Dataset:
    """Reads records by index and runs the task's preprocessors over them.

    Args:
        spec: What to read.
        split: The opened split.
        indices: A dataset of indices whose cardinality is known or infinite.

    Returns:
        A dataset with one element an index: the features that ``spec`` names.

    Raises:
        UserError: The preprocessors are not one-to-one, or miss a feature.
    """
    task = spec.task
    dataset = records_dataset(split, indices)
    dataset = task.preprocess_precache(dataset, seed=spec.seed)
    dataset = task.preprocess_postcache(
        dataset, sequence_length=spec.sequence_length, seed=spec.seed
    )
    if int(dataset.cardinality()) != int(indices.cardinality()):
        raise UserError(
            f"a preprocessor of task {task.name!r} drops or adds examples, which hides their order; "
            "filter when the data are prepared, or empty the features of unwanted examples instead."
        )
    return _select(spec, dataset)


def _select(spec: ReaderSpec, dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Keeps the features that are wanted, checked for type and rank."""
    wanted: dict[str, tuple[tf.DType, int]] = {name: (tf.int32, 1) for name in spec.sequences}
    if "audio" in wanted:
        wanted["audio"] = (tf.int16, 1)
    wanted |= {name: (tf.int32, 0) for name in spec.identities}
    for name, (dtype, rank) in wanted.items():
        found = dataset.element_spec.get(name)
        if found is None:
            raise UserError(
                f"task {spec.task.name!r} gives no feature {name!r}; it gives "
                f"{', '.join(sorted(dataset.element_spec))}."
            )
        if found.dtype != dtype or found.shape.rank != rank:
            raise UserError(
                f"feature {name!r} of task {spec.task.name!r} is {found.dtype.name} of rank "
                f"{found.shape.rank}; make it {dtype.name} of rank {rank}."
            )
    return dataset.map(lambda example: {name: example[name] for name in wanted})


def _examples(spec: ReaderSpec, dataset: tf.data.Dataset) -> Iterator[Mapping[str, Any]]:
    """Iterates with little threading, and names the task when reading fails."""
    options = tf.data.Options()
    # Training shares the cores; the readers of all tasks together must not crowd it out.
    options.threading.private_threadpool_size = 2
    options.threading.max_intra_op_parallelism = 1
    try:
        yield from dataset.with_options(options).as_numpy_iterator()
    except tf.errors.OpError as error:
        reason = " ".join(str(error.message).split())[:400]
        raise UserError(f"reading task {spec.task.name!r} failed: {reason}") from error


class CachedReader:
    """Holds all preprocessed examples of a task in memory.

    Preprocessors run once; one that draws random numbers draws the same ones every epoch.

    Args:
        spec: What to read.
        split: The opened split.
        index: Ordinal to index of example.
    """

    def __init__(
        self, spec: ReaderSpec, split: IndexedSplit, index: Callable[[int], int]
    ) -> None:
        self._index = index
        columns: dict[str, list[Any]] = {name: [] for name in spec.sequences + spec.identities}
        for example in _examples(spec, preprocess(spec, split, tf.data.Dataset.range(len(split)))):
            for name, column in columns.items():
                column.append(example[name])
        self._offsets: dict[str, np.ndarray] = {}
        self._values: dict[str, np.ndarray] = {}
        for name in spec.sequences:
            lengths = [len(values) for values in columns[name]]
            self._offsets[name] = np.concatenate([[0], np.cumsum(lengths)])
            self._values[name] = np.concatenate(columns.pop(name))
        self._scalars = {name: np.asarray(columns[name]) for name in spec.identities}

    @property
    def num_bytes(self) -> int:
        """The memory that the examples take."""
        return sum(values.nbytes for values in self._values.values())

    def example(self, ordinal: int) -> Mapping[str, np.ndarray]:
        """See `TaskReader`; any order will do."""
        index = self._index(ordinal)
        found = {name: scalars[index] for name, scalars in self._scalars.items()}
        for name, offsets in self._offsets.items():
            found[name] = self._values[name][offsets[index] : offsets[index + 1]]
        return found


class IndexedReader:
    """Reads a task by index, ahead of the need.

    Args:
        spec: What to read.
        split: The opened split.
        ordinals: The ordinals that will be asked for, in order, for ever.
        index: Ordinal to index of example.
    """

    def __init__(
        self,
        spec: ReaderSpec,
        split: IndexedSplit,
        ordinals: Callable[[], Iterator[int]],
        index: Callable[[int], int],
    ) -> None:
        def indices() -> Iterator[int]:
            return (index(ordinal) for ordinal in ordinals())

        dataset = tf.data.Dataset.from_generator(
            indices, output_signature=tf.TensorSpec((), tf.int64)
        ).apply(tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY))
        self._examples = _examples(spec, preprocess(spec, split, dataset).prefetch(4))
        self._expected = ordinals()

    def example(self, ordinal: int) -> Mapping[str, np.ndarray]:
        """See `TaskReader`; only in the order that was announced."""
        expected = next(self._expected)
        if ordinal != expected:
            raise ValueError(f"expected a request for example {expected}, not {ordinal}")
        return next(self._examples)


class SequentialReader:
    """Reads a task without random access: from its beginning, over and over.

    Args:
        spec: What to read.
        first: The first ordinal that will be asked for; everything before is read and thrown away.
    """

    def __init__(self, spec: ReaderSpec, first: int) -> None:
        task = spec.task
        shuffle = task.shuffle_buffer_size is not None or task.source.performs_internal_shuffling
        try:
            dataset = task.get_dataset(
                sequence_length=spec.sequence_length,
                split=spec.split,
                shuffle=shuffle,
                seed=spec.seed,
                num_epochs=None,
                trim_output_features=False,
            )
        except ValueError as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"task {task.name!r} cannot be read: {error}") from error
        if first:
            _log.warning(
                "task %r has no random access: reading past its first %d examples to resume.",
                task.name,
                first,
            )
        else:
            _log.warning(
                "task %r has no random access: it is shuffled within a buffer only, and a resumed "
                "run reads it again from the beginning.",
                task.name,
            )
        self._name = task.name
        self._examples = _examples(spec, _select(spec, dataset).skip(first))
        self._next = first

    def example(self, ordinal: int) -> Mapping[str, np.ndarray]:
        """See `TaskReader`; examples in between are read and left out."""
        while True:
            example = next(self._examples, None)
            if example is None:
                raise UserError(f"task {self._name!r} has no examples; leave it out.")
            self._next += 1
            if self._next > ordinal:
                return example

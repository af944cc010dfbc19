"""Reads the preprocessed examples of one seqio task, one at a time.

Three kinds: indexed tasks are read as they are needed, of which small ones are kept in memory;
tasks without random access are read from the beginning, skipping on resume.
"""

from __future__ import annotations

import collections
import dataclasses
import logging
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import seqio
import tensorflow as tf

from maestro_jax.data.indexed_source import IndexedSource, IndexedSplit
from maestro_jax.errors import UserError
from maestro_jax.text.languages import UNKNOWN_LANGUAGE, LanguageTable

_log = logging.getLogger(__name__)

_CHUNK = 16  # Examples that leave TensorFlow together: one by one would take most of the time.
_ENDLESS = 1 << 62


@dataclasses.dataclass(frozen=True)
class ReaderSpec:
    """What to read from a task.

    Attributes:
        task: The task.
        split: Its split.
        sequences: Features with a length, such as audio.
        identities: Scalar features.
        sequence_length: Padded lengths, for preprocessors.
        seed: Seed of preprocessors that draw random numbers and of the shuffle of sequential
            tasks.
        languages: The ids of the run's languages.
    """

    task: seqio.Task
    split: str
    sequences: tuple[str, ...]
    identities: tuple[str, ...]
    sequence_length: Mapping[str, int]
    seed: int
    languages: LanguageTable


class TaskReader(Protocol):
    """Gives the examples of a task: by index, or by ordinal where there is no random access."""

    def example(self, key: int) -> Mapping[str, np.ndarray]:
        """Returns the features of an example: arrays `[length]` and scalars, read-only."""
        ...

    def close(self) -> None:
        """Releases what the reader holds."""
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


def preprocess(
    spec: ReaderSpec, split: IndexedSplit, count: int, index: Callable[[int], int] = int
) -> tf.data.Dataset:
    """Reads records by index and runs the task's preprocessors over them.

    Args:
        spec: What to read.
        split: The opened split.
        count: Number of examples to read.
        index: From ``0 ... count - 1`` to the index of a record; called in this order.

    Returns:
        A dataset of ``count`` examples: the features that ``spec`` names.

    Raises:
        UserError: The preprocessors are not one-to-one, or miss a feature.
    """
    task = spec.task
    dataset = split.dataset(tf.data.Dataset.range(count), index)
    dataset = task.preprocess_precache(dataset, seed=spec.seed)
    dataset = task.preprocess_postcache(
        dataset, sequence_length=spec.sequence_length, seed=spec.seed
    )
    if int(dataset.cardinality()) != count:
        raise UserError(
            f"a preprocessor of task {task.name!r} drops or adds examples, so that their order "
            "is lost; filter when the data are prepared, or empty the features of unwanted "
            "examples instead."
        )
    return _select(spec, dataset)


def _select(spec: ReaderSpec, dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Keeps the features that are wanted, checked for type and rank."""
    check_features(spec.task.name, dataset.element_spec, spec.sequences, spec.identities)
    names = (*spec.sequences, *(name for name in spec.identities if name in dataset.element_spec))
    return dataset.map(lambda example: {name: example[name] for name in names})


def check_features(
    task: str,
    element_spec: Mapping[str, tf.TensorSpec],
    sequences: Sequence[str],
    identities: Sequence[str],
) -> None:
    """Checks what a task gives: a float written into an integer array would be cut without a word.

    Args:
        task: Its name, for messages.
        element_spec: Types and shapes of its examples.
        sequences: Features with a length: audio int16 `[samples]`, tokens int32 `[tokens]`.
        identities: Languages: codes as strings, or ids as int32 scalars; a task may lack them.

    Raises:
        UserError: A feature is not there, or of another type or rank.
    """
    expected: dict[str, tuple[tf.DType, int]] = {name: (tf.int32, 1) for name in sequences}
    if "audio" in expected:
        expected["audio"] = (tf.int16, 1)
    for name in identities:
        if name in element_spec:
            is_code = element_spec[name].dtype == tf.string
            expected[name] = (tf.string if is_code else tf.int32, 0)
    for name, (dtype, rank) in expected.items():
        spec = element_spec.get(name)
        if spec is None:
            raise UserError(
                f"task {task!r} gives no feature {name!r}; it gives "
                f"{', '.join(sorted(element_spec))}."
            )
        if spec.dtype != dtype or spec.shape.rank != rank:
            raise UserError(
                f"feature {name!r} of task {task!r} is {spec.dtype.name} of rank "
                f"{spec.shape.rank}; make it {dtype.name} of rank {rank}."
            )


def _language_ids(
    values: np.ndarray, languages: LanguageTable, task: str, feature: str
) -> np.ndarray:
    """Returns the ids of languages.

    Args:
        values: `[examples]`: codes as bytes, or int32 ids, negative where the language is unknown.
        languages: The table of the run.
        task: Name of the task, for messages.
        feature: Name of the feature.

    Returns:
        int32 `[examples]`; `UNKNOWN_LANGUAGE` for empty codes.

    Raises:
        UserError: A code or an id is not in the table.
    """
    if values.dtype == object:
        try:
            ids = {
                code: languages.index(code.decode()) if code else UNKNOWN_LANGUAGE
                for code in set(values.tolist())
            }
        except UserError as error:
            raise UserError(f"feature {feature!r} of task {task!r}: {error}") from error
        return np.asarray([ids[code] for code in values], np.int32)
    if len(values) and values.max() >= len(languages):
        raise UserError(
            f"feature {feature!r} of task {task!r} is {values.max()}, but the run has "
            f"{len(languages)} languages; give the codes of languages as strings."
        )
    return values


def _read(
    spec: ReaderSpec, dataset: tf.data.Dataset, split: IndexedSplit | None = None
) -> Generator[_Chunk, None, None]:
    """Iterates over chunks of examples, and names the task or the file when reading fails."""
    options = tf.data.Options()
    # Training shares the cores; the readers of all tasks together must not crowd it out.
    options.threading.private_threadpool_size = 2
    options.threading.max_intra_op_parallelism = 1
    chunks = iter(dataset.ragged_batch(_CHUNK).with_options(options))
    try:
        for chunk in chunks:
            yield _Chunk.from_tensors(chunk, spec)
        return
    except tf.errors.OpError as error:
        if split is not None and split.failure is not None:
            failure = UserError(f"reading task {spec.task.name!r}: {split.failure}")
        else:
            reason = " ".join(str(error.message).split())[:400]
            failure = UserError(f"reading task {spec.task.name!r} failed: {reason}")
    finally:
        # Its threads may be about to call Python, and would hang a process that ends meanwhile. So
        # the error must not keep it alive either, as the one before would.
        del chunks
    raise failure


@dataclasses.dataclass(frozen=True)
class _Chunk:
    """Several examples side by side.

    Attributes:
        values: The sequences of all examples, one after the other, by feature.
        offsets: Begin of each example's sequence, and the end: int64 `[examples + 1]`.
        scalars: The scalar features `[examples]`.
    """

    values: dict[str, np.ndarray]
    offsets: Mapping[str, np.ndarray]
    scalars: Mapping[str, np.ndarray]

    @classmethod
    def from_tensors(cls, chunk: Mapping[str, Any], spec: ReaderSpec) -> _Chunk:
        """Unpacks what `tf.data.Dataset.ragged_batch` gives."""
        values, offsets = {}, {}
        for name in spec.sequences:
            column = chunk[name]
            if isinstance(column, tf.RaggedTensor):
                values[name], offsets[name] = column.values.numpy(), column.row_splits.numpy()
            else:  # All examples have the same, statically known length.
                rows, length = column.shape
                values[name], offsets[name] = column.numpy().ravel(), np.arange(rows + 1) * length
        examples = len(next(iter(offsets.values()))) - 1
        scalars = {
            name: _language_ids(chunk[name].numpy(), spec.languages, spec.task.name, name)
            if name in chunk
            else np.full(examples, UNKNOWN_LANGUAGE, np.int32)
            for name in spec.identities
        }
        return cls(values, offsets, scalars)

    def __len__(self) -> int:
        columns = {**self.scalars, **{name: at[1:] for name, at in self.offsets.items()}}
        return len(next(iter(columns.values())))

    def example(self, index: int) -> dict[str, np.ndarray]:
        """Returns the features of one example; views, not copies."""
        features = {name: column[index] for name, column in self.scalars.items()}
        for name, at in self.offsets.items():
            features[name] = self.values[name][at[index] : at[index + 1]]
        return features


class IndexedReader:
    """Reads a task by index, in the order that is announced.

    Args:
        spec: What to read.
        split: The opened split.
        indices: The indices that will be asked for, in order, without an end.
    """

    def __init__(self, spec: ReaderSpec, split: IndexedSplit, indices: Iterator[int]) -> None:
        # What TensorFlow has read, or is reading, and nobody has asked for.
        self._announced: collections.deque[int] = collections.deque()
        self._chunks = _read_in_order(spec, split, _ENDLESS, indices, self._announced)
        self._chunk: _Chunk | None = None
        self._row = 0

    def example(self, key: int) -> Mapping[str, np.ndarray]:
        """Returns an example.

        Args:
            key: Its index, in the order that was announced.

        Raises:
            UserError: The examples cannot be read.
        """
        if self._chunk is None or self._row == len(self._chunk):
            self._chunk, self._row = next(self._chunks), 0
        expected = self._announced.popleft()
        if key != expected:
            raise ValueError(f"expected a request for example {expected}, not {key}")
        self._row += 1
        return self._chunk.example(self._row - 1)

    def close(self) -> None:
        """Releases what the reader holds."""
        self._chunks.close()


class RememberingReader:
    """Reads a task by index, each example once, when it is first needed, and keeps it in memory.

    A run begins without waiting for all examples to be read. Preprocessors that draw random numbers
    draw the same ones for an example in every epoch.

    Args:
        spec: What to read.
        split: The opened split.
        indices: The indices that will be asked for, in order, without an end.
    """

    def __init__(self, spec: ReaderSpec, split: IndexedSplit, indices: Iterator[int]) -> None:
        self._announced: collections.deque[int] = collections.deque()
        firsts = first_uses(indices, len(split))
        self._chunks = _read_in_order(spec, split, len(split), firsts, self._announced)
        self._examples: dict[int, tuple[_Chunk, int]] = {}

    def example(self, key: int) -> Mapping[str, np.ndarray]:
        """Returns the example with an index.

        Raises:
            UserError: The examples cannot be read.
        """
        while key not in self._examples:
            chunk = next(self._chunks)
            for row in range(len(chunk)):
                self._examples[self._announced.popleft()] = chunk, row
        chunk, row = self._examples[key]
        return chunk.example(row)

    def close(self) -> None:
        """Releases what the reader holds; what has not been read is left."""
        self._chunks.close()


def first_uses(indices: Iterator[int], count: int) -> Iterator[int]:
    """Yields each of `count` indices once: in the order of their first use, as far as it is near.

    A process may have rows in which some examples never are, so that the search for a next one
    ends after two epochs without any; the rest follows in order.

    Args:
        indices: The indices that will be used, without an end.
        count: Number of indices.
    """
    seen: set[int] = set()
    since = 0
    for key in indices:
        since += 1
        if key not in seen:
            seen.add(key)
            since = 0
            yield key
        if len(seen) == count or since > 2 * count:
            break
    yield from (key for key in range(count) if key not in seen)


def _read_in_order(
    spec: ReaderSpec,
    split: IndexedSplit,
    count: int,
    indices: Iterator[int],
    announced: collections.deque[int],
) -> Generator[_Chunk, None, None]:
    """Reads the examples of some indices, each of which is put into `announced` before."""

    def index(_: int) -> int:
        key = next(indices)
        announced.append(key)
        return key

    return _read(spec, preprocess(spec, split, count, index), split)


class SequentialReader:
    """Reads a task without random access, over and over; asked for by rising ordinals.

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
        _log.warning(
            "task %r has no random access: it is shuffled within a buffer only, and a run that is "
            "resumed reads again all examples that it has seen%s",
            task.name,
            f": now {first}." if first else ".",
        )
        self._name = task.name
        self._chunks = _read(spec, _select(spec, dataset).skip(first))
        self._chunk: _Chunk | None = None
        self._begin = self._end = first

    def example(self, key: int) -> Mapping[str, np.ndarray]:
        """Returns an example; those in between are read and left out."""
        while key >= self._end:
            self._chunk = next(self._chunks, None)
            if self._chunk is None:
                raise UserError(f"task {self._name!r} has no examples; leave it out.")
            self._begin, self._end = self._end, self._end + len(self._chunk)
        assert self._chunk is not None
        return self._chunk.example(key - self._begin)

    def close(self) -> None:
        """Releases what the reader holds."""
        self._chunks.close()

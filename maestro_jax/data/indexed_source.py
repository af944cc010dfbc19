"""seqio sources with random access: then the order of examples can be a function of (seed, step).

Open-source seqio has no index-ordered tasks. An `IndexedSource` is an ordinary seqio source that
can also give any record by its index; TFDS data sets in the `array_record` format are made for it.
"""

from __future__ import annotations

import abc
import contextlib
import functools
import logging
import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

from maestro_jax import provenance
from maestro_jax.data.corpora.corpus import SplitSize
from maestro_jax.data.corpora.prepare import SUMMARY, read_split_sizes
from maestro_jax.data.data_dir import active_data_root
from maestro_jax.data.lengths import (
    TEXTS_ONLY,
    as_array,
    lengths_file,
    load_lengths,
    record_lengths,
    save_lengths,
)
from maestro_jax.errors import UserError
from maestro_jax.files import is_remote, modification_time, naming_failures

_log = logging.getLogger(__name__)

_CHUNK = 16  # Records fetched by one call from TensorFlow into Python.
_EMPTY = "a record is empty"  # What ArrayRecord gives of some files that were cut short.
_VERSION = re.compile(r"\d+\.\d+\.\d+")


class IndexedSplit(abc.ABC):
    """One opened split: a sequence of records.

    Attributes:
        element_spec: ``{feature: tf.TensorSpec}`` of a record.
        num_bytes: About how much memory all records take.
    """

    element_spec: Mapping[str, tf.TensorSpec]
    num_bytes: int
    failure: UserError | None = None
    """Why records could not be read, which TensorFlow hides among the names of its nodes."""

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def __getitem__(self, index: int) -> Mapping[str, Any]: ...

    def lengths(self) -> np.ndarray:
        """Measures the records, here by reading them all.

        Returns:
            int32 `[records, 3]`, see `maestro_jax.data.lengths`.
        """
        return as_array(record_lengths(self[index]) for index in range(len(self)))

    def dataset(
        self, numbers: tf.data.Dataset, index: Callable[[int], int] = int
    ) -> tf.data.Dataset:
        """Reads records one after the other.

        Args:
            numbers: A dataset of int64 scalars, of known cardinality.
            index: From a number to the index of a record; called once a number, in their order.

        Returns:
            A dataset of records, one for each number, with the same cardinality as ``numbers``.
        """
        names = list(self.element_spec)
        specs = [self.element_spec[name] for name in names]

        def read(number: np.ndarray) -> list[Any]:
            record = self[index(int(number))]
            return [
                record[name]
                if spec.dtype == tf.string
                else np.asarray(record[name], spec.dtype.as_numpy_dtype)
                for name, spec in zip(names, specs, strict=True)
            ]

        def fetch(number: tf.Tensor) -> dict[str, tf.Tensor]:
            # Not declared stateless, so that tf.data neither reorders nor parallelises the calls.
            values = tf.numpy_function(read, [number], [spec.dtype for spec in specs])
            for value, spec in zip(values, specs, strict=True):
                value.set_shape(spec.shape)
            return dict(zip(names, values, strict=True))

        return numbers.map(fetch)


class IndexedSource(seqio.DataSource):
    """A seqio source that can give any record by its index.

    Subclasses define `open_split` and `is_ready`; through `get_dataset` the source serves plain
    seqio too. It shuffles by itself, over the whole split.

    Args:
        splits: The names of the splits that a task has.
    """

    def __init__(self, splits: tuple[str, ...]) -> None:
        super().__init__(splits=splits, performs_internal_shuffling=True)

    @abc.abstractmethod
    def open_split(self, split: str) -> IndexedSplit:
        """Opens a split.

        Raises:
            UserError: The data are not there; the message says how to prepare them.
        """

    def open_texts(self, split: str) -> IndexedSplit:
        """Opens a split for its texts alone: its records may come without their audio."""
        return self.open_split(split)

    @abc.abstractmethod
    def is_ready(self) -> bool:
        """Returns whether the data are prepared, without reading them."""

    def record(self, split: str, index: int) -> Mapping[str, Any]:
        """Returns the record at an index of a split, as arrays and bytes."""
        return self.open_split(split)[index]

    def num_input_examples(self, split: str) -> int:
        """Returns the number of records of a split."""
        return len(self.open_split(split))

    def fingerprint(self, split: str) -> str:
        """Returns what tells the data of a split from others; here the number of its records."""
        return str(self.num_input_examples(split))

    @property
    def supports_arbitrary_sharding(self) -> bool:
        """Returns True: a shard is every n-th record."""
        return True

    def list_shards(self, split: str) -> list[str]:
        """Returns one name: shards are not files."""
        return [split]

    def get_dataset(
        self,
        split: str = "train",
        shuffle: bool = True,
        seed: int | None = None,
        shard_info: seqio.ShardInfo | None = None,
        *,
        sequence_length: Mapping[str, int] | None = None,
        use_cached: bool = False,
        num_epochs: int | None = 1,
    ) -> tf.data.Dataset:
        """Returns the records of a split, or of a shard of it, for seqio.

        Args:
            split: Name of the split.
            shuffle: Whether to shuffle the whole shard.
            seed: Seed of the shuffle.
            shard_info: Shard to read; None for everything.
            sequence_length: Unused, as in every seqio source.
            use_cached: Unused.
            num_epochs: Unused.
        """
        del sequence_length, use_cached, num_epochs
        opened = self.open_split(split)
        indices = tf.data.Dataset.range(len(opened))
        if shard_info and shard_info.num_shards > 1:
            indices = indices.shard(shard_info.num_shards, shard_info.index)
        if shuffle:
            indices = indices.shuffle(max(1, len(opened)), seed=seed)
        return opened.dataset(indices)


def _parts(name: str) -> list[str]:
    """Returns the splits of a sum such as `clean+other`."""
    return name.split("+")


def _whole(name: str) -> str:
    """Returns the split that a slice such as `train[:100]` is of."""
    return name.partition("[")[0]


class _TfdsSplit(IndexedSplit):
    """A split of a TFDS data set in the `array_record` format, or the sum of several."""

    def __init__(self, builder: Any, directory: Path, name: str, remedy: str) -> None:
        self._builder, self._directory, self._name = builder, directory, name
        self._remedy = remedy
        self._records = builder.as_data_source(name)
        self._in_bucket = is_remote(directory)
        self._features = builder.info.features
        self.element_spec = self._features.get_tensor_spec()
        # TFDS knows the bytes of whole splits alone.
        self.num_bytes = sum(self._bytes_of(part) for part in _parts(name))

    def _bytes_of(self, part: str) -> int:
        splits = self._builder.info.splits
        share = splits[part].num_examples / max(splits[_whole(part)].num_examples, 1)
        return int(splits[_whole(part)].num_bytes * share)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        with self._naming_shard([index]):
            return self._records[index]

    @contextlib.contextmanager
    def _naming_shard(self, indices: Sequence[int]) -> Iterator[None]:
        """Turns what reading records of a damaged or missing shard raises into one line."""
        try:
            yield
        except Exception as error:
            # ArrayRecord raises errors of many kinds, none of which names the file.
            self.failure = UserError(self._damage(indices, error))
            raise self.failure from None

    def _damage(self, indices: Sequence[int], error: Exception) -> str:
        """Describes the first of some records that cannot be read, in one line."""
        source = self._records.data_source
        shard = self._directory
        for index in indices:
            try:
                if not source[index]:
                    raise ValueError(_EMPTY)
            except Exception as own:
                error = own
                number, _ = source._reader_idx_and_position(index)
                shard = source._read_instructions[number].filename
                break
        reason = " ".join(str(error).split())
        reason = f"{reason[:76]} ..." if len(reason) > 80 else reason
        return (
            f"{shard} is damaged or missing ({reason}); copy it again from where it came from, or "
            f"run `{self._remedy}` with --overwrite."
        )

    def lengths(self) -> np.ndarray:
        """Reads the lengths from a file beside the shards; reading all records may take hours."""
        if len(parts := _parts(self._name)) > 1:
            splits = [
                _TfdsSplit(self._builder, self._directory, part, self._remedy) for part in parts
            ]
            return np.concatenate([split.lengths() for split in splits])
        path = lengths_file(self._directory, self._name)
        lengths = load_lengths(path, len(self))
        if lengths is None:
            _log.info("reading %d records once, for %s", len(self), path)
            lengths = super().lengths()
            try:
                with naming_failures(path, "file"):
                    save_lengths(path, lengths)
            except UserError as error:
                _log.warning("%s; the next run reads all records again", error)
        return lengths

    def dataset(
        self, numbers: tf.data.Dataset, index: Callable[[int], int] = int
    ) -> tf.data.Dataset:
        """Parses records in TensorFlow, several times faster than in Python; see `IndexedSplit`."""
        serialized = self._records.data_source

        def read(chunk: np.ndarray) -> np.ndarray:
            indices = [index(number) for number in chunk.tolist()]
            with self._naming_shard(indices):
                if self._in_bucket:  # Each record is a request: all at once.
                    records = serialized.__getitems__(indices)
                else:
                    records = [serialized[number] for number in indices]
                if not all(records):
                    raise ValueError(_EMPTY)
                return np.array(records, object)

        def fetch(chunk: tf.Tensor) -> tf.Tensor:
            return tf.ensure_shape(tf.numpy_function(read, [chunk], tf.string), [None])

        return (
            numbers.batch(_CHUNK)
            .map(fetch)
            .unbatch()
            .apply(tf.data.experimental.assert_cardinality(int(numbers.cardinality())))
            .map(self._features.deserialize_example)
        )


@functools.lru_cache(maxsize=16)
def _builder(directory: Path, stamp: int) -> Any:
    """Opens a prepared data set; ``stamp`` distinguishes a rebuilt one from the old."""
    del stamp
    import tensorflow_datasets as tfds

    return tfds.builder_from_directory(directory)


@functools.lru_cache(maxsize=512)
def _tfds_split(directory: Path, stamp: int, name: str, remedy: str) -> _TfdsSplit:
    return _TfdsSplit(_builder(directory, stamp), directory, name, remedy)


class IndexedTfdsSource(IndexedSource):
    """A TFDS data set in the `array_record` format, below the data root; opened when first read.

    Args:
        name: ``builder/config``, where TFDS puts the data below the data root.
        splits: The task's split names and the data set's, ``{"train": "paired_de_train"}``;
            ``clean+other`` is one split after the other, and ``train[:100]`` a part of one.
        remedy: The command that prepares the data, for messages.
        texts: Whether only texts are wanted. Where the data were prepared with them apart, records
            then come without audio, which is nearly all of their bytes.
    """

    def __init__(
        self, name: str, splits: Mapping[str, str], remedy: str, *, texts: bool = False
    ) -> None:
        super().__init__(tuple(splits))
        self._texts = texts
        self._name = name
        self._split_names = dict(splits)
        self._remedy = remedy

    @property
    def corpus(self) -> str:
        """Returns the builder's name, which is that of the corpus."""
        return self._name.partition("/")[0]

    @property
    def remedy(self) -> str:
        """Returns the command that prepares the data."""
        return self._remedy

    def __repr__(self) -> str:
        return f"IndexedTfdsSource({self._name!r}, splits={self._split_names!r})"

    def _directory(self) -> Path | None:
        """Returns the newest prepared version of the data set, if there is one."""
        summaries = (active_data_root() / self._name).glob("*/dataset_info.json")
        # TFDS builds in directories of other names and renames them when they are complete.
        versions = [path.parent for path in summaries if _VERSION.fullmatch(path.parent.name)]
        return max(
            versions,
            key=lambda path: tuple(int(part) for part in path.name.split(".")),
            default=None,
        )

    def is_ready(self) -> bool:
        """Returns whether a prepared version lies below the data root."""
        return self._directory() is not None

    def size(self, split: str) -> SplitSize | None:
        """Returns how many records a split should have, as `maestro prepare` wrote it down.

        Args:
            split: One of the task's.

        Returns:
            None where nothing was written down, nothing is prepared, or it is a part of a split.
        """
        directory = self._directory()
        summary = None if directory is None else directory / SUMMARY
        if summary is None or not summary.is_file() or split not in self._split_names:
            return None
        sizes = read_split_sizes(summary)
        names = _parts(self._split_names[split])
        if names != [_whole(name) for name in names]:
            return None
        parts = [sizes.get(part, SplitSize()) for part in names]
        return functools.reduce(operator.add, parts)

    def part(self, split: str, bounds: str) -> IndexedTfdsSource:
        """Returns the source whose split is a part of this one's.

        Args:
            split: One of the task's; the others stay whole.
            bounds: Its first and last records as TFDS writes them, such as ``:100``.

        Raises:
            UserError: There is no such split, or it is itself a part or a sum.
        """
        name = self._split_names.get(split)
        if name is None or not name.isidentifier():
            raise UserError(
                f"{self._name} has no whole split {split!r} to take a part of; it has "
                f"{self._split_names}"
            )
        splits = self._split_names | {split: f"{name}[{bounds}]"}
        return IndexedTfdsSource(self._name, splits, self._remedy, texts=self._texts)

    def fingerprint(self, split: str) -> str:
        """Returns a hash of the manifest of TFDS, with the records and bytes of each shard."""
        directory = self._directory()
        if directory is None:
            return "not prepared"
        return provenance.digest((directory / "dataset_info.json").read_bytes())

    def open_split(self, split: str) -> IndexedSplit:
        """Opens a split; see `IndexedSource`."""
        return self._open(split, self._texts)

    def open_texts(self, split: str) -> IndexedSplit:
        """Opens a split for its texts alone; see `IndexedSource`."""
        return self._open(split, True)

    def _open(self, split: str, texts: bool) -> IndexedSplit:
        if split not in self._split_names:
            raise UserError(
                f"{self._name} has no split {split!r} here; it has {', '.join(self._split_names)}."
            )
        directory = self._directory()
        if directory is None:
            raise UserError(
                f"{self._name} is not prepared below {active_data_root()}; run `{self._remedy}`, "
                "or give --data_dir or MAESTRO_DATA_DIR if it is prepared elsewhere."
            )
        name = self._split_names[split]
        if texts and (apart := directory / TEXTS_ONLY / "dataset_info.json").is_file():
            stamp = modification_time(apart)
            if set(map(_whole, _parts(name))) <= set(_builder(apart.parent, stamp).info.splits):
                return _tfds_split(apart.parent, stamp, name, self._remedy)
        stamp = modification_time(directory / "dataset_info.json")
        available = _builder(directory, stamp).info.splits
        for part in map(_whole, _parts(name)):
            if part not in available:
                raise UserError(
                    f"{directory} has {', '.join(available)}, but no split {part!r}; run "
                    f"`{self._remedy}` with --overwrite on a source that has utterances of it."
                )
        return _tfds_split(directory, stamp, name, self._remedy)

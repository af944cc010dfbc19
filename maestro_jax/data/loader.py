"""The stream loader: batches whose content is a function of (seed, step) alone.

Each stream takes the tasks and rates of a seqio mixture and is read by a `StreamReader`. Nothing
depends on the number of processes, nor on the step at which a run started.
"""

from __future__ import annotations

import atexit
import collections
import logging
import queue
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from maestro_jax.batches import StreamConfig, check_streams
from maestro_jax.data.bucketing import BucketSchedule
from maestro_jax.data.data_dir import data_scope
from maestro_jax.data.stream_reader import StreamReader
from maestro_jax.data.task_registry import (
    mixture_languages,
)
from maestro_jax.errors import UserError
from maestro_jax.text.languages import LanguageTable
from maestro_jax.text.vocabularies import Vocabulary

Batch = dict[str, dict[str, np.ndarray]]

_log = logging.getLogger(__name__)

_PREFETCHED_BATCHES = 4
_CLOSE_SECONDS = 10.0


def hide_accelerators() -> None:
    """Keeps TensorFlow, which only reads data here, from taking the accelerators' memory."""
    for kind in ("GPU", "TPU"):
        try:
            tf.config.set_visible_devices([], kind)
        except RuntimeError:  # Too late: TensorFlow has been used by the caller, who had a say.
            return


class StreamLoader:
    """An endless iterator of batches ``{stream: {feature: array}}``, read ahead in the background.

    The batch of step ``n`` depends on ``(seed, n)`` and the data alone. With several processes each
    gets its rows: process ``i`` of ``k`` the ``i``-th part of ``batch_size / k`` rows. With buckets
    (`maestro_jax.batches.Buckets`) the shape of a batch is a function of ``(seed, n)``, too.

    Args:
        streams: The configuration of each stream.
        split: The split of every task.
        seed: Seed of the order of examples, of buckets, crops and augmentation.
        start_step: The step of the first batch.
        data_dir: The data root; None for the user's default.
        process_index: Index of this process.
        process_count: Number of processes.
        languages: The ids of languages; by default those of `maestro_jax.text.languages.LANGUAGES`,
            and after them the languages of the streams' tasks.
        cache_bytes: Tasks are kept in memory, preprocessed, while they take less than this in all,
        cache_examples: and while they have fewer examples than this in all.

    Attributes:
        counters: Over-long examples in the batches given so far: ``speech/cropped``, and
            ``paired/over_long`` and so on for rows left empty; ``text/synthetic_over_long`` for
            rows whose synthesised speech alone was left out.
        next_step: The step of the batch that ``next()`` gives.
        languages: The ids of languages.

    Raises:
        UserError: A stream, task, split or vocabulary is wrong or not prepared. ``next()`` raises
            it for examples that cannot be read.
    """

    def __init__(
        self,
        streams: Mapping[str, StreamConfig],
        *,
        split: str = "train",
        seed: int,
        start_step: int = 0,
        data_dir: Path | str | None = None,
        process_index: int = 0,
        process_count: int = 1,
        cache_bytes: int = 1 << 30,
        cache_examples: int = 50_000,
        languages: LanguageTable | None = None,
    ) -> None:
        check_streams(streams)
        if not 0 <= process_index < process_count:
            raise ValueError(f"process {process_index} of {process_count} cannot be")
        hide_accelerators()
        self.counters: collections.Counter[str] = collections.Counter()
        self.next_step = start_step
        self.languages = languages or LanguageTable().extended(
            mixture_languages(config.mixture for config in streams.values())
        )
        with data_scope(data_dir):
            self._streams = [
                StreamReader(
                    name,
                    config,
                    split=split,
                    seed=seed,
                    languages=self.languages,
                    process_index=process_index,
                    process_count=process_count,
                )
                for name, config in streams.items()
            ]
            schedule = BucketSchedule({s.name: s.weights for s in self._streams}, seed)
            for stream in self._streams:
                stream.start(schedule, start_step, cache_bytes, cache_examples)
                # What one stream has cached is not there for the next.
                cache_bytes -= stream.cached_bytes
                cache_examples -= stream.cached_examples
            self.vocabulary = _common_vocabulary(self._streams)
        for stream in self._streams:
            self.counters.update(dict.fromkeys(stream.counters, 0))
        self._making = ""
        self._error: BaseException | None = None
        self._stop = threading.Event()
        self._queue: queue.Queue[Any] = queue.Queue(_PREFETCHED_BATCHES)
        self._thread = threading.Thread(
            target=self._read_ahead, args=(start_step,), name="StreamLoader", daemon=True
        )
        # A thread inside TensorFlow while the interpreter goes down would crash it.
        atexit.register(self.close)
        self._thread.start()

    @property
    def reading(self) -> str:
        """Returns what the background thread is doing, for messages."""
        return self._making

    def _make(self, step: int) -> tuple[Batch, dict[str, int]]:
        """Makes the batch of a step, and returns by how much its counters grow."""
        batch: Batch = {}
        counts: dict[str, int] = {}
        for stream in self._streams:
            self._making = f"the stream {stream.name!r} reads for step {step + 1}"
            batch[stream.name], of_stream = stream.rows(step)
            counts |= of_stream
        return batch, counts

    def _read_ahead(self, step: int) -> None:
        """Makes batches in the background thread until it is told to stop."""
        while not self._stop.is_set():
            try:
                item: Any = self._make(step)
            except BaseException as error:  # noqa: BLE001 - the consumer raises it.
                # Passed on through the queue: an error is raised for the batch that it belongs to,
                # and not earlier.
                item = error
            while not self._stop.is_set():
                try:
                    # With a timeout, so that a full queue does not keep the thread from seeing that
                    # it is to stop.
                    self._queue.put(item, timeout=0.1)
                    break
                except queue.Full:
                    continue
            if isinstance(item, BaseException):
                return
            step += 1

    def __iter__(self) -> StreamLoader:
        return self

    def __next__(self) -> Batch:
        if self._error is not None:
            raise self._error
        if self._stop.is_set():
            raise ValueError("the loader is closed")
        while True:
            try:
                item = self._queue.get(timeout=0.5)
                break
            except queue.Empty:
                if self._stop.is_set():
                    raise ValueError("the loader was closed while it was read") from None
        if isinstance(item, BaseException):
            self._error = item
            raise item
        batch, counts = item
        self.counters.update(counts)
        self.next_step += 1
        return batch

    def close(self) -> None:
        """Stops the background thread; safe to call again."""
        self._stop.set()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            # A thread that waits for a disk without an answer is left to the end of the process.
            self._thread.join(_CLOSE_SECONDS)
        for stream in self._streams:
            stream.close()
        atexit.unregister(self.close)

    def __enter__(self) -> StreamLoader:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()


def _common_vocabulary(streams: list[StreamReader]) -> Vocabulary | None:
    """Returns the vocabulary of all streams; None if no stream has tokens."""
    common: tuple[str, Vocabulary] | None = None
    for stream in streams:
        if stream.vocabulary is not None:
            if common is not None and stream.vocabulary != common[1]:
                raise UserError(
                    f"streams {common[0]!r} and {stream.name!r} use different vocabularies; "
                    "pick mixtures that share one."
                )
            common = common or (stream.name, stream.vocabulary)
    return common[1] if common else None

"""The stream loader: batches whose content is a function of (seed, step) alone.

Each stream takes the tasks and rates of a seqio mixture and is read by a `StreamReader`. Nothing
depends on the number of processes, nor on the step at which a run started.
"""

from __future__ import annotations

import atexit
import collections
import functools
import logging
import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

from maestro_jax.batches import Mixture, StreamConfig, check_streams
from maestro_jax.data.bucketing import BucketSchedule
from maestro_jax.data.data_scope import data_scope
from maestro_jax.data.rows import empty_rows, write_row
from maestro_jax.data.scored_examples import UNDETERMINED, ScoredExamples
from maestro_jax.data.stream_reader import StreamReader
from maestro_jax.data.task_listing import (
    get_task_or_mixture,
    mixture_languages,
    task_languages,
    tasks_of,
)
from maestro_jax.data.task_readers import check_features
from maestro_jax.errors import UserError
from maestro_jax.text.languages import UNKNOWN_LANGUAGE, LanguageTable
from maestro_jax.vocabularies.vocabulary import Vocabulary

Batch = dict[str, dict[str, np.ndarray]]

_log = logging.getLogger(__name__)

_PREFETCHED_BATCHES = 4


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
        seed: Of the order of examples, of buckets, of crops and of augmentation.
        start_step: The step of the first batch.
        data_dir: The data root; None for the user's default.
        process_index: Which process this is.
        process_count: Of how many.
        languages: The ids of languages; by default those of `maestro_jax.text.languages.LANGUAGES`,
            and after them the languages of the streams' tasks.
        cache_bytes: Tasks are kept in memory, preprocessed, while they take less than this in all.
        cache_examples: And while they have fewer examples than this in all: they are read at once.

    Attributes:
        counters: Over-long examples in the batches given so far: ``speech/cropped``, and
            ``paired/over_long`` and so on for rows left empty.
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
                cache_bytes -= stream.cached_bytes
                cache_examples -= stream.cached_examples
            self.vocabulary = _common_vocabulary(self._streams)
        for stream in self._streams:
            counter = "cropped" if stream.name == "speech" else "over_long"
            self.counters[f"{stream.name}/{counter}"] = 0
        self._error: BaseException | None = None
        self._stop = threading.Event()
        self._queue: queue.Queue[Any] = queue.Queue(_PREFETCHED_BATCHES)
        self._thread = threading.Thread(
            target=self._read_ahead, args=(start_step,), name="StreamLoader", daemon=True
        )
        # A thread inside TensorFlow while the interpreter goes down would crash it.
        atexit.register(self.close)
        self._thread.start()

    def _make(self, step: int) -> tuple[Batch, dict[str, int]]:
        """The batch of a step, and how its counters grow."""
        batch: Batch = {}
        counts: dict[str, int] = {}
        for stream in self._streams:
            batch[stream.name], over_long = stream.rows(step)
            counter = "cropped" if stream.name == "speech" else "over_long"
            counts[f"{stream.name}/{counter}"] = over_long
        return batch, counts

    def _read_ahead(self, step: int) -> None:
        """The background thread: makes batches until it is told to stop."""
        while not self._stop.is_set():
            try:
                item: Any = self._make(step)
            except BaseException as error:  # noqa: BLE001 - the consumer raises it.
                item = error
            while not self._stop.is_set():
                try:
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
            self._thread.join()
        for stream in self._streams:
            stream.close()
        atexit.unregister(self.close)

    def __enter__(self) -> StreamLoader:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()


def _common_vocabulary(streams: list[StreamReader]) -> Vocabulary | None:
    """The vocabulary of all streams; None when no stream has tokens."""
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


def _evaluated_language(
    languages: LanguageTable, warned: set[str], field: str, strings: Mapping[str, str]
) -> int:
    """The id of the language of a row; a model may be scored in a language that it never saw.

    Raises:
        UserError: A model shall write a language that it does not know.
    """
    code = strings[field]
    if code in ("", UNDETERMINED):
        return UNKNOWN_LANGUAGE
    if field == "language" and code not in languages:
        if code not in warned:
            warned.add(code)
            _log.warning("the model was not trained with the language %r; it is not told it", code)
        return UNKNOWN_LANGUAGE
    return languages.index(code)


def evaluation_batches(
    names: str | Mixture | Sequence[str],
    split: str,
    batch_size: int,
    audio_samples: int,
    data_dir: Path | str | None = None,
    *,
    text_tokens: int = 0,
    translation_tokens: int = 0,
    languages: LanguageTable | None = None,
    keep_examples: bool = False,
) -> Iterator[tuple[dict[str, np.ndarray], list[dict[str, Any]]]]:
    """Every example of a split exactly once, in order: task after task.

    Args:
        names: Of a seqio task or mixture, or of several tasks of one stream.
        split: Its split.
        batch_size: Rows of every batch; the last one is filled up with empty rows.
        audio_samples: The padded length of audio; 0 leaves audio out.
        data_dir: The data root; None for the user's default.
        text_tokens: The padded length of texts; 0 leaves their tokens out.
        translation_tokens: The padded length of translations; 0 leaves their tokens out.
        languages: The ids of languages; by default as in `StreamLoader`.
        keep_examples: Whether the metadata of a row hold all features of its task, as ``example``.

    Returns:
        An iterator of features (audio int16 `[batch, samples]`, tokens int32 `[batch, tokens]`,
        their lengths and the language ids int32 `[batch]`; length 0 in empty rows) and the metadata
        of the rows that hold an example: strings id, task, text, raw_text, translation, language,
        target_language and speaker, empty where the corpus has none; what a task does not name is
        derived as `maestro_jax.data.scored_examples.ScoredExamples` says. An over-long example
        keeps its metadata, while its row is empty, so that it counts as an error and not as absent.

    Raises:
        UserError: An unknown task or split, data that are not prepared, features of a wrong type,
            or examples with an empty id or the same.
    """
    hide_accelerators()
    mixtures = [names] if isinstance(names, str | Mixture) else list(names)
    told = ", ".join(repr(str(mixture)) for mixture in mixtures)
    everything = [task for name in mixtures for task in tasks_of(get_task_or_mixture(name))]
    tasks = [task for task in everything if split in task.splits]
    if not tasks:
        there = sorted({split for task in everything for split in task.splits})
        raise UserError(f"{told} has no split {split!r}; it has {there}.")
    given = tasks[0].output_features
    asked = {"audio": audio_samples, "text": text_tokens, "translation": translation_tokens}
    limits = {name: limit for name, limit in asked.items() if limit and name in given}
    identities = ("language", "target_language") if "translation" in given else ("language",)
    if not limits:
        raise UserError(
            f"{told} gives {', '.join(given)}; "
            "set the padded length of at least one of audio, text or translation that it has."
        )
    with data_scope(data_dir):
        datasets = [
            (
                task,
                task.get_dataset(
                    split=split, shuffle=False, trim_output_features=False, try_in_mem_cache=False
                ),
            )
            for task in tasks
        ]
    for task, dataset in datasets:
        check_features(task.name, dataset.element_spec, tuple(limits), identities)
    table = languages or LanguageTable().extended(task_languages(tasks))
    return _evaluation_batches(datasets, limits, identities, batch_size, table, keep_examples)


def _evaluation_batches(
    datasets: list[tuple[seqio.Task, tf.data.Dataset]],
    limits: dict[str, int],
    identities: tuple[str, ...],
    batch_size: int,
    languages: LanguageTable,
    keep_examples: bool,
) -> Iterator[tuple[dict[str, np.ndarray], list[dict[str, Any]]]]:
    over_long: collections.Counter[str] = collections.Counter()
    features = empty_rows(limits, identities, batch_size)
    metadata: list[dict[str, Any]] = []
    scored = ScoredExamples(languages)
    language_id = functools.partial(_evaluated_language, languages, set())
    for task, dataset in datasets:
        owner = task.name
        for example in dataset.as_numpy_iterator():
            strings = scored.strings(task, example)
            row = {**example, **{name: language_id(name, strings) for name in identities}}
            over_long[owner] += write_row(features, len(metadata), row, limits, identities)
            kept = {"example": example} if keep_examples else {}
            metadata.append({**strings, **kept})
            if len(metadata) == batch_size:
                yield features, metadata
                features, metadata = empty_rows(limits, identities, batch_size), []
        if over_long[owner]:
            _log.warning(
                "%d examples of %r are longer than %s: they are scored as empty.",
                over_long[owner],
                owner,
                limits,
            )
    if metadata:
        yield features, metadata

"""Where the batches of a run come from."""

from __future__ import annotations

import dataclasses
import logging
import math
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from maestro_jax.errors import RESTART_EXIT_CODE, UserError
from maestro_jax.text.languages import LanguageTable
from maestro_jax.text.vocabularies import Vocabulary
from maestro_jax.training.metrics import StepTimer
from maestro_jax.training.model_vocabulary import (
    check_vocabulary,
    fingerprint,
    save_vocabulary,
)
from maestro_jax.training.partitioning import BATCH_AXES
from maestro_jax.training.process_group import ProcessGroup, Stop
from maestro_jax.training.run_language_tokens import run_language_tokens
from maestro_jax.training.run_languages import run_languages
from maestro_jax.training.watchdog import stacks_of_threads

if TYPE_CHECKING:
    from maestro_jax.training.run import TrainRun

log = logging.getLogger(__name__)

READER_THREAD = "BatchFeed"
"""Name of the thread that reads; it is alive after `BatchFeed.close` if the input hangs."""
_TURN_SECONDS = 0.2
_CLOSE_SECONDS = 5.0

Batches = Callable[[int], Iterator[Any]]
"""Function of the number of steps done that returns an iterator of this process's batches."""


class BatchFeed:
    """Puts the batches of a run on the mesh, step by step.

    A thread reads, so that a run that waits for its input can be stopped.

    Args:
        batches: Iterator of numpy batches ``{stream: {feature: array}}``, the rows of this process.
        run: The run.
        mesh: The device mesh.
        active_streams: Function of the number of updates done that returns the streams of the next
            one.
        timer: Timer that is told how long a batch was waited for.
        processes: The processes of the run, which may stop while this one waits.
    """

    def __init__(
        self,
        batches: Iterator[Any],
        run: TrainRun,
        mesh: Mesh,
        active_streams: Callable[[int], Sequence[str]],
        timer: StepTimer,
        processes: ProcessGroup,
    ) -> None:
        self._batches = batches
        self._run = run
        self._mesh = mesh
        self._active_streams = active_streams
        self._timer = timer
        self._processes = processes
        self._requests: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._results: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._read, name=READER_THREAD, daemon=True)
        self._thread.start()

    def get(self, step: int) -> Any:
        """Returns the batch of a step, global arrays on the mesh.

        Args:
            step: Number of the step, from 1; each call asks for the next one.

        Returns:
            The batch; None if all processes stop after the step before.

        Raises:
            UserError: The data ended.
        """
        began = time.monotonic()
        self._requests.put(step)
        batch, error = self._wait(step)
        if error is not None:
            raise error
        if batch is None:
            return None
        # The curriculum: a stream that has not begun is left out, and the step compiled without it.
        active = self._active_streams(step - 1)
        batch = {name: features for name, features in batch.items() if name in active}
        batch = self._run.partitioning.shard_batch(self._mesh, batch)
        self._timer.waited(step, time.monotonic() - began)
        return batch

    def _wait(self, step: int) -> tuple[Any, BaseException | None]:
        """Waits for the reading thread in short turns."""
        began, limits = time.monotonic(), self._run.watchdog
        warn_at = limits.input_warning_seconds
        while True:
            try:
                return self._results.get(timeout=_TURN_SECONDS)
            except queue.Empty:
                if self._processes.stop_after(step - 1) is not None:
                    return None, None
            seconds = time.monotonic() - began
            what = f"the input gave no batch for step {step} in {seconds:.0f} s"
            if reading := getattr(self._batches, "reading", ""):
                what += f" ({reading})"
            if seconds > warn_at:
                warn_at = 4 * seconds
                log.warning("%s; stacks of all threads:\n%s", what, stacks_of_threads())
            if seconds > limits.input_seconds:
                if self._processes.count > 1:
                    what += f", at {self._processes.name}"
                self._processes.ask_to_stop(Stop(RESTART_EXIT_CODE, what))

    def _read(self) -> None:
        while step := self._requests.get():
            error: BaseException | None = None
            try:
                batch = next(self._batches, None)
                if batch is None:
                    error = UserError(
                        f"The data ended before step {step} of {self._run.steps}; set fewer steps."
                    )
            except BaseException as raised:  # noqa: BLE001 - raised where the batch is asked for.
                batch, error = None, raised
            self._results.put((batch, error))

    @property
    def counters(self) -> Mapping[str, int]:
        """Returns the numbers of over-long examples so far, in this process."""
        return getattr(self._batches, "counters", {})

    def close(self) -> None:
        """Stops reading. A thread that is stuck in the input is left to the end of the process."""
        self._requests.put(0)
        self._thread.join(_CLOSE_SECONDS)
        if not self._thread.is_alive() and hasattr(self._batches, "close"):
            self._batches.close()


class TaskBatches:
    """Loads batches from the seqio tasks of a run: `Batches`.

    Args:
        run: The run.
        mesh: The device mesh, which determines what this process loads.
        model_dir: The model directory, whose vocabulary and languages must be those of the data.
        data_dir: Root of the prepared data.

    Raises:
        UserError: The data are not prepared, or are not those of the model directory; calling it
            raises it too.
    """

    def __init__(
        self, run: TrainRun, mesh: Mesh, model_dir: epath.Path, data_dir: str | Path | None
    ) -> None:
        self._run, self._model_dir, self._data_dir = run, model_dir, data_dir
        self._shard = run.partitioning.data_shard(mesh)
        self._languages = run_languages(run, model_dir)
        self._vocabulary: Vocabulary | None = None

    def __call__(self, start_step: int) -> Iterator[Any]:
        """Opens the data, and checks them against the model directory."""
        # Imported here: these import TensorFlow, which all other training code does without.
        from maestro_jax.data.data_dir import data_root
        from maestro_jax.data.loader import StreamLoader

        run = self._run
        index, count = self._shard
        loader = StreamLoader(
            {name: run.streams[name] for name in run.used_streams},
            split="train",
            seed=run.seed,
            start_step=start_step,
            data_dir=data_root(self._data_dir),
            process_index=index,
            process_count=count,
            languages=self._languages,
        )
        self._vocabulary = getattr(loader, "vocabulary", None)
        if self._vocabulary is not None:
            check_vocabulary(run, self._vocabulary, self._model_dir)
        return iter(loader)

    def fingerprints(self) -> dict[str, Any]:
        """Returns what tells these data from others, by what it is of; after the data were opened.

        Manifests are hashed, not the data.
        """
        from maestro_jax.data.data_dir import data_scope
        from maestro_jax.data.task_registry import fingerprint_of, get_task_or_mixture

        run = self._run
        with data_scope(self._data_dir):
            found: dict[str, Any] = {
                f"the stream {name}": fingerprint_of(
                    get_task_or_mixture(run.streams[name].mixture), "train"
                )
                for name in run.used_streams
            }
        if self._vocabulary is not None:
            found["the vocabulary"] = fingerprint(self._vocabulary)["sha256"]
        return found

    def save(self) -> None:
        """Writes ``vocabulary.model``, ``languages.txt`` and ``language_tokens.json``.

        The first process writes them into the model directory, once the run has been accepted.
        """
        if jax.process_index() != 0:
            return
        if self._vocabulary is not None:
            save_vocabulary(self._vocabulary, self._model_dir)
            run_language_tokens(self._run, self._vocabulary, self._model_dir, self._data_dir)
        self._languages.save(self._model_dir)


def held_out_pairs(
    run: TrainRun, mesh: Mesh, model_dir: epath.Path, data_dir: str | Path | None
) -> dict[str, np.ndarray] | None:
    """Draws the pairs that diagnostics probe, at the rates of the mixture.

    Args:
        run: The run.
        mesh: The device mesh, over which the pairs must divide.
        model_dir: Model directory, for the ids of languages.
        data_dir: Root of the prepared data.

    Returns:
        All of them, on every process; None if the run has no pairs, its objective no probe, or the
        mixture no such split, which is logged.
    """
    config, paired = run.diagnostics, run.streams.get("paired")
    probed = run.objective.probe_stream == "paired" and "paired" in run.used_streams
    if paired is None or not probed:
        return None
    from maestro_jax.data.data_dir import data_root
    from maestro_jax.data.loader import StreamLoader

    devices = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    stream = dataclasses.replace(
        paired,
        mixture=config.mixture or paired.mixture,
        batch_size=-(-config.examples // devices) * devices,
        buckets=None,
        augmentation=None,
    )
    try:
        # Without a cache: no more is read than is probed.
        loader = StreamLoader(
            {"paired": stream},
            split=config.split,
            seed=run.seed,
            data_dir=data_root(data_dir),
            cache_bytes=0,
            languages=run_languages(run, model_dir),
        )
    except UserError as error:
        log.warning("diagnostics have no held-out pairs: %s", error)
        return None
    with loader:
        return next(loader)["paired"]


@dataclasses.dataclass(frozen=True)
class Sample:
    """A fixed sample of a split of one stream.

    Attributes:
        batches: Batches ``{feature: array}``, the rows of this process, as numpy arrays.
        vocabulary: Vocabulary of the tokens; None for a stream without any.
        languages: Ids of the languages.
    """

    batches: Sequence[Mapping[str, np.ndarray]]
    vocabulary: Vocabulary | None
    languages: LanguageTable = LanguageTable()


def fixed_sample(
    run: TrainRun,
    mesh: Mesh,
    model_dir: epath.Path,
    data_dir: str | Path | None,
    *,
    stream: str,
    split: str,
    examples: int,
) -> Sample | None:
    """Draws a sample of a split that is the same in every run, at the rates of the mixture.

    No example is drawn twice, so that a small split is in it as a whole.

    Args:
        run: The run.
        mesh: The device mesh, which determines the rows of this process.
        model_dir: Model directory, for the ids of languages.
        data_dir: Root of the prepared data.
        stream: Name of the stream.
        split: Name of the split.
        examples: Number of examples, fewer if the split has fewer. The last batch is padded with
            rows of length 0.

    Returns:
        The sample; None if the mixture has no such split, which is logged.
    """
    from maestro_jax.data.data_dir import data_root, data_scope
    from maestro_jax.data.loader import StreamLoader
    from maestro_jax.data.task_registry import get_task_or_mixture, rate_of, tasks_of

    config = run.streams[stream]
    vocabulary: Vocabulary | None = None
    parts: list[Mapping[str, np.ndarray]] = []
    try:
        provider = get_task_or_mixture(config.mixture)
        with data_scope(data_dir):
            tasks, sizes = [], []
            for task in tasks_of(provider):
                if split not in task.splits:
                    continue
                try:
                    sizes.append(task.source.num_input_examples(split))
                except UserError as error:
                    log.warning("no validation of the task %r: %s", task.name, error)
                else:
                    tasks.append(task)
            if not tasks:
                raise UserError(f"{provider.name!r} has no split {split!r}.")
            rates = [rate_of(provider, task) for task in tasks]
        languages = run_languages(run, model_dir)
        for task, count in zip(tasks, quotas(examples, rates, sizes), strict=True):
            if not count:
                continue
            # A seed of its own: the sample does not change with the seed of the run. Without a
            # cache: no more is read than is sampled.
            loader = StreamLoader(
                {
                    stream: dataclasses.replace(
                        config,
                        mixture=task.name,
                        batch_size=count,
                        buckets=None,
                        augmentation=None,
                        synthesis=None,
                    )
                },
                split=split,
                seed=0,
                data_dir=data_root(data_dir),
                cache_bytes=0,
                languages=languages,
            )
            with loader:
                parts.append(next(loader)[stream])
            vocabulary = loader.vocabulary
    except UserError as error:
        log.warning("no validation of the stream %r: %s", stream, error)
        return None
    features = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    drawn = len(next(iter(features.values())))
    devices = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    # One batch if the sample fits into one, rounded up to the devices; otherwise batches of the
    # training's size, whose memory is known to suffice.
    rows = min(-(-drawn // devices) * devices, config.batch_size)
    batches = -(-drawn // rows)
    index, count = run.partitioning.data_shard(mesh)

    def local(array: np.ndarray) -> list[np.ndarray]:
        """Returns the rows of this process, batch by batch."""
        padding = ((0, batches * rows - drawn), *((0, 0) for _ in array.shape[1:]))
        return [np.array_split(b, count)[index] for b in np.split(np.pad(array, padding), batches)]

    split_features = {name: local(array) for name, array in features.items()}
    return Sample(
        [{name: each[n] for name, each in split_features.items()} for n in range(batches)],
        vocabulary,
        languages,
    )


def quotas(total: int, rates: Sequence[float], sizes: Sequence[int | None]) -> list[int]:
    """Divides a number of examples over tasks by their rates; no task gets more than it has.

    Args:
        total: Number of examples.
        rates: Rate of each task.
        sizes: Number of examples of each task; None if it is not known.

    Returns:
        Number of examples of each task. What small tasks lack is divided over the others.
    """
    counts = [0] * len(rates)
    for _ in range(total):
        free = [
            index
            for index, size in enumerate(sizes)
            if rates[index] > 0 and (size is None or counts[index] < size)
        ]
        if not free:
            break
        # The task that is furthest behind its share gets the next example.
        least = min(free, key=lambda index: (counts[index] + 1) / rates[index])
        counts[least] += 1
    return counts

"""One stream: from a step to this process's rows of its batch.

An `IndexPlan` a bucket says which example stands at which position of the bucket, a
`BucketSchedule` which bucket a step has; task readers fetch and preprocess examples, augmentation
changes their audio, and `rows` gives them their fixed shape.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import logging
import os
import zlib
from collections.abc import Iterator, Sequence

import numpy as np

from maestro_jax.audio.augmentation import augment
from maestro_jax.batches import SAMPLE_RATE, StreamConfig
from maestro_jax.data.bucketing import BucketSchedule, assign_buckets
from maestro_jax.data.index_plan import IndexPlan, hash_words
from maestro_jax.data.padding import (
    empty_batch,
    pad_example,
    row_limits,
    scalar_features,
    stream_limits,
)
from maestro_jax.data.spoken_texts import SpokenTexts
from maestro_jax.data.stream_tasks import stream_of, token_vocabulary
from maestro_jax.data.task_readers import (
    IndexedReader,
    ReaderSpec,
    RememberingReader,
    SequentialReader,
    TaskReader,
    open_split,
)
from maestro_jax.data.task_registry import check_prepared, get_task_or_mixture, rate_of, tasks_of
from maestro_jax.errors import UserError
from maestro_jax.text.languages import LanguageTable

_log = logging.getLogger(__name__)

_LOOKAHEAD = 1024  # Rows that are planned at once.
# Augmentation waits for nothing and shares the cores with whatever trains.
_THREADS = min(8, os.cpu_count() or 1)


class _Bucket:
    """The examples of a stream that go into batches of one shape.

    Args:
        stream: The name of the stream.
        shape: The shape of its batches.
        seed: Seed of the order of its examples.
        sizes: Number of examples of each task in the bucket; None without random access.
        rates: Share of each task in the bucket, up to a factor.
        members: Records of each task in the bucket; None for all of them.
        process_index: Index of this process.
        process_count: Number of processes.
    """

    def __init__(
        self,
        stream: str,
        shape: StreamConfig,
        seed: int,
        *,
        sizes: Sequence[int | None],
        rates: Sequence[float],
        members: Sequence[np.ndarray | None],
        process_index: int,
        process_count: int,
    ) -> None:
        if shape.batch_size % process_count:
            raise UserError(
                f"the batch of stream {stream!r} has {shape.batch_size} examples, which "
                f"{process_count} processes cannot share equally; make it a multiple of "
                f"{process_count}."
            )
        rows = shape.batch_size // process_count
        # Rows of the global batch; together the processes have each row once, however many they
        # are.
        self.rows = np.arange(process_index * rows, (process_index + 1) * rows)
        self.batch_size = shape.batch_size
        self.limits = row_limits(stream, shape)
        self.seed = seed
        self._members = members
        self._sizes = sizes
        # A task without examples here has no place in the plan.
        self._tasks = [task for task, size in enumerate(sizes) if size is None or size > 0]
        self.plan = IndexPlan(
            [sizes[task] for task in self._tasks], [rates[task] for task in self._tasks], seed
        )

    def locate(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Finds the records at some positions of the bucket.

        Args:
            positions: int64 `[n]`.

        Returns:
            Tasks int64 `[n]`, and keys int64 `[n]`: an index, or an ordinal for a task without
            random access.
        """
        local_tasks, keys = self.plan.locate(positions)
        tasks = np.asarray(self._tasks)[local_tasks]
        for number, task in enumerate(self._tasks):
            of_task = local_tasks == number
            if self._sizes[task] is not None and of_task.any():
                indices = self.plan.index(number, keys[of_task])
                members = self._members[task]
                keys[of_task] = indices if members is None else members[indices]
        return tasks, keys

    def partners(self, positions: np.ndarray, share: float) -> tuple[np.ndarray, np.ndarray]:
        """Draws the record that is mixed into the one at each position, of the same bucket.

        Args:
            positions: int64 `[n]`.
            share: Fraction of them that get one, 0 ... 1.

        Returns:
            Tasks int64 `[n]`, -1 where there is none; keys int64 `[n]`.
        """
        # 53 bits, as many as a float64 holds exactly, against a share of 2^53.
        drawn = hash_words(self.seed, 7, positions) >> np.uint64(11)
        size = sum(size or 0 for size in self._sizes)
        partners = hash_words(self.seed, 8, positions) % np.uint64(size)
        tasks, keys = self.locate(partners.astype(np.int64))
        return np.where(drawn < share * 2.0**53, tasks, -1), keys


@dataclasses.dataclass(frozen=True)
class _Step:
    """What this process's rows of a step hold.

    Attributes:
        bucket: The number of the bucket.
        positions: Positions in the bucket, int64 `[rows]`.
        tasks: int64 `[rows, 1 or 2]`: of the record, and of what is mixed into it, -1 for nothing.
        keys: Index or ordinal, int64 `[rows, 1 or 2]`.
    """

    bucket: int
    positions: np.ndarray
    tasks: np.ndarray
    keys: np.ndarray


class StreamReader:
    """One stream of a loader; nothing is read before `start`.

    Args:
        name: Name of the stream.
        config: Source and shape of its examples.
        split: The split of every task.
        seed: Seed of the order of examples, of crops and of augmentation.
        languages: The ids of languages.
        process_index: Index of this process.
        process_count: Number of processes.

    Attributes:
        vocabulary: That of its tokens; None if it has none.
        weights: Share of each bucket in the batches, up to a factor, the shortest bucket first.
        cached_bytes: About how much memory cached examples take.
        cached_examples: Number of cached examples.
        counters: The names of what `rows` counts, such as ``paired/over_long``.

    Raises:
        UserError: The stream, a task, a split or a vocabulary is wrong or not prepared.
    """

    def __init__(
        self,
        name: str,
        config: StreamConfig,
        *,
        split: str,
        seed: int,
        languages: LanguageTable,
        process_index: int = 0,
        process_count: int = 1,
    ) -> None:
        self.name = name
        self.cached_bytes = self.cached_examples = 0
        self._config = config
        self._languages = languages
        self._split = split
        # Streams with the same tasks draw in orders of their own.
        self._seed = int(hash_words(seed, zlib.crc32(name.encode()))[0])
        self._identities = scalar_features(name)
        self._readers: list[TaskReader] = []
        self._pool: concurrent.futures.ThreadPoolExecutor | None = None
        self._spoken: SpokenTexts | None = None
        self.counters = [f"{name}/{'cropped' if name == 'speech' else 'over_long'}"]
        if config.synthesis is not None:
            self.counters.append(f"{name}/synthetic_over_long")
        provider = get_task_or_mixture(config.mixture)
        mixture = provider.name
        made_for = stream_of(provider)
        if made_for is not None and made_for != name:
            raise UserError(f"stream {name!r} reads {mixture!r}, which is for stream {made_for!r}.")
        check_prepared(provider)
        self.vocabulary = token_vocabulary(provider.output_features, mixture)
        tasks = [
            (task, rate)
            for task in tasks_of(provider)
            if (rate := rate_of(provider, task)) > 0 and split in task.splits
        ]
        if not tasks:
            raise UserError(f"no task of {mixture!r} has a split {split!r}.")
        self._tasks = [task for task, _ in tasks]
        self._splits = [open_split(task, split) for task in self._tasks]
        if config.synthesis is not None:
            assert self.vocabulary is not None
            self._spoken = SpokenTexts(config.synthesis, self._tasks, self.vocabulary, languages)
        self._buckets, self.weights = self._make_buckets(
            [rate for _, rate in tasks], process_index, process_count
        )
        rows = max(len(bucket.rows) for bucket in self._buckets)
        self._window_steps = max(1, _LOOKAHEAD // rows)
        self._window = functools.lru_cache(maxsize=4)(self._make_window)

    def _make_buckets(
        self, rates: list[float], process_index: int, process_count: int
    ) -> tuple[list[_Bucket], list[float]]:
        """Makes the buckets, and computes their shares of the batches."""
        shapes = self._config.shapes()
        process = {"process_index": process_index, "process_count": process_count}
        augmentation = self._config.augmentation
        if len(shapes) > 1 or (augmentation and augmentation.mix_probability):
            for task, opened in zip(self._tasks, self._splits, strict=True):
                if opened is None:
                    raise UserError(
                        f"task {task.name!r} has no random access: stream {self.name!r} can have "
                        "neither buckets nor mixed utterances with it."
                    )
        if len(shapes) == 1:
            sizes = [None if opened is None else len(opened) for opened in self._splits]
            bucket = _Bucket(
                self.name,
                shapes[0],
                self._seed,
                sizes=sizes,
                rates=rates,
                members=[None] * len(sizes),
                **process,
            )
            return [bucket], [1.0]
        assert self._config.buckets is not None
        limits = [stream_limits(self.name, shape) for shape in shapes]
        lengths = [opened.lengths() for opened in self._splits if opened is not None]
        assigned = [
            assign_buckets(of_task, limits, self._config.buckets.characters_per_token)
            for of_task in lengths
        ]
        buckets: list[_Bucket] = []
        weights: list[float] = []
        for number, shape in enumerate(shapes):
            members = [np.flatnonzero(chosen == number).astype(np.int32) for chosen, _ in assigned]
            # A task gives the bucket its rate, as far as its examples are of the bucket.
            shares = [
                rate / sum(rates) * len(task_members) / len(chosen)
                for rate, task_members, (chosen, _) in zip(rates, members, assigned, strict=True)
            ]
            # Batches of a bucket: its examples over those of one batch.
            weights.append(sum(shares) / shape.batch_size)
            if not any(len(task_members) for task_members in members):
                # It never has its turn; the plan wants something to plan.
                members = [np.zeros(1, np.int32) for _ in members]
                shares = [1.0] * len(members)
            buckets.append(
                _Bucket(
                    self.name,
                    shape,
                    int(hash_words(self._seed, 6, number)[0]),
                    sizes=[len(task_members) for task_members in members],
                    rates=shares,
                    members=members,
                    **process,
                )
            )
        self._log_buckets(shapes, assigned, weights)
        return buckets, weights

    def _log_buckets(
        self,
        shapes: Sequence[StreamConfig],
        assigned: Sequence[tuple[np.ndarray, np.ndarray]],
        weights: Sequence[float],
    ) -> None:
        """Logs the numbers of examples and batches of each bucket, and of what fits none."""
        counts = np.bincount(np.concatenate([chosen for chosen, _ in assigned]), minlength=1)
        counts = np.pad(counts, (0, len(shapes) - len(counts)))
        for shape, count, weight in zip(shapes, counts, weights, strict=True):
            _log.info(
                "stream %r: %d examples in batches of %s, %.1f %% of its batches",
                self.name,
                count,
                shape_text(shape),
                100 * weight / sum(weights),
            )
        if too_long := sum(int(over_long.sum()) for _, over_long in assigned):
            _log.warning(
                "stream %r: %d examples are longer than its longest bucket; they are %s",
                self.name,
                too_long,
                "cropped" if self.name == "speech" else "left out if they do not fit",
            )

    def start(
        self,
        schedule: BucketSchedule,
        step: int,
        cache_bytes: int,
        cache_examples: int,
    ) -> None:
        """Makes the readers.

        Args:
            schedule: Bucket of each step.
            step: The first one that will be asked for.
            cache_bytes: Tasks are kept in memory while they take less than this in all,
            cache_examples: and while they have fewer examples than this in all.
        """
        self._schedule = schedule
        if self._config.augmentation is not None:
            self._pool = concurrent.futures.ThreadPoolExecutor(_THREADS, "augmentation")
        limits = stream_limits(self.name, self._config)
        for number, (task, opened) in enumerate(zip(self._tasks, self._splits, strict=True)):
            spec = ReaderSpec(
                task=task,
                split=self._split,
                sequences=tuple(limits),
                identities=self._identities,
                sequence_length=limits,
                seed=int(hash_words(self._seed, 5, number)[0] >> np.uint64(33)),
                languages=self._languages,
            )
            if opened is None:
                [bucket] = self._buckets
                # A reader without random access is asked for ordinals: on resume it skips those
                # before.
                first = int(bucket.plan.counts(step * bucket.batch_size)[number])
                self._readers.append(SequentialReader(spec, first))
                continue
            upcoming = self._upcoming(number, step)
            if (
                self.cached_bytes + opened.num_bytes <= cache_bytes
                and self.cached_examples + len(opened) <= cache_examples
            ):
                self._readers.append(RememberingReader(spec, opened, upcoming))
                self.cached_bytes += opened.num_bytes
                self.cached_examples += len(opened)
            else:
                self._readers.append(IndexedReader(spec, opened, upcoming))

    def _make_window(self, window: int) -> list[_Step]:
        """Plans this process's rows of several steps at once, which saves much time.

        Args:
            window: Number of the run of `_window_steps` steps.
        """
        first = window * self._window_steps
        numbers, ordinals = self._schedule.batches(self.name, first, self._window_steps)
        augmentation = self._config.augmentation
        mixed = augmentation.mix_probability if augmentation else 0.0
        steps: dict[int, _Step] = {}
        for number in np.unique(numbers).tolist():
            bucket = self._buckets[number]
            of_bucket = np.flatnonzero(numbers == number)
            # [steps of the bucket, rows of this process]
            positions = ordinals[of_bucket][:, None] * bucket.batch_size + bucket.rows
            records = [bucket.locate(positions.ravel())]
            if mixed:
                records.append(bucket.partners(positions.ravel(), mixed))
            # The record, and what is mixed into it: [steps, rows, 1 or 2].
            tasks, keys = (
                np.stack(values, axis=-1).reshape(*positions.shape, len(records))
                for values in zip(*records, strict=True)
            )
            for row, step in enumerate(of_bucket.tolist()):
                steps[step] = _Step(number, positions[row], tasks[row], keys[row])
        return [steps[step] for step in range(self._window_steps)]

    def _upcoming(self, task: int, step: int) -> Iterator[int]:
        """Yields the keys of a task's examples in this process's rows, from a step on."""
        window, offset = divmod(step, self._window_steps)
        while True:
            for planned in self._window(window)[offset:]:
                # In the order in which `rows` asks: row by row, the record before what is mixed
                # into it.
                yield from planned.keys[planned.tasks == task].tolist()
            window, offset = window + 1, 0

    def rows(self, step: int) -> tuple[dict[str, np.ndarray], dict[str, int]]:
        """Returns this process's rows of a step, and by how much the counters grow."""
        window, offset = divmod(step, self._window_steps)
        planned = self._window(window)[offset]
        bucket = self._buckets[planned.bucket]
        examples = [
            [
                self._readers[task].example(key)
                for task, key in zip(tasks, keys, strict=True)
                if task >= 0
            ]
            for tasks, keys in zip(planned.tasks.tolist(), planned.keys.tolist(), strict=True)
        ]
        if self._pool is not None:
            change = functools.partial(self._augmented, bucket)
            # In the order of the rows, whichever thread is done first.
            firsts = list(self._pool.map(change, planned.positions.tolist(), examples))
        else:
            firsts = [example for example, *_ in examples]
        features = empty_batch(bucket.limits, self._identities, len(firsts))
        # A function of the position: the window of an example does not depend on the processes
        # either.
        crops = hash_words(bucket.seed, 4, planned.positions) >> np.uint64(1)
        over_long = 0
        for row, example in enumerate(firsts):
            over_long += pad_example(
                features,
                row,
                example,
                bucket.limits,
                self._identities,
                # Only speech without a transcript can be shortened.
                crop=int(crops[row]) if self.name == "speech" else None,
            )
        counts = [over_long]
        if self._spoken is not None:
            # The texts of the rows: an example that was left out is not spoken either.
            seeds = [(bucket.seed, position) for position in planned.positions.tolist()]
            counts.append(self._spoken.add_to(features, seeds))
        return features, dict(zip(self.counters, counts, strict=True))

    def _augmented(
        self, bucket: _Bucket, position: int, examples: list[dict[str, np.ndarray]]
    ) -> dict[str, np.ndarray]:
        """Augments the audio of the first example as was drawn for its position.

        What the audio was made of comes along as `clean_audio`.
        """
        example, *others = examples
        assert self._config.augmentation is not None
        audio, clean = augment(
            example["audio"],
            self._config.augmentation,
            # A generator per position: threads and processes may come in any order.
            np.random.default_rng([bucket.seed, position]),
            longest=bucket.limits["audio"],
            other=others[0]["audio"] if others else None,
        )
        return {**example, "audio": audio, "clean_audio": clean}

    def close(self) -> None:
        """Closes the readers."""
        for reader in self._readers:
            reader.close()
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        if self._spoken is not None:
            self._spoken.close()


def shape_text(shape: StreamConfig) -> str:
    """Formats the shape of a batch: `8 x 15.0 s, 96 tokens`."""
    parts = [f"{shape.audio_samples / SAMPLE_RATE:.1f} s"] if shape.audio_samples else []
    parts += [f"{n} tokens" for n in (shape.text_tokens, shape.translation_tokens) if n]
    return f"{shape.batch_size} x {', '.join(parts)}"

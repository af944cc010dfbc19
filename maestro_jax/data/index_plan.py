"""The order of examples: a pure function of (seed, position), computable anywhere in constant time.

A stream draws from several tasks at fixed rates. Position ``p`` of the stream names one example: a
task, and how many examples of that task came before it (its *ordinal*). Three properties hold,
whatever the position a run starts at:

* the mixture is exact: positions are cut into blocks, and at every block's end each task has given
  its share of all the examples so far, to within about one example; inside a block the tasks are
  shuffled;
* the ordinals of a task count 0, 1, 2, ... along the stream, so that sources without random access
  can follow too;
* ordinal ``o`` of a task with ``n`` examples is in epoch ``o // n`` and every example is seen
  exactly once an epoch, in an order drawn anew each epoch (a Feistel permutation with cycle
  walking: no table, constant memory; Black and Rogaway, "Ciphers with arbitrary finite domains",
  CT-RSA 2002).

Once the rates are rounded to fixed point, all arithmetic is on integers: the order is the same on
every machine and with every version of NumPy.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

_MASK = (1 << 64) - 1
_SHARE_BITS = 24  # A block's share of a task is held in fixed point with so many fractional bits.
_MIN_BLOCK = 256
_ROUNDS = 8


def hash_words(*words: int | np.ndarray) -> np.ndarray:
    """Hashes integers to 64 well-mixed bits (the finaliser of SplitMix64, applied word by word).

    Args:
        *words: Integers or integer arrays `[n]`, broadcast against each other.

    Returns:
        uint64 `[n]` (`[1]` when all words are scalars).
    """
    state = np.zeros(1, np.uint64)
    for word in words:
        if isinstance(word, int):
            word = np.asarray([word & _MASK], np.uint64)
        # Arithmetic on uint64 wraps around modulo 2^64, as the hash wants it.
        state = state * np.uint64(0x9E3779B97F4A7C15) + np.asarray(word).astype(np.uint64)
        state = state + np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state = state ^ (state >> np.uint64(31))
    return state


def permute(indices: np.ndarray, size: int, keys: np.ndarray) -> np.ndarray:
    """Applies pseudo-random permutations of ``range(size)``.

    Args:
        indices: int64 `[n]`, each in ``range(size)``.
        size: The number of things permuted.
        keys: uint64 `[n]` or `[1]`: which permutation to apply to each index.

    Returns:
        int64 `[n]`, each in ``range(size)``; with one key, a permutation of the indices' set as a
        whole.
    """
    # A domain of at least 64 values keeps the permutations of very small sets well mixed.
    # A Feistel network permutes pairs of equal halves: the domain is the next even power of two,
    # less than four times the size (64 for the smallest).
    half_bits = max(3, ((size - 1).bit_length() + 1) // 2)
    mask = np.uint64((1 << half_bits) - 1)
    shift = np.uint64(half_bits)
    keys = np.broadcast_to(keys, indices.shape)
    values = indices.astype(np.uint64)
    # Cycle walking: a value that falls outside is permuted again until it falls inside. Following
    # the cycles of a permutation, no two indices can meet.
    walking = np.arange(values.size)
    while walking.size:
        left, right = values[walking] >> shift, values[walking] & mask
        for round_number in range(_ROUNDS):
            scramble = hash_words(keys[walking], round_number, right) & mask
            # A round can be undone whatever `scramble` is, which makes it a permutation.
            left, right = right, left ^ scramble
        values[walking] = (left << shift) | right
        walking = walking[values[walking] >= size]
    return values.astype(np.int64)


class IndexPlan:
    """Which example stands at which position of a stream.

    Args:
        sizes: Examples of each task, or None for a task that can only be read from its beginning to
            its end.
        rates: Relative weight of each task, >= 0 and not all 0.
        seed: Any integer; another seed gives an unrelated order.
    """

    def __init__(self, sizes: Sequence[int | None], rates: Sequence[float], seed: int) -> None:
        total = float(sum(rates))
        if len(sizes) != len(rates) or total <= 0 or any(rate < 0 for rate in rates):
            raise ValueError(f"rates {list(rates)} do not fit {len(sizes)} tasks")
        if any(size is not None and size < 1 for size in sizes):
            raise ValueError(f"every task needs an example, got sizes {list(sizes)}")
        self._sizes = tuple(sizes)
        self._seed = seed
        # Four examples of an average task per block at least, so that a block mixes all of them.
        block = max(_MIN_BLOCK, 4 * len(sizes))
        one = 1 << _SHARE_BITS
        # Shares are the examples of a task in a block; phases spread the first of rare tasks.
        self._shares = np.array(
            [max(1, round(rate / total * block * one)) if rate else 0 for rate in rates], np.int64
        )
        phases = hash_words(seed, 1, np.arange(len(sizes))) % np.uint64(one)
        self._phases = phases.astype(np.int64)
        self._table = functools.lru_cache(maxsize=16)(self._make_table)

    def _task_starts(self, blocks: np.ndarray) -> np.ndarray:
        """Counts the examples of each task before a block: int64 `[blocks, tasks]`."""
        # floor(block * share + phase), exactly: shares accumulate over blocks without rounding
        # errors.
        return (blocks[:, None] * self._shares + self._phases) >> _SHARE_BITS

    def _starts(self, blocks: np.ndarray) -> np.ndarray:
        """Returns the first position of a block: int64 `[blocks]`."""
        return self._task_starts(blocks).sum(axis=1)

    def _blocks(self, positions: np.ndarray) -> np.ndarray:
        """Returns the block of each position: a guess from the mean length, then corrected."""
        mean = float(self._shares.sum()) / (1 << _SHARE_BITS)
        # The division is the only floating-point number here; it decides nothing, since the
        # integers below correct it.
        blocks = np.maximum((positions / mean).astype(np.int64), 0)
        while True:
            late = self._starts(blocks) > positions
            early = self._starts(blocks + 1) <= positions
            if not (late.any() or early.any()):
                return blocks
            blocks = blocks - late + early

    def _make_table(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the tasks and ordinals of a block's positions, in order."""
        begin, end = self._task_starts(np.array([block, block + 1]))
        # [positions of the block]: each task as often as it occurs, then shuffled by sorting
        # hashes.
        labels = np.repeat(np.arange(len(begin)), end - begin)
        order = np.argsort(hash_words(self._seed, 2, block, np.arange(labels.size)), kind="stable")
        tasks = labels[order]
        ordinals = np.empty_like(tasks)
        for task in range(len(begin)):
            places = np.flatnonzero(tasks == task)
            ordinals[places] = begin[task] + np.arange(places.size)
        return tasks, ordinals

    def locate(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Finds the examples at some positions of the stream.

        Args:
            positions: int64 `[n]`, each >= 0, in any order.

        Returns:
            Tasks int64 `[n]`, and ordinals int64 `[n]`: how many examples of that task come before.
        """
        positions = np.asarray(positions, np.int64)
        tasks, ordinals = np.empty_like(positions), np.empty_like(positions)
        blocks = self._blocks(positions)
        for block in np.unique(blocks):
            in_block = blocks == block
            block_tasks, block_ordinals = self._table(int(block))
            offsets = positions[in_block] - self._starts(np.array([block]))[0]
            tasks[in_block] = block_tasks[offsets]
            ordinals[in_block] = block_ordinals[offsets]
        return tasks, ordinals

    def counts(self, position: int) -> np.ndarray:
        """Counts the examples of each task before a position: int64 `[tasks]`."""
        block = int(self._blocks(np.array([position]))[0])
        begin = self._task_starts(np.array([block]))[0]
        offset = position - int(begin.sum())
        tasks, _ = self._table(block)
        return begin + np.bincount(tasks[:offset], minlength=len(begin))

    def index(self, task: int, ordinals: np.ndarray) -> np.ndarray:
        """Returns the examples of a task in the order of the epochs.

        Args:
            task: Number of the task; its size must be known.
            ordinals: int64 `[n]`: how many examples of the task come before.

        Returns:
            int64 `[n]`: indices of examples, each in ``range(size)``.
        """
        size = self._sizes[task]
        if size is None:
            raise ValueError(f"task {task} has no random access")
        ordinals = np.asarray(ordinals, np.int64)
        # A key per epoch: each epoch is another permutation of the task.
        epochs, indices = np.divmod(ordinals, size)
        return permute(indices, size, hash_words(self._seed, 3, task, epochs))

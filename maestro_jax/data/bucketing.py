"""Buckets: which examples go together, and which bucket's turn it is.

Every bucket of a stream has an order of its own examples. The streams of a run draw their buckets
together: put the buckets of each stream side by side on a line from 0 to 1, the shortest first,
each as wide as its share of the batches. The ends of all of them cut the line into *cells*; a step
draws a cell, and with it a bucket of every stream. A stream's buckets come in their shares, the
combinations of buckets, for each of which a training step is compiled, are no more than there are
ends, and streams whose shapes are alike have their short batches at the same steps.

Padding is what costs time: a batch of a bucket takes as long as if all its examples had the
bucket's length. `find_buckets` finds the lengths that leave the least padding exactly, by dynamic
programming over the distribution of lengths, at the rates at which the mixture draws its tasks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from maestro_jax.data.index_plan import IndexPlan
from maestro_jax.data.lengths import COLUMNS
from maestro_jax.data.task_readers import open_split
from maestro_jax.data.task_registry import check_prepared, get_task_or_mixture, rate_of, tasks_of
from maestro_jax.errors import UserError

_LINE = 1 << 40  # The line in whole numbers: the same cells on every machine.


def assign_buckets(
    lengths: np.ndarray, shapes: Sequence[Mapping[str, int]], characters_per_token: float
) -> tuple[np.ndarray, np.ndarray]:
    """Finds the first bucket that each example fits.

    Args:
        lengths: int32 `[examples, 3]`: samples, characters of the text and of the translation.
        shapes: The limit of each feature in each bucket, rising.
        characters_per_token: Characters per token that texts are taken to have, which also have one
            token more.

    Returns:
        int8 `[examples]`: the number of the bucket, the last one where an example fits none; and
        bool `[examples]`: whether it fits none.
    """
    buckets = np.full(len(lengths), len(shapes) - 1, np.int8)
    over_long = np.ones(len(lengths), bool)
    # From the longest to the shortest: the shortest that fits is written last.
    for number in reversed(range(len(shapes))):
        fits = np.ones(len(lengths), bool)
        for name, limit in shapes[number].items():
            long = lengths[:, COLUMNS.index(name)]
            fits &= (long if name == "audio" else np.ceil(long / characters_per_token) + 1) <= limit
        buckets[fits] = number
        over_long &= ~fits
    return buckets, over_long


class BucketSchedule:
    """The bucket of each stream at each step, a function of (seed, step).

    Args:
        weights: By stream, how many batches of each bucket there are among all of the stream's, up
            to a factor; the shortest bucket first.
        seed: Any integer.
    """

    def __init__(self, weights: Mapping[str, Sequence[float]], seed: int) -> None:
        ends = {
            # Float shares are rounded once to whole numbers; from here on all is exact.
            name: np.rint(np.cumsum(shares) / np.sum(shares) * _LINE).astype(np.int64)
            for name, shares in weights.items()
        }
        cuts = np.unique(np.concatenate([*ends.values(), [_LINE]]))
        cuts = cuts[cuts > 0]
        # A cell lies in the first bucket that ends behind its last point.
        self._buckets = {
            name: np.searchsorted(of_stream, cuts - 1, side="right")
            for name, of_stream in ends.items()
        }
        self._widths = np.diff(cuts, prepend=0)
        self._plan = IndexPlan([None] * len(cuts), self._widths.tolist(), seed)

    def batches(self, stream: str, step: int, steps: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the buckets of a stream from some step on.

        Args:
            stream: Name of the stream.
            step: The first step.
            steps: Number of steps.

        Returns:
            int64 `[steps]`: the number of the bucket; int64 `[steps]`: how many batches of this
            bucket came before.
        """
        bucket_of_cell = self._buckets[stream]
        buckets = bucket_of_cell[self._plan.locate(np.arange(step, step + steps))[0]]
        before = self._plan.counts(step)
        ordinals = np.empty_like(buckets)
        for bucket in np.unique(buckets):
            in_bucket = buckets == bucket
            ordinals[in_bucket] = before[bucket_of_cell == bucket].sum() + np.arange(
                in_bucket.sum()
            )
        return buckets, ordinals


@dataclasses.dataclass(frozen=True, kw_only=True)
class LengthDistribution:
    """How long the examples of a mixture are.

    Attributes:
        lengths: int32 `[examples, 3]`, see `maestro_jax.data.lengths`.
        weights: float64 `[examples]`: how often each is drawn, up to a factor.
    """

    lengths: np.ndarray
    weights: np.ndarray


def mixture_lengths(name: str, split: str = "train") -> LengthDistribution:
    """Reads the files of lengths beside the shards; no record is read where they are there.

    Args:
        name: Name of a task or mixture.
        split: Split of every task.

    Raises:
        UserError: It is unknown or not prepared, or a task has no random access or no such split.
    """
    provider = get_task_or_mixture(name)
    check_prepared(provider)
    lengths, weights = [], []
    for task in tasks_of(provider):
        rate = rate_of(provider, task)
        if rate <= 0 or split not in task.splits:
            continue
        opened = open_split(task, split)
        if opened is None:
            raise UserError(f"task {task.name!r} has no random access, so it can have no buckets.")
        lengths.append(opened.lengths())
        weights.append(np.full(len(lengths[-1]), rate / max(len(lengths[-1]), 1)))
    if not lengths:
        raise UserError(f"no task of {name!r} has a split {split!r}.")
    return LengthDistribution(lengths=np.concatenate(lengths), weights=np.concatenate(weights))


@dataclasses.dataclass(frozen=True, kw_only=True)
class FoundBucket:
    """A bucket to write into a `Buckets`.

    Attributes:
        limit: The longest of its examples, in samples or tokens.
        text_tokens: The same of its texts, in tokens; 0 where buckets are not made by audio or
            there are none.
        translation_tokens: The same of its translations.
        batch_size: Number of examples per step.
        share: Fraction of all examples drawn.
        padding: Padded by real length of its batches.
    """

    limit: int
    text_tokens: int
    translation_tokens: int
    batch_size: int
    share: float
    padding: float


def best_limits(
    lengths: np.ndarray, weights: np.ndarray, count: int, *, longest: int, multiple: int
) -> list[int]:
    """Finds the lengths of at most ``count`` buckets that leave the least padding.

    Args:
        lengths: `[examples]`, of those that are not longer than ``longest``.
        weights: `[examples]`: how often each is drawn, up to a factor.
        count: Buckets at most.
        longest: The length of the last bucket.
        multiple: Every length but the last is a multiple of it.

    Returns:
        Rising; the last is ``longest``.
    """
    steps = -(-longest // multiple)
    # Bin i holds the lengths above (i - 1) * multiple and up to i * multiple.
    bins = np.clip(-(-lengths.astype(np.int64) // multiple), 1, steps)
    # [steps + 1]: weight of all examples in the bins up to each.
    mass = np.concatenate([[0.0], np.cumsum(np.bincount(bins, weights, steps + 1)[1:])])
    ends = np.minimum(np.arange(steps + 1) * multiple, longest).astype(np.float64)
    [*_, best] = best_divisions((mass[None, :] - mass[:, None]) * ends[None, :], count)
    return [
        int(ends[end])
        for begin, end in best
        # An empty bucket is one too many; the last stays, so that nothing has become too long.
        if end == steps or mass[end] > mass[begin]
    ]


def best_divisions(costs: np.ndarray, most: int) -> list[list[tuple[int, int]]]:
    """Finds how to divide a line into pieces of the least total cost, by dynamic programming.

    Args:
        costs: float `[points, points]`: the cost of a piece from one point (row) to another
            (column). What is below the diagonal is not read.
        most: Pieces at most.

    Returns:
        For 1, 2, ... and ``most`` pieces at most: the beginning and the end of each piece, rising,
        from the first point to the last. The list is shorter if there are fewer pieces.
    """
    points = len(costs)
    # A piece cannot begin behind its end. One of no width costs nothing: fewer are allowed.
    costs = np.where(np.tri(points, k=-1, dtype=bool), np.inf, costs)
    np.fill_diagonal(costs, 0.0)
    # least[i]: the least cost of all pieces up to point i.
    least = np.where(np.arange(points) == 0, 0.0, np.inf)
    begins: list[np.ndarray] = []
    divisions = []
    for _ in range(min(most, points - 1)):
        totals = least[:, None] + costs
        begins.append(totals.argmin(axis=0))
        least = totals.min(axis=0)
        # Back along the choices, from the last piece to the first.
        pieces, end = [], points - 1
        for of_end in reversed(begins):
            begin = int(of_end[end])
            if begin < end:
                pieces.append((begin, end))
            end = begin
        divisions.append(pieces[::-1])
    return divisions


def find_buckets(
    distribution: LengthDistribution,
    *,
    count: int,
    longest: int,
    batch_size: int,
    batch_multiple: int = 1,
    by: str = "audio",
    multiple: int = 1280,
    text_tokens: int = 0,
    translation_tokens: int = 0,
    characters_per_token: float = 1.0,
) -> list[FoundBucket]:
    """Finds the buckets of a stream that leave the least padding.

    Shorter buckets get as many examples per step as make their batches as long, padding included,
    as that of the longest.

    Args:
        distribution: How long the examples are.
        count: Buckets at most, that of the stream's own shape included.
        longest: Its length, in samples or tokens; what is longer is left out of the account.
        batch_size: Its number of examples per step.
        batch_multiple: Batch sizes are multiples of it: of the chips that share a batch.
        by: Feature whose length decides: "audio", or "text" if there is none.
        multiple: Lengths are multiples of it; 1280 samples are two frames of an encoder.
        text_tokens: The tokens of the stream's own shape; 0: it has no text.
        translation_tokens: The same for translations.
        characters_per_token: See `maestro_jax.batches.Buckets`.

    Raises:
        UserError: There is no example of such a length.
    """
    tokens = {"text": text_tokens, "translation": translation_tokens}
    columns = distribution.lengths.astype(np.int64)
    for name in tokens:
        at = COLUMNS.index(name)
        columns[:, at] = np.ceil(columns[:, at] / characters_per_token) + 1
    measured = columns[:, COLUMNS.index(by)]
    fits = measured <= longest
    for name in tokens.keys() - {by}:
        fits &= (columns[:, COLUMNS.index(name)] <= tokens[name]) | (tokens[name] == 0)
    if not fits.any():
        raise UserError(f"no example is as short as the longest bucket ({longest}): give it more.")
    columns, measured, weights = columns[fits], measured[fits], distribution.weights[fits]
    limits = best_limits(measured, weights, count, longest=longest, multiple=multiple)
    buckets, token_limits = [], dict.fromkeys(tokens, 0)
    for begin, limit in zip([0, *limits[:-1]], limits, strict=True):
        inside = (measured > begin) & (measured <= limit) if begin else measured <= limit
        real = float(weights[inside] @ measured[inside])
        for name, most in tokens.items():
            # An example must fit the bucket of its audio with its texts, too.
            longest_text = columns[inside, COLUMNS.index(name)].max(initial=1)
            token_limits[name] = min(max(token_limits[name], -(-int(longest_text) // 8) * 8), most)
        # As many examples as make the batch as long, rounded down to what the chips can share.
        size = round(batch_size * longest / limit) // batch_multiple * batch_multiple
        buckets.append(
            FoundBucket(
                limit=limit,
                text_tokens=token_limits["text"] if by == "audio" else 0,
                translation_tokens=token_limits["translation"],
                batch_size=batch_size if limit == longest else max(size, batch_multiple),
                share=float(weights[inside].sum()) / float(weights.sum()),
                padding=float(weights[inside].sum()) * limit / real if real else 1.0,
            )
        )
    # The last has the stream's own shape.
    buckets[-1] = dataclasses.replace(
        buckets[-1],
        text_tokens=text_tokens if by == "audio" else 0,
        translation_tokens=translation_tokens,
    )
    return buckets


def padding(distribution: LengthDistribution, limits: Sequence[int], by: str = "audio") -> float:
    """Computes padded by real length, with buckets of some lengths.

    Args:
        distribution: How long the examples are; the longer ones are left out of the account.
        limits: Lengths of the buckets, rising.
        by: "audio", or "text".
    """
    measured = distribution.lengths[:, COLUMNS.index(by)]
    inside = measured <= limits[-1]
    padded = np.asarray(limits)[np.searchsorted(limits, measured[inside])]
    weights = distribution.weights[inside]
    return float(weights @ padded / (weights @ measured[inside]))

"""Buckets: which examples go together, and which bucket's turn it is.

Every bucket of a stream has an order of its own examples. The streams of a run draw their buckets
together: put the buckets of each stream side by side on a line from 0 to 1, the shortest first,
each as wide as its share of the batches. The ends of all of them cut the line into *cells*; a step
draws a cell, and with it a bucket of every stream. A stream's buckets come in their shares, the
combinations of buckets, for each of which a training step is compiled, are no more than there are
ends, and streams whose shapes are alike have their short batches at the same steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from maestro_jax.data.index_plan import IndexPlan
from maestro_jax.data.lengths import COLUMNS

_LINE = 1 << 40  # The line in whole numbers: the same cells on every machine.


def assign_buckets(
    lengths: np.ndarray, shapes: Sequence[Mapping[str, int]], characters_per_token: float
) -> tuple[np.ndarray, np.ndarray]:
    """Finds the first bucket that each example fits.

    Args:
        lengths: int32 `[examples, 3]`: samples, characters of the text and of the translation.
        shapes: The limit of each feature in each bucket, rising.
        characters_per_token: Texts are taken to have a token for so many characters, and one more.

    Returns:
        int8 `[examples]`: the number of the bucket, the last one where an example fits none; and
        bool `[examples]`: whether it fits none.
    """
    buckets = np.full(len(lengths), len(shapes) - 1, np.int8)
    over_long = np.ones(len(lengths), bool)
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

    def combinations(self) -> list[tuple[dict[str, int], float]]:
        """Every combination of buckets that occurs, by stream, and its share of the steps."""
        return [
            ({name: int(buckets[cell]) for name, buckets in self._buckets.items()}, width / _LINE)
            for cell, width in enumerate(self._widths)
        ]

    def batches(self, stream: str, step: int, steps: int) -> tuple[np.ndarray, np.ndarray]:
        """The buckets of a stream from some step on.

        Args:
            stream: Which.
            step: The first step.
            steps: How many.

        Returns:
            int64 `[steps]`: the number of the bucket; int64 `[steps]`: how many batches of this
            bucket came before.
        """
        of_cell = self._buckets[stream]
        buckets = of_cell[self._plan.locate(np.arange(step, step + steps))[0]]
        before = self._plan.counts(step)
        ordinals = np.empty_like(buckets)
        for bucket in np.unique(buckets):
            here = buckets == bucket
            ordinals[here] = before[of_cell == bucket].sum() + np.arange(here.sum())
        return buckets, ordinals

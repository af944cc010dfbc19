"""How far a score could move with other utterances: the bootstrap by utterance."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

CONFIDENCE = 0.95


def bootstrap_interval(
    statistics: np.ndarray,
    score: Callable[[np.ndarray], float],
    *,
    samples: int = 1000,
    seed: int = 0,
) -> tuple[float, float] | None:
    """A 95% percentile interval of a corpus score.

    Utterances are drawn with replacement, as many as there are; the score of each draw comes from
    the summed statistics of its utterances, so a score must be a function of sums (word errors
    and words; n-gram matches and n-grams).

    Args:
        statistics: Counts, [utterances, statistics].
        score: From summed counts [statistics] to a score. A draw that has no finite score (no
            reference words in it) is left out.
        samples: How many draws; 0 asks for no interval.
        seed: Of the draws: the same counts and seed give the same interval.

    Returns:
        The lower and the upper end, or None without utterances, draws or finite scores.

    Source: Bisani and Ney (2004) for word error rate, Koehn (2004) for BLEU.
    """
    statistics = np.asarray(statistics)
    count = statistics.shape[0]
    if not samples or not count:
        return None
    rng = np.random.default_rng(seed)
    # One draw at a time: a whole [samples, utterances] matrix would be 100 MB for CoVoST-2.
    scores = [
        score(statistics[rng.integers(count, size=count)].sum(axis=0)) for _ in range(samples)
    ]
    finite = np.asarray(scores)[np.isfinite(scores)]
    if not finite.size:
        return None
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(finite, [tail, 100 - tail])
    return float(low), float(high)

"""Two recognisers on one test set: the ratio of their error rates, and how sure it is."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from maestro_jax.errors import UserError
from maestro_jax.evaluation.predictions import Prediction, merge
from maestro_jax.scoring.bootstrap import bootstrap_interval
from maestro_jax.scoring.scores import recognition_errors
from maestro_jax.text.normalizers import normalize
from maestro_jax.text.writing_systems import ErrorRate, error_rate_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """Error rates in percent over the same utterances.

    Attributes:
        metric: `wer`, or `cer` where the language has no spaces between words.
        error_rate: Of the model.
        baseline_error_rate: Of the baseline.
        ratio: The first divided by the second; infinite or NaN where the second is 0.
        ratio_interval: 95% bootstrap interval of the ratio. Both models are scored on the same
            draws, so that utterances which are hard for both do not widen it.
        utterances: How many.
    """

    metric: ErrorRate
    error_rate: float
    baseline_error_rate: float
    ratio: float
    ratio_interval: tuple[float, float] | None
    utterances: int


def compare(
    predictions: Sequence[Prediction],
    baseline: Sequence[Prediction],
    *,
    bootstrap_samples: int = 1000,
    seed: int = 0,
) -> Comparison:
    """Compare two models' transcripts of one test set.

    Args:
        predictions: What the model said.
        baseline: What the baseline said of the same utterances, in any order.
        bootstrap_samples: Draws for the interval; 0 for none.
        seed: Of the draws.

    Returns:
        Both rates, their ratio and its interval.

    Raises:
        UserError: The two are not of the same utterances, or of none, or some languages are
            scored by word and others by character.
    """
    ours, theirs = merge(predictions)[0], merge(baseline)[0]
    if [(p.id, p.reference) for p in ours] != [(p.id, p.reference) for p in theirs] or not ours:
        raise UserError(
            f"the predictions are of different test sets ({len(ours)} and {len(theirs)} "
            "utterances); evaluate both models on the same one"
        )
    metrics = {error_rate_of(p.language) for p in ours}
    if len(metrics) > 1:
        raise UserError(
            "the predictions are in languages scored by word and in others scored by character; "
            "compare the models on each kind by itself"
        )
    counts = [
        recognition_errors(
            [normalize(p.reference, p.language) for p in side],
            [normalize(p.hypothesis, p.language) for p in side],
            ours[0].language,
        )
        for side in (ours, theirs)
    ]
    statistics = np.concatenate([counts[0], counts[1][:, :1]], axis=1)
    errors, units, baseline_errors = statistics.sum(axis=0).tolist()

    def ratio(sums: np.ndarray) -> float:
        if not sums[2]:
            return math.nan if not sums[0] else math.inf
        return float(sums[0] / sums[2])

    return Comparison(
        metric=metrics.pop(),
        error_rate=100.0 * errors / units if units else math.nan,
        baseline_error_rate=100.0 * baseline_errors / units if units else math.nan,
        ratio=ratio(statistics.sum(axis=0)),
        ratio_interval=bootstrap_interval(statistics, ratio, samples=bootstrap_samples, seed=seed),
        utterances=len(ours),
    )

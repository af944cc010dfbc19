"""Compares two models on one test set by the paired bootstrap, with any registered metric."""

from __future__ import annotations

import dataclasses
import math
import unicodedata
from collections.abc import Sequence

import numpy as np

from maestro_jax.errors import UserError
from maestro_jax.evaluation.predictions import Prediction, merge
from maestro_jax.scoring.metrics import (
    Kind,
    bootstrap_scores,
    compute_statistics,
    get_metric,
    percentile_interval,
    primary_metric,
)
from maestro_jax.text.normalizers import normalize


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairedComparison:
    """Scores of a model and of a baseline over the same utterances.

    Both are scored on the same draws of utterances, so that utterances which are hard for both do
    not widen the intervals.

    Attributes:
        metric: Name of the metric.
        score: Score of the model.
        baseline_score: Score of the baseline.
        difference: `score` minus `baseline_score`.
        difference_interval: 95% bootstrap interval of the difference.
        ratio: `score` divided by `baseline_score`; infinite or NaN where the latter is 0.
        ratio_interval: 95% bootstrap interval of the ratio.
        p_value: Probability of a difference at least as large, in either direction, between models
            that are equally good (Koehn 2004; with sacreBLEU's correction for few draws).
        utterances: Number of utterances.
    """

    metric: str
    score: float
    baseline_score: float
    difference: float
    difference_interval: tuple[float, float] | None
    ratio: float
    ratio_interval: tuple[float, float] | None
    p_value: float | None
    utterances: int


def compare(
    predictions: Sequence[Prediction],
    baseline: Sequence[Prediction],
    *,
    metric: str | None = None,
    bootstrap_samples: int = 1000,
    seed: int = 0,
) -> PairedComparison:
    """Compares what two models wrote for one test set.

    Args:
        predictions: What the model wrote.
        baseline: What the baseline wrote for the same utterances, in any order.
        metric: Name of the metric; by default the one that the language is reported by: WER, CER
            where it puts no spaces between words, or BLEU of translations.
        bootstrap_samples: Number of draws for the intervals; 0 for none.
        seed: Seed of the draws.

    Returns:
        Both scores, their difference and their ratio.

    Raises:
        UserError: The two are of different utterances, or of none; they are in several languages
            that are reported by different metrics; or no metric has that name.
    """
    ours, theirs = merge(predictions)[0], merge(baseline)[0]
    if [(p.id, p.reference) for p in ours] != [(p.id, p.reference) for p in theirs] or not ours:
        raise UserError(
            f"the predictions are of different test sets ({len(ours)} and {len(theirs)} "
            "utterances); evaluate both models on the same one"
        )
    primaries = {
        primary_metric(_kind(p), p.target_language or p.language) if metric is None else metric
        for p in ours
    }
    if len(primaries) > 1:
        raise UserError(
            f"the predictions are in languages scored by {' and by '.join(sorted(primaries))}; "
            "compare the models on each kind by itself, or name one metric"
        )
    scorer = get_metric(primaries.pop())
    statistics = [_statistics(scorer.name, side) for side in (ours, theirs)]
    width = statistics[0].shape[1]

    def both(sums: np.ndarray) -> tuple[float, float]:
        return scorer.score(sums[:width]), scorer.score(sums[width:])

    paired = np.concatenate(statistics, axis=1)  # [utterances, 2 * statistics]
    score, baseline_score = both(paired.sum(axis=0))
    difference = score - baseline_score
    difference_interval = ratio_interval = p_value = None
    if bootstrap_samples:
        draws = bootstrap_scores(paired, both, samples=bootstrap_samples, seed=seed)
        differences = draws[:, 0] - draws[:, 1]
        difference_interval = percentile_interval(differences)
        ratio_interval = percentile_interval(np.asarray([_ratio(*pair) for pair in draws]))
        # Shifted to a mean of 0, the draws are those of models that are equally good.
        centred = np.abs(differences - differences.mean())
        p_value = float((np.sum(centred > abs(difference)) + 1) / (bootstrap_samples + 1))
    return PairedComparison(
        metric=scorer.name,
        score=score,
        baseline_score=baseline_score,
        difference=difference,
        difference_interval=difference_interval,
        ratio=_ratio(score, baseline_score),
        ratio_interval=ratio_interval,
        p_value=p_value,
        utterances=len(ours),
    )


def _kind(prediction: Prediction) -> Kind:
    return "st" if prediction.target_language else "asr"


def _statistics(metric: str, predictions: Sequence[Prediction]) -> np.ndarray:
    """Counts of every utterance; each language is counted by its own rules, [utterances, n]."""
    scorer = get_metric(metric)
    by_language: dict[str, list[int]] = {}
    for index, prediction in enumerate(predictions):
        language = prediction.target_language or prediction.language
        by_language.setdefault(language, []).append(index)

    def compared(text: str, prediction: Prediction) -> str:
        if _kind(prediction) == "asr" and scorer.normalized:
            return normalize(text, prediction.language)
        return unicodedata.normalize("NFC", text)

    order, parts = [], []
    for language, indices in by_language.items():
        members = [predictions[index] for index in indices]
        order += indices
        parts.append(
            compute_statistics(
                scorer,
                [compared(each.reference, each) for each in members],
                [compared(each.hypothesis, each) for each in members],
                language,
            )
        )
    statistics = np.concatenate(parts)
    return statistics[np.argsort(order)]


def _ratio(score: float, baseline: float) -> float:
    if not baseline:
        return math.nan if not score else math.inf
    return score / baseline

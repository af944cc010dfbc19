"""Compares two models on one test set, with any registered metric.

Two tests, each by language and over the macro average: the paired bootstrap (how far might the
difference be on other utterances?) and approximate randomisation (how often would two models that
differ by chance alone differ as much?).
"""

from __future__ import annotations

import dataclasses
import math
import unicodedata
import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np

from maestro_jax.errors import UserError
from maestro_jax.evaluation.evaluate import ERROR_RATE
from maestro_jax.evaluation.predictions import Prediction, merge
from maestro_jax.scoring.metrics import (
    Kind,
    Metric,
    bootstrap_scores,
    compute_statistics,
    finite_or_none,
    get_metric,
    percentile_interval,
    primary_metric,
)
from maestro_jax.text.normalizers import normalize

SIGNIFICANT = 0.05
"""A difference with a smaller p-value is called significant."""

_CHUNK = 256
"""Random assignments at once: 256 x 15,000 utterances take 30 MB."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairedComparison:
    """Scores of a model and of a baseline over the same utterances.

    Both are scored on the same draws of utterances, so that utterances which are hard for both do
    not widen the interval of the difference. All intervals are 95% bootstrap intervals, None
    without draws.

    Attributes:
        name: Language or direction, or `average`.
        metric: Name of the metric; `error_rate` of an average over WERs and CERs.
        higher_is_better: Whether the better of the two has the higher score.
        utterances: Number of utterances.
        score: Score of the model.
        interval: Interval of `score`.
        baseline_score: Score of the baseline.
        baseline_interval: Interval of `baseline_score`.
        difference: `score` minus `baseline_score`.
        difference_interval: Interval of `difference`.
        ratio: `score` divided by `baseline_score`; infinite or NaN where the latter is 0.
        ratio_interval: Interval of `ratio`.
        bootstrap_p_value: Probability, between models that are equally good, of a difference at
            least as large in either direction: the bootstrap's draws of the difference, shifted to
            a mean of 0, have that distribution (Koehn 2004). Two-sided, while sacreBLEU's paired
            bootstrap counts the draws on one side.
        randomisation_p_value: The same by approximate randomisation, in which each utterance's
            output goes to either model by the toss of a coin (Noreen 1989, Riezler and Maxwell
            2005). As many draws as reach the difference count, ties among them.
    """

    name: str
    metric: str
    higher_is_better: bool
    utterances: int
    score: float
    interval: tuple[float, float] | None
    baseline_score: float
    baseline_interval: tuple[float, float] | None
    difference: float
    difference_interval: tuple[float, float] | None
    ratio: float
    ratio_interval: tuple[float, float] | None
    bootstrap_p_value: float | None
    randomisation_p_value: float | None

    @property
    def significant(self) -> bool:
        """Whether every test that was made finds the difference significant; False without any."""
        p_values = [
            p for p in (self.bootstrap_p_value, self.randomisation_p_value) if p is not None
        ]
        return bool(p_values) and max(p_values) < SIGNIFICANT

    @property
    def model_is_better(self) -> bool:
        """Whether the model has the better score, significantly or not."""
        return self.difference != 0 and (self.difference > 0) == self.higher_is_better

    def as_dict(self) -> dict[str, Any]:
        """Returns plain JSON values; undefined numbers are null."""
        return {
            name: finite_or_none(value) if isinstance(value, float) else value
            for name, value in (
                dataclasses.asdict(self) | {"significant": self.significant}
            ).items()
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two models on one test set.

    Attributes:
        rows: One per language or direction in alphabetical order, or in the order of a suite.
        average: The mean over the rows, each of which counts the same; utterances are drawn within
            each row. Rows without a finite score are in no average.
    """

    rows: tuple[PairedComparison, ...]
    average: PairedComparison

    def as_dict(self) -> dict[str, Any]:
        """Returns plain JSON values; undefined numbers are null."""
        return {
            "rows": [row.as_dict() for row in self.rows],
            "average": self.average.as_dict(),
        }


def compare(
    predictions: Sequence[Prediction],
    baseline: Sequence[Prediction],
    *,
    metric: str | None = None,
    bootstrap_samples: int = 1000,
    randomisations: int = 10_000,
    seed: int = 0,
    names: tuple[str, str] = ("the model", "the baseline"),
    rows: Mapping[str, str] | None = None,
    scorers: Mapping[str, Collection[Metric]] | None = None,
    blocks: Callable[[Prediction], str] | None = None,
) -> Comparison:
    """Compares what two models wrote for one test set.

    Args:
        predictions: What the model wrote.
        baseline: What the baseline wrote for the same utterances, in any order.
        metric: Name of the metric; by default each language has the one that it is reported by:
            WER, CER where it puts no spaces between words, or BLEU of translations.
        bootstrap_samples: Number of draws for the intervals; 0 for none.
        randomisations: Number of random assignments; 0 for none.
        seed: Seed of both.
        names: What errors call the model and the baseline.
        rows: Names of rows by task, in order, where they are not languages, as of
            `maestro_jax.evaluation.evaluate.score`.
        scorers: Metrics that take the place of those of their name, by row.
        blocks: From a prediction to the name of its block, within its row: predictions of a block
            depend on each other, as those of one utterance by models of several seeds, so that they
            are drawn, or exchanged, together (Liu and Peng, arXiv 1912.09508). By default each is
            drawn by itself.

    Returns:
        Scores, differences and both tests, by language and on average.

    Raises:
        UserError: The two are of different utterances, or of none; or no metric of this kind of
            task has that name.
    """
    ours, theirs = merge(predictions, rows)[0], merge(baseline, rows)[0]

    def row_of(prediction: Prediction) -> str:
        return (rows or {}).get(prediction.task, prediction.direction)

    if (difference := _other_utterances(ours, theirs, names, row_of)) is not None:
        raise UserError(difference)
    by_row: dict[str, list[int]] = {name: [] for name in (rows or {}).values()}
    for index, prediction in enumerate(ours):
        by_row.setdefault(row_of(prediction), []).append(index)
    draws = [
        _Draws.of_row(
            name,
            _scorer(ours[indices[0]], metric, (scorers or {}).get(name, ())),
            [ours[index] for index in indices],
            [theirs[index] for index in indices],
            bootstrap_samples,
            randomisations,
            # As `score` draws, so that intervals are those of score tables.
            (seed, zlib.crc32(name.encode())),
            blocks,
        )
        for name, indices in by_row.items()
        if indices
    ]
    counted = [row for row in draws if np.isfinite(row.scores).all()]
    average = _Draws.mean(counted or draws) if len(draws) > 1 else draws[0]
    return Comparison(
        rows=tuple(row.comparison() for row in draws),
        average=dataclasses.replace(average, name="average").comparison(),
    )


@dataclasses.dataclass(frozen=True)
class _Draws:
    """The scores of both models, of a language or on average.

    Attributes:
        name: Language or direction.
        metric: Name of the metric.
        higher_is_better: Of the metric.
        utterances: Number of utterances.
        scores: The model's and the baseline's, [2].
        bootstrapped: Both on the draws of the bootstrap, [samples, 2].
        randomised: The difference of random assignments, [randomisations].
    """

    name: str
    metric: str
    higher_is_better: bool
    utterances: int
    scores: np.ndarray
    bootstrapped: np.ndarray
    randomised: np.ndarray

    @staticmethod
    def of_row(
        name: str,
        scorer: Metric,
        ours: Sequence[Prediction],
        theirs: Sequence[Prediction],
        samples: int,
        randomisations: int,
        seed: int | Sequence[int],
        blocks: Callable[[Prediction], str] | None = None,
    ) -> _Draws:
        statistics = [_statistics(scorer, side) for side in (ours, theirs)]
        if blocks is not None:
            _, block = np.unique([blocks(each) for each in ours], return_inverse=True)
            statistics = [_block_sums(each, block) for each in statistics]
        width = statistics[0].shape[1]

        def both(sums: np.ndarray) -> tuple[float, float]:
            return scorer.score(sums[:width]), scorer.score(sums[width:])

        paired = np.concatenate(statistics, axis=1)  # [utterances, 2 * statistics]
        bootstrapped = bootstrap_scores(paired, both, samples=samples, seed=seed)
        return _Draws(
            name=name,
            metric=scorer.name,
            higher_is_better=scorer.higher_is_better,
            utterances=len(ours),
            scores=np.asarray(both(paired.sum(axis=0)), np.float64),
            bootstrapped=bootstrapped.reshape(samples, 2),
            randomised=randomised_differences(
                scorer, *statistics, samples=randomisations, seed=seed
            ),
        )

    @staticmethod
    def mean(rows: Sequence[_Draws]) -> _Draws:
        """Averages rows, draw by draw; those of one row are independent of those of another."""
        metrics = {row.metric for row in rows}
        return _Draws(
            name="average",
            metric=metrics.pop() if len(metrics) == 1 else ERROR_RATE,
            higher_is_better=rows[0].higher_is_better,
            utterances=sum(row.utterances for row in rows),
            scores=np.mean([row.scores for row in rows], axis=0),
            bootstrapped=np.mean([row.bootstrapped for row in rows], axis=0),
            randomised=np.mean([row.randomised for row in rows], axis=0),
        )

    def comparison(self) -> PairedComparison:
        score, baseline_score = map(float, self.scores)
        difference = score - baseline_score
        differences = self.bootstrapped[:, 0] - self.bootstrapped[:, 1]
        differences = differences[np.isfinite(differences)]
        # Shifted to a mean of 0, the draws are those of models that are equally good.
        centred = differences - differences.mean() if differences.size else differences
        ratios = np.asarray([_ratio(*pair) for pair in self.bootstrapped])
        return PairedComparison(
            name=self.name,
            metric=self.metric,
            higher_is_better=self.higher_is_better,
            utterances=self.utterances,
            score=score,
            interval=percentile_interval(self.bootstrapped[:, 0]),
            baseline_score=baseline_score,
            baseline_interval=percentile_interval(self.bootstrapped[:, 1]),
            difference=difference,
            difference_interval=percentile_interval(differences),
            ratio=_ratio(score, baseline_score),
            ratio_interval=percentile_interval(ratios),
            bootstrap_p_value=_p_value(centred, difference),
            randomisation_p_value=_p_value(self.randomised, difference),
        )


def randomised_differences(
    scorer: Metric,
    ours: np.ndarray,
    theirs: np.ndarray,
    *,
    samples: int,
    seed: int | Sequence[int],
) -> np.ndarray:
    """Scores two models whose outputs are exchanged utterance by utterance, by the toss of a coin.

    Args:
        scorer: The metric.
        ours: Statistics of one model, [utterances, statistics].
        theirs: Those of the other.
        samples: Number of random assignments.
        seed: Their seed.

    Returns:
        Score of the one minus that of the other, [samples].

    Source: Noreen (1989); Riezler and Maxwell (2005), section 3.
    """
    rng = np.random.default_rng(seed)
    whole = np.issubdtype(np.result_type(ours, theirs), np.integer)
    # In float64, whose products are fast, whole numbers stay exact up to 2^53.
    exchanged = (theirs - ours).astype(np.float64)
    sums, total = ours.sum(axis=0), ours.sum(axis=0) + theirs.sum(axis=0)
    differences = []
    for begin in range(0, samples, _CHUNK):
        shape = (min(_CHUNK, samples - begin), len(ours))
        moved = rng.integers(2, size=shape, dtype=bool).astype(np.float64) @ exchanged
        for one in sums + (np.rint(moved).astype(np.int64) if whole else moved):
            differences.append(scorer.score(one) - scorer.score(total - one))
    return np.asarray(differences, np.float64)


def _p_value(draws: np.ndarray, difference: float) -> float | None:
    """Returns the share of draws that are as far from 0, one more of either for certainty."""
    draws = draws[np.isfinite(draws)]
    if not draws.size or not math.isfinite(difference):
        return None
    # Sums in another order differ in their last bits.
    reached = np.abs(draws) >= abs(difference) - 1e-9
    return float((np.sum(reached) + 1) / (draws.size + 1))


def _other_utterances(
    ours: Sequence[Prediction],
    theirs: Sequence[Prediction],
    names: tuple[str, str],
    row_of: Callable[[Prediction], str],
) -> str | None:
    """Says in one line how two lists of predictions differ; None if they are of the same."""
    if not ours or not theirs:
        empty = [name for name, side in zip(names, (ours, theirs), strict=True) if not side]
        return f"there are no predictions of {' and of '.join(empty)} to compare"
    first, second = ({(row_of(p), p.id): p for p in side} for side in (ours, theirs))
    differing = []
    for name, here, there in ((names[0], first, second), (names[1], second, first)):
        lacking = [key for key in there if key not in here]
        if lacking:
            direction, identity = lacking[0]
            differing.append(
                f"{name} lacks {len(lacking)} of {len(there)} utterances ({direction} {identity!r}"
                f"{', ...' if len(lacking) > 1 else ''})"
            )
    if not differing:
        others = [key for key in first if first[key].reference != second[key].reference]
        if not others:
            return None
        direction, identity = others[0]
        texts = " and ".join(repr(_short(side[others[0]].reference)) for side in (first, second))
        differing.append(
            f"{len(others)} references differ, as of {direction} {identity!r}: {texts}"
        )
    return (
        f"{names[0]} and {names[1]} are of different test sets: {'; '.join(differing)}; evaluate "
        "both models on the same one"
    )


def _short(text: str, characters: int = 60) -> str:
    return text if len(text) <= characters else text[: characters - 3] + "..."


def _kind(prediction: Prediction) -> Kind:
    return "st" if prediction.target_language else "asr"


def _scorer(prediction: Prediction, metric: str | None, own: Collection[Metric]) -> Metric:
    """Returns the metric, or the one that the language is reported by."""
    kind = _kind(prediction)
    scorer = get_metric(
        metric or primary_metric(kind, prediction.target_language or prediction.language)
    )
    # Predictions do not say whether a translation was read or heard.
    if ({"asr"} if kind == "asr" else {"st", "mt"}).isdisjoint(scorer.kinds):
        what = "transcripts" if kind == "asr" else "translations"
        raise UserError(
            f"the metric {scorer.name!r} does not score {what}, as those of {prediction.direction}"
        )
    return next((each for each in own if each.name == scorer.name), scorer)


def _statistics(scorer: Metric, predictions: Sequence[Prediction]) -> np.ndarray:
    """Counts of every utterance of one language, [utterances, statistics]."""

    def compared(text: str, prediction: Prediction) -> str:
        if _kind(prediction) == "asr" and scorer.normalized:
            return normalize(text, prediction.language)
        return unicodedata.normalize("NFC", text)

    return compute_statistics(
        scorer,
        [compared(each.reference, each) for each in predictions],
        [compared(each.hypothesis, each) for each in predictions],
        predictions[0].target_language or predictions[0].language,
    )


def _block_sums(statistics: np.ndarray, block: np.ndarray) -> np.ndarray:
    """Adds up [utterances, statistics] by block [utterances]; returns [blocks, statistics]."""
    sums = np.zeros((int(block.max()) + 1, statistics.shape[1]), statistics.dtype)
    np.add.at(sums, block, statistics)
    return sums


def _ratio(score: float, baseline: float) -> float:
    if not baseline:
        return math.nan if not score else math.inf
    return score / baseline

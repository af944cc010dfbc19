"""Scores what a model wrote for a test set, language by language."""

from __future__ import annotations

import dataclasses
import math
import time
import unicodedata
import zlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import numpy as np

from maestro_jax.data.corpora.corpus import SplitSize
from maestro_jax.evaluation.predictions import Prediction, merge
from maestro_jax.scoring.metrics import (
    Kind,
    Metric,
    Score,
    compute_score,
    get_metric,
    metrics_of_kind,
    percentile_interval,
    primary_metric,
)
from maestro_jax.text.normalizers import base_language, normalize

ERROR_RATE = "error_rate"
"""Average of the primary metric of recognition: WER, or CER of languages without spaces."""


@dataclasses.dataclass(kw_only=True)
class DecodingStatistics:
    """What it took to decode a test set, or a process's part of it.

    Attributes:
        utterances: Number of utterances decoded.
        audio_seconds: Duration of their audio.
        padded_seconds: Duration of the batches, padding included.
        input_seconds: Time spent waiting for examples.
        compile_seconds: Time spent compiling.
        decode_seconds: Time spent in encoders and search, and making text of tokens.
    """

    utterances: int = 0
    audio_seconds: float = 0.0
    padded_seconds: float = 0.0
    input_seconds: float = 0.0
    compile_seconds: float = 0.0
    decode_seconds: float = 0.0

    @property
    def rtfx(self) -> float:
        """Seconds of audio decoded per second of decoding (inverse real-time factor)."""
        return self.audio_seconds / self.decode_seconds if self.decode_seconds else math.nan

    @property
    def padding(self) -> float:
        """Padded by real length."""
        return self.padded_seconds / self.audio_seconds if self.audio_seconds else math.nan

    @classmethod
    def of_processes(cls, parts: Iterable[DecodingStatistics]) -> DecodingStatistics:
        """Joins those of processes that worked side by side: amounts add up, the longest time
        counts.
        """
        parts = list(parts)
        sums = ("utterances", "audio_seconds", "padded_seconds")
        return cls(
            **{
                field.name: (sum if field.name in sums else max)(
                    getattr(part, field.name) for part in parts
                )
                for field in dataclasses.fields(cls)
            }
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """The scores of one language, of one direction of translation, or of one test set of a suite.

    Attributes:
        direction: `de`, `de-en`, or the name that a suite gives its test set.
        language: Language of the speech, or of the text that is translated.
        primary_metric: Name of the metric that the row is reported by: `wer`, `cer` or `bleu`.
        scores: Scores by the name of their metric.
        utterances: Number of utterances scored, empty references among them.
        empty_references: Number of utterances whose reference has no words. They are scored:
            whatever the hypothesis has is an insertion, or costs precision.
        empty_hypotheses: Number of utterances for which the model wrote nothing.
        expected: Number of utterances of the test set; None where it is not known.
        published: Whether `expected` was published; else it counts the corpus' own tables.
        left_out: Utterances that `maestro prepare` left out of the test set, by the reason.
        vocabulary_limit: Primary score of a model that makes no mistake, where its vocabulary
            cannot write some of the references; None where it can write all, or is not known.
        heard_accuracy: Percentage of the hypotheses, but for empty ones, whose tokens are likeliest
            in the language in which they should be; None where no language was recognised.
    """

    direction: str
    language: str
    primary_metric: str
    scores: Mapping[str, Score]
    utterances: int
    empty_references: int = 0
    empty_hypotheses: int = 0
    expected: int | None = None
    published: bool = True
    left_out: Mapping[str, int] = dataclasses.field(default_factory=dict)
    vocabulary_limit: float | None = None
    heard_accuracy: float | None = None

    @property
    def primary(self) -> Score:
        """The score that the row is reported by."""
        return self.scores[self.primary_metric]

    def score(self, metric: str) -> Score:
        """Returns the score by a metric; `error_rate` is the primary one."""
        return self.primary if metric == ERROR_RATE else self.scores[metric]

    def value(self, metric: str) -> float:
        """Returns the value of `score`."""
        return self.score(metric).value

    @property
    def complete(self) -> bool | None:
        """Whether as many utterances were scored as expected; None where that is not known."""
        return None if self.expected is None else self.expected == self.utterances

    @property
    def unaccounted(self) -> int:
        """Number of expected utterances that were neither scored nor left out by `prepare`."""
        if self.expected is None:
            return 0
        return max(0, self.expected - self.utterances - sum(self.left_out.values()))

    def among(self, names: Collection[str]) -> bool:
        """Returns whether `names` has the language, with or without region, or the direction."""
        return not {self.direction, self.language, base_language(self.language)}.isdisjoint(names)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The scores of one model on one test set.

    Attributes:
        name: Name of the test set, and of the files of its scores.
        kind: `asr`, `st` or `mt`.
        rows: One per language or direction in alphabetical order, or in the order of a suite.
        metrics: Metrics of which every row has a score, in the order of the columns.
        over_long: The same, over the utterances that had to be cut into segments alone; they are
            among those of `rows` as well.
        repeats: Number of utterances that came more than once and were scored once.
        decoding: What decoding took; None when scored from a file.
        score_seconds: Time spent scoring.
        task_metrics: What the metric functions of seqio tasks return, by metric, by task.
        postprocessed: Tasks whose references and hypotheses are what their `postprocess_fn` makes
            of them.
    """

    name: str
    kind: Kind
    rows: tuple[Row, ...]
    metrics: tuple[Metric, ...]
    over_long: tuple[Row, ...] = ()
    repeats: int = 0
    decoding: DecodingStatistics | None = None
    score_seconds: float = 0.0
    task_metrics: Mapping[str, Mapping[str, float | str]] = dataclasses.field(default_factory=dict)
    postprocessed: tuple[str, ...] = ()

    @property
    def utterances(self) -> int:
        """Number of utterances scored, over all rows."""
        return sum(row.utterances for row in self.rows)

    @property
    def complete(self) -> bool | None:
        """Whether every row has its expected utterances; None where one's number is not known."""
        states = {row.complete for row in self.rows}
        return False if False in states else None if None in states else True

    def average(
        self, *, only: Collection[str] | None = None, without: Collection[str] = ()
    ) -> tuple[dict[str, float], tuple[Row, ...]]:
        """Averages over rows, each language counting the same (macro average).

        Args:
            only: Languages to average over; None for all.
            without: Languages to leave out.

        Returns:
            The mean of each metric (NaN over no rows), and the rows that it is over. A row whose
            primary score is not finite is in no average. Recognition also has `error_rate`, the
            mean of the primary scores; its `wer` is NaN where a row is reported by another metric.
        """
        rows = tuple(
            row
            for row in self.rows
            if (only is None or row.among(only))
            and not row.among(without)
            and math.isfinite(row.primary.value)
        )
        names = [metric.name for metric in self.metrics]
        if self.kind == "asr":
            names.insert(0, ERROR_RATE)
        means = {
            name: math.fsum(row.value(name) for row in rows) / len(rows) if rows else math.nan
            for name in names
        }
        if any(row.primary_metric == "cer" for row in rows):
            means["wer"] = math.nan
        return means, rows

    def average_interval(self, metric: str, rows: Sequence[Row]) -> tuple[float, float] | None:
        """Computes the 95% bootstrap interval of an average over rows.

        The utterances of each row are drawn by themselves, as many as it has.

        Args:
            metric: Name of the metric, or `error_rate`.
            rows: Rows that the average is over.

        Returns:
            The lower and the upper end; None where a row has no draws.
        """
        draws = [each for row in rows if (each := row.score(metric).draws) is not None]
        if not draws or len(draws) < len(rows):
            return None
        return percentile_interval(np.mean(draws, axis=0))


def score(
    predictions: Iterable[Prediction],
    *,
    kind: Kind,
    name: str,
    expected: Mapping[str, int | SplitSize] | None = None,
    rows: Mapping[str, str] | None = None,
    scorers: Mapping[str, Collection[Metric]] | None = None,
    round_trip: Callable[[str], str] | None = None,
    extra_metrics: Sequence[Metric] = (),
    bootstrap_samples: int = 1000,
    seed: int = 0,
) -> Evaluation:
    """Scores predictions, fresh or read from a file.

    Metrics of recognition compare normalised texts; translations are compared as they are, but for
    Unicode's form, NFC.

    Args:
        predictions: Predictions of any directions, in any order.
        kind: `asr`, `st` or `mt`.
        name: Name of the test set.
        expected: Number of utterances of each row; what `prepare` left out may be told with it.
        rows: Names of rows by task, in the order of the table. Predictions of other tasks are in
            the row of their language or direction.
        scorers: Metrics that take the place of those of their name, by row.
        round_trip: From a reference to what the model's vocabulary makes of it, if it is known.
        extra_metrics: Metrics besides the registered ones of this kind.
        bootstrap_samples: Number of draws for the confidence intervals; 0 for none.
        seed: Seed of the draws.

    Returns:
        One row per direction, also for an expected direction without any prediction.
    """
    start = time.monotonic()
    metrics = (*metrics_of_kind(kind), *extra_metrics)
    merged, repeats = merge(predictions, rows)
    by_direction: dict[str, list[Prediction]] = {}
    for prediction in merged:
        direction = (rows or {}).get(prediction.task, prediction.direction)
        by_direction.setdefault(direction, []).append(prediction)
    sizes = _sizes(by_direction, expected or {})
    order = list(dict.fromkeys((rows or {}).values()))
    present = {*by_direction, *sizes}
    directions = [*(one for one in order if one in present), *sorted(present - {*order})]

    def row(direction: str, members: Sequence[Prediction], draws: int) -> Row:
        own = {metric.name: metric for metric in (scorers or {}).get(direction, ())}
        return _row(
            direction,
            members,
            kind=kind,
            metrics=[own.get(metric.name, metric) for metric in metrics],
            size=sizes.get(direction, SplitSize()),
            round_trip=round_trip,
            bootstrap_samples=draws,
            # Rows of equal sizes must not be drawn alike, for their average is drawn too.
            seed=(seed, zlib.crc32(direction.encode())),
        )

    over_long = {
        direction: [member for member in members if member.segments > 1]
        for direction, members in by_direction.items()
    }
    cut = [row(direction, over_long.get(direction, []), 0) for direction in directions]
    return Evaluation(
        name=name,
        kind=kind,
        rows=tuple(
            row(direction, by_direction.get(direction, []), bootstrap_samples)
            for direction in directions
        ),
        metrics=metrics,
        over_long=tuple(
            dataclasses.replace(each, expected=None, left_out={}) for each in cut if each.utterances
        ),
        repeats=repeats,
        score_seconds=time.monotonic() - start,
    )


def _sizes(
    by_direction: Mapping[str, Sequence[Prediction]], expected: Mapping[str, int | SplitSize]
) -> dict[str, SplitSize]:
    """Returns the expected size of each row."""
    sizes = {
        row: size if isinstance(size, SplitSize) else SplitSize(published=size)
        for row, size in expected.items()
    }
    # An expectation for "de" counts for the row "de-en" if that is the only one from German.
    for row, members in by_direction.items():
        language = members[0].language
        siblings = [other for other in by_direction.values() if other[0].language == language]
        if row not in sizes and language in sizes and len(siblings) == 1:
            sizes[row] = sizes.pop(language)
    return sizes


def _row(
    direction: str,
    members: Sequence[Prediction],
    *,
    kind: Kind,
    metrics: Sequence[Metric],
    size: SplitSize,
    round_trip: Callable[[str], str] | None,
    bootstrap_samples: int,
    seed: Sequence[int],
) -> Row:
    """Scores the predictions of one row."""
    if members:
        language, target = members[0].language, members[0].target_language
    elif kind == "asr":
        language, target = direction, ""
    else:
        language, _, target = direction.partition("-")
    written_in = target or language

    def comparable(texts: Iterable[str], normalized: bool) -> list[str]:
        if kind == "asr" and normalized:
            return [normalize(text, written_in) for text in texts]
        return [unicodedata.normalize("NFC", text) for text in texts]

    compared = {
        normalized: (
            comparable((member.reference for member in members), normalized),
            comparable((member.hypothesis for member in members), normalized),
        )
        for normalized in {True, *(metric.normalized for metric in metrics)}
    }
    scores = {
        metric.name: compute_score(
            metric,
            *compared[metric.normalized],
            language=written_in,
            bootstrap_samples=bootstrap_samples,
            seed=seed,
        )
        for metric in metrics
    }
    references, hypotheses = compared[True]
    primary = primary_metric(kind, written_in)
    limit = None
    if round_trip is not None:
        written = comparable((round_trip(member.reference) for member in members), True)
        if any(a.split() != b.split() for a, b in zip(references, written, strict=True)):
            limit = compute_score(
                next((each for each in metrics if each.name == primary), get_metric(primary)),
                references,
                written,
                language=written_in,
                bootstrap_samples=0,
            ).value
    recognised = [base_language(member.heard) for member in members if member.heard]
    return Row(
        direction=direction,
        language=language,
        primary_metric=primary,
        scores=scores,
        utterances=len(members),
        empty_references=sum(not text.strip() for text in references),
        empty_hypotheses=sum(not text.strip() for text in hypotheses),
        expected=size.expected,
        published=size.published is not None,
        left_out=dict(size.left_out),
        vocabulary_limit=limit,
        heard_accuracy=100.0 * recognised.count(base_language(written_in)) / len(recognised)
        if recognised
        else None,
    )

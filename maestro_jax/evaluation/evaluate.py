"""Decodes the batches of a test set and scores the texts, language by language.

The loop knows neither models nor hosts: `decode` turns the features of a batch into strings,
however many devices it takes, and `gather` brings the predictions of all processes together.
"""

from __future__ import annotations

import dataclasses
import math
import time
import unicodedata
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from etils import epath

from maestro_jax.errors import UserError
from maestro_jax.evaluation.predictions import (
    Prediction,
    gather_across_processes,
    merge,
    write_predictions,
)
from maestro_jax.scoring.metrics import (
    KINDS,
    Kind,
    Metric,
    Score,
    compute_score,
    get_metric,
    metrics_of_kind,
    primary_metric,
)
from maestro_jax.text.normalizers import base_language, normalize

ERROR_RATE = "error_rate"
"""Average of the primary metric of recognition: WER, or CER of languages without spaces."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """The scores of one language, or of one direction of translation.

    Attributes:
        direction: `de`, or `de-en`.
        language: Language of the speech, or of the text that is translated.
        primary_metric: Name of the metric that the row is reported by: `wer`, `cer` or `bleu`.
        scores: Scores by the name of their metric.
        utterances: Number of utterances scored, empty references among them.
        empty_references: Number of utterances whose reference has no words. They are scored:
            whatever the hypothesis has is an insertion, or costs precision.
        empty_hypotheses: Number of utterances for which the model wrote nothing.
        expected: Number of utterances of the test set; None where it is not known.
        vocabulary_limit: Primary score of a model that makes no mistake, where its vocabulary
            cannot write some of the references; None where it can write all, or is not known.
    """

    direction: str
    language: str
    primary_metric: str
    scores: Mapping[str, Score]
    utterances: int
    empty_references: int = 0
    empty_hypotheses: int = 0
    expected: int | None = None
    vocabulary_limit: float | None = None

    @property
    def primary(self) -> Score:
        """The score that the row is reported by."""
        return self.scores[self.primary_metric]

    def value(self, metric: str) -> float:
        """Returns the score by a metric; `error_rate` is the primary one."""
        return (self.primary if metric == ERROR_RATE else self.scores[metric]).value

    @property
    def complete(self) -> bool:
        """Whether as many utterances were scored as expected."""
        return self.expected is None or self.expected == self.utterances

    def among(self, names: Collection[str]) -> bool:
        """Returns whether `names` has the language, with or without region, or the direction."""
        return not {self.direction, self.language, base_language(self.language)}.isdisjoint(names)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The scores of one model on one test set.

    Attributes:
        name: Name of the test set, and of the files of its scores.
        kind: `asr`, `st` or `mt`.
        rows: One per language or direction, in alphabetical order.
        metrics: Metrics of which every row has a score, in the order of the columns.
        repeats: Number of utterances that came more than once and were scored once.
        seconds: Time spent decoding, with reading the batches; 0 when scored from a file.
        task_metrics: What the metric functions of seqio tasks return, by metric, by task.
        postprocessed: Tasks whose references and hypotheses are what their `postprocess_fn` makes
            of them.
    """

    name: str
    kind: Kind
    rows: tuple[Row, ...]
    metrics: tuple[Metric, ...]
    repeats: int = 0
    seconds: float = 0.0
    task_metrics: Mapping[str, Mapping[str, float | str]] = dataclasses.field(default_factory=dict)
    postprocessed: tuple[str, ...] = ()

    @property
    def utterances(self) -> int:
        """Number of utterances scored, over all rows."""
        return sum(row.utterances for row in self.rows)

    @property
    def complete(self) -> bool:
        """Whether every row has its expected utterances."""
        return all(row.complete for row in self.rows)

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


def evaluate(
    batches: Iterable[tuple[Any, Sequence[Mapping[str, Any]]]],
    decode: Callable[[Any], Sequence[str]],
    *,
    kind: Kind,
    name: str,
    output_dir: epath.PathLike | None = None,
    expected: Mapping[str, int] | None = None,
    target_language: str = "en",
    gather: Callable[[Sequence[Prediction]], Sequence[Prediction]] = gather_across_processes,
    progress: Callable[[int], None] | None = None,
    round_trip: Callable[[str], str] | None = None,
    postprocess: Callable[[Mapping[str, Any], str], tuple[str, str]] | None = None,
) -> Evaluation:
    """Decodes a test set and scores it, language by language.

    With several processes, each brings its own batches. Where `decode` is one computation over
    all of them, every process needs the same number: give the short ones batches of padding with
    no metadata.

    Args:
        batches: Pairs of features, as `decode` takes them, and metadata: one mapping per row that
            is an utterance, with `id`, `language` and `text` (asr) or `translation` (st, mt). Rows
            beyond the metadata are padding.
        decode: From the features of a batch to a string per row.
        kind: `asr`, whose texts are normalised before they are compared, or `st` or `mt`, whose
            translations are compared as they are.
        name: Name of the test set.
        output_dir: Directory of `{name}.predictions.jsonl`, which the first process writes, one
            line per utterance; None for no file.
        expected: Number of utterances of each language or direction of the test set. A language
            that is missing altogether is noticed only here.
        target_language: Target language of translations whose metadata names none.
        gather: Brings the predictions of all processes together.
        progress: Called after each batch with the number of utterances decoded so far.
        round_trip: From a reference to what the model's vocabulary makes of it.
        postprocess: From the metadata of an utterance and its hypothesis to the reference and the
            hypothesis that are scored.

    Returns:
        The scores, the same on every process. Rows that lack utterances are marked.

    Raises:
        UserError: If the test set is empty, an utterance lacks its id, its language or its
            reference field, or two utterances share an id.
        ValueError: If `decode` returns fewer strings than a batch has utterances.
    """
    if kind not in KINDS:
        raise UserError(f"unknown kind of evaluation {kind!r}; take 'asr', 'st' or 'mt'")
    start = time.monotonic()
    predictions: list[Prediction] = []
    for features, metadata in batches:
        hypotheses = decode(features)
        if len(hypotheses) < len(metadata):
            raise ValueError(f"{len(hypotheses)} hypotheses for {len(metadata)} utterances")
        predictions += [
            _prediction(example, hypothesis, kind, target_language, postprocess)
            # Not strict: the hypotheses of padding rows have no metadata.
            for example, hypothesis in zip(metadata, hypotheses, strict=False)
        ]
        if progress is not None:
            progress(len(predictions))
    seconds = time.monotonic() - start
    merged, repeats = merge(gather(predictions))
    if not merged:
        raise UserError(f"the test set {name!r} has no utterances; check its split and data_dir")
    if output_dir is not None and _first_process():
        write_predictions(merged, epath.Path(output_dir) / f"{name}.predictions.jsonl")
    evaluation = score(merged, kind=kind, name=name, expected=expected, round_trip=round_trip)
    return dataclasses.replace(evaluation, repeats=repeats, seconds=seconds)


def score(
    predictions: Iterable[Prediction],
    *,
    kind: Kind,
    name: str,
    expected: Mapping[str, int] | None = None,
    round_trip: Callable[[str], str] | None = None,
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
        expected: Number of utterances of each language or direction.
        round_trip: From a reference to what the model's vocabulary makes of it, if it is known.
        bootstrap_samples: Number of draws for the confidence intervals; 0 for none.
        seed: Seed of the draws.

    Returns:
        One row per direction, also for an expected direction without any prediction.
    """
    metrics = metrics_of_kind(kind)
    merged, repeats = merge(predictions)
    by_direction: dict[str, list[Prediction]] = {}
    for prediction in merged:
        by_direction.setdefault(prediction.direction, []).append(prediction)
    # An expectation for "de" counts for the row "de-en" if that is the only one from German.
    counts = dict(expected or {})
    for direction, members in by_direction.items():
        language = members[0].language
        siblings = [row for row in by_direction if by_direction[row][0].language == language]
        if direction not in counts and language in counts and len(siblings) == 1:
            counts[direction] = counts.pop(language)
    rows = []
    for direction in sorted({*by_direction, *counts}):
        members = by_direction.get(direction, [])
        if members:
            language, target = members[0].language, members[0].target_language
        elif kind == "asr":
            language, target = direction, ""
        else:
            language, _, target = direction.partition("-")
        written_in = target or language

        def comparable(
            texts: Iterable[str], normalized: bool, language: str = written_in
        ) -> list[str]:
            if kind == "asr" and normalized:
                return [normalize(text, language) for text in texts]
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
                    get_metric(primary),
                    references,
                    written,
                    language=written_in,
                    bootstrap_samples=0,
                ).value
        rows.append(
            Row(
                direction=direction,
                language=language,
                primary_metric=primary,
                scores=scores,
                utterances=len(members),
                empty_references=sum(not text.strip() for text in references),
                empty_hypotheses=sum(not text.strip() for text in hypotheses),
                expected=counts.get(direction),
                vocabulary_limit=limit,
            )
        )
    return Evaluation(name=name, kind=kind, rows=tuple(rows), metrics=metrics, repeats=repeats)


def _prediction(
    example: Mapping[str, Any],
    hypothesis: str,
    kind: Kind,
    target_language: str,
    postprocess: Callable[[Mapping[str, Any], str], tuple[str, str]] | None,
) -> Prediction:
    field = "text" if kind == "asr" else "translation"
    # A reference may be empty; an id or a language that is tells nothing from anything.
    missing = [key for key in ("id", "language") if example.get(key) in (None, "", b"")]
    missing += [field] if example.get(field) is None else []
    if missing:
        raise UserError(
            f"an utterance of the test set has no {missing[0]!r}; "
            f"an evaluation of kind {kind!r} needs 'id', 'language' and {field!r}"
        )
    reference = _text(example[field])
    if postprocess is not None:
        reference, hypothesis = postprocess(example, hypothesis)
    return Prediction(
        id=_text(example["id"]),
        language=_text(example["language"]),
        target_language=""
        if kind == "asr"
        else _text(example.get("target_language") or target_language),
        reference=reference,
        hypothesis=hypothesis,
    )


def _text(value: Any) -> str:
    """Returns a value of a record, which may be bytes or another scalar, as a string."""
    return value.decode() if isinstance(value, bytes) else str(value)


def _first_process() -> bool:
    import jax

    return jax.process_index() == 0

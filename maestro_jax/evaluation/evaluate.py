"""From batches and a decoder to scores a language.

The loop is ignorant of models and of hosts: `decode` turns the features of a batch into strings,
however many devices it takes, and `gather` brings the predictions of all processes together.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import time
import unicodedata
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Literal

from etils import epath

from maestro_jax.errors import UserError
from maestro_jax.evaluation.predictions import (
    Prediction,
    gather_across_processes,
    merge,
    write_predictions,
)
from maestro_jax.scoring.scores import (
    TranslationScores,
    WordScores,
    translation_scores,
    word_scores,
)
from maestro_jax.text.normalizers import base_language, normalize
from maestro_jax.text.writing_systems import error_rate_of

Kind = Literal["asr", "st", "mt"]

# The averages of each kind, the first the one that a table leads with. The error rate is the WER,
# or the CER of languages without spaces between words.
METRICS: dict[str, tuple[str, ...]] = {
    "asr": ("error_rate", "wer", "cer"),
    "st": ("bleu", "chrf"),
    "mt": ("bleu", "chrf"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """The scores of one language, or of one direction of translation.

    Attributes:
        direction: ``de``, or ``de-en``.
        language: Of the speech, or of the text that is translated.
        scores: Of its utterances.
        expected: How many utterances the test set has; None when nobody said.
        reachable: The leading score of a model that makes no mistake, where its vocabulary cannot
            write some of the references; None where it can write all, or is not known.
    """

    direction: str
    language: str
    scores: WordScores | TranslationScores
    expected: int | None = None
    reachable: float | None = None

    @property
    def leading(self) -> str:
        """The score that the row is reported by: ``wer``, ``cer`` or ``bleu``."""
        return error_rate_of(self.language) if isinstance(self.scores, WordScores) else "bleu"

    def value(self, metric: str) -> float:
        """The score of one of the `METRICS`."""
        return getattr(self.scores, self.leading if metric == "error_rate" else metric)

    @property
    def complete(self) -> bool:
        """Whether as many utterances were scored as expected."""
        return self.expected is None or self.expected == self.scores.utterances

    def among(self, names: Collection[str]) -> bool:
        """Whether the row's language, with or without its region, or its direction is named."""
        return not {self.direction, self.language, base_language(self.language)}.isdisjoint(names)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The scores of one model on one test set.

    Attributes:
        name: Of the test set; names the report's files.
        kind: ``asr``, ``st`` or ``mt``.
        rows: One a language or direction, in alphabetical order.
        repeats: Utterances that came more than once and were scored once.
        seconds: Time spent decoding, with reading the batches; 0 when scored from a file.
        task_metrics: What the metric functions of tasks return, by metric, by task.
        postprocessed: Tasks whose references and hypotheses are what their `postprocess_fn` makes
            of them.
    """

    name: str
    kind: Kind
    rows: tuple[Row, ...]
    repeats: int = 0
    seconds: float = 0.0
    task_metrics: Mapping[str, Mapping[str, float | str]] = dataclasses.field(default_factory=dict)
    postprocessed: tuple[str, ...] = ()

    @property
    def utterances(self) -> int:
        """How many were scored, over all rows."""
        return sum(row.scores.utterances for row in self.rows)

    @property
    def complete(self) -> bool:
        """Whether every row has its expected utterances."""
        return all(row.complete for row in self.rows)

    def average(
        self, *, only: Collection[str] | None = None, without: Collection[str] = ()
    ) -> tuple[dict[str, float], tuple[Row, ...]]:
        """Macro average: the mean over rows, each language counting the same.

        Args:
            only: Languages to average over; None for all.
            without: Languages to leave out.

        Returns:
            A mean for each of the kind's `METRICS` (NaN over no rows), and the rows that it is
            over. A row without a finite score is in no average. The mean of ``wer`` is NaN where
            one of the rows is reported by another score.
        """
        rows = tuple(
            row
            for row in self.rows
            if (only is None or row.among(only))
            and not row.among(without)
            and all(math.isfinite(row.value(metric)) for metric in METRICS[self.kind])
        )
        means = {
            metric: math.fsum(row.value(metric) for row in rows) / len(rows) if rows else math.nan
            for metric in METRICS[self.kind]
        }
        if any(row.leading == "cer" for row in rows):
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
    written: Callable[[str], str] | None = None,
    postprocess: Callable[[Mapping[str, Any], str], tuple[str, str]] | None = None,
    bootstrap_samples: int = 1000,
    seed: int = 0,
) -> Evaluation:
    """Decodes a test set and scores it, language by language.

    With several processes, each brings its own batches. Where `decode` is one computation over
    all of them, every process needs the same number: give the short ones batches of padding with
    no metadata.

    Args:
        batches: Pairs of features, as `decode` takes them, and metadata: one mapping for every
            row that is an utterance, with ``id``, ``language`` and ``text`` (asr) or
            ``translation`` (st, mt). Rows beyond the metadata are padding.
        decode: From the features of a batch to a string a row.
        kind: ``asr``: word and character error rates of normalised text; ``st`` and ``mt``: BLEU
            and chrF of translations, of speech and of text, as they are.
        name: Of the test set.
        output_dir: Where ``{name}.predictions.jsonl`` goes, every utterance a line; None for
            nowhere. The first process writes.
        expected: Utterances of each language or direction of the test set. A language that is
            missing altogether is noticed only here.
        target_language: Of translations whose metadata names no ``target_language``.
        gather: Brings the predictions of all processes together.
        progress: Called after each batch with the number of utterances decoded so far.
        written: From a reference to what the model's vocabulary makes of it.
        postprocess: From the metadata of an utterance and its hypothesis to the reference and the
            hypothesis that are scored.
        bootstrap_samples: Draws for the confidence intervals; 0 for none.
        seed: Of the draws.

    Returns:
        The scores, the same on every process. Rows that lack utterances are marked, and
        `require_complete` refuses them.

    Raises:
        UserError: If the test set is empty, an utterance lacks its id, its language or its
            reference field, or two utterances share an id.
        ValueError: If `decode` returns fewer strings than a batch has utterances.
    """
    if kind not in METRICS:
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
    evaluation = score(
        merged,
        kind=kind,
        name=name,
        expected=expected,
        written=written,
        bootstrap_samples=bootstrap_samples,
        seed=seed,
    )
    return dataclasses.replace(evaluation, repeats=repeats, seconds=seconds)


def score(
    predictions: Iterable[Prediction],
    *,
    kind: Kind,
    name: str,
    expected: Mapping[str, int] | None = None,
    normalizer: Callable[[str, str], str] = normalize,
    written: Callable[[str], str] | None = None,
    bootstrap_samples: int = 1000,
    seed: int = 0,
) -> Evaluation:
    """Scores predictions, fresh or read from a file.

    Args:
        predictions: Of any directions, in any order.
        kind: ``asr``, ``st`` or ``mt``.
        name: Of the test set.
        expected: Utterances of each language or direction.
        normalizer: From a text and its language to the text that error rates compare. Translations
            are compared as they are, but for Unicode's form, NFC.
        written: From a reference to what the model's vocabulary makes of it, if it is known.
        bootstrap_samples: Draws for the confidence intervals; 0 for none.
        seed: Of the draws.

    Returns:
        A row a direction, also for an expected direction without any prediction.
    """
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
        language, _, target = direction.partition("-")
        if members:
            language, target = members[0].language, members[0].target_language

        def as_compared(texts: Sequence[str], language: str = language) -> list[str]:
            if kind == "asr":
                return [normalizer(text, language) for text in texts]
            return [unicodedata.normalize("NFC", text) for text in texts]

        scored: Callable[..., WordScores | TranslationScores] = (
            functools.partial(word_scores, language=language)
            if kind == "asr"
            else functools.partial(translation_scores, target_language=target)
        )
        references = as_compared([member.reference for member in members])
        hypotheses = as_compared([member.hypothesis for member in members])
        row = Row(
            direction=direction,
            language=language,
            scores=scored(references, hypotheses, bootstrap_samples=bootstrap_samples, seed=seed),
            expected=counts.get(direction),
        )
        if written is not None:
            spelled = as_compared([written(member.reference) for member in members])
            if any(a.split() != b.split() for a, b in zip(references, spelled, strict=True)):
                perfect = dataclasses.replace(
                    row, scores=scored(references, spelled, bootstrap_samples=0)
                )
                row = dataclasses.replace(row, reachable=perfect.value(METRICS[kind][0]))
        rows.append(row)
    return Evaluation(name=name, kind=kind, rows=tuple(rows), repeats=repeats)


def require_complete(evaluation: Evaluation) -> None:
    """Refuses scores that rest on other utterances than the test set's.

    Raises:
        UserError: Naming each row with too few or too many.
    """
    gaps = [
        f"{row.direction} {row.scores.utterances} of {row.expected}"
        for row in evaluation.rows
        if not row.complete
    ]
    if gaps:
        raise UserError(
            f"{evaluation.name}: utterances scored differ from the test set: {', '.join(gaps)}; "
            "prepare the corpus again, or report the scores as partial"
        )


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
    """A string of what a reader of records may give for one: bytes, or another scalar."""
    return value.decode() if isinstance(value, bytes) else str(value)


def _first_process() -> bool:
    import jax

    return jax.process_index() == 0

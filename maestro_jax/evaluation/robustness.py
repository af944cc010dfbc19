"""Evaluates a model under other conditions than those of its test sets, beside the clean ones.

The conditions are those of `maestro_jax.audio.conditions`. Each has a folder of hypotheses of its
own, `RESULT/robustness/CONDITION`, so that an interrupted evaluation goes on; the table of a test
set is `RESULT/robustness/NAME.md` and `.json`.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from etils import epath
from tabulate import SEPARATING_LINE

from maestro_jax import espeak
from maestro_jax.audio.conditions import (
    CodeSwitching,
    Condition,
    SyntheticSpeech,
    Utterance,
)
from maestro_jax.errors import UserError
from maestro_jax.evaluation.comparison import Comparison, compare
from maestro_jax.evaluation.predictions import Prediction, read_predictions
from maestro_jax.evaluation.prepared_audio import prepared_audio
from maestro_jax.evaluation.run_evaluation import (
    Change,
    LoadedModel,
    RunScores,
    TestSet,
    evaluate_test_sets,
)
from maestro_jax.files import as_path, write_atomically
from maestro_jax.tables import align_columns

if TYPE_CHECKING:
    from maestro_jax.data.evaluation_examples import EvaluationExample

log = logging.getLogger(__name__)

SUBDIRECTORY = "robustness"
AnyCondition = Condition | CodeSwitching | SyntheticSpeech

_CLEAN = "clean"


@dataclasses.dataclass(frozen=True)
class RobustnessTable:
    """The scores of a model on one test set under several conditions.

    Attributes:
        name: Name of the test set.
        seed: Seed of the conditions.
        titles: Titles of the conditions by name, in the order of rows.
        comparisons: Each condition (the model) against clean speech (the baseline), by name.
        reasons: Why a condition was left out, by name.
        origin: How the hypotheses come about.
    """

    name: str
    seed: int
    titles: Mapping[str, str]
    comparisons: Mapping[str, Comparison]
    reasons: Mapping[str, str]
    origin: Mapping[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """Returns plain JSON values; of a condition `difference` is what it costs."""
        return {
            "name": self.name,
            "seed": self.seed,
            "conditions": [
                {"condition": name, "title": self.titles[name]} | comparison.as_dict()
                for name, comparison in self.comparisons.items()
            ],
            "left_out": dict(self.reasons),
            "provenance": dict(self.origin),
        }

    def text(self) -> str:
        """Formats the table for a terminal."""
        header, clean, rows = self._cells()
        table = align_columns(header, [clean, SEPARATING_LINE, *rows], _alignment(header))
        return "\n".join([f"Robustness: {self.name}", "", table, "", *self._notes()]) + "\n"

    def markdown(self) -> str:
        """Formats the table as a Markdown page."""
        header, clean, rows = self._cells()
        table = align_columns(header, [clean, *rows], _alignment(header), "pipe")
        notes = [f"- {note}" for note in self._notes()]
        return "\n".join([f"# Robustness: {self.name}", "", table, "", *notes]) + "\n"

    def write(self, directory: epath.PathLike) -> epath.Path:
        """Writes `NAME.md` and `NAME.json`; returns the path of the former."""
        directory = as_path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.as_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        write_atomically(directory / f"{self.name}.json", text.encode())
        write_atomically(directory / f"{self.name}.md", self.markdown().encode())
        return directory / f"{self.name}.md"

    def _cells(self) -> tuple[list[str], list[str], list[list[str]]]:
        """Returns the header, the row of clean speech, and one row per condition."""
        first = next(iter(self.comparisons.values()), None)
        languages = [] if first is None else [row.name for row in first.rows]
        if len(languages) == 1:
            languages = []
        metrics = set() if first is None else {row.metric for row in first.rows}
        title = metrics.pop().upper() if len(metrics) == 1 else "ERROR"
        header = ["condition", title, "change", "95% interval", "relative", *languages]
        clean = [_CLEAN, *[""] * (len(header) - 1)]
        # Pairs of utterances have a clean score of their own.
        plain = next((c for n, c in self.comparisons.items() if not _is_of_pairs(n)), None)
        if plain is not None:
            scores = {row.name: row.baseline_score for row in plain.rows}
            clean[1:] = [
                _number(plain.average.baseline_score),
                "",
                "",
                "",
                *(_number(scores.get(language)) for language in languages),
            ]
        rows = []
        for name, title in self.titles.items():
            comparison = self.comparisons.get(name)
            if comparison is None:
                rows.append([title, *["-"] * (len(header) - 1)])
                continue
            average = comparison.average
            scores = {row.name: row.score for row in comparison.rows}
            interval = average.difference_interval
            rows.append(
                [
                    title,
                    _number(average.score),
                    f"{average.difference:+.1f}",
                    "-" if interval is None else f"{interval[0]:+.1f} to {interval[1]:+.1f}",
                    f"{100 * (average.ratio - 1):+.0f}%" if np.isfinite(average.ratio) else "-",
                    *(_number(scores.get(language)) for language in languages),
                ]
            )
        return header, clean, rows

    def _notes(self) -> list[str]:
        notes = [
            "Averages count each language once; intervals: paired bootstrap over utterances.",
            f"Conditions are made on the fly with the seed {self.seed}.",
        ]
        for name, comparison in self.comparisons.items():
            if _is_of_pairs(name):
                notes.append(
                    f"{self.titles[name].capitalize()}: against the hypotheses of the two "
                    f"utterances by themselves ({_number(comparison.average.baseline_score)}); a "
                    "row of a language has the pairs that begin with it."
                )
        notes += [f"{self.titles[name]} was left out: {why}." for name, why in self.reasons.items()]
        return notes


def evaluate_robustness(
    test_sets: Sequence[TestSet],
    model: LoadedModel,
    conditions: Sequence[AnyCondition],
    *,
    seed: int = 0,
    data_dir: str | Path | None = None,
    low_resource: Collection[str] = (),
    overwrite: bool = False,
) -> tuple[RunScores, list[RobustnessTable]]:
    """Evaluates test sets on clean speech and under conditions.

    Every process of several calls this.

    Args:
        test_sets: Test sets of speech.
        model: The model.
        conditions: As of `maestro_jax.audio.conditions.find_conditions`.
        seed: Seed of the conditions.
        data_dir: Root of the prepared data.
        low_resource: Languages left out of the second average of the clean scores.
        overwrite: Whether to decode again what was decoded before.

    Returns:
        The scores on clean speech, and a table for each test set; both on the first process alone.

    Raises:
        UserError: A test set has no audio.
    """
    texts = [test_set.name for test_set in test_sets if test_set.feature != "audio"]
    if texts:
        raise UserError(f"{texts[0]!r} has no audio; conditions are of speech: leave it out")

    def evaluated(sets: Sequence[TestSet], directory: epath.Path) -> RunScores:
        scores = evaluate_test_sets(
            sets,
            model.transcriber,
            directory=directory,
            data_dir=data_dir,
            low_resource=low_resource,
            origin=model.origin,
            extra_metrics=model.extra_metrics,
            overwrite=overwrite,
            processes=model.processes,
        )
        # The first process has written what the others are about to read.
        model.processes.meet(f"hypotheses in {directory.name} are complete")
        return scores

    scores = evaluated(test_sets, model.directory)
    tables = []
    for test_set in test_sets:
        file = f"{test_set.title}.hypotheses.jsonl"
        clean = read_predictions(model.directory / file)
        titles = {condition.name: condition.title for condition in conditions}
        comparisons: dict[str, Comparison] = {}
        reasons: dict[str, str] = {}
        for condition in conditions:
            try:
                change, baseline = _change(condition, clean, test_set.split, seed, data_dir)
            except UserError as error:
                reasons[condition.name] = str(error)
                log.warning("%s: %s", condition.title, error)
                continue
            directory = model.directory / SUBDIRECTORY / condition.name
            evaluated([dataclasses.replace(test_set, change=change)], directory)
            if model.processes.index == 0:
                comparisons[condition.name] = compare(
                    read_predictions(directory / file),
                    baseline,
                    randomisations=0,
                    names=(condition.title, _CLEAN),
                    rows=test_set.rows,
                    scorers=test_set.scorers,
                )
        if model.processes.index == 0:
            table = RobustnessTable(
                test_set.title, seed, titles, comparisons, reasons, model.origin
            )
            log.info("wrote %s", table.write(model.directory / SUBDIRECTORY))
            tables.append(table)
    return scores, tables


def _change(
    condition: AnyCondition,
    clean: Sequence[Prediction],
    split: str,
    seed: int,
    data_dir: str | Path | None,
) -> tuple[Change, Sequence[Prediction]]:
    """Returns what a condition makes of examples, and the clean hypotheses to compare with.

    Raises:
        UserError: The condition does not suit the test set.
    """
    identity = f"{condition.name}, seed {seed}"
    if isinstance(condition, CodeSwitching):
        return _followed(condition, clean, split, seed, data_dir, identity)
    if isinstance(condition, SyntheticSpeech):
        for language in sorted({prediction.language for prediction in clean}):
            espeak.synthesise("a", language)

        def spoken(example: EvaluationExample) -> EvaluationExample:
            strings = example.strings
            utterance = Utterance(strings["id"], strings["language"], strings["text"])
            return _with_audio(example, condition.speak(utterance, seed))

        return Change(identity, spoken), clean

    def changed(example: EvaluationExample) -> EvaluationExample:
        samples = np.asarray(example.features["audio"], np.int16)
        return _with_audio(example, condition.apply(samples, example.strings["id"], seed))

    return Change(identity, changed, condition.lengthening), clean


def _followed(
    condition: CodeSwitching,
    clean: Sequence[Prediction],
    split: str,
    seed: int,
    data_dir: str | Path | None,
    identity: str,
) -> tuple[Change, Sequence[Prediction]]:
    targets = {prediction.target_language for prediction in clean}
    if len(targets) > 1:
        raise UserError(
            "pairs of utterances need one language of translations, not "
            f"{', '.join(sorted(targets))}"
        )
    by_key = {(one.language, one.id): one for one in clean}
    utterances = [Utterance(one.id, one.language, one.reference) for one in clean]
    partners = {
        key: by_key[partner.language, partner.id]
        for key, partner in zip(by_key, condition.partners(utterances, seed), strict=True)
    }
    read = prepared_audio(split, data_dir)

    def followed(example: EvaluationExample) -> EvaluationExample:
        strings = dict(example.strings)
        partner = partners[strings["language"], strings["id"]]
        written = "translation" if partner.target_language else "text"
        strings[written] = condition.join_texts(strings[written], partner.reference)
        samples = np.asarray(example.features["audio"], np.int16)
        joined = condition.join(samples, read(partner))
        return dataclasses.replace(_with_audio(example, joined), strings=strings)

    baseline = [
        dataclasses.replace(
            one,
            reference=condition.join_texts(one.reference, partners[key].reference),
            hypothesis=condition.join_texts(one.hypothesis, partners[key].hypothesis),
        )
        for key, one in by_key.items()
    ]
    return Change(identity, followed, lengthening=2.0), baseline


def _with_audio(example: EvaluationExample, samples: np.ndarray) -> EvaluationExample:
    return dataclasses.replace(example, features={**example.features, "audio": samples})


def _is_of_pairs(name: str) -> bool:
    return name == CodeSwitching().name


def _alignment(header: Sequence[str]) -> list[str]:
    return ["left"] + ["right"] * (len(header) - 1)


def _number(value: float | None) -> str:
    return "-" if value is None or not np.isfinite(value) else f"{value:.1f}"

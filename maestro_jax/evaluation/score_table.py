"""Tables of the scores of an evaluation, as Markdown, plain text and JSON."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from etils import epath
from tabulate import SEPARATING_LINE

from maestro_jax.evaluation.evaluate import ERROR_RATE, Evaluation, Row
from maestro_jax.files import as_path, write_atomically
from maestro_jax.inference.search_config import SearchConfig
from maestro_jax.scoring.metrics import finite_or_none
from maestro_jax.scoring.published import PublishedSystem
from maestro_jax.tables import align_columns
from maestro_jax.text.normalizers import base_language

_TITLES = {
    "asr": "Speech recognition",
    "st": "Speech translation",
    "mt": "Text translation",
}
_ERROR_RATE_TITLE = "error %"
_INTERVAL = "95% interval"
_SHORT_COUNTS = {"substitutions": "sub", "deletions": "del", "insertions": "ins"}
_ABSENT = "-"

Groups = Mapping[str, Collection[str]]
"""Further averages: their names and the languages of each, such as CoVoST-2's high, mid, low."""


@dataclasses.dataclass(frozen=True)
class ScoreTable:
    """The scores of an evaluation, with averages and the scores of other systems.

    Attributes:
        evaluation: What was scored.
        low_resource: Languages with little paired speech: marked, and left out of a second
            average, over the languages with enough of it.
        groups: Further averages.
        published: Scores of other systems. Those that compare with ours row by row are columns; the
            averages of all of them are a table of their own. A published average is the stated one
            where ours is over the same rows; any other is taken over the rows that ours is over.
        part_of: Number of rows of the suite that the rows are a part of; 0 for the whole suite.
        provenance: Checkpoint, weights, search, versions, command and devices.
    """

    evaluation: Evaluation
    low_resource: Collection[str] = ()
    groups: Groups = dataclasses.field(default_factory=dict)
    published: Sequence[PublishedSystem] = ()
    part_of: int = 0
    provenance: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Returns the whole evaluation as plain JSON values; undefined scores are null.

        Returns:
            Scores in the units that `units` names. Of a row, `primary_metric` is the metric that it
            is reported by, and `vocabulary_limit` the score of a model that makes no mistake, where
            its vocabulary cannot write all references, else null. Of an average, `error_rate` is
            the mean of the primary scores, and `wer` is null where one of them is not a WER.
        """
        evaluation, metrics = self.evaluation, self.evaluation.metrics
        units = {ERROR_RATE: "percent"} if evaluation.kind == "asr" else {}
        return {
            "name": evaluation.name,
            "kind": evaluation.kind,
            "units": units | {metric.name: metric.unit for metric in metrics},
            "titles": {metric.name: metric.title for metric in metrics},
            "utterances": evaluation.utterances,
            "complete": evaluation.complete,
            "repeats": evaluation.repeats,
            "decoding": _decoding(evaluation),
            "provenance": dict(self.provenance),
            "task_metrics": {task: dict(each) for task, each in evaluation.task_metrics.items()},
            "postprocessed": list(evaluation.postprocessed),
            "part_of": self.part_of or None,
            "averages": [
                {
                    "name": average.name,
                    "rows": [row.direction for row in average.rows],
                    **average.as_dict(),
                }
                for average in self._averages()
            ],
            "published": [
                {
                    "name": system.name,
                    "source": system.source,
                    "comparable": system.comparable,
                    "caveat": system.caveat,
                    "rows": {
                        row.direction: score
                        for row in evaluation.rows
                        if (score := _published(system, row)) is not None
                    },
                    "averages": {
                        average.name: score
                        for average in self._averages()
                        if (score := _published_average(system, average.rows)) is not None
                    },
                }
                for system in self.published
            ],
            "rows": [self._row(row) for row in evaluation.rows],
            "over_long": [self._row(row) for row in evaluation.over_long],
        }

    def _row(self, row: Row) -> dict[str, Any]:
        return {
            "direction": row.direction,
            "language": row.language,
            "low_resource": row.among(self.low_resource),
            "primary_metric": row.primary_metric,
            "vocabulary_limit": finite_or_none(row.vocabulary_limit),
            "expected": row.expected,
            "expected_is_published": None if row.expected is None else row.published,
            "left_out": dict(row.left_out),
            "complete": row.complete,
            "utterances": row.utterances,
            "empty_references": row.empty_references,
            "empty_hypotheses": row.empty_hypotheses,
            "heard_accuracy": row.heard_accuracy,
            **{
                key: value
                for metric in self.evaluation.metrics
                for key, value in row.scores[metric.name].to_json(metric.name).items()
            },
        }

    def markdown(self) -> str:
        """Formats the table as a Markdown page, with notes on what was compared."""
        header, body, averages = self._cells()
        bold = [[f"**{cell}**" if cell else "" for cell in cells] for cells in averages]
        table = _tabulated(header, [*body, *bold], "pipe")
        parts = [f"# {self._title}", "", table, ""]
        if systems := self._beside():
            parts += ["## Beside published scores", "", _tabulated(*systems, "pipe"), ""]
        parts += [f"- {note}" for note in (*self._notes(), *self._sources())]
        return "\n".join(parts) + "\n"

    def text(self) -> str:
        """Formats the table for a terminal, with notes on what was compared."""
        header, body, averages = self._cells()
        table = _tabulated(header, [*body, SEPARATING_LINE, *averages], "simple")
        parts = [self._title, "", table, ""]
        if systems := self._beside():
            parts += [_tabulated(*systems, "simple"), ""]
        parts += [*self._notes(), *self._sources()]
        return "\n".join(parts) + "\n"

    def write(self, output_dir: epath.PathLike) -> tuple[epath.Path, epath.Path]:
        """Writes `{name}.md` and `{name}.json`.

        Args:
            output_dir: The `evaluation` folder of a model directory; created if missing.

        Returns:
            The two paths, Markdown first.
        """
        output_dir = as_path(output_dir)
        output_dir.mkdir(parents=True, exist_ok=True)
        name = self.evaluation.name
        markdown, values = (output_dir / f"{name}.{suffix}" for suffix in ("md", "json"))
        text = json.dumps(self.as_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        write_atomically(markdown, self.markdown().encode())
        write_atomically(values, text.encode())
        return markdown, values

    @property
    def _title(self) -> str:
        return f"{_TITLES[self.evaluation.kind]}: {self.evaluation.name}"

    def _notes(self) -> list[str]:
        notes = _notes(self.evaluation, self.low_resource)
        return notes + _decoding_notes(self.evaluation) + _provenance_notes(self.provenance)

    def _averages(self) -> list[_Average]:
        """Returns every average of the table."""
        evaluation = self.evaluation
        averages = [_Average("all", evaluation, *evaluation.average())]
        if any(row.among(self.low_resource) for row in evaluation.rows):
            without = evaluation.average(without=self.low_resource)
            averages.append(_Average("without low-resource", evaluation, *without))
        for name, languages in self.groups.items():
            means, rows = evaluation.average(only=languages)
            if rows:
                averages.append(_Average(name, evaluation, means, rows))
        return averages

    def _label(self, average: _Average) -> str:
        """Returns the heading of an average: `average of 4, high`, `average of 2 of the 14`."""
        label = f"average of {len(average.rows)}"
        if average.name != "all":
            return f"{label}, {average.name}"
        return f"{label} of the {self.part_of}" if self.part_of else label

    def _cells(self) -> tuple[list[str], list[list[str]], list[list[str]]]:
        """Returns header, one line per language, and one line per average, of equal length."""
        evaluation = self.evaluation
        columns = _columns(evaluation)
        beside = self._columns_beside()
        header = [self._first, "utterances", *columns, *(system.name for system in beside)]
        body = []
        for row in evaluation.rows:
            cells = _cells(evaluation, row)
            body.append(
                [
                    row.direction + (" (low-resource)" if row.among(self.low_resource) else ""),
                    _utterances(row),
                    *(cells.get(column, "") for column in columns),
                    *(_number(_published(system, row)) for system in beside),
                ]
            )
        for row in evaluation.over_long:
            cells = _cells(evaluation, row)
            body.append(
                [
                    f"{row.direction}, over-long",
                    str(row.utterances),
                    *(cells.get(column, "") for column in columns),
                    *("" for _ in beside),
                ]
            )
        titles = {ERROR_RATE: _ERROR_RATE_TITLE}
        titles |= {metric.name: metric.title for metric in evaluation.metrics}
        averages = []
        for average in self._averages():
            cells = {titles[metric]: _number(value) for metric, value in average.means.items()}
            cells[_INTERVAL] = _interval(average.interval(self._primary))
            averages.append(
                [
                    self._label(average),
                    "",
                    *(cells.get(column, "") for column in columns),
                    *(_number(_published_average(system, average.rows)) for system in beside),
                ]
            )
        return header, body, averages

    def _columns_beside(self) -> list[PublishedSystem]:
        """Returns the systems whose scores compare with ours row by row."""
        return [
            system
            for system in self.published
            if system.comparable
            and any(_published(system, row) is not None for row in self.evaluation.rows)
        ]

    @property
    def _first(self) -> str:
        """The heading of the names of the rows."""
        rows, kind = self.evaluation.rows, self.evaluation.kind
        if kind != "asr":
            return "direction"
        own = all(row.direction == row.language for row in rows)
        return "language" if own else "test set"

    @property
    def _primary(self) -> str:
        """The metric of the averages that are reported."""
        primaries = {row.primary_metric for row in self.evaluation.rows}
        return primaries.pop() if len(primaries) == 1 else ERROR_RATE

    def _beside(self) -> tuple[list[str], list[list[str]]] | None:
        """Returns header and lines of the published averages, ours first.

        What systems that cannot be compared scored on single rows is there too, since those are no
        columns of the main table.

        Returns:
            None where all that was published is in the main table.
        """
        averages = [average for average in self._averages() if average.rows]
        single = [
            row
            for row in self.evaluation.rows
            if any(
                not system.comparable and _published(system, row) is not None
                for system in self.published
            )
        ]
        lines = []
        columns = {system.name for system in self._columns_beside()}
        for system in self.published:
            values = [
                *(_published_average(system, average.rows) for average in averages),
                *(_published(system, row) for row in single),
            ]
            if any(value is not None for value in values):
                mark = "yes" if system.comparable else "no"
                lines.append([system.name, *map(_number, values), mark])
        if {name for name, *_ in lines} <= columns:
            return None
        ours = [
            "this model",
            *(_number(average.means[self._primary]) for average in averages),
            *(_number(row.primary.value) for row in single),
            "",
        ]
        header = ["system", *map(self._label, averages), *(row.direction for row in single)]
        header.append("comparable")
        return header, [ours, *lines]

    def _sources(self) -> list[str]:
        """Returns where the published scores are from, and why some of them do not compare."""
        shown = [
            system
            for system in self.published
            if any(_published(system, row) is not None for row in self.evaluation.rows)
            or any(
                _published_average(system, average.rows) is not None for average in self._averages()
            )
        ]
        by_source: dict[str, list[str]] = {}
        by_caveat: dict[str, list[str]] = {}
        for system in shown:
            by_source.setdefault(system.source, []).append(system.name)
            if not system.comparable:
                by_caveat.setdefault(system.caveat, []).append(system.name)
        return [
            *(f"Not comparable: {', '.join(names)} ({why})." for why, names in by_caveat.items()),
            *(f"Published: {', '.join(names)}: {source}." for source, names in by_source.items()),
        ]


@dataclasses.dataclass(frozen=True)
class _Average:
    """The mean of every metric over some rows."""

    name: str
    evaluation: Evaluation
    means: Mapping[str, float]
    rows: tuple[Row, ...]

    def interval(self, metric: str) -> tuple[float, float] | None:
        """Returns the interval of the mean of a metric; None where there is no mean."""
        if metric not in self.means or not math.isfinite(self.means[metric]):
            return None
        return self.evaluation.average_interval(metric, self.rows)

    def as_dict(self) -> dict[str, Any]:
        """Returns means and intervals as JSON values."""
        values: dict[str, Any] = {}
        for metric, mean in self.means.items():
            interval = self.interval(metric)
            values[metric] = finite_or_none(mean)
            values[f"{metric}_interval"] = None if interval is None else list(interval)
        return values


def _decoding(evaluation: Evaluation) -> dict[str, float] | None:
    """Returns what decoding and scoring took, for JSON files; None when scored from a file."""
    if evaluation.decoding is None:
        return None
    return {
        **dataclasses.asdict(evaluation.decoding),
        "score_seconds": evaluation.score_seconds,
        "padding": finite_or_none(evaluation.decoding.padding),
        "rtfx": finite_or_none(evaluation.decoding.rtfx),
    }


def _decoding_notes(evaluation: Evaluation) -> list[str]:
    decoding = evaluation.decoding
    if decoding is None:
        return []
    note = (
        f"Decoding took {decoding.decode_seconds:.1f} s for {decoding.utterances} utterances, "
        f"compiling {decoding.compile_seconds:.1f} s, waiting for input "
        f"{decoding.input_seconds:.1f} s, scoring {evaluation.score_seconds:.1f} s"
    )
    if decoding.audio_seconds:
        note += (
            f"; {decoding.audio_seconds:.0f} s of audio, RTFx {decoding.rtfx:.0f} (seconds of "
            f"audio per second of decoding), padded by real length {decoding.padding:.2f}"
        )
    return [f"{note}."]


def _provenance_notes(provenance: Mapping[str, Any]) -> list[str]:
    """Returns one sentence on the model and its search, and one on the software."""
    if not provenance:
        return []
    weights = {"ema": "averaged weights", "params": "weights of that step"}
    git, devices = provenance["git"], provenance["devices"]
    commit = ""
    if git:
        commit = f" at commit {git['commit'][:12]}" + (" with changes" if git["changed"] else "")
    packages = provenance["packages"]
    return [
        f"Checkpoint {provenance['step']}, {weights.get(provenance['weights'], 'other weights')}, "
        f"{_search(provenance['search'])}.",
        f"maestro_jax {packages.get('maestro_jax', '?')}{commit}, jax {packages.get('jax', '?')}; "
        f"{devices['count']} x {devices['kind']}, processes: {devices['processes']}; "
        f"{provenance['date']}.",
    ]


def _search(settings: Mapping[str, Any]) -> str:
    """Describes a search: its beam, and what is not the default."""
    beam = settings["beam_size"]
    defaults = {field.name: field.default for field in dataclasses.fields(SearchConfig)}
    others = [
        f"{name} {value}"
        for name, value in settings.items()
        if name in defaults and value not in (defaults[name], []) and name != "beam_size"
    ]
    return ", ".join(["greedy search" if beam == 1 else f"beam of {beam}", *others])


def _tabulated(header: Sequence[str], rows: Sequence[Any], style: str) -> str:
    return align_columns(header, rows, ["left"] + ["right"] * (len(header) - 1), style)


def _columns(evaluation: Evaluation) -> list[str]:
    """Returns the headings of our own numbers: primary score, other scores, counts."""
    primaries = {row.primary_metric for row in evaluation.rows}
    titles = {metric.name: metric.title for metric in evaluation.metrics}
    if len(primaries) == 1:
        [primary] = primaries
        columns = [titles.pop(primary), _INTERVAL, *titles.values()]
    else:
        columns = [_ERROR_RATE_TITLE, _INTERVAL, "metric", *titles.values()]
    counted = [counts for row in evaluation.rows if (counts := row.primary.counts)]
    keys = dict.fromkeys(key for counts in counted for key in counts)
    # Rows that are reported by different metrics count different units: those columns come first.
    in_all = sorted(keys, key=lambda key: all(key in counts for counts in counted))
    return columns + [_heading(key) for key in in_all]


def _cells(evaluation: Evaluation, row: Row) -> dict[str, str]:
    """Returns the numbers of a row by the headings of their columns."""
    titles = {metric.name: metric.title for metric in evaluation.metrics}
    return {
        _ERROR_RATE_TITLE: _number(row.primary.value),
        _INTERVAL: _interval(row.primary.interval),
        "metric": row.primary_metric.upper(),
        **{title: _number(row.value(name)) for name, title in titles.items()},
        **{_heading(key): _count(value) for key, value in row.primary.counts.items()},
    }


def _heading(count: str) -> str:
    return _SHORT_COUNTS.get(count, count.replace("_", " "))


def _published(system: PublishedSystem, row: Row) -> float | None:
    for key in (row.direction, row.language, base_language(row.language)):
        # "en" is no test set of SpeechStew, and "de-fr" is not the direction that was published.
        if key in system.rows and (key == row.direction or _known_by_language(row)):
            return system.rows[key]
    return None


def _published_average(system: PublishedSystem, rows: Sequence[Row]) -> float | None:
    """Returns the published average over the rows that ours is over; None if one is missing."""
    if all(_known_by_language(row) for row in rows):
        return system.average([base_language(row.language) for row in rows])
    return system.average([row.direction for row in rows])


def _known_by_language(row: Row) -> bool:
    """Returns whether the language says which row it is, and not the name that a suite gave it."""
    return row.direction == row.language or row.direction.startswith(f"{row.language}-")


def _utterances(row: Row) -> str:
    return (
        str(row.utterances)
        if row.complete is not False
        else (f"{row.utterances} of {row.expected}")
    )


def _left_out(row: Row) -> str:
    """Tells of a row that lacks utterances where they are."""
    whose = "" if row.published else " in the tables of the corpus"
    missing = []
    if count := sum(row.left_out.values()):
        kinds = ", ".join(f"{number} {kind}" for kind, number in row.left_out.items())
        missing.append(f"{count} left out by prepare: {kinds}")
    if row.unaccounted and row.left_out:
        missing.append(f"{row.unaccounted} not accounted for")
    reasons = f" ({'; '.join(missing)})" if missing else ""
    return f"{row.direction} {_utterances(row)}{whose}{reasons}"


def _number(value: float | None) -> str:
    if value is None or math.isnan(value):
        return _ABSENT
    return "inf" if math.isinf(value) else f"{value:.1f}"


def _count(value: int | float) -> str:
    if isinstance(value, int):
        return str(value)
    return f"{value:.2f}" if math.isfinite(value) else _ABSENT


def _interval(interval: tuple[float, float] | None) -> str:
    return _ABSENT if interval is None else f"{interval[0]:.1f} to {interval[1]:.1f}"


def _notes(evaluation: Evaluation, low_resource: Collection[str]) -> list[str]:
    """Returns the metrics of tasks, and what the numbers rest on, one sentence each."""
    notes = []
    for task, metrics in evaluation.task_metrics.items():
        values = ", ".join(
            f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in metrics.items()
        )
        notes.append(f"Metric functions of {task}: {values}.")
    notes.append(f"{evaluation.utterances} utterances scored; averages count each row once.")
    if evaluation.postprocessed:
        notes.append(
            "References and hypotheses as postprocess_fn returns them: "
            f"{', '.join(evaluation.postprocessed)}."
        )
    if any(row.primary.interval is not None for row in evaluation.rows):
        notes.append("Intervals: bootstrap over utterances, 2.5th to 97.5th percentile.")
    flagged = [row.direction for row in evaluation.rows if row.among(low_resource)]
    if flagged:
        notes.append(f"Low-resource: {', '.join(flagged)} (little paired speech).")
    whole = [row.direction for row in evaluation.rows if row.complete and not row.published]
    if whole:
        notes.append(
            "No number of utterances is published; all that the corpus lists were scored: "
            f"{', '.join(whole)}."
        )
    gaps = [row for row in evaluation.rows if row.complete is False]
    if gaps:
        listed = "; ".join(map(_left_out, gaps))
        notes.append(f"INCOMPLETE, not comparable with published scores, utterances: {listed}.")
    for what, field in (("reference", "empty_references"), ("hypothesis", "empty_hypotheses")):
        counts = {row.direction: getattr(row, field) for row in evaluation.rows}
        listed = ", ".join(f"{direction} {count}" for direction, count in counts.items() if count)
        if listed:
            notes.append(f"Utterances scored with an empty {what}: {listed}.")
    limited = [row for row in evaluation.rows if row.vocabulary_limit is not None]
    if limited:
        listed = ", ".join(
            f"{row.direction} {row.primary_metric.upper()} {_number(row.vocabulary_limit)}"
            for row in limited
        )
        notes.append(
            "The model's vocabulary CANNOT WRITE all references; a model without a mistake would "
            f"score {listed}."
        )
    if evaluation.over_long:
        listed = ", ".join(f"{row.direction} {row.utterances}" for row in evaluation.over_long)
        notes.append(
            "Utterances longer than any that the model was trained on, cut at pauses and counted "
            f"in the rows of their languages too: {listed}."
        )
    if evaluation.repeats:
        notes.append(f"{evaluation.repeats} repeated utterances were scored once.")
    if evaluation.kind == "asr":
        notes.append(
            "Text normalised as VoxPopuli does: lower case, no punctuation, apostrophes kept; "
            "CER counts the spaces between words."
        )
        by_character = [row.direction for row in evaluation.rows if row.primary_metric == "cer"]
        if by_character:
            notes.append(
                "Scored by character, without spaces, because the language puts none between "
                f"words: {', '.join(by_character)}; averages are over the error rate of each row."
            )
    for metric in evaluation.metrics:
        by_signature: dict[str, list[str]] = {}
        for row in evaluation.rows:
            by_signature.setdefault(row.scores[metric.name].signature, []).append(row.direction)
        for signature, directions in by_signature.items():
            where = "" if len(by_signature) == 1 else f" ({', '.join(directions)})"
            if signature:
                notes.append(f"{metric.title}{where}: `{signature}`")
    return notes

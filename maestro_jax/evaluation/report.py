"""The table of an evaluation: as Markdown, as plain text and as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from etils import epath

from maestro_jax.evaluation.evaluate import Evaluation, Row
from maestro_jax.scoring.scores import WordScores, finite_or_none
from maestro_jax.text.normalizers import base_language

_TITLES = {
    "asr": "Speech recognition",
    "st": "Speech translation",
    "mt": "Text translation",
}
_TRANSLATION_HEADER = ("BLEU", "95% interval", "chrF", "tokens", "length ratio")
# By the scores that the rows are reported by, the first column first.
_RECOGNITION_HEADERS = {
    ("wer",): ("WER %", "95% interval", "CER %", "words", "sub", "del", "ins"),
    ("cer",): ("CER %", "95% interval", "WER %", "characters", "sub", "del", "ins"),
    ("cer", "wer"): (
        *("error %", "95% interval", "of", "WER %", "CER %", "units", "sub", "del", "ins"),
    ),
}
_NAMES = {"error_rate": "error %", "wer": "WER %", "cer": "CER %", "bleu": "BLEU", "chrf": "chrF"}
_ABSENT = "-"


def report_json(
    evaluation: Evaluation,
    *,
    low_resource: Collection[str] = (),
    groups: Mapping[str, Collection[str]] | None = None,
) -> dict[str, Any]:
    """The whole evaluation as plain JSON values: undefined scores are null.

    Args:
        evaluation: What was scored.
        low_resource: Languages with little paired speech, left out of the second average.
        groups: Further averages, a name and its languages each.

    Returns:
        Error rates are in percent, BLEU and chrF from 0 to 100. ``leading`` is the score that a row
        is reported by; ``error_rate``, of averages, the mean of those of the rows, and ``wer`` is
        null where one of them is not reported by it. ``reachable`` is the leading score of a model
        that makes no mistake, where its vocabulary cannot write all references, else null.
    """
    return {
        "name": evaluation.name,
        "kind": evaluation.kind,
        "units": {
            **dict.fromkeys(("error_rate", "wer", "cer"), "percent"),
            **dict.fromkeys(("bleu", "chrf"), "0 to 100"),
        },
        "utterances": evaluation.utterances,
        "complete": evaluation.complete,
        "repeats": evaluation.repeats,
        "seconds": evaluation.seconds,
        "task_metrics": {task: dict(found) for task, found in evaluation.task_metrics.items()},
        "postprocessed": list(evaluation.postprocessed),
        "averages": [
            {
                "name": name,
                "rows": [row.direction for row in rows],
                **{metric: finite_or_none(value) for metric, value in means.items()},
            }
            for name, means, rows in _averages(evaluation, low_resource, groups)
        ],
        "rows": [
            {
                "direction": row.direction,
                "language": row.language,
                "low_resource": row.among(low_resource),
                "leading": row.leading,
                "reachable": finite_or_none(row.reachable),
                "expected": row.expected,
                "complete": row.complete,
                **row.scores.to_json(),
            }
            for row in evaluation.rows
        ],
    }


def format_markdown(
    evaluation: Evaluation,
    *,
    low_resource: Collection[str] = (),
    groups: Mapping[str, Collection[str]] | None = None,
    published: Mapping[str, Mapping[str, float]] | None = None,
) -> str:
    """The evaluation as a Markdown page: a title, the table, and what one must know to compare.

    Args:
        evaluation: What was scored.
        low_resource: Languages with little paired speech: marked, and left out of a second
            average, over the languages with enough of it.
        groups: Further averages, a name and its languages each (CoVoST-2's high, mid, low).
        published: Further columns: the system's name, and its leading score a language. Beside an
            average over a whole group, or over all that was published, stands the one stated
            under the group's name or ``all``; any other is taken over the rows that ours is over.

    Returns:
        The page, with a final newline.
    """
    header, body, averages = _table(evaluation, low_resource, groups, published)
    lines = [f"# {_TITLES[evaluation.kind]}: {evaluation.name}", ""]
    lines += ["| " + " | ".join(header) + " |"]
    lines += ["|" + " --- |" + " ---: |" * (len(header) - 1)]
    lines += ["| " + " | ".join(cells) + " |" for cells in body]
    for cells in averages:
        lines.append("| " + " | ".join(f"**{cell}**" if cell else "" for cell in cells) + " |")
    lines += ["", *(f"- {note}" for note in _notes(evaluation, low_resource))]
    return "\n".join(lines) + "\n"


def format_text(
    evaluation: Evaluation,
    *,
    low_resource: Collection[str] = (),
    groups: Mapping[str, Collection[str]] | None = None,
    published: Mapping[str, Mapping[str, float]] | None = None,
) -> str:
    """The same table for a terminal, in aligned columns; arguments as `format_markdown`."""
    header, body, averages = _table(evaluation, low_resource, groups, published)
    rows = [header, *body, *averages]
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]

    def aligned(cells: list[str]) -> str:
        first, *rest = (
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return "  ".join([first, *rest]).rstrip()

    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    lines = [f"{_TITLES[evaluation.kind]}: {evaluation.name}", "", aligned(header), rule]
    lines += [*map(aligned, body), rule, *map(aligned, averages), ""]
    return "\n".join([*lines, *_notes(evaluation, low_resource)]) + "\n"


def write_report(
    evaluation: Evaluation,
    output_dir: epath.PathLike,
    *,
    low_resource: Collection[str] = (),
    groups: Mapping[str, Collection[str]] | None = None,
    published: Mapping[str, Mapping[str, float]] | None = None,
) -> tuple[epath.Path, epath.Path]:
    """Writes ``{name}.md`` and ``{name}.json``; arguments as `format_markdown`.

    Args:
        evaluation: What was scored.
        output_dir: The ``evaluation`` folder of a model directory; made if missing.
        low_resource: Languages left out of the second average.
        groups: Further averages.
        published: Further columns.

    Returns:
        The two paths, Markdown first.
    """
    output_dir = epath.Path(output_dir).expanduser()
    output_dir.mkdir(parents=True, exist_ok=True)
    markdown, values = (output_dir / f"{evaluation.name}.{suffix}" for suffix in ("md", "json"))
    page = format_markdown(
        evaluation, low_resource=low_resource, groups=groups, published=published
    )
    content = report_json(evaluation, low_resource=low_resource, groups=groups)
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    markdown.write_bytes(page.encode())
    values.write_bytes(text.encode())
    return markdown, values


def _averages(
    evaluation: Evaluation,
    low_resource: Collection[str],
    groups: Mapping[str, Collection[str]] | None,
) -> list[tuple[str, dict[str, float], tuple[Row, ...]]]:
    """Name, means and rows of every average that the report shows."""
    averages = [("all", *evaluation.average())]
    if any(row.among(low_resource) for row in evaluation.rows):
        averages.append(("without low-resource", *evaluation.average(without=low_resource)))
    for name, languages in (groups or {}).items():
        means, rows = evaluation.average(only=languages)
        if rows:
            averages.append((name, means, rows))
    return averages


def _table(
    evaluation: Evaluation,
    low_resource: Collection[str],
    groups: Mapping[str, Collection[str]] | None,
    published: Mapping[str, Mapping[str, float]] | None,
) -> tuple[list[str], list[list[str]], list[list[str]]]:
    """Header, a line a language, and a line an average, as strings of equal number."""
    published = published or {}
    columns = _columns(evaluation)
    first = "language" if evaluation.kind == "asr" else "direction"
    header = [first, "utterances", *columns, *published]
    body = []
    for row in evaluation.rows:
        found = _cells(row)
        body.append(
            [
                row.direction + (" (low-resource)" if row.among(low_resource) else ""),
                _utterances(row),
                *(found[column] for column in columns),
                *(_number(_published(numbers, row)) for numbers in published.values()),
            ]
        )
    averages = []
    for name, means, rows in _averages(evaluation, low_resource, groups):
        found = {_NAMES[metric]: _number(value) for metric, value in means.items()}
        title = f"average of {len(rows)}" + ("" if name == "all" else f", {name}")
        averages.append(
            [
                title,
                "",
                *(found.get(column, "") for column in columns),
                *(
                    _number(_published_average(numbers, name, rows, groups))
                    for numbers in published.values()
                ),
            ]
        )
    return header, body, averages


def _columns(evaluation: Evaluation) -> tuple[str, ...]:
    """The columns of our own numbers, that which the rows are reported by first."""
    if evaluation.kind != "asr":
        return _TRANSLATION_HEADER
    leading = tuple(sorted({row.leading for row in evaluation.rows}))
    return _RECOGNITION_HEADERS[leading or ("wer",)]


def _published_average(
    numbers: Mapping[str, float],
    name: str,
    rows: Sequence[Row],
    groups: Mapping[str, Collection[str]] | None,
) -> float | None:
    """The average that compares with ours: the stated one if ours is of the same languages.

    A stated average was taken before rounding; that of rounded scores may differ in the last digit.

    Args:
        numbers: By language, by group and, under ``all``, over all of them.
        name: Of our average.
        rows: What our average is over.
        groups: Languages of averages that may be stated.
    """
    languages = set((groups or {}).get(name, ()))
    if name == "all":
        everything = [language for group in (groups or {}).values() for language in group]
        languages = set(everything or numbers) - {"all"}
    if name in numbers and {base_language(row.language) for row in rows} == languages:
        return numbers[name]
    found = [_published(numbers, row) for row in rows]
    values = [value for value in found if value is not None]
    return math.fsum(values) / len(values) if rows and len(values) == len(rows) else None


def _published(numbers: Mapping[str, float], row: Row) -> float | None:
    for key in (row.direction, row.language, base_language(row.language)):
        if key in numbers:
            return numbers[key]
    return None


def _utterances(row: Row) -> str:
    count = str(row.scores.utterances)
    return count if row.complete else f"{count} of {row.expected}"


def _cells(row: Row) -> dict[str, str]:
    """The numbers of a row by their columns."""
    scores = row.scores
    if isinstance(scores, WordScores):
        by_word = row.leading == "wer"
        counts = scores.words if by_word else scores.characters
        return {
            "error %": _number(row.value("error_rate")),
            "WER %": _number(scores.wer),
            "CER %": _number(scores.cer),
            "95% interval": _interval(scores.wer_interval if by_word else scores.cer_interval),
            "of": "words" if by_word else "characters",
            **dict.fromkeys(("words", "characters", "units"), str(counts.reference_length)),
            "sub": str(counts.substitutions),
            "del": str(counts.deletions),
            "ins": str(counts.insertions),
        }
    ratio = (
        f"{scores.hypothesis_length / scores.reference_length:.2f}"
        if scores.reference_length
        else _ABSENT
    )
    return {
        "BLEU": _number(scores.bleu),
        "95% interval": _interval(scores.bleu_interval),
        "chrF": _number(scores.chrf),
        "tokens": str(scores.reference_length),
        "length ratio": ratio,
    }


def _number(value: float | None) -> str:
    if value is None or math.isnan(value):
        return _ABSENT
    return "inf" if math.isinf(value) else f"{value:.1f}"


def _interval(interval: tuple[float, float] | None) -> str:
    return _ABSENT if interval is None else f"{interval[0]:.1f} to {interval[1]:.1f}"


def _notes(evaluation: Evaluation, low_resource: Collection[str]) -> list[str]:
    """The metrics of tasks, and what the numbers rest on, a sentence each."""
    notes = []
    for task, metrics in evaluation.task_metrics.items():
        told = ", ".join(
            f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in metrics.items()
        )
        notes.append(f"Metric functions of {task}: {told}.")
    notes.append(f"{evaluation.utterances} utterances scored; averages count each row once.")
    if evaluation.postprocessed:
        notes.append(
            "References and hypotheses as postprocess_fn makes them: "
            f"{', '.join(evaluation.postprocessed)}."
        )
    if any(_leading_interval(row) is not None for row in evaluation.rows):
        notes.append("Intervals: bootstrap by utterance, 2.5 to 97.5 percentile.")
    flagged = [row.direction for row in evaluation.rows if row.among(low_resource)]
    if flagged:
        notes.append(f"Low-resource: {', '.join(flagged)} (little paired speech).")
    gaps = [row for row in evaluation.rows if not row.complete]
    if gaps:
        told = ", ".join(f"{row.direction} {_utterances(row)}" for row in gaps)
        notes.append(f"INCOMPLETE, not comparable with published scores: {told} utterances.")
    for what, field in (("reference", "empty_references"), ("hypothesis", "empty_hypotheses")):
        counts = {row.direction: getattr(row.scores, field) for row in evaluation.rows}
        told = ", ".join(f"{direction} {count}" for direction, count in counts.items() if count)
        if told:
            notes.append(f"Scored with an empty {what}: {told}.")
    limits = [row for row in evaluation.rows if row.reachable is not None]
    if limits:
        told = ", ".join(
            f"{row.direction} {row.leading.upper()} {_number(row.reachable)}" for row in limits
        )
        notes.append(
            f"The model's vocabulary CANNOT WRITE all references: without a mistake it has {told}."
        )
    if evaluation.repeats:
        notes.append(f"{evaluation.repeats} repeated utterances were scored once.")
    if evaluation.kind == "asr":
        notes.append(
            "Text normalised as VoxPopuli does: lower case, no punctuation, apostrophes kept; "
            "CER counts the spaces between words."
        )
        by_character = [row.direction for row in evaluation.rows if row.leading == "cer"]
        if by_character:
            notes.append(
                f"Written without spaces between words, so scored by character, without spaces: "
                f"{', '.join(by_character)}; averages are over the error rate of each row."
            )
    for name, field in (("BLEU", "bleu_signature"), ("chrF", "chrf_signature")):
        if evaluation.kind in ("st", "mt"):
            by_signature: dict[str, list[str]] = {}
            for row in evaluation.rows:
                by_signature.setdefault(getattr(row.scores, field), []).append(row.direction)
            for signature, directions in by_signature.items():
                where = "" if len(by_signature) == 1 else f" ({', '.join(directions)})"
                notes.append(f"{name}{where}: `{signature}`")
    return notes


def _leading_interval(row: Row) -> tuple[float, float] | None:
    """The confidence interval of a row's leading score."""
    return getattr(row.scores, f"{row.leading}_interval")

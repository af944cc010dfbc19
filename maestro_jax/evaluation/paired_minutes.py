"""Error rates of several runs beside the minutes of paired speech that each had of a language.

A language without any paired speech has 0 minutes: it was learned from untranscribed speech, from
text and from other languages, or not at all.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from etils import epath

from maestro_jax.batches import SAMPLE_RATE
from maestro_jax.errors import UserError
from maestro_jax.scoring.metrics import finite_or_none
from maestro_jax.tables import align_columns
from maestro_jax.training.run import TrainRun

_STREAMS = {"asr": "paired", "st": "st"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class FewPoint:
    """The score of a run on a language, and its paired speech.

    Attributes:
        test_set: Name of the test set.
        row: Language, or direction of translation.
        run: Name of the run.
        minutes: Minutes of paired speech of the row that the run has trained on.
        metric: Name of the metric that the row is reported by.
        title: Title of the metric.
        score: Its score; None where it is not defined.
        interval: 95% interval; None where it was not computed.
        utterances: Number of utterances scored.
    """

    test_set: str
    row: str
    run: str
    minutes: float
    metric: str
    title: str
    score: float | None
    interval: tuple[float, float] | None
    utterances: int


def minutes_of_paired_speech(
    runs: Sequence[TrainRun], kind: str, data_dir: str | Path | None = None
) -> dict[str, float]:
    """Measures the paired speech of a run and of those that it began from.

    Args:
        runs: The run and the runs whose checkpoints it began from. What several of them read counts
            once.
        kind: `asr` for speech with transcripts, `st` for speech with translations.
        data_dir: Root of the prepared data.

    Returns:
        Minutes by language, or by direction of translation (by language where the task does not
        say the other one); those without any are absent.

    Raises:
        UserError: The data are not there, or a task does not say its language or how long its
            examples are.
    """
    from maestro_jax.data.data_dir import data_scope
    from maestro_jax.data.task_readers import open_split
    from maestro_jax.data.task_registry import get_task_or_mixture, tasks_of
    from maestro_jax.data.test_sets import row_of

    stream = _STREAMS[kind]
    tasks: dict[str, Any] = {}
    for run in runs:
        if stream in run.used_streams:
            found = tasks_of(get_task_or_mixture(run.streams[stream].mixture))
            # By source: the same speech may have its transcripts in letters and in phonemes.
            tasks |= {repr(task.source): task for task in found}
    minutes: dict[str, float] = {}
    with data_scope(data_dir):
        for task in tasks.values():
            row, opened = row_of(task), open_split(task, "train")
            if row is None or opened is None:
                lacking = "its language" if row is None else "how long its examples are"
                raise UserError(
                    f"task {task.name!r} does not say {lacking}, so its minutes are not known; "
                    "register it with add_stream_task and prepared data"
                )
            samples = int(opened.lengths()[:, 0].sum(dtype="int64"))
            minutes[row] = minutes.get(row, 0.0) + samples / SAMPLE_RATE / 60
    return minutes


def read_points(
    scores: epath.Path, run: str, minutes: Mapping[str, Mapping[str, float]]
) -> list[FewPoint]:
    """Reads the scores of a run on a test set.

    Args:
        scores: JSON file of `maestro eval`.
        run: Name of the run.
        minutes: As of `minutes_of_paired_speech`, by kind.

    Raises:
        UserError: It is no such file.
    """
    try:
        content = json.loads(scores.read_text())
        known = minutes.get(content["kind"], {})
        return [
            FewPoint(
                test_set=content["name"],
                row=row["direction"],
                run=run,
                # A task of translations need not say into which language.
                minutes=known.get(row["direction"], known.get(row["language"], 0.0)),
                metric=row["primary_metric"],
                title=content["titles"][row["primary_metric"]],
                score=row[row["primary_metric"]],
                interval=_pair(row.get(f"{row['primary_metric']}_interval")),
                utterances=row["utterances"],
            )
            for row in content["rows"]
            if row["utterances"]
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{scores} has no scores of `maestro eval`; evaluate again") from error


def points_table(points: Sequence[FewPoint]) -> str:
    """Formats all points in one table, by language, test set and minutes."""
    members = sorted(points, key=lambda each: (each.row, each.test_set, each.minutes, each.run))
    titles = list(dict.fromkeys(point.title for point in members))
    several = len({point.test_set for point in members}) > 1
    test_set = ["test set"] if several else []
    header = ["", *test_set, "minutes paired", "run", *titles, "95% interval", "utterances"]
    rows = [
        [
            point.row,
            *([point.test_set] if several else []),
            f"{point.minutes:.1f}" if point.minutes else "none",
            point.run,
            *(_number(point.score) if title == point.title else "" for title in titles),
            _interval(point.interval),
            str(point.utterances),
        ]
        for point in members
    ]
    left = {"", "test set", "run"}
    table = align_columns(header, rows, ["left" if each in left else "right" for each in header])
    return table if several or not members else f"{members[0].test_set}\n\n{table}"


def _pair(values: Sequence[float] | None) -> tuple[float, float] | None:
    return None if values is None else (float(values[0]), float(values[1]))


def _number(value: float | None) -> str:
    value = finite_or_none(value)
    return "-" if value is None else f"{value:.1f}"


def _interval(interval: tuple[float, float] | None) -> str:
    return "-" if interval is None else f"{interval[0]:.1f} to {interval[1]:.1f}"

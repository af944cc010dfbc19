"""Test sets: which tasks are scored together, their published sizes, and their own metrics.

The metric functions and the `postprocess_fn` of seqio tasks are called as seqio calls them:
`postprocess_fn(text, example=..., is_target=...)` gets the reference and what the model wrote;
`metric_fn(targets, predictions)` gets lists of what that returns, and returns numbers by name.
Source: `seqio.metrics.LegacyMetric`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import seqio

from maestro_jax.data.corpora.corpus import SplitSize
from maestro_jax.data.indexed_source import IndexedTfdsSource
from maestro_jax.data.stream_tasks import StreamTask
from maestro_jax.errors import UserError

Value = float | str


def row_of(task: seqio.Task) -> str | None:
    """Returns the row of a task in a table of scores: `de`, or `de-en` for a translation.

    Returns:
        None where the task does not say, or has several languages.
    """
    if not isinstance(task, StreamTask) or len(task.languages) != 1:
        return None
    return "-".join(code for code in (*task.languages, task.target_language) if code)


def separate_test_sets(name: str, tasks: Sequence[seqio.Task]) -> dict[str, list[seqio.Task]]:
    """Divides a mixture into test sets.

    A table has a row a language. Where several corpora of a mixture have a language, adding their
    utterances up would give a number that nobody reports, so each corpus gets its own table; where
    a corpus has several test sets of a language, each task does, and so does each task that does
    not say its language before it is read.

    Args:
        name: Name of the mixture.
        tasks: Its tasks that have the split.

    Returns:
        From names to tasks. All of them are under the mixture's name where no row is there twice.
    """
    if _is_one(tasks):
        return {name: list(tasks)}
    by_corpus: dict[str, list[seqio.Task]] = {}
    for task in tasks:
        source = task.source
        corpus = source.corpus if isinstance(source, IndexedTfdsSource) else task.name
        by_corpus.setdefault(corpus, []).append(task)
    test_sets: dict[str, list[seqio.Task]] = {}
    for corpus, members in by_corpus.items():
        if _is_one(members):
            test_sets[f"{name}.{corpus}"] = members
        else:
            test_sets |= {f"{name}.{task.name}": [task] for task in members}
    return test_sets


def _is_one(tasks: Sequence[seqio.Task]) -> bool:
    """Returns whether no row occurs twice, as far as is known; true of a single task."""
    if len(tasks) > 1 and not all(isinstance(task, StreamTask) for task in tasks):
        return False
    rows = [row for task in tasks if (row := row_of(task)) is not None]
    return len(set(rows)) == len(rows)


def test_set_sizes(
    tasks: Sequence[seqio.Task], split: str, rows: Mapping[str, str] | None = None
) -> dict[str, SplitSize]:
    """Returns how many utterances a split should have, by row of a table of scores.

    Args:
        tasks: Tasks that are scored.
        split: Their split.
        rows: Names of rows by task, where they are not those of `row_of`.

    Returns:
        Sizes with the published number, that of the corpus' tables, and what `maestro prepare` left
        out. A row is left out where nothing of that is known of one of its tasks, or it is not
        known which row is the task's.
    """
    sizes: dict[str, SplitSize] = {}
    unknown: set[str] = set()
    for task in tasks:
        if (row := (rows or {}).get(task.name) or row_of(task)) is None:
            continue
        source = task.source
        size = source.size(split) if isinstance(source, IndexedTfdsSource) else None
        if size is None or size.expected is None:
            unknown.add(row)
            continue
        sizes[row] = sizes[row] + size if row in sizes else size
    return {row: size for row, size in sizes.items() if row not in unknown}


class TaskMetrics:
    """What the tasks of a test set ask for beside our scores, collected utterance by utterance.

    Args:
        tasks: Tasks of the test set.
        field: Feature that the model writes: ``text`` or ``translation``.

    Raises:
        UserError: A task asks for what an evaluation does not have: scores of targets, auxiliary
            values, or metric objects.
    """

    def __init__(self, tasks: Sequence[seqio.Task], field: str) -> None:
        self._field = field
        self._tasks = {task.name: task for task in tasks}
        self._targets: dict[str, list[Any]] = {}
        self._predictions: dict[str, list[Any]] = {}
        for task in tasks:
            _check(task)

    @property
    def asked(self) -> bool:
        """Returns whether any task asks for anything; if not, there is nothing to collect."""
        return any(
            task.metric_fns or task.postprocessor is not None for task in self._tasks.values()
        )

    @property
    def postprocessed(self) -> tuple[str, ...]:
        """Returns the tasks whose references and hypotheses are postprocessed."""
        return tuple(n for n, task in self._tasks.items() if task.postprocessor is not None)

    def postprocess(self, metadata: Mapping[str, Any], hypothesis: str) -> tuple[str, str]:
        """Notes an utterance for the metric functions.

        Args:
            metadata: Metadata of the utterance: task, texts, and all features as ``example``.
            hypothesis: Text that the model wrote.

        Returns:
            The reference and the hypothesis that our scores compare: postprocessed, if that makes
            strings of both; as they were, if it makes something else for the metric functions.

        Raises:
            UserError: The task's `postprocess_fn` fails, or makes no strings and no metric function
                is there to take what it makes.
        """
        task = self._tasks[metadata["task"]]
        reference = metadata[self._field]
        target, prediction = reference, hypothesis
        if task.postprocessor is not None:
            example = metadata["example"]
            target, prediction = (
                self._postprocessed(task, text, example, is_target)
                for text, is_target in ((reference, True), (hypothesis, False))
            )
        if task.metric_fns:
            self._targets.setdefault(task.name, []).append(target)
            self._predictions.setdefault(task.name, []).append(prediction)
        if isinstance(target, str) and isinstance(prediction, str):
            return target, prediction
        if not task.metric_fns:
            raise UserError(
                f"postprocess_fn of task {task.name!r} makes {type(prediction).__name__} of a "
                "text and the task has no metric_fns to score it; give it some, or let "
                "postprocess_fn return text."
            )
        return reference, hypothesis

    def compute(self) -> dict[str, dict[str, Value]]:
        """Calls the metric functions.

        Returns:
            Numbers and texts by metric, by task. What is neither, such as a histogram, is named
            with its type.

        Raises:
            UserError: A function fails, or returns no mapping.
        """
        metrics: dict[str, dict[str, Value]] = {}
        for name, targets in self._targets.items():
            for function in self._tasks[name].metric_fns:
                called = getattr(function, "__name__", repr(function))
                try:
                    values = function(targets=targets, predictions=self._predictions[name])
                    items = dict(values).items()
                except Exception as error:
                    raise UserError(
                        f"the metric function {called} of task {name!r} failed: "
                        f"{type(error).__name__}: {error}"
                    ) from error
                kept = metrics.setdefault(name, {})
                for metric, value in items:
                    # Two functions may call their metrics alike.
                    key = metric if metric not in kept else f"{called}/{metric}"
                    kept[key] = _plain(value)
        return metrics

    def _postprocessed(
        self, task: seqio.Task, text: str, example: Mapping[str, Any], is_target: bool
    ) -> Any:
        try:
            return task.postprocess_fn(text, example=example, is_target=is_target)
        except Exception as error:
            raise UserError(
                f"postprocess_fn of task {task.name!r} failed for {text!r} "
                f"(is_target={is_target}): {type(error).__name__}: {error}"
            ) from error


def _check(task: seqio.Task) -> None:
    """Refuses what cannot be honoured, before anything is decoded."""
    try:
        refused = [
            (functions, what)
            for functions, what in (
                (task.score_metric_fns, "scores of targets"),
                (task.predict_with_aux_metric_fns, "auxiliary values"),
            )
            if functions
        ]
    except ValueError as error:
        raise UserError(f"the metric_fns of task {task.name!r}: {error}") from error
    for functions, what in refused:
        names = ", ".join(getattr(one, "__name__", repr(one)) for one in functions)
        raise UserError(
            f"the metric function {names} of task {task.name!r} takes {what}, which an evaluation "
            "of transcripts does not have; register the task without it, or with functions of "
            "targets and predictions."
        )
    if len(task.metric_objs) > len(task.metric_fns):
        raise UserError(
            f"task {task.name!r} has metric_objs, which are not supported; give it metric_fns, "
            "functions of targets and predictions."
        )


def _plain(value: Any) -> Value:
    """Converts what a metric function returns for one metric to a number or a text."""
    if isinstance(value, seqio.metrics.Scalar):
        value = value.value
    if isinstance(value, seqio.metrics.Text):
        value = value.textdata
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, str):
        return value
    try:
        number = float(np.asarray(value))
    except (TypeError, ValueError):
        return f"({type(value).__name__})"
    return number if math.isfinite(number) else str(number)

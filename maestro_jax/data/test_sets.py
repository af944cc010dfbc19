"""Which tasks of a mixture are scored together."""

from __future__ import annotations

from collections.abc import Sequence

import seqio

from maestro_jax.data.indexed_source import IndexedTfdsSource
from maestro_jax.data.task_features import StreamTask


def row_of(task: seqio.Task) -> str | None:
    """The row of a table of scores that a task is: `de`, or `de-en` for a translation.

    Returns:
        None where the task does not say, or has several languages.
    """
    if not isinstance(task, StreamTask) or len(task.languages) != 1:
        return None
    return "-".join(code for code in (*task.languages, task.target_language) if code)


def separate_test_sets(name: str, tasks: Sequence[seqio.Task]) -> dict[str, list[seqio.Task]]:
    """Parts of a mixture that are test sets of their own.

    A table has a row a language. Where several corpora of a mixture have a language, adding their
    utterances up would give a number that nobody reports, so each corpus gets its own table; where
    a corpus has several test sets of a language, each task does, and so does each task that does
    not say its language before it is read.

    Args:
        name: Of the mixture.
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
    found: dict[str, list[seqio.Task]] = {}
    for corpus, members in by_corpus.items():
        if _is_one(members):
            found[f"{name}.{corpus}"] = members
        else:
            found |= {f"{name}.{task.name}": [task] for task in members}
    return found


def _is_one(tasks: Sequence[seqio.Task]) -> bool:
    """Whether no row is there twice, as far as is known; a task alone is one in any case."""
    if len(tasks) > 1 and not all(isinstance(task, StreamTask) for task in tasks):
        return False
    rows = [row for task in tasks if (row := row_of(task)) is not None]
    return len(set(rows)) == len(rows)

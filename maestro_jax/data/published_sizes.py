"""How large the test sets of tasks are, where that was published."""

from __future__ import annotations

from collections.abc import Sequence

import seqio

from maestro_jax.data.indexed_source import IndexedTfdsSource
from maestro_jax.data.test_sets import row_of


def published_sizes(tasks: Sequence[seqio.Task], split: str) -> dict[str, int]:
    """Utterances that a split should have, by the rows of a table of scores.

    Args:
        tasks: What is scored.
        split: Which split of them.

    Returns:
        From `de`, or `de-en` for a translation, to the published number. A row is left out where
        the size of one of its tasks was not published, or it is not known which row is the task's.
    """
    sizes: dict[str, int | None] = {}
    for task in tasks:
        if (row := row_of(task)) is None:
            continue
        source = task.source
        size = source.published(split) if isinstance(source, IndexedTfdsSource) else None
        before = sizes.get(row, 0)
        sizes[row] = None if size is None or before is None else before + size
    return {row: size for row, size in sizes.items() if size is not None}

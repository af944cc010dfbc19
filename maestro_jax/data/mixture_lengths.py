"""How long the examples of a mixture are, at the rates at which it draws its tasks."""

from __future__ import annotations

import numpy as np

from maestro_jax.data.bucket_search import LengthDistribution
from maestro_jax.data.task_listing import check_prepared, get_task_or_mixture, rate_of, tasks_of
from maestro_jax.data.task_readers import open_split
from maestro_jax.errors import UserError


def mixture_lengths(name: str, split: str = "train") -> LengthDistribution:
    """Reads the files of lengths beside the shards; no record is read where they are there.

    Args:
        name: Of a task or mixture.
        split: Of every task.

    Raises:
        UserError: It is unknown or not prepared, or a task has no random access or no such split.
    """
    provider = get_task_or_mixture(name)
    check_prepared(provider)
    lengths, weights = [], []
    for task in tasks_of(provider):
        rate = rate_of(provider, task)
        if rate <= 0 or split not in task.splits:
            continue
        opened = open_split(task, split)
        if opened is None:
            raise UserError(f"task {task.name!r} has no random access, so it can have no buckets.")
        lengths.append(opened.lengths())
        weights.append(np.full(len(lengths[-1]), rate / max(len(lengths[-1]), 1)))
    if not lengths:
        raise UserError(f"no task of {name!r} has a split {split!r}.")
    return LengthDistribution(lengths=np.concatenate(lengths), weights=np.concatenate(weights))

"""What is compiled while training: hits of the compilation cache, and unexpected shapes."""

from __future__ import annotations

import collections
from typing import TYPE_CHECKING, Any

import jax

from maestro_jax.batches import batch_shapes
from maestro_jax.training.step import describe_shapes

if TYPE_CHECKING:
    from maestro_jax.training.run import TrainRun

_counts: collections.Counter[str] = collections.Counter()


def _count(event: str, **unused: Any) -> None:
    _counts[event] += 1


# Listeners cannot be taken back one by one: a single one serves all trainers of a process.
jax.monitoring.register_event_listener(_count)


def cache_counts() -> tuple[int, int]:
    """Returns how many programs this process has found in the compilation cache, and how many not.

    Both are 0 without a cache; programs that compile in less than a second are not kept there.
    """
    return (
        _counts["/jax/compilation_cache/cache_hits"],
        _counts["/jax/compilation_cache/cache_misses"],
    )


def unexpected_shapes(run: TrainRun, batch: Any) -> str | None:
    """Describes the streams of a batch whose shapes are none of the run's.

    Args:
        run: The run, whose buckets tell which shapes batches may have.
        batch: ``{stream: {feature: array}}``, global arrays.

    Returns:
        As in ``text 8 x 7 (the run has 8 x 6)``; None if all are expected.
    """
    parts = []
    for stream, features in batch.items():
        if stream not in run.streams:
            continue
        shapes: list[Any] = [
            batch_shapes({stream: config}) for config in run.streams[stream].shapes()
        ]
        expected = [describe_shapes(each) for each in shapes]
        found = describe_shapes({stream: features})
        if found not in expected:
            own = " or ".join(text.removeprefix(f"{stream} ") for text in expected)
            parts.append(f"{found} (the run has {own})")
    return "; ".join(parts) or None

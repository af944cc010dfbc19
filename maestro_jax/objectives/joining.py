"""Rows of several streams through one pass of a network.

Streams of equal static length share a pass: one large matrix product instead of several small
ones, and one copy of the network in the compiled program instead of one a stream.

Rows are joined like the teeth of a zip: of 4 and 2 rows, two of the one are followed by one of the
other, and again. Each device of a mesh then joins the rows that it has, and none travels, whereas
the order is the same on every mesh.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence

import jax
import jax.numpy as jnp

from maestro_jax.layers.partitioned import constrain


def groups_of_equal(lengths: Mapping[str, Hashable]) -> list[tuple[str, ...]]:
    """Names of equal static length, in the order in which they first come.

    Args:
        lengths: A length, or several, by name.

    Returns:
        Groups of names; every name is in one.
    """
    groups: dict[Hashable, list[str]] = {}
    for name, length in lengths.items():
        groups.setdefault(length, []).append(name)
    return [tuple(names) for names in groups.values()]


def join(arrays: Iterable[jax.Array]) -> jax.Array:
    """One array from several `[rows, ...]`, along the rows; `split` takes it apart again."""
    arrays = list(arrays)
    teeth = math.gcd(*map(len, arrays))
    zipped = [_by_rows(x.reshape(teeth, -1, *x.shape[1:])) for x in arrays]
    joined = jnp.concatenate(zipped, axis=1)
    return _by_rows(joined.reshape(-1, *joined.shape[2:]))


def split(joined: jax.Array, rows: Sequence[int]) -> list[jax.Array]:
    """The arrays that were joined, given how many rows each had."""
    teeth = math.gcd(*rows)
    zipped = _by_rows(joined.reshape(teeth, -1, *joined.shape[1:]))
    ends = [sum(rows[: index + 1]) // teeth for index in range(len(rows))]
    return [
        _by_rows(zipped[:, end - count // teeth : end].reshape(-1, *joined.shape[1:]))
        for end, count in zip(ends, rows, strict=True)
    ]


def _by_rows(x: jax.Array) -> jax.Array:
    """Ask the partitioner to lay an array out by its first axis."""
    return constrain(x, "batch", *(None for _ in x.shape[1:]))

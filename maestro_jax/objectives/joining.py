"""Rows of several streams through one pass of a network.

Streams of equal static length share a pass: one large matrix product instead of several small
ones, and one copy of the network in the compiled program instead of one a stream.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence

import jax
import jax.numpy as jnp

from maestro_jax.modules.partitioned import constrain


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
    """One array from several `[rows, ...]`, along the rows."""
    joined = jnp.concatenate(list(arrays), axis=0)
    return constrain(joined, "batch", *(None for _ in joined.shape[1:]))


def split(joined: jax.Array, rows: Sequence[int]) -> list[jax.Array]:
    """The arrays that were joined, given how many rows each had."""
    ends = [sum(rows[: index + 1]) for index in range(len(rows))]
    return [
        constrain(joined[end - count : end], "batch", *(None for _ in joined.shape[1:]))
        for end, count in zip(ends, rows, strict=True)
    ]

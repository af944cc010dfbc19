"""Picking hypotheses of a beam, each row of a batch within itself.

A batch that is split over devices stays split.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

NONE = -jnp.inf
"""The score of a place without a hypothesis."""


def take(x: jax.Array, index: jax.Array) -> jax.Array:
    """Picks hypotheses, `[batch, places]`, of `[batch, beam, ...]`, each row within itself."""
    return jnp.take_along_axis(x, index.reshape(index.shape + (1,) * (x.ndim - 2)), axis=1)


def parents(tokens: jax.Array, lengths: jax.Array, alive: jax.Array) -> jax.Array:
    """Where hypothesis `i` is hypothesis `j` without its last label.

    Args:
        tokens: `[batch, beam, max_labels]`.
        lengths: `[batch, beam]`.
        alive: `[batch, beam]` bool, where there is a hypothesis.

    Returns:
        `[batch, i, j]` bool.
    """
    same = tokens[:, :, None] == tokens[:, None]
    slots = jnp.arange(tokens.shape[-1])
    same = jnp.all(same | (slots >= lengths[:, :, None, None]), axis=-1)
    longer = lengths[:, None, :] == lengths[:, :, None] + 1
    return same & longer & alive[:, :, None] & alive[:, None, :]


def top(x: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """The `count` largest of the last axis and their places, equal ones in their order.

    `jax.lax.top_k` gathers a batch that is split over devices (seen on jax 0.10.2); maxima do not,
    and for a beam's few they cost no more.
    """
    places = jnp.arange(x.shape[-1], dtype=jnp.int32)

    def largest(left: jax.Array, _: None) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        best = jnp.max(left, axis=-1, keepdims=True)
        # Not argmax, which XLA does not vectorise on CPU.
        place = jnp.min(jnp.where(left == best, places, x.shape[-1] - 1), axis=-1, keepdims=True)
        return jnp.where(places == place, NONE, left), (best[..., 0], place[..., 0])

    _, (values, indices) = jax.lax.scan(largest, x, None, length=count, unroll=min(count, 8))
    return jnp.moveaxis(values, 0, -1), jnp.moveaxis(indices, 0, -1)

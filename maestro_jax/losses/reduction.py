"""Sums over what is valid, with the count that turns them into a mean."""

from __future__ import annotations

import jax
import jax.numpy as jnp

Weighted = tuple[jax.Array, jax.Array]
"""A total and the count it is a total of: two float32 scalars."""


def masked_sum(values: jax.Array, mask: jax.Array) -> Weighted:
    """Total and count of the values where the mask is True.

    Args:
        values: Any shape; what stands on padding may be anything finite.
        mask: Bool of the same shape.

    Returns:
        Total and count, float32; both 0 where nothing is valid.
    """
    total = jnp.sum(jnp.where(mask, values.astype(jnp.float32), 0.0))
    return total, jnp.sum(mask.astype(jnp.float32))


def mean(weighted: Weighted) -> jax.Array:
    """Total over count, 0 for an empty sum: a stream without examples has no loss."""
    total, count = weighted
    return total / jnp.maximum(count, 1.0)

"""Sums values over valid positions, along with the count that turns a sum into a mean."""

from __future__ import annotations

import jax
import jax.numpy as jnp

Weighted = tuple[jax.Array, jax.Array]
"""A total and the number of values in it: two float32 scalars."""


def masked_sum(values: jax.Array, mask: jax.Array) -> Weighted:
    """Sums the values where the mask is True.

    Args:
        values: Any shape; the values of the padding are ignored.
        mask: Bool of the same shape.

    Returns:
        Total and count, float32; both 0 if nothing is valid.
    """
    total = jnp.sum(jnp.where(mask, values.astype(jnp.float32), 0.0))
    return total, jnp.sum(mask.astype(jnp.float32))


def mean(weighted: Weighted) -> jax.Array:
    """Divides total by count; returns 0 for an empty sum, as of a stream without examples."""
    total, count = weighted
    return total / jnp.maximum(count, 1.0)

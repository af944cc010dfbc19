"""Distances between vectors of two sequences: of pairs that are given, or of all pairs.

    mse      |a - b|^2 / features
    mae      |a - b|_1 / features
    cosine   1 - cos(a, b)

All are computed in float32; the first two of float64 vectors in float64.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from maestro_jax.losses.similarity import cosine_similarity, l2_normalize
from maestro_jax.precision import EXACT

DISTANCES = ("mse", "mae", "cosine")


def distances(a: jax.Array, b: jax.Array, form: str) -> jax.Array:
    """Computes the distance of each vector to the one at the same index.

    Args:
        a: `[..., features]`.
        b: `[..., features]`.
        form: One of `DISTANCES`.

    Returns:
        `[...]`.

    Raises:
        ValueError: The form is unknown.
    """
    _check(form)
    if form == "cosine":
        return 1.0 - cosine_similarity(a, b)
    difference = _exact(a) - _exact(b)
    return jnp.mean(jnp.square(difference) if form == "mse" else jnp.abs(difference), axis=-1)


def pairwise_distances(a: jax.Array, b: jax.Array, form: str) -> jax.Array:
    """Computes the distance of every vector of one sequence to every vector of another.

    The differences of all pairs, `[batch, n, m, features]`, are never held: squares and cosines are
    matrix products, and absolute differences are summed for one vector of `b` after the other.

    Args:
        a: `[batch, n, features]`.
        b: `[batch, m, features]`.
        form: One of `DISTANCES`.

    Returns:
        `[batch, n, m]`.

    Raises:
        ValueError: The form is unknown.
    """
    _check(form)
    if form == "cosine":
        return 1.0 - _products(l2_normalize(a), l2_normalize(b))
    a, b = _exact(a), _exact(b)
    if form == "mse":
        # |a|^2 + |b|^2 - 2 a.b
        squares = jnp.sum(a * a, axis=-1)[:, :, None] + jnp.sum(b * b, axis=-1)[:, None, :]
        return (squares - 2.0 * _products(a, b)) / a.shape[-1]

    # The signs of the differences are computed again in the gradient, or all of them were kept.
    @jax.checkpoint
    def to_one(_: None, vector: jax.Array) -> tuple[None, jax.Array]:
        return None, jnp.mean(jnp.abs(a - vector[:, None, :]), axis=-1)

    _, columns = jax.lax.scan(to_one, None, b.swapaxes(0, 1))  # [m, batch, n]
    return columns.transpose(1, 2, 0)


def _products(a: jax.Array, b: jax.Array) -> jax.Array:
    """Computes the scalar products `[batch, n, m]` of `[batch, n, d]` and `[batch, m, d]`."""
    return jnp.einsum("bnd,bmd->bnm", a, b, precision=EXACT)


def _exact(x: jax.Array) -> jax.Array:
    """Converts to float32; float64 stays."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _check(form: str) -> None:
    if form not in DISTANCES:
        raise ValueError(f"Unknown distance {form!r}; choose one of {DISTANCES}.")

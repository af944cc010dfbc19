"""Sinusoidal position embeddings and rotary position encoding."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def sinusoids(positions: jax.Array, features: int, *, longest: float = 10_000.0) -> jax.Array:
    """Computes sine and cosine at geometrically spaced wavelengths (Vaswani et al., 3.5).

    Args:
        positions: `[...]`, any numbers.
        features: Even size of the embedding.
        longest: Ratio of the longest to the shortest wavelength.

    Returns:
        `[..., features]` float32: sines, then cosines.
    """
    half = features // 2
    frequencies = longest ** (-jnp.arange(half, dtype=jnp.float32) / max(1, half - 1))
    # Float32: in bfloat16, positions above 256 would share angles with their neighbours.
    angles = positions.astype(jnp.float32)[..., None] * frequencies
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def rotate(x: jax.Array, *, longest: float = 10_000.0) -> jax.Array:
    """Applies rotary position encoding to queries or keys (RoFormer, equation 34).

    Args:
        x: `[batch, frames, heads, size]`, size even.
        longest: Ratio of the longest to the shortest wavelength.

    Returns:
        `[batch, frames, heads, size]`, rotated so that inner products depend on distance alone.
    """
    half = x.shape[-1] // 2
    # theta_i = longest^(-2 i / size).
    frequencies = longest ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles = jnp.arange(x.shape[1], dtype=jnp.float32)[:, None, None] * frequencies
    sine, cosine = jnp.sin(angles), jnp.cos(angles)
    # Feature i is paired with i + size / 2, and not with its neighbour as in RoFormer: the same
    # rotation with the features in another order.
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cosine - second * sine, second * cosine + first * sine], -1)
    return rotated.astype(x.dtype)

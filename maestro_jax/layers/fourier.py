"""The power spectrum of short frames by products of matrices.

XLA's partitioner gathers the batch of a fast transform that is split over devices; a product of
matrices stays split. The symmetries of the transform make it a third of the plain product, and its
sums shorter. With N points, h = N / 2, q = N / 4 and w = exp(-2 pi i / N), the real input x becomes

    s[n] = x[n] + x[n + h],   even bins   X[2j]     = sum over n < h of s[n] w^(2jn)
    d[n] = x[n] - x[n + h],   odd bins    X[2j + 1] = sum over n < h of d[n] w^((2j + 1)n)

where n and h - n have the same cosine and sine but for signs, so that each sum has q terms.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from maestro_jax.precision import EXACT


def power_spectrum(frames: jax.Array, points: int) -> jax.Array:
    """Computes squared magnitudes of the discrete Fourier transform, even bins before odd ones.

    Args:
        frames: `[..., samples]` float32, real; filled up with zeros to `points`.
        points: Points of the transform, a multiple of 4, not fewer than the samples.

    Returns:
        `[..., points // 2 + 1]`: the bins 0, 2, 4 ... and then 1, 3, 5 ...; `even_before_odd` puts
        the rows of a matrix in the same order.
    """
    padding = [(0, 0)] * (frames.ndim - 1) + [(0, points - frames.shape[-1])]
    first, second = jnp.split(jnp.pad(frames, padding), 2, axis=-1)
    quarter = points // 4
    # One product of four matrices and not four: it takes the compiler for TPUs a third of the time.
    operands: list[jax.Array] = []
    matrices: list[np.ndarray] = []
    for halves, sign in ((first + second, 1.0), (first - second, -1.0)):
        # Element n - 1 of the mirrored half is h - n. What is its own mirror, n = 0 and n = q,
        # meets a row of zeros where it does not belong.
        near, far = halves[..., 1:quarter], jnp.flip(halves[..., quarter + 1 :], axis=-1)
        zero, middle = halves[..., :1], halves[..., quarter : quarter + 1]
        # Against the cosines the terms n and h - n of the even bins add up, and of the odd bins
        # subtract, since cos(pi k - x) = (-1)^k cos(x); against the sines the other way round.
        for folded in (near + sign * far, near - sign * far):
            operands.append(jnp.concatenate([zero, folded, middle], axis=-1))
        matrices += _matrices(points, odd=sign < 0)
    parts = jnp.einsum("p...t,ptb->p...b", jnp.stack(operands), np.stack(matrices), precision=EXACT)
    # [4, ..., points // 4 + 1]: real and imaginary parts, up to sign, of the even and of the odd
    # bins.
    even = jnp.square(parts[0]) + jnp.square(parts[1])
    odd = (jnp.square(parts[2]) + jnp.square(parts[3]))[..., :-1]
    return jnp.concatenate([even, odd], axis=-1)


def even_before_odd(rows: np.ndarray) -> np.ndarray:
    """Returns the rows of a matrix in the order of `power_spectrum`."""
    return np.concatenate([rows[::2], rows[1::2]])


@functools.cache
def _matrices(points: int, *, odd: bool) -> tuple[np.ndarray, np.ndarray]:
    """Returns cosines and sines `[terms, bins]` of the even or the odd bins."""
    terms = np.arange(points // 4 + 1)[:, None]
    # The odd bins are one fewer; the last column is for nothing.
    bins = 2 * np.arange(points // 4 + 1)[None, :] + int(odd)
    # Whole turns are taken off in integers.
    angles = 2.0 * np.pi * (terms * bins % points) / points
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)

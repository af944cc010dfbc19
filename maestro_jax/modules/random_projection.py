"""The random-projection quantizer of BEST-RQ (arXiv 2202.01855, section 3.1).

For a frame x and codebook k, with a random matrix A_k and random unit vectors c_k,i,

    id_k = argmin over i of || c_k,i - A_k x / |A_k x| ||  =  argmax over i of cos(c_k,i, A_k x)

Nothing here is ever trained. Several codebooks as in USM (arXiv 2303.01037, section 2.2).
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from maestro_jax.layers.partitioned import constrain
from maestro_jax.precision import EXACT


class RandomProjectionQuantizer(nn.Module):
    """Codebooks that stay as they were initialised; computed in float32.

    The matrices and codebooks are parameters, so that a checkpoint holds them, with names that
    begin with ``frozen_``: optimizers leave such parameters alone. No gradient reaches them, and
    what they compute does not depend on their scale.

    Attributes:
        codebooks: Number of codebooks, each with a projection of its own.
        codes: Entries of a codebook.
        code_features: Size of a code.
    """

    codebooks: int = 16
    codes: int = 8192
    code_features: int = 16

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        """The nearest code of each frame in each codebook.

        Args:
            features: `[batch, frames, features]`, log-mel frames stacked to the encoder's rate.
                Each is normalised to mean 0 and variance 1 over its features first: else what all
                frames share decides, and few codes are used.

        Returns:
            `[batch, frames, codebooks]` int32.
        """
        inputs = features.shape[-1]
        projections = self.param(
            "frozen_projections",
            nn.with_logical_partitioning(
                nn.initializers.xavier_uniform(batch_axis=(0,)), (None, None, None)
            ),
            (self.codebooks, inputs, self.code_features),
            jnp.float32,
        )
        codebooks = self.param(
            "frozen_codebooks",
            nn.with_logical_partitioning(_unit_normal, (None, "codes", None)),
            (self.codebooks, self.codes, self.code_features),
            jnp.float32,
        )
        x = jax.lax.stop_gradient(features.astype(jnp.float32))
        x = x - jnp.mean(x, axis=-1, keepdims=True)
        x = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + 1e-5)

        def nearest(codebook: tuple[jax.Array, jax.Array]) -> jax.Array:
            projection, codes = codebook
            # The length of what is projected does not change which code is the nearest.
            projected = jnp.einsum("bti,if->btf", x, projection, precision=EXACT)
            similarity = jnp.einsum("btf,cf->btc", projected, _unit(codes), precision=EXACT)
            similarity = constrain(similarity, "batch", "frames", None)
            return jnp.argmax(similarity, axis=-1).astype(jnp.int32)

        # One codebook at a time: all similarities at once would be codebooks x codes a frame.
        frozen = jax.lax.stop_gradient((projections, codebooks))
        return jnp.moveaxis(jax.lax.map(nearest, frozen), 0, -1)


def _unit(vectors: jax.Array) -> jax.Array:
    """Vectors of length one."""
    return vectors / jnp.linalg.norm(vectors, axis=-1, keepdims=True)


def _unit_normal(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    """Directions without preference: normal vectors of length one."""
    return _unit(jax.random.normal(key, shape, dtype))

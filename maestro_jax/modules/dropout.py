"""Dropout whose random bits cost a TPU little: to compile, to compute and to hold.

JAX's default generator is a hundred integer operations a number, which XLA for TPU writes out at
every place that draws: most of the instructions of a training step, and minutes of compiling. The
chip has a generator of its own (`rbg`), but the partitioner runs it for the whole batch on every
device. Here each device draws for its rows alone.
"""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from maestro_jax.modules.partitioned import mesh_axes


class Dropout(nn.Module):
    """As `flax.linen.Dropout`, with bits from `keep_mask`.

    Attributes:
        rate: The chance of every element to become 0.
        deterministic: No dropout; here or in the call.
    """

    rate: float
    deterministic: bool | None = None

    @nn.compact
    def __call__(self, x: jax.Array, deterministic: bool | None = None) -> jax.Array:
        """`[batch, ...]` to the same shape (random stream `dropout`)."""
        deterministic = nn.merge_param("deterministic", self.deterministic, deterministic)
        if deterministic or self.rate == 0.0:
            return x
        keep = 1.0 - self.rate
        kept = keep_mask(self.make_rng("dropout"), keep, x.shape)
        return jnp.where(kept, x / keep, jnp.zeros_like(x))


def keep_mask(key: jax.Array, keep: float, shape: tuple[int, ...]) -> jax.Array:
    """What dropout keeps.

    On a TPU the mask depends on over how many devices the rows are split; elsewhere it is a
    function of the key and the shape.

    Args:
        key: A key of JAX's default generator.
        keep: The chance of every element to be kept; on a TPU in steps of 1 / 65536.
        shape: Of the mask, the rows of a batch first.

    Returns:
        `shape` bool.
    """
    return jax.lax.platform_dependent(
        key,
        tpu=lambda key: hardware_mask(key, keep, shape),
        default=lambda key: jax.random.bernoulli(key, keep, shape),
    )


def hardware_mask(key: jax.Array, keep: float, shape: tuple[int, ...]) -> jax.Array:
    """`keep_mask` by XLA's own generator, on each device for its rows."""
    axes = mesh_axes("batch")
    if not shape or shape[0] % math.prod(axes.values()):
        axes = {}
    local = (shape[0] // math.prod(axes.values()), *shape[1:]) if shape else ()

    def draw(key: jax.Array) -> jax.Array:
        if axes:
            key = jax.random.fold_in(key, jax.lax.axis_index(tuple(axes)))
        # An `rbg` key is two of the default generator's.
        words = jnp.tile(jax.random.key_data(key), 2)
        bits = jax.random.bits(jax.random.wrap_key_data(words, impl="rbg"), local, jnp.uint16)
        return bits < min(round(keep * 2**16), 2**16 - 1)

    if not axes:
        return draw(key)
    rows = PartitionSpec(tuple(axes))
    return jax.shard_map(draw, in_specs=PartitionSpec(), out_specs=rows, check_vma=False)(key)

"""Large random arrays that cost a TPU little: to compile, to compute and to hold.

JAX's default generator is a hundred integer operations a number, which XLA for TPU writes out at
every place that draws: most of the instructions of a training step, and minutes of compiling. The
chip has a generator of its own (`rbg`), but the partitioner runs it for the whole batch on every
device. Here each device draws for its rows alone.

On a TPU what is drawn depends on over how many devices the rows are split; elsewhere it is a
function of the key and the shape.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from maestro_jax.layers.partitioned import mesh_axes

Draw = Callable[[jax.Array, tuple[int, ...]], jax.Array]
"""From a key and a shape to an array of that shape, as `jax.random.normal`."""


def sample(draw: Draw, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Draws an array with a row for each row of a batch.

    Args:
        draw: `jax.random.normal`, `jax.random.gumbel` ...
        key: A key of JAX's default generator, for this place of the model alone.
        shape: Of the array, the rows of a batch first.
    """
    return jax.lax.platform_dependent(
        key,
        tpu=lambda key: drawn_by_hardware(draw, key, shape),
        default=lambda key: draw(key, shape),
    )


def drawn_by_hardware(
    draw: Draw, key: jax.Array, shape: tuple[int, ...], place: int = 0
) -> jax.Array:
    """`sample` with XLA's own generator, on each device for its rows.

    Args:
        draw: As in `sample`.
        key: A key of JAX's default generator.
        shape: Of the array; where the devices do not divide its rows, each draws them all.
        place: A number of 64 bits that tells places apart that share a key.
    """
    axes = mesh_axes("batch")
    if not shape or shape[0] % math.prod(axes.values()):
        axes = {}
    local = (shape[0] // math.prod(axes.values()), *shape[1:]) if shape else ()

    def drawn(key: jax.Array) -> jax.Array:
        first, second = jax.random.key_data(key).astype(jnp.uint32)
        high, low = jnp.uint32(place >> 32), jnp.uint32(place & 0xFFFFFFFF)
        device = jax.lax.axis_index(tuple(axes)).astype(jnp.uint32) if axes else jnp.uint32(0)
        # Two words of a generator's key, and two of its counter, whose upper one no draw reaches.
        words = jnp.stack([first ^ high, second ^ low, high, device])
        return draw(jax.random.wrap_key_data(words, impl="rbg"), local)

    if not axes:
        return drawn(key)
    rows = PartitionSpec(tuple(axes))
    return jax.shard_map(drawn, in_specs=PartitionSpec(), out_specs=rows, check_vma=False)(key)

"""Dropout, and large random arrays that cost a TPU little: to compile, to compute and to hold.

JAX's default generator is a hundred integer operations per number, which XLA for TPU writes out at
every place that draws: most of the instructions of a training step, and minutes of compiling. The
chip has a generator of its own (`rbg`), but the partitioner runs it for the whole batch on every
device. Here each device draws for its rows alone.

On a TPU the random numbers depend on the number of devices that the rows are split over; elsewhere
they are a function of the key and the shape.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core.scope import LazyRng
from jax.sharding import PartitionSpec

from maestro_jax.layers.partitioned import mesh_axes

Draw = Callable[[jax.Array, tuple[int, ...]], jax.Array]
"""From a key and a shape to an array of that shape, as `jax.random.normal`."""


def sample(draw: Draw, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Draws an array with a row for each row of a batch.

    Args:
        draw: `jax.random.normal`, `jax.random.gumbel` ...
        key: A key of JAX's default generator, for this place of the model alone.
        shape: Shape of the array, the rows of a batch first.
    """
    return jax.lax.platform_dependent(
        key,
        tpu=lambda key: hardware_sample(draw, key, shape),
        default=lambda key: draw(key, shape),
    )


def hardware_sample(
    draw: Draw, key: jax.Array, shape: tuple[int, ...], place: int = 0
) -> jax.Array:
    """Draws like `sample` with XLA's own generator, on each device for its rows.

    Args:
        draw: As in `sample`.
        key: A key of JAX's default generator.
        shape: Shape of the array; where the devices do not divide its rows, each draws them all.
        place: A number of 64 bits that tells places apart that share a key.
    """
    axes = mesh_axes("batch")
    if not shape or shape[0] % math.prod(axes.values()):
        axes = {}
    local = (shape[0] // math.prod(axes.values()), *shape[1:]) if shape else ()

    def drawn(key: jax.Array) -> jax.Array:
        first, second = jax.random.key_data(key).astype(jnp.uint32)
        high, low = jnp.uint32(place >> 32), jnp.uint32(place & 0xFFFFFFFF)
        # Rows on different devices must differ, though all of them have the same key.
        device = jax.lax.axis_index(tuple(axes)).astype(jnp.uint32) if axes else jnp.uint32(0)
        # Two words of a generator's key, and two of its counter, whose upper one no draw reaches.
        words = jnp.stack([first ^ high, second ^ low, high, device])
        return draw(jax.random.wrap_key_data(words, impl="rbg"), local)

    if not axes:
        return drawn(key)
    rows = PartitionSpec(tuple(axes))
    return jax.shard_map(drawn, in_specs=PartitionSpec(), out_specs=rows, check_vma=False)(key)


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
        """Maps `[batch, ...]` to the same shape (random stream `dropout`)."""
        deterministic = nn.merge_param("deterministic", self.deterministic, deterministic)
        if deterministic or self.rate == 0.0:
            return x
        keep = 1.0 - self.rate
        key = self.make_rng("dropout")
        kept = keep_mask(key, keep, x.shape, self._unfolded())
        # Scaled in training, so that inference needs no factor.
        return jnp.where(kept, x / keep, jnp.zeros_like(x))

    def _unfolded(self) -> tuple[jax.Array, int]:
        """Returns the key before `make_rng` folded in the module's path, and the path hashed."""
        assert self.scope is not None
        name = "dropout" if self.scope.has_rng("dropout") else "params"
        lazy = LazyRng.create(self.scope.rngs[name], self.scope.rng_counters[name])
        digest = hashlib.sha1(repr(lazy.suffix).encode()).digest()
        return lazy.rng, int.from_bytes(digest[:8], "big")


def keep_mask(
    key: jax.Array,
    keep: float,
    shape: tuple[int, ...],
    unfolded: tuple[jax.Array, int] | None = None,
) -> jax.Array:
    """Draws the mask of elements that dropout keeps.

    On a TPU the mask depends on over how many devices the rows are split; elsewhere it is a
    function of the key and the shape.

    Args:
        key: A key of JAX's default generator, for this place of the model alone.
        keep: The chance of every element to be kept; on a TPU in steps of 1 / 65536.
        shape: Shape of the mask, the rows of a batch first.
        unfolded: A key that several places share, and a number of 64 bits of this place's own: to
            fold one into the other costs a TPU more than to draw; None:
            `key` is used.

    Returns:
        `shape` bool.
    """
    shared, place = (key, 0) if unfolded is None else unfolded
    return jax.lax.platform_dependent(
        key,
        shared,
        tpu=lambda _, shared: hardware_mask(shared, place, keep, shape),
        default=lambda key, _: jax.random.bernoulli(key, keep, shape),
    )


def hardware_mask(key: jax.Array, place: int, keep: float, shape: tuple[int, ...]) -> jax.Array:
    """Draws like `keep_mask` with XLA's own generator, on each device for its rows."""

    def draw(key: jax.Array, local: tuple[int, ...]) -> jax.Array:
        bits = jax.random.bits(key, local, jnp.uint16)
        # 16 random bits per element are enough for a rate, and half the memory of 32. 65536 itself
        # is no uint16.
        return bits < min(round(keep * 2**16), 2**16 - 1)

    return hardware_sample(draw, key, shape, place)

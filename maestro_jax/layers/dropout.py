"""Dropout whose random bits cost a TPU little: see `maestro_jax.layers.randomness`."""

from __future__ import annotations

import hashlib

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core.scope import LazyRng

from maestro_jax.layers.randomness import drawn_by_hardware


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
        key = self.make_rng("dropout")
        kept = keep_mask(key, keep, x.shape, self._unfolded())
        return jnp.where(kept, x / keep, jnp.zeros_like(x))

    def _unfolded(self) -> tuple[jax.Array, int]:
        """The key that `make_rng` has just folded this module's path into, and that path hashed."""
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
    """What dropout keeps.

    On a TPU the mask depends on over how many devices the rows are split; elsewhere it is a
    function of the key and the shape.

    Args:
        key: A key of JAX's default generator, for this place of the model alone.
        keep: The chance of every element to be kept; on a TPU in steps of 1 / 65536.
        shape: Of the mask, the rows of a batch first.
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
    """`keep_mask` by XLA's own generator, on each device for its rows."""

    def draw(key: jax.Array, local: tuple[int, ...]) -> jax.Array:
        bits = jax.random.bits(key, local, jnp.uint16)
        return bits < min(round(keep * 2**16), 2**16 - 1)

    return drawn_by_hardware(draw, key, shape, place)

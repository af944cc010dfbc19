"""Checksums of arrays, the same on a device and on the host, for any sharding.

The checksum of an array is the sum, modulo 2**32, of a hash of each element's bits and position.
The hash is the finaliser of MurmurHash3 (A. Appleby, public domain), which maps different bits to
different values. So one changed element always changes the sum, and other changes go unnoticed
with a probability of 2**-32. A sum does not depend on the order in which devices add.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from maestro_jax.training import parameter_trees

# The odd constant spreads neighbouring positions over all bits (2**32 by the golden ratio).
_POSITION = np.uint32(0x9E3779B1)
_MULTIPLIERS = np.uint32(0x85EBCA6B), np.uint32(0xC2B2AE35)
_SHIFTS = np.uint32(16), np.uint32(13)
# Elements that are hashed at a time on the host: as many as its caches hold.
_CHUNK = 1 << 16


def checksums(tree: Any) -> dict[str, Any]:
    """Begins to compute the checksum of each array of a tree.

    Args:
        tree: Tree of arrays; every process must call this if they are global.

    Returns:
        Unsigned 32-bit scalars, on the devices where the arrays are, by the names of
        `named_arrays`. To convert one to an integer waits for it.
    """
    return {name: _checksum(array) for name, array in named_arrays(tree)}


def named_arrays(tree: Any) -> Iterator[tuple[str, Any]]:
    """Yields the name of each array of a tree, such as ``params/up/kernel``, and the array."""
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        yield "/".join(parameter_trees.path_keys(path)), leaf


def first_difference(expected: Mapping[str, int], found: Mapping[str, Any]) -> str | None:
    """Returns the name of the first array whose checksum is not the expected one, if any.

    Args:
        expected: Checksums by name; those without a counterpart are not compared.
        found: Result of `checksums`.
    """
    return next(
        (name for name, value in found.items() if int(value) != expected.get(name, int(value))),
        None,
    )


def _checksum(array: Any) -> Any:
    on_host = isinstance(array, np.ndarray | np.generic) or (
        # No copy and nothing to compile.
        array.is_fully_addressable and next(iter(array.devices())).platform == "cpu"
    )
    return host_checksum(np.asarray(array)) if on_host else _device_checksum(array)


def host_checksum(array: np.ndarray) -> int:
    """Computes the checksum of an array of numpy."""
    flat = np.ascontiguousarray(array).reshape(-1)
    words = flat.view({1: np.uint8, 2: np.uint16}.get(flat.dtype.itemsize, np.uint32))
    total = 0
    for start in range(0, words.size, _CHUNK):
        chunk = words[start : start + _CHUNK].astype(np.uint32)
        position = np.arange(start, start + chunk.size, dtype=np.uint64).astype(np.uint32)
        total += int(_mix(chunk, position).sum(dtype=np.uint64))
    return total % 2**32


@jax.jit
def _device_checksum(array: jax.Array) -> jax.Array:
    size = array.dtype.itemsize
    if array.dtype == jnp.bool_:
        array = array.astype(jnp.uint8)
    bits = {1: jnp.uint8, 2: jnp.uint16}.get(size, jnp.uint32)
    # Numbers of 8 bytes become two words, in an axis more.
    words = jax.lax.bitcast_convert_type(array, bits).astype(jnp.uint32)
    position = jnp.zeros(words.shape, jnp.uint32)
    stride = 1
    for axis in reversed(range(words.ndim)):
        # Not reshaped to one axis: that would gather an array that is sharded.
        index = jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
        position = position + index * np.uint32(stride % 2**32)
        stride *= words.shape[axis]
    return jnp.sum(_mix(words, position), dtype=jnp.uint32)


def _mix(words: Any, position: Any) -> Any:
    hashed = words ^ (position * _POSITION)
    hashed = (hashed ^ (hashed >> _SHIFTS[0])) * _MULTIPLIERS[0]
    hashed = (hashed ^ (hashed >> _SHIFTS[1])) * _MULTIPLIERS[1]
    return hashed ^ (hashed >> _SHIFTS[0])

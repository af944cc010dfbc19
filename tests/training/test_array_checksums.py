"""Checksums of arrays: on the host, on devices and in Python's own integers."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from maestro_jax.training.array_checksums import (
    _device_checksum,
    checksums,
    first_difference,
    host_checksum,
)

TYPES = ("float32", "bfloat16", "bool", "int8", "uint16", "int32")


def brute_force(array: np.ndarray) -> int:
    """The finaliser of MurmurHash3 as its author writes it, over the bytes of each element."""
    mask, total = 2**32 - 1, 0
    size = min(array.dtype.itemsize, 4)
    content = array.tobytes()
    for position in range(len(content) // size):
        word = int.from_bytes(content[position * size : (position + 1) * size], "little")
        h = word ^ (position * 0x9E3779B1 & mask)
        h ^= h >> 16
        h = h * 0x85EBCA6B & mask
        h ^= h >> 13
        h = h * 0xC2B2AE35 & mask
        h ^= h >> 16
        total += h
    return total & mask


def values(kind: str, shape: tuple[int, ...] = (8, 3, 4)) -> np.ndarray:
    return (np.random.default_rng(1).normal(size=shape) * 50).astype(jnp.dtype(kind))


@pytest.mark.parametrize("kind", [*TYPES, "float64"])
def test_on_the_host(kind: str) -> None:
    for shape in ((8, 3, 4), (), (0, 3), (70_000,)):
        array = values(kind, shape)
        assert host_checksum(array) == brute_force(array)
    assert host_checksum(values(kind).T) == brute_force(values(kind).T.copy())


@pytest.mark.parametrize("kind", TYPES)
def test_on_devices_whatever_the_sharding(kind: str) -> None:
    array = values(kind)
    mesh = Mesh(np.asarray(jax.devices()).reshape(2, -1), ("x", "y"))
    for spec in (PartitionSpec(), PartitionSpec("x"), PartitionSpec("y", None, "x")):
        placed = jax.device_put(array, NamedSharding(mesh, spec))
        assert int(_device_checksum(placed)) == brute_force(array)
        assert int(checksums({"a": placed})["a"]) == brute_force(array)
    assert int(_device_checksum(jnp.asarray(array[0, 0, 0]))) == brute_force(array[0, 0, 0])


def test_what_differs_is_found() -> None:
    array = values("float32", (6, 5))
    sums = {host_checksum(array)}
    for bit in range(32 * array.size):
        changed = array.copy()
        changed.view(np.uint32).reshape(-1)[bit // 32] ^= np.uint32(1 << bit % 32)
        sums.add(host_checksum(changed))
    swapped = array[::-1]
    assert len(sums) == 32 * array.size + 1 and host_checksum(swapped) not in sums
    expected = {name: int(value) for name, value in checksums({"a": array, "b": swapped}).items()}
    assert first_difference(expected, checksums({"a": array, "b": swapped})) is None
    assert first_difference(expected, checksums({"a": array, "b": array})) == "b"
    assert first_difference({}, checksums({"a": array})) is None

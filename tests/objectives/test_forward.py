"""Interleaved rows and concatenated sequences, against lists."""

from __future__ import annotations

import re

import jax
import numpy as np
import pytest

from maestro_jax.objectives.forward import concat_valid, interleave_rows, split_rows
from maestro_jax.training.partitioning import Partitioning


@pytest.mark.parametrize("rows", [(4, 2), (3,), (3, 5), (2, 6, 4)])
def test_rows_of_several_arrays_alternate(rows):
    arrays = [np.full((n, 3), 10 * k) + np.arange(n)[:, None] for k, n in enumerate(rows)]
    joined = interleave_rows(arrays)
    blocks = np.gcd.reduce(rows)
    expected = [
        row
        for block in range(blocks)
        for array, n in zip(arrays, rows, strict=True)
        for row in array[block * n // blocks : (block + 1) * n // blocks]
    ]
    np.testing.assert_array_equal(joined, expected)
    for array, found in zip(arrays, split_rows(joined, rows), strict=True):
        np.testing.assert_array_equal(found, array)


@pytest.mark.skipif(jax.device_count() < 8, reason="needs eight (CPU) devices")
def test_no_row_travels_between_devices():
    partitioning = Partitioning(mesh_shape=(2, 2, 2))
    mesh = partitioning.mesh()
    rows = partitioning.batch_sharding(mesh)

    def there_and_back(first, second):
        joined = interleave_rows([first, second])
        return joined * 2.0, split_rows(joined + 1.0, [8, 4])

    with partitioning.activate(mesh):
        arguments = [jax.ShapeDtypeStruct((n, 3), np.float32, sharding=rows) for n in (8, 4)]
        text = jax.jit(there_and_back, out_shardings=rows).lower(*arguments).compile().as_text()
    assert not re.findall(r"collective-permute|all-gather|all-to-all|all-reduce", text)


@pytest.mark.parametrize("features", [(), (3,)])
def test_concat_valid(features):
    rng = np.random.default_rng(0)
    first = rng.integers(1, 9, (6, 4, *features)).astype(np.float32)
    second = rng.integers(1, 9, (6, 5, *features)).astype(np.float32)
    lengths = np.array([[0, 0], [4, 5], [0, 5], [4, 0], [2, 3], [1, 1]], np.int32)
    joined, total = concat_valid(first, lengths[:, 0], second, lengths[:, 1])
    assert joined.shape == (6, 9, *features)
    for row, (n, m) in enumerate(lengths):
        expected = [*first[row, :n], *second[row, :m]]
        expected += [np.zeros(features)] * (9 - len(expected))
        np.testing.assert_array_equal(joined[row], np.array(expected).reshape(9, *features))
        assert total[row] == n + m

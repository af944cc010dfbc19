"""Sequences put one after the other, against lists."""

from __future__ import annotations

import numpy as np
import pytest

from maestro_jax.objectives.passes import one_after_the_other


@pytest.mark.parametrize("features", [(), (3,)])
def test_one_after_the_other(features):
    rng = np.random.default_rng(0)
    first = rng.integers(1, 9, (6, 4, *features)).astype(np.float32)
    second = rng.integers(1, 9, (6, 5, *features)).astype(np.float32)
    lengths = np.array([[0, 0], [4, 5], [0, 5], [4, 0], [2, 3], [1, 1]], np.int32)
    joined, total = one_after_the_other(first, lengths[:, 0], second, lengths[:, 1])
    assert joined.shape == (6, 9, *features)
    for row, (n, m) in enumerate(lengths):
        expected = [*first[row, :n], *second[row, :m]]
        expected += [np.zeros(features)] * (9 - len(expected))
        np.testing.assert_array_equal(joined[row], np.array(expected).reshape(9, *features))
        assert total[row] == n + m

"""Cutting long recordings: nothing lost, sizes in bounds, cuts in silence."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maestro_jax.evaluation.segmentation import segment


@given(size=st.integers(0, 9000), longest=st.integers(640, 3000), seed=st.integers(0, 9))
def test_stretches_are_the_whole_and_within_bounds(size, longest, seed):
    samples = np.random.default_rng(seed).normal(size=size).astype(np.float32)
    stretches = segment(samples, longest)
    np.testing.assert_array_equal(np.concatenate(stretches), samples)
    assert all(len(part) <= longest for part in stretches)
    assert all(len(part) >= longest // 2 for part in stretches[:-1])
    if size <= longest:
        assert len(stretches) == 1


def test_a_cut_falls_into_the_pause():
    samples = np.random.default_rng(0).normal(size=30_000).astype(np.float32)
    samples[12_000:13_000] = 0
    samples[3_000:5_000] = 0  # Quiet too, but in the first half of the limit.
    first = segment(samples, 16_000)[0]
    assert 12_000 <= len(first) <= 13_000


def test_full_scale_integers_do_not_overflow():
    samples = np.full(20_000, -32768, np.int16)
    samples[9_600:10_000] = 0
    assert 9_600 <= len(segment(samples, 12_000)[0]) <= 10_000


def test_a_limit_too_small_to_cut_in():
    with pytest.raises(ValueError, match="at least 640"):
        segment(np.zeros(1000), 639)

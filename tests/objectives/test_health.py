"""The metric that shows a deaf encoder."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from maestro_jax.objectives.health import frame_variation


def variation(encoded: np.ndarray, lengths: list[int]) -> float:
    mask = np.arange(encoded.shape[1])[None] < np.asarray(lengths)[:, None]
    total, count = frame_variation(jnp.asarray(encoded), jnp.asarray(mask))
    return float(total / count)


def test_equal_frames_do_not_vary():
    constant = np.broadcast_to(np.arange(1.0, 5.0), (2, 6, 4))
    assert variation(constant, [6, 3]) == pytest.approx(0.0, abs=1e-6)


def test_frames_without_a_common_part_vary_wholly():
    frames = np.tile([[1.0, -2.0], [-1.0, 2.0]], (3, 1))[None]
    assert variation(frames, [6]) == pytest.approx(1.0)


def test_it_is_the_share_of_the_variance():
    rng = np.random.default_rng(0)
    encoded = rng.normal(1.0, 1.0, (2, 7, 3)).astype(np.float32)
    lengths = [7, 4]
    rows = [encoded[i, :n].astype(np.float64) for i, n in enumerate(lengths)]
    expected = sum(((r - r.mean(0)) ** 2).sum() for r in rows) / sum((r**2).sum() for r in rows)
    assert variation(encoded, lengths) == pytest.approx(expected, rel=1e-5)


def test_padding_does_not_count():
    encoded = np.ones((1, 5, 2), np.float32)
    encoded[:, 3:] = 100.0
    assert variation(encoded, [3]) == pytest.approx(0.0, abs=1e-6)

"""Metrics of collapsed encoders and alignments, against their definitions."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from maestro_jax.losses.transducer_alignment import Alignment
from maestro_jax.objectives.metrics import alignment_collapse, frame_variance_ratio


def ratio(encoded: np.ndarray, lengths: list[int]) -> float:
    mask = np.arange(encoded.shape[1])[None] < np.asarray(lengths)[:, None]
    total, count = frame_variance_ratio(jnp.asarray(encoded), jnp.asarray(mask))
    return float(total / count)


def test_equal_frames_do_not_vary():
    constant = np.broadcast_to(np.arange(1.0, 5.0), (2, 6, 4))
    assert ratio(constant, [6, 3]) == pytest.approx(0.0, abs=1e-6)


def test_frames_without_a_common_part_vary_wholly():
    frames = np.tile([[1.0, -2.0], [-1.0, 2.0]], (3, 1))[None]
    assert ratio(frames, [6]) == pytest.approx(1.0)


def test_it_is_the_fraction_of_the_variance():
    rng = np.random.default_rng(0)
    encoded = rng.normal(1.0, 1.0, (2, 7, 3)).astype(np.float32)
    lengths = [7, 4]
    rows = [encoded[i, :n].astype(np.float64) for i, n in enumerate(lengths)]
    expected = sum(((r - r.mean(0)) ** 2).sum() for r in rows) / sum((r**2).sum() for r in rows)
    assert ratio(encoded, lengths) == pytest.approx(expected, rel=1e-5)


def test_padding_does_not_count():
    encoded = np.ones((1, 5, 2), np.float32)
    encoded[:, 3:] = 100.0
    assert ratio(encoded, [3]) == pytest.approx(0.0, abs=1e-6)


def test_labels_in_one_place_show():
    """Three labels on the first frame, on the last frame, and spread, of 6 of 7 frames."""
    path = Alignment(
        frames=None,
        durations=jnp.asarray([[0, 0, 6], [5, 0, 1], [2, 2, 2], [0, 0, 0]]),
        label_scores=None,
        scores=None,
    )
    entropy = (jnp.float32(4.0), jnp.float32(9.0))
    labels = jnp.asarray([[True] * 3] * 4)
    # The last utterance is absent.
    frames = jnp.arange(7)[None, :] < jnp.asarray([6, 6, 6, 0])[:, None]
    found = alignment_collapse(path, entropy, labels, frames)
    assert found["paired/first_label_fraction"] == (7.0, 18.0)
    assert found["paired/last_label_fraction"] == (9.0, 18.0)
    assert found["paired/alignment_entropy"] == entropy
    # A shorter text ends with its own last label.
    shorter = jnp.asarray([[True, True, False]] * 4)
    path = path._replace(durations=jnp.asarray([[1, 5, 0], [5, 1, 0], [2, 4, 0], [0, 0, 0]]))
    assert (
        alignment_collapse(path, entropy, shorter, frames)["paired/last_label_fraction"][0] == 10.0
    )

"""Figures are drawn for plain and for awkward data, and are not blank."""

import subprocess
import sys

import numpy as np
import pytest

from maestro_jax.reports.figures import plot_alignment, plot_durations, plot_losses, plot_similarity


def assert_drawn(path):
    from matplotlib.image import imread

    pixels = imread(path)[..., :3]
    assert min(pixels.shape[:2]) > 200
    assert pixels.std() > 0.02


def test_losses(tmp_path):
    steps = np.arange(0, 3000, 50)
    falling = 50 * np.exp(-steps / 500.0) + 0.5
    diverged = falling.copy()
    diverged[-3:] = np.nan
    curves = {
        "loss": (steps, falling),
        "loss/$rnnt$_a": (steps, diverged),
        "one point": (steps[:1], falling[:1]),
        "all lost": (steps[:2], np.array([np.nan, np.inf])),
        "negative": (steps, -falling),
    }
    plot_losses(curves, tmp_path / "new" / "losses.png")
    assert_drawn(tmp_path / "new" / "losses.png")
    with pytest.raises(ValueError, match="no curves"):
        plot_losses({}, tmp_path / "none.png")


@pytest.mark.parametrize("with_mel", [True, False])
@pytest.mark.parametrize("kind", ["frames", "probabilities", "logarithms"])
def test_alignment(tmp_path, kind, with_mel):
    frames = np.array([3, 8, 8, 20])
    occupancy = np.exp(-0.5 * ((np.arange(30)[:, None] - frames) / 1.5) ** 2)
    occupancy /= occupancy.sum(axis=0)
    alignment = {
        "frames": frames,
        "probabilities": occupancy,
        "logarithms": np.log(occupancy + 1e-12),
    }
    mel = np.random.default_rng(0).normal(size=(120, 80)) if with_mel else None
    path = tmp_path / "alignment.png"
    plot_alignment(alignment[kind], ["▁the", "▁$", "$", "ž"], 0.04, path, mel=mel)
    assert_drawn(path)


def test_alignment_of_no_labels_and_of_many(tmp_path):
    mel = np.random.default_rng(0).normal(size=(120, 80))
    plot_alignment(np.zeros(0, np.int32), [], 0.04, tmp_path / "empty.png", mel=mel)
    assert_drawn(tmp_path / "empty.png")
    plot_alignment(np.arange(120), ["x"] * 120, 0.04, tmp_path / "many.png", frame_count=130)
    assert_drawn(tmp_path / "many.png")
    with pytest.raises(ValueError, match="2 tokens"):
        plot_alignment(np.arange(3), ["a", "b"], 0.04, tmp_path / "bad.png")


def test_durations(tmp_path):
    rng = np.random.default_rng(0)
    aligned = rng.integers(0, 12, 500)
    aligned[0] = 200
    plot_durations(aligned, aligned + rng.normal(size=500), tmp_path / "durations.png")
    assert_drawn(tmp_path / "durations.png")
    plot_durations(np.ones(3), np.ones(3), tmp_path / "constant.png")
    assert_drawn(tmp_path / "constant.png")
    with pytest.raises(ValueError, match="3 aligned and 2 predicted"):
        plot_durations(np.ones(3), np.ones(2), tmp_path / "bad.png")


@pytest.mark.parametrize("shape", [(40, 36), (1, 1), (90, 10)])
def test_similarity(tmp_path, shape):
    matrix = np.random.default_rng(0).uniform(-1, 1, size=shape)
    plot_similarity(matrix, tmp_path / "similarity.png")
    assert_drawn(tmp_path / "similarity.png")


def test_similarity_needs_frames(tmp_path):
    with pytest.raises(ValueError, match="speech frames"):
        plot_similarity(np.zeros((0, 4)), tmp_path / "bad.png")


def test_suffix_picks_the_format(tmp_path):
    plot_similarity(np.eye(5), tmp_path / "similarity.svg")
    assert b"<svg" in (tmp_path / "similarity.svg").read_bytes()


def test_importing_evaluation_draws_in_neither_matplotlib_nor_tensorflow():
    program = (
        "import sys, maestro_jax.reports.figures, maestro_jax.evaluation.score_table;"
        "print([m for m in ('matplotlib', 'tensorflow', 'seqio', 'gin') if m in sys.modules])"
    )
    output = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    ).stdout
    assert output.strip() == "[]"

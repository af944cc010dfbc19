"""The pictures of a run: loss curves, an alignment, durations, similarity of speech and text."""

from __future__ import annotations

import logging
from pathlib import Path

from maestro_jax.reports.curves import read_curves
from maestro_jax.reports.plots import plot_alignment, plot_durations, plot_losses, plot_similarity
from maestro_jax.reports.training_report import read_diagnosis

log = logging.getLogger(__name__)


def draw_curves(model_dir: str | Path) -> Path:
    """Loss curves of a run, from its `metrics.jsonl`, to `evaluation/losses.png`."""
    path = Path(model_dir) / "evaluation" / "losses.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    plot_losses(read_curves(model_dir, ["loss", "loss/*"]), path)
    return path


def draw_probe(model_dir: str | Path) -> list[Path]:
    """One alignment, the durations, and the similarity of one pair, of a run's last probe.

    Args:
        model_dir: Of a run with diagnostics; pictures go to its `evaluation` directory.

    Returns:
        The paths of the pictures; none of a run that probed nothing.

    Raises:
        UserError: The directory has no metrics.
    """
    diagnosis = read_diagnosis(model_dir)
    if not diagnosis.probes:
        return []
    step, arrays = diagnosis.probes[-1]
    seconds = diagnosis.frame_seconds
    directory = Path(model_dir) / "evaluation"
    title = "".join(diagnosis.pieces).replace("\u2581", " ").strip()
    paths = [directory / f"{name}.png" for name in ("alignment", "durations", "similarity")]
    plot_alignment(
        arrays["emission_frames"],
        diagnosis.pieces,
        seconds,
        paths[0],
        mel=arrays["mel"],
        mel_frame_seconds=diagnosis.mel_frame_seconds,
        frame_count=len(arrays["posterior"]),
        title=title,
    )
    plot_durations(
        arrays["aligned"],
        arrays["predicted"],
        paths[1],
        frame_seconds=seconds,
        title=f"Durations of held-out labels at step {step}",
    )
    plot_similarity(arrays["similarity"], paths[2], frame_seconds=seconds, title=title)
    for path in paths:
        log.info("drew %s", path)
    return paths

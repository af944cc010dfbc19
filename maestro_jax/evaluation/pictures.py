"""The pictures of a run: loss curves, an alignment, durations, similarity of speech and text."""

from __future__ import annotations

import functools
import logging
from pathlib import Path

import jax
import numpy as np

from maestro_jax.evaluation.curves import read_curves
from maestro_jax.evaluation.plots import (
    plot_alignment,
    plot_durations,
    plot_losses,
    plot_similarity,
)
from maestro_jax.evaluation.transcriber import Transcriber
from maestro_jax.objectives.probe import Probe, probe_pairs

log = logging.getLogger(__name__)

# A single row of pictures costs little; durations want some hundreds of labels to be a histogram.
_UTTERANCES = 32


def draw_curves(model_dir: str | Path) -> Path:
    """Loss curves of a run, from its `metrics.jsonl`, to `evaluation/losses.png`."""
    path = Path(model_dir) / "evaluation" / "losses.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    plot_losses(read_curves(model_dir, ["loss", "loss/*"]), path)
    return path


def draw_inspection(
    transcriber: Transcriber,
    model_dir: str | Path,
    *,
    split: str = "validation",
    data_dir: str | Path | None = None,
) -> list[Path]:
    """One alignment, the durations, and the similarity of one pair, of a run with a paired stream.

    Args:
        transcriber: The loaded model.
        model_dir: Pictures go to its `evaluation` directory.
        split: Which split of the run's paired mixture is looked at.
        data_dir: The root of the prepared data.

    Returns:
        The paths of the pictures.
    """
    from maestro_jax.data.loader import evaluation_batches

    run = transcriber.run
    stream = run.streams["paired"]
    batches = evaluation_batches(
        stream.mixture,
        split,
        _UTTERANCES,
        stream.audio_samples,
        data_dir,
        text_tokens=stream.text_tokens,
    )
    features, metadata = next(iter(batches))
    # The utterance of median length shows most: neither a word nor a paragraph.
    count = len(metadata)
    row = int(np.argsort(features["audio_length"][:count])[count // 2])
    names = ("audio", "audio_length", "text", "text_length", "language")
    probe: Probe = jax.device_get(
        jax.jit(functools.partial(probe_pairs, run.model))(
            transcriber.params, {name: features[name] for name in names}, row
        )
    )
    directory = Path(model_dir) / "evaluation"
    directory.mkdir(parents=True, exist_ok=True)
    seconds = run.model.frame_seconds
    labels = int(features["text_length"][row])
    frames = int(probe.frame_lengths[row])
    mel_seconds = run.model.frontend.hop / run.model.frontend.sample_rate
    pieces = transcriber.vocabulary.pieces(features["text"][row, :labels].tolist())
    title = f"{metadata[row]['language']}: {metadata[row]['text']}"

    alignment = directory / "alignment.png"
    plot_alignment(
        probe.emission_frames[:labels],
        pieces,
        seconds,
        alignment,
        mel=probe.mel[: round(frames * seconds / mel_seconds)],
        mel_frame_seconds=mel_seconds,
        frame_count=frames,
        title=title,
    )
    durations = directory / "durations.png"
    plot_durations(
        probe.aligned[probe.label_mask],
        probe.predicted[probe.label_mask],
        durations,
        frame_seconds=seconds,
        title=f"Durations of the labels of {count} {split} utterances",
    )
    similarity = directory / "similarity.png"
    plot_similarity(
        probe.similarity[:frames, :frames], similarity, frame_seconds=seconds, title=title
    )
    paths = [alignment, durations, similarity]
    for path in paths:
        log.info("drew %s", path)
    return paths

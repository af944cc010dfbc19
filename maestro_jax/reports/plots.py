"""Pictures of a run: loss curves, alignments, durations, and speech beside text.

Every function draws one figure into a file whose suffix picks the format (png, pdf, svg), or into a
buffer. Figures are made without pyplot: no global state, no window, no display needed.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from etils import epath

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Target = str | os.PathLike[str] | io.BytesIO
"""Where a picture goes: a file whose suffix picks the format, or a buffer, which gets a png."""

_DPI = 130

# Okabe and Ito's colours, told apart by readers of any colour vision.
BLUE, ORANGE, VERMILION = "#0072B2", "#E69F00", "#D55E00"

# Brightness rises with the value in both, so they read in grey and with any colour vision.
_MAP, _SPECTROGRAM_MAP = "viridis", "magma"


def plot_losses(
    curves: Mapping[str, tuple[np.ndarray, np.ndarray]],
    path: Target,
    *,
    title: str = "Training",
    smoothing: float = 0.9,
) -> None:
    """Small multiples: a panel a metric, raw values faint, smoothed ones strong.

    A panel is logarithmic where its values are positive and span more than a factor of ten.

    Args:
        curves: For each metric its steps [points] and values [points]; values that are not finite
            are marked at the panel's foot.
        path: Of the picture.
        title: Above all panels.
        smoothing: Weight of the past in the moving average, from 0 (none) to below 1; less in short
            curves.

    Raises:
        ValueError: Without curves.
    """
    if not curves:
        raise ValueError("no curves to plot")
    columns = min(3, len(curves))
    rows = -(-len(curves) // columns)
    figure = new_figure(4.2 * columns, 2.7 * rows + 0.7, title)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes[len(curves) :]:
        axis.remove()
    for index, (axis, (name, (steps, values))) in enumerate(
        zip(axes, curves.items(), strict=False)
    ):
        steps, values = np.asarray(steps), np.asarray(values, np.float64)
        finite = np.isfinite(values)
        shown, at = values[finite], steps[finite]
        few = len(at) < 20
        axis.plot(at, shown, color=BLUE, alpha=1.0 if few else 0.3, linewidth=1.0, label="logged")
        if few:
            axis.plot(at, shown, ".", color=BLUE)
        elif smoothing:
            # A short curve is smoothed less: the average must follow it, not flatten it.
            weight = min(smoothing, max(0.0, 1.0 - 25.0 / len(shown)))
            axis.plot(at, smoothed(shown, weight), color=BLUE, linewidth=1.8, label="smoothed")
        if not finite.all():
            lost = steps[~finite]
            axis.plot(
                lost,
                np.zeros(len(lost)),
                "x",
                color=VERMILION,
                transform=axis.get_xaxis_transform(),
                clip_on=False,
                label="not finite",
            )
        if len(shown) and shown.min() > 0 and shown.max() > 10 * shown.min():
            logarithmic(axis)
        axis.set_title(name, parse_math=False)
        axis.set_ylabel(_unit(name))
        if index >= len(curves) - columns:
            axis.set_xlabel("training step")
        axis.xaxis.set_major_formatter(thousands)
        axis.xaxis.get_major_locator().set_params(nbins=5, integer=True)
        axis.grid(alpha=0.25)
        if index == 0 or not finite.all():
            axis.legend(frameon=False)
    save_figure(figure, path)


def plot_alignment(
    alignment: np.ndarray,
    tokens: Sequence[str],
    frame_seconds: float,
    path: Target,
    *,
    mel: np.ndarray | None = None,
    mel_frame_seconds: float = 0.01,
    frame_count: int | None = None,
    emissions: np.ndarray | None = None,
    title: str = "Transducer alignment",
) -> None:
    """Where the transducer emits each label, under the spectrogram if there is one.

    Args:
        alignment: Either the frame that emits each label, integers [labels], or an occupancy
            [frames, labels]: probabilities, or their logarithms (no value above 0).
        tokens: [labels], as written on the vertical axis, first label at the foot.
        frame_seconds: Duration of an encoder frame.
        path: Of the picture.
        mel: Log-mel energies, [mel frames, mel bins]; None for no spectrogram.
        mel_frame_seconds: Step between mel frames.
        frame_count: Encoder frames of the utterance, where `alignment` does not tell.
        emissions: Beside an occupancy, the frame on which the best path emits each label [labels];
            by default where a label is most likely.
        title: Above the picture; the utterance's text or id serves best.

    Raises:
        ValueError: If tokens and alignment differ in labels.
    """
    alignment = np.asarray(alignment)
    labels = alignment.shape[-1]
    if len(tokens) != labels:
        raise ValueError(f"{len(tokens)} tokens for an alignment of {labels} labels")
    occupancy = None
    if alignment.ndim == 2:
        logarithms = bool(alignment.size) and alignment.max() <= 0 and alignment.min() < 0
        occupancy = np.exp(alignment) if logarithms else alignment
        if emissions is None:
            emissions = occupancy.argmax(axis=0) if occupancy.size else np.zeros(labels, np.int64)
        frames = len(occupancy)
    else:
        emissions = alignment
        frames = frame_count or int(emissions.max(initial=0)) + 1
        if frame_count is None and mel is not None:
            frames = max(frames, round(len(mel) * mel_frame_seconds / frame_seconds))
    seconds = frames * frame_seconds
    times = (emissions + 0.5) * frame_seconds

    label_height = float(np.clip(0.22 * labels, 2.0, 12.0))
    mel_height = 0.0 if mel is None else 2.2
    width = float(np.clip(2.2 * seconds, 8.0, 20.0))
    figure = new_figure(width, label_height + mel_height + 1.1, title)
    if mel is None:
        axis = figure.subplots()
    else:
        lines = 0.9 if labels <= 40 else 0.4
        above, axis = figure.subplots(2, 1, sharex=True, height_ratios=[mel_height, label_height])
        mel = np.asarray(mel, np.float32)
        # Digital silence, far below any speech, would take all of the contrast.
        above.imshow(
            mel.T,
            origin="lower",
            aspect="auto",
            cmap=_SPECTROGRAM_MAP,
            vmin=np.percentile(mel, 10),
            extent=(0, len(mel) * mel_frame_seconds, 0, mel.shape[1]),
        )
        above.vlines(times, 0, mel.shape[1], color="white", linewidth=0.8, alpha=lines)
        above.set_ylabel("mel bin")
    if occupancy is None:
        axis.set_facecolor("#F4F4F4")
    else:
        image = axis.imshow(
            occupancy.T,
            origin="lower",
            aspect="auto",
            cmap="Greys",
            vmin=0,
            interpolation="nearest",
            extent=(0, seconds, -0.5, labels - 0.5),
        )
        figure.colorbar(
            image, ax=figure.axes, label="probability of emitting here", pad=0.01, shrink=0.6
        )
    if labels:
        axis.step(
            # As the durations are counted: the first label owns the frames before its emission.
            [0, *times[1:], seconds],
            [*range(labels), labels - 1],
            where="post",
            color=ORANGE,
            linewidth=1.5,
            label="frames the label owns",
        )
        axis.plot(times, np.arange(labels), "o", color=VERMILION, markersize=4, label="emission")
        axis.legend(loc="upper left", frameon=True)
    # At most one token a line of text; a long utterance names every second or third.
    every = max(1, -(-labels // 55))
    axis.set_yticks(range(0, labels, every))
    axis.set_yticklabels([tokens[index] for index in range(0, labels, every)], parse_math=False)
    axis.set_ylim(-0.5, max(labels, 1) - 0.5)
    axis.set_xlim(0, seconds)
    axis.set_xlabel("time (s)")
    axis.set_ylabel("label")
    axis.grid(alpha=0.25)
    save_figure(figure, path)


def plot_durations(
    aligned: np.ndarray,
    predicted: np.ndarray,
    path: Target,
    *,
    frame_seconds: float = 0.04,
    title: str = "Durations of labels",
) -> None:
    """Durations that the alignment found against those that the duration model predicts.

    Args:
        aligned: Frames of each label by the transducer's best path, [labels].
        predicted: Frames of the same labels by the duration model, [labels]; need not be whole.
        path: Of the picture.
        frame_seconds: Duration of an encoder frame; the second axis shows milliseconds.
        title: Above the picture.

    Raises:
        ValueError: If the two differ in length, or are empty.
    """
    aligned = np.asarray(aligned, np.float64).ravel()
    predicted = np.asarray(predicted, np.float64).ravel()
    if aligned.shape != predicted.shape or not aligned.size:
        raise ValueError(f"{aligned.size} aligned and {predicted.size} predicted durations")
    milliseconds = 1000 * frame_seconds
    # A long silence must not squeeze the picture; what lies beyond is drawn at the edge and told.
    both = np.concatenate([aligned, predicted])
    limit = max(2.0, float(np.ceil(np.percentile(both, 99.5))))
    beyond = int((aligned > limit).sum()), int((predicted > limit).sum())

    figure = new_figure(11.0, 4.6, title)
    left, right = figure.subplots(1, 2)
    bins = np.arange(0, limit + 1.5) - 0.5
    for values, name, color, style in (
        (aligned, "aligned (best path)", BLUE, {"histtype": "stepfilled", "alpha": 0.35}),
        (predicted, "predicted (learned)", VERMILION, {"histtype": "step", "linewidth": 1.8}),
    ):
        label = f"{name}: mean {values.mean():.2f}"
        left.hist(np.minimum(values, limit), bins=bins, color=color, label=label, **style)
    label = "duration (encoder frames)"
    if any(beyond):
        # Below the axis, where no bar and no legend can be in its way.
        label += f"\nlast bar: {limit:.0f} or more "
        label += f"({beyond[0]} aligned, {beyond[1]} predicted beyond)"
    left.set_xlabel(label)
    left.set_ylabel("labels")
    left.set_xlim(-0.5, limit + 0.5)
    left.legend(frameon=False, title=f"{aligned.size} labels", loc="upper right")
    left.grid(axis="y", alpha=0.25)
    left.secondary_xaxis(
        "top", functions=(lambda x: x * milliseconds, lambda x: x / milliseconds)
    ).set_xlabel("duration (ms)")

    *_, cells = right.hist2d(
        np.minimum(aligned, limit),
        np.minimum(predicted, limit),
        bins=(bins, bins),
        norm="log",
        cmin=1,
        cmap=_MAP,
    )
    right.plot([0, limit], [0, limit], "--", color=VERMILION, linewidth=1.2, label="equal")
    error = np.abs(aligned - predicted).mean()
    told = f"mean absolute error {error:.2f} frames ({error * milliseconds:.0f} ms)"
    if aligned.std() > 0 and predicted.std() > 0:
        told += f", correlation {np.corrcoef(aligned, predicted)[0, 1]:.2f}"
    right.set_title(told, fontsize=9)
    right.set_xlabel("aligned (encoder frames)")
    right.set_ylabel("predicted (encoder frames)")
    right.set_xlim(-0.5, limit + 0.5)
    right.set_ylim(-0.5, limit + 0.5)
    right.legend(frameon=False, loc="upper left")
    figure.colorbar(cells, ax=right, label="labels in a cell", format="{x:g}")
    save_figure(figure, path)


def plot_similarity(
    matrix: np.ndarray,
    path: Target,
    *,
    frame_seconds: float = 0.04,
    title: str = "Speech and text in the shared space",
) -> None:
    """Cosine similarity of every speech frame with every frame of the resampled text.

    Where the modalities match, the diagonal stands out: frame t of the speech resembles frame t of
    the text that was resampled by the alignment (MAESTRO, section 2.2).

    Args:
        matrix: Cosine similarities from -1 to 1, [speech frames, text frames].
        path: Of the picture.
        frame_seconds: Duration of a frame.
        title: Above the picture.

    Raises:
        ValueError: If there is no frame on one side.
    """
    matrix = np.asarray(matrix, np.float64)
    if matrix.ndim != 2 or not matrix.size:
        raise ValueError(f"similarities must be [speech frames, text frames], not {matrix.shape}")
    speech, text = (count * frame_seconds for count in matrix.shape)
    shorter = min(matrix.shape)
    diagonal = np.diagonal(matrix)
    elsewhere = np.ones(matrix.shape, np.bool_)
    np.fill_diagonal(elsewhere, False)
    rest = matrix[elsewhere]
    figure = new_figure(6.6, 5.8, title)
    axis = figure.subplots()
    image = axis.imshow(
        matrix,
        origin="lower",
        aspect="equal" if 0.5 < speech / text < 2 else "auto",
        cmap=_MAP,
        vmin=float(np.floor(10 * matrix.min()) / 10),
        vmax=1,
        interpolation="nearest",
        extent=(0, text, 0, speech),
    )
    end = shorter * frame_seconds
    axis.plot([0, end], [0, end], "--", color=VERMILION, linewidth=0.9)
    told = f"mean on the diagonal {diagonal.mean():.2f}"
    if rest.size:
        told += f", elsewhere {rest.mean():.2f}"
    axis.set_title(told, fontsize=9)
    axis.set_xlabel("text, resampled to speech (s)")
    axis.set_ylabel("speech (s)")
    figure.colorbar(image, ax=axis, label="cosine similarity")
    save_figure(figure, path)


def new_figure(width: float, height: float, title: str = "") -> Figure:
    """An empty figure, in inches, that fits its parts by itself."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    # Titles and labels come from corpora: a dollar sign in them is no formula.
    if title:
        figure.suptitle(title, parse_math=False)
    return figure


def save_figure(figure: Figure, path: Target) -> None:
    """Draw a figure into a file, or as png into a buffer."""
    for axis in figure.axes:
        _quiet_frame(axis)
    if isinstance(path, io.BytesIO):
        figure.savefig(path, format="png", dpi=_DPI)
        return
    file = epath.Path(path).expanduser()
    # Drawn in memory first: the model directory may be in an object store.
    picture = io.BytesIO()
    figure.savefig(picture, format=file.suffix[1:] or "png", dpi=_DPI)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(picture.getvalue())


def logarithmic(axis: Axes) -> None:
    """A logarithmic vertical axis with numbers as people write them."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_formatter(NullFormatter())


def _quiet_frame(axis: Axes) -> None:
    if not axis.images:
        axis.spines[["top", "right"]].set_visible(False)


def smoothed(values: np.ndarray, weight: float) -> np.ndarray:
    """Exponential moving average in both directions, so that a trend is not delayed, [points]."""

    def one_way(series: np.ndarray) -> np.ndarray:
        averages = np.empty_like(series)
        total = norm = 0.0
        for index, value in enumerate(series):
            total = weight * total + (1 - weight) * value
            norm = weight * norm + (1 - weight)
            averages[index] = total / norm
        return averages

    return one_way(one_way(values)[::-1])[::-1]


def thousands(step: float, position: Any = None) -> str:
    """A step as people say it: 2500 is 2.5k."""
    return f"{step / 1000:g}k" if abs(step) >= 1000 else f"{step:g}"


def _unit(name: str) -> str:
    """The unit of a metric, where its name tells."""
    last = name.rsplit("/", maxsplit=1)[-1]
    for ending, unit in (
        ("duration_mae", "encoder frames"),
        ("accuracy", "fraction correct"),
        ("perplexity", "codes"),
        ("learning_rate", "learning rate"),
        ("seconds", "s"),
        ("per_second", "per second"),
    ):
        if last.endswith(ending):
            return unit
    return "loss" if "loss" in name else "value"

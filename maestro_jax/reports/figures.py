"""Figures of a run: curves, alignments, durations, similarity of speech and text, code usage.

Every function draws one figure into a file, whose suffix picks the format (png, pdf, svg), or into
a buffer. None uses pyplot, so there is no global state and no display is needed.
"""

from __future__ import annotations

import dataclasses
import io
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from maestro_jax.files import as_path, write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Target = str | os.PathLike[str] | io.BytesIO
"""File of a figure, whose suffix picks the format, or a buffer, which gets a png."""

_DPI = 130

# Okabe and Ito's colours, told apart by readers of any colour vision.
BLUE, ORANGE, VERMILION = "#0072B2", "#E69F00", "#D55E00"

# Brightness rises with the value in both, so they read in grey and with any colour vision.
_MAP, _SPECTROGRAM_MAP = "viridis", "magma"


COLORS = (BLUE, VERMILION, "#009E73", ORANGE, "#CC79A7", "#56B4E9", "#000000")
_STYLES = ("-", "--", ":")
_WIDTH = 10.0


@dataclasses.dataclass(frozen=True)
class Panel:
    """Curves in one panel.

    Attributes:
        title: Title above the panel.
        unit: Label of the vertical axis.
        series: Steps [points] and values [points] by label; a curve labelled "" has no legend.
        references: Labels of the curves to draw thin and grey, such as chance.
        log: Whether to draw logarithmically where all values are positive and span a factor of ten.
        from_zero: Whether the axis begins at 0, unless it is logarithmic.
        smooth: Whether to draw long curves smoothed, over the values themselves in faint.
    """

    title: str
    unit: str
    series: Mapping[str, tuple[np.ndarray, np.ndarray]]
    references: Sequence[str] = ()
    log: bool = False
    from_zero: bool = False
    smooth: bool = False


def plot_panels(
    panels: Sequence[Panel], path: Target, *, columns: int = 2, title: str = ""
) -> None:
    """Draws panels beside and below each other.

    Values that are not finite are marked at the foot of their panel.

    Args:
        panels: At least one panel.
        path: Path of the figure.
        columns: Panels beside each other.
        title: Title above all panels.

    Raises:
        ValueError: There are no panels.
    """
    if not panels:
        raise ValueError("there are no curves to plot")
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    width = _WIDTH if columns < 3 else 4.2 * columns
    figure = new_figure(width, 3.1 * rows + (0.5 if title else 0.0), title)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes[len(panels) :]:
        axis.remove()
    # The same steps in all panels, whatever has been measured when.
    measured = [steps for panel in panels for steps, _ in panel.series.values() if len(steps)]
    earliest = min((float(steps[0]) for steps in measured), default=0.0)
    latest = max((float(steps[-1]) for steps in measured), default=0.0)
    margin = max(0.02 * (latest - earliest), 0.5)
    for axis, panel in zip(axes, panels, strict=False):
        lowest, highest, drawn, grey = np.inf, -np.inf, 0, 0
        for label, (steps, values) in panel.series.items():
            steps, values = np.asarray(steps), np.asarray(values, np.float64)
            finite = np.isfinite(values)
            if not finite.all():
                foot = {"transform": axis.get_xaxis_transform(), "clip_on": False}
                lost = steps[~finite]
                axis.plot(
                    lost, np.zeros(len(lost)), "x", color="#000000", label="not finite", **foot
                )
            steps, values = steps[finite], values[finite]
            if not len(values):
                continue
            lowest, highest = min(lowest, values.min()), max(highest, values.max())
            if label in panel.references:
                style = ("--", ":")[grey % 2]
                axis.plot(steps, values, style, color="#777777", linewidth=1.4, label=label)
                grey += 1
                continue
            color = COLORS[drawn % len(COLORS)]
            style = _STYLES[drawn // len(COLORS) % len(_STYLES)]
            drawn += 1
            if panel.smooth and len(values) > 40:
                axis.plot(steps, values, style, color=color, alpha=0.25, linewidth=0.8)
                values = smoothed(values, min(0.9, 1.0 - 25.0 / len(values)))
            marker = "o" if len(values) < 30 else None
            line = {"color": color, "linewidth": 1.6, "marker": marker, "markersize": 3.5}
            axis.plot(steps, values, style, label=label, **line)
        if panel.log and 0 < lowest and highest > 10 * lowest:
            logarithmic(axis)
        elif panel.from_zero and highest > 0:
            axis.set_ylim(0, 1.15 * highest)
        axis.set_xlim(earliest - margin, latest + margin)
        axis.set_title(panel.title, parse_math=False, fontsize=11)
        axis.set_ylabel(panel.unit)
        axis.set_xlabel("training step")
        axis.xaxis.set_major_formatter(thousands)
        axis.xaxis.get_major_locator().set_params(nbins=6, integer=True)
        axis.grid(alpha=0.25)
        labels = axis.get_legend_handles_labels()[1]
        if labels:
            axis.legend(frameon=False, fontsize=8, ncols=2 if len(labels) > 4 else 1)
    save_figure(figure, path)


def plot_losses(
    curves: Mapping[str, tuple[np.ndarray, np.ndarray]], path: Target, *, title: str = "Training"
) -> None:
    """Draws one panel per metric.

    Args:
        curves: Steps [points] and values [points] by metric.
        path: Path of the figure.
        title: Title above all panels.

    Raises:
        ValueError: There are no curves.
    """
    panels = [
        Panel(name, _unit(name), {"": curve}, log=True, smooth=True)
        for name, curve in curves.items()
    ]
    plot_panels(panels, path, columns=3, title=title)


def plot_followed(scores: Sequence[Any], path: Target) -> None:
    """Draws the scores of checkpoints over their steps, a panel for each test set.

    Args:
        scores: At least one `maestro_jax.evaluation.following.FollowedScore`.
        path: Path of the figure.
    """
    panels = []
    for name in dict.fromkeys(one.test_set for one in scores):
        own = sorted((one for one in scores if one.test_set == name), key=lambda one: one.step)
        steps = np.array([one.step for one in own])
        rows = dict.fromkeys(row for one in own for row in one.rows)
        values = {"average": [one.average for one in own]} if len(rows) > 1 else {}
        values |= {row: [one.rows.get(row) for one in own] for row in rows}
        series = {
            label: (steps, np.array([np.nan if one is None else one for one in numbers]))
            for label, numbers in values.items()
        }
        unit = "error rate, %" if own[0].metric == "error_rate" else own[0].metric.upper()
        panels.append(Panel(title=name, unit=unit, series=series, from_zero=True))
    plot_panels(panels, path, columns=1 if len(panels) == 1 else 2)


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
    """Draws where the transducer emits each label, under the spectrogram if there is one.

    Args:
        alignment: Either the frame that emits each label, integers [labels], or an occupancy
            [frames, labels]: probabilities, or their logarithms (no value above 0).
        tokens: [labels], as written on the vertical axis, first label at the foot.
        frame_seconds: Duration of an encoder frame in seconds.
        path: Path of the figure.
        mel: Log-mel energies, [mel frames, mel bins]; None for no spectrogram.
        mel_frame_seconds: Step between mel frames in seconds.
        frame_count: Encoder frames of the utterance, where `alignment` does not tell.
        emissions: Beside an occupancy, the frame on which the best path emits each label [labels];
            by default where a label is most likely.
        title: Title of the figure; the text or id of the utterance serves best.

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
    """Draws durations of the alignment against those that the duration model predicts.

    Args:
        aligned: Frames of each label by the transducer's best path, [labels].
        predicted: Frames of the same labels by the duration model, [labels]; need not be whole.
        path: Path of the figure.
        frame_seconds: Duration of an encoder frame; the second axis shows milliseconds.
        title: Title of the figure.

    Raises:
        ValueError: If the two differ in length, or are empty.
    """
    aligned = np.asarray(aligned, np.float64).ravel()
    predicted = np.asarray(predicted, np.float64).ravel()
    if aligned.shape != predicted.shape or not aligned.size:
        raise ValueError(f"{aligned.size} aligned and {predicted.size} predicted durations")
    milliseconds = 1000 * frame_seconds
    # A long silence must not squeeze the figure: what lies beyond is drawn at its edge and counted.
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
    summary = f"mean absolute error {error:.2f} frames ({error * milliseconds:.0f} ms)"
    if aligned.std() > 0 and predicted.std() > 0:
        summary += f", correlation {np.corrcoef(aligned, predicted)[0, 1]:.2f}"
    right.set_title(summary, fontsize=9)
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
    """Draws the cosine similarity of each speech frame with each frame of the resampled text.

    Where the modalities match, the diagonal stands out: frame t of the speech resembles frame t of
    the text that was resampled by the alignment (MAESTRO, section 2.2).

    Args:
        matrix: Cosine similarities from -1 to 1, [speech frames, text frames].
        path: Path of the figure.
        frame_seconds: Duration of a frame in seconds.
        title: Title of the figure.

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
    summary = f"mean on the diagonal {diagonal.mean():.2f}"
    if rest.size:
        summary += f", elsewhere {rest.mean():.2f}"
    axis.set_title(summary, fontsize=9)
    axis.set_xlabel("text, resampled to speech (s)")
    axis.set_ylabel("speech (s)")
    figure.colorbar(image, ax=axis, label="cosine similarity")
    save_figure(figure, path)


def plot_code_usage(usage: Mapping[str, np.ndarray], path: Target) -> None:
    """Draws how often each code is chosen, from the most to the least frequent.

    Args:
        usage: Counts of each code [codes] by label.
        path: Path of the figure.
    """
    figure = new_figure(_WIDTH, 3.1)
    axis = figure.subplots()
    codes = 1
    for (label, counts), color in zip(usage.items(), ("#999999", BLUE), strict=False):
        counts = np.sort(np.asarray(counts, np.float64))[::-1]
        shares = counts / max(counts.sum(), 1)
        codes = max(codes, len(counts))
        legend = f"{label}: {int((counts > 0).sum())} of {len(counts)} occur"
        axis.step(np.arange(1, len(counts) + 1), shares, where="mid", color=color, label=legend)
        axis.fill_between(
            np.arange(1, len(counts) + 1), shares, step="mid", color=color, alpha=0.25
        )
    axis.axhline(1 / codes, color="#777777", linestyle="--", linewidth=1.2, label="all alike")
    axis.set_xlim(0.5, codes + 0.5)
    axis.set_ylim(bottom=0)
    axis.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g}%")
    axis.set_xlabel("code, the most frequent first")
    axis.set_ylabel("share of the frames")
    axis.legend(frameon=False)
    axis.grid(alpha=0.25)
    save_figure(figure, path)


def plot_similarities(
    matrices: Mapping[str, np.ndarray], path: Target, *, frame_seconds: float = 0.04
) -> None:
    """Draws cosines of speech frames with text frames of one utterance, at several places.

    Args:
        matrices: Cosines [speech frames, text frames] by title.
        path: Path of the figure.
        frame_seconds: Duration of a frame in seconds.
    """
    figure = new_figure(_WIDTH, 2.9 * -(-len(matrices) // 4))
    figure.set_layout_engine("compressed")
    axes = figure.subplots(-(-len(matrices) // 4), min(4, len(matrices)), squeeze=False).ravel()
    for axis in axes[len(matrices) :]:
        axis.remove()
    for index, (axis, (title, matrix)) in enumerate(zip(axes, matrices.items(), strict=False)):
        speech, text = (count * frame_seconds for count in matrix.shape)
        image = axis.imshow(
            np.asarray(matrix, np.float64),
            origin="lower",
            cmap="viridis",
            vmin=-0.5,
            vmax=1,
            interpolation="nearest",
            extent=(0, text, 0, speech),
        )
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("text (s)")
        if index % 4 == 0:
            axis.set_ylabel("speech (s)")
    figure.colorbar(image, ax=figure.axes, label="cosine", shrink=0.8)
    save_figure(figure, path)


def plot_bars(bars: Mapping[str, Mapping[str, float]], path: Target, *, unit: str) -> None:
    """Draws groups of positive numbers as bars on a logarithmic axis.

    Args:
        bars: Numbers by label, by group; the group with the largest number stands on top.
        path: Path of the figure.
        unit: Unit of the numbers.
    """
    labels = list(dict.fromkeys(label for numbers in bars.values() for label in numbers))
    names = sorted(bars, key=lambda name: max(bars[name].values()))
    figure = new_figure(_WIDTH, 0.32 * len(names) + 1.2)
    axis = figure.subplots()
    height = 0.8 / len(labels)
    for index, (label, color) in enumerate(zip(labels, COLORS, strict=False)):
        places = np.arange(len(names)) + (len(labels) / 2 - index - 0.5) * height
        values = [bars[name].get(label, np.nan) for name in names]
        axis.barh(places, values, height, color=color, label=label)
    axis.set_xscale("log")
    axis.xaxis.set_major_formatter("{x:g}")
    axis.set_yticks(range(len(names)), names)
    axis.set_xlabel(unit)
    axis.grid(axis="x", alpha=0.25)
    axis.legend(frameon=False, loc="lower right")
    save_figure(figure, path)


def plot_minutes(
    points: Mapping[str, Sequence[tuple[str, float, float, tuple[float, float] | None]]],
    path: Target,
    *,
    unit: str,
    title: str = "",
) -> None:
    """Draws scores over the minutes of paired speech, a colour per language, a marker per run.

    Args:
        points: Run, minutes, score and interval of its points, by language.
        path: Path of the figure.
        unit: Unit of the scores.
        title: Title above the panel.
    """
    markers = "osD^vPX*"
    runs = list(dict.fromkeys(point[0] for members in points.values() for point in members))
    minutes = [point[1] for members in points.values() for point in members]
    positive = [each for each in minutes if each > 0]
    # The axis is logarithmic, with a place for none to the left of the fewest minutes.
    none = min(positive, default=1.0) / 4
    figure = new_figure(8.0, 4.6, title)
    axis = figure.subplots()
    for index, (language, members) in enumerate(points.items()):
        color = COLORS[index % len(COLORS)]
        members = sorted(members, key=lambda point: point[1])
        places = [point[1] or none for point in members]
        if len(set(places)) == len(places):
            axis.plot(places, [point[2] for point in members], color=color, alpha=0.5)
        for place, (run, _, score, interval) in zip(places, members, strict=True):
            # Side by side where runs had the same data.
            place *= 1.08 ** (runs.index(run) - (len(runs) - 1) / 2)
            if interval is not None:
                axis.vlines(place, *interval, color=color, alpha=0.4, linewidth=3)
            marker = markers[runs.index(run) % len(markers)]
            axis.plot(place, score, marker, color=color, markersize=6)
        axis.plot([], [], "-", color=color, linewidth=4, label=language)
    for index, run in enumerate(runs):
        marker = markers[index % len(markers)]
        axis.plot([], [], marker, color="#777777", label=run)
    axis.set_xscale("log")
    ticks = sorted({float(f"{each:.2g}") for each in positive})
    # Labels of neighbours would overlap.
    kept: list[float] = []
    for tick in ticks:
        if not kept or tick > 1.5 * kept[-1]:
            kept.append(tick)
    labels = [f"{tick:g}" for tick in kept]
    if 0.0 in minutes:
        kept, labels = [none, *kept], ["none", *labels]
    axis.set_xticks(kept, labels)
    axis.set_xticks([], minor=True)
    axis.set_xlim(min(kept, default=none) / 1.6, max(positive, default=none) * 1.6)
    axis.set_ylim(bottom=0)
    axis.set_xlabel("minutes of paired speech")
    axis.set_ylabel(unit, parse_math=False)
    axis.grid(alpha=0.25)
    axis.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    save_figure(figure, path)


def new_figure(width: float, height: float, title: str = "") -> Figure:
    """Creates an empty figure, sized in inches, that fits its parts by itself."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    # Titles and labels come from corpora: a dollar sign in them is no formula.
    if title:
        figure.suptitle(title, parse_math=False)
    return figure


def save_figure(figure: Figure, path: Target) -> None:
    """Writes a figure to a file, or as png to a buffer."""
    for axis in figure.axes:
        _quiet_frame(axis)
    if isinstance(path, io.BytesIO):
        figure.savefig(path, format="png", dpi=_DPI)
        return
    file = as_path(path)
    # Drawn in memory first: the model directory may be in an object store.
    buffer = io.BytesIO()
    figure.savefig(buffer, format=file.suffix[1:] or "png", dpi=_DPI)
    write_atomically(file, buffer.getvalue())


def logarithmic(axis: Axes) -> None:
    """Makes the vertical axis logarithmic, with plain numbers."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_formatter(NullFormatter())


def _quiet_frame(axis: Axes) -> None:
    if not axis.images:
        axis.spines[["top", "right"]].set_visible(False)


def smoothed(values: np.ndarray, weight: float) -> np.ndarray:
    """Smooths by an exponential moving average in both directions, without delay, [points]."""
    # Imported here: training, which draws nothing before its first step, starts sooner.
    from scipy import signal

    def one_way(series: np.ndarray) -> np.ndarray:
        totals, norms = signal.lfilter([1 - weight], [1, -weight], [series, np.ones(len(series))])
        return totals / norms

    return one_way(one_way(values)[::-1])[::-1]


def thousands(step: float, position: Any = None) -> str:
    """Formats a step: 2500 is 2.5k."""
    return f"{step / 1000:g}k" if abs(step) >= 1000 else f"{step:g}"


def _unit(name: str) -> str:
    """Returns the unit of a metric, as far as its name tells it."""
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

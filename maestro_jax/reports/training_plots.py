"""Pictures of a run's diagnostics: panels of several curves, code usage, similarities."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from maestro_jax.reports.plots import (
    BLUE,
    ORANGE,
    VERMILION,
    Target,
    logarithmic,
    new_figure,
    save_figure,
    smoothed,
    thousands,
)

# Okabe and Ito's colours but yellow, which is faint on white; then once more with other lines.
_COLORS = (BLUE, VERMILION, "#009E73", ORANGE, "#CC79A7", "#56B4E9", "#000000")
_STYLES = ("-", "--", ":")
_WIDTH = 10.0


@dataclasses.dataclass(frozen=True)
class Panel:
    """Some curves over the same steps.

    Attributes:
        title: Above the panel.
        unit: Of the vertical axis.
        series: By label, steps [points] and values [points].
        references: Of the labels, those to draw thin and grey: chance and the like.
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


def plot_panels(panels: Sequence[Panel], path: Target) -> None:
    """Panels beside each other, two a row.

    Args:
        panels: At least one.
        path: Of the picture.

    Raises:
        ValueError: Without panels.
    """
    if not panels:
        raise ValueError("no panels to plot")
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    figure = new_figure(_WIDTH, 3.1 * rows)
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
            steps, values = steps[finite], values[finite]
            if not len(values):
                continue
            lowest, highest = min(lowest, values.min()), max(highest, values.max())
            if label in panel.references:
                style = ("--", ":")[grey % 2]
                axis.plot(steps, values, style, color="#777777", linewidth=1.4, label=label)
                grey += 1
                continue
            color = _COLORS[drawn % len(_COLORS)]
            style = _STYLES[drawn // len(_COLORS) % len(_STYLES)]
            drawn += 1
            if panel.smooth and len(values) > 40:
                axis.plot(steps, values, style, color=color, alpha=0.25, linewidth=0.8)
                values = smoothed(values, min(0.9, 1.0 - 25.0 / len(values)))
            marker = "o" if len(values) < 30 else None
            look = {"color": color, "linewidth": 1.6, "marker": marker, "markersize": 3.5}
            axis.plot(steps, values, style, label=label, **look)
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
        if axis.lines:
            many = len(axis.get_legend_handles_labels()[1]) > 4
            axis.legend(frameon=False, fontsize=8, ncols=2 if many else 1)
    save_figure(figure, path)


def plot_code_usage(usage: Mapping[str, np.ndarray], path: Target) -> None:
    """How often each code is chosen, from the most to the least frequent.

    Args:
        usage: By label, how often each code was chosen [codes].
        path: Of the picture.
    """
    figure = new_figure(_WIDTH, 3.1)
    axis = figure.subplots()
    codes = 1
    for (label, counts), color in zip(usage.items(), ("#999999", BLUE), strict=False):
        counts = np.sort(np.asarray(counts, np.float64))[::-1]
        shares = counts / max(counts.sum(), 1)
        codes = max(codes, len(counts))
        told = f"{label}: {int((counts > 0).sum())} of {len(counts)} occur"
        axis.step(np.arange(1, len(counts) + 1), shares, where="mid", color=color, label=told)
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
    """Cosine of every speech frame with every text frame of one utterance, at several places.

    Args:
        matrices: By title, `[speech frames, text frames]`.
        path: Of the picture.
        frame_seconds: Duration of a frame.
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
    """Positive numbers of several things beside each other, on a logarithmic axis.

    Args:
        bars: By the name of a thing, its numbers by their meaning; the largest stands on top.
        path: Of the picture.
        unit: Of the numbers.
    """
    meanings = list(dict.fromkeys(meaning for numbers in bars.values() for meaning in numbers))
    names = sorted(bars, key=lambda name: max(bars[name].values()))
    figure = new_figure(_WIDTH, 0.32 * len(names) + 1.2)
    axis = figure.subplots()
    height = 0.8 / len(meanings)
    for index, (meaning, color) in enumerate(zip(meanings, _COLORS, strict=False)):
        places = np.arange(len(names)) + (len(meanings) / 2 - index - 0.5) * height
        values = [bars[name].get(meaning, np.nan) for name in names]
        axis.barh(places, values, height, color=color, label=meaning)
    axis.set_xscale("log")
    axis.xaxis.set_major_formatter("{x:g}")
    axis.set_yticks(range(len(names)), names)
    axis.set_xlabel(unit)
    axis.grid(axis="x", alpha=0.25)
    axis.legend(frameon=False, loc="lower right")
    save_figure(figure, path)

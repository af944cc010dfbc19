"""Draws the word error rates of the low-resource experiment, for the README.

    python docs/hooks/results_figure.py

reads the table in `docs/results/low_resource.md`, which `make low-resource` prints, and writes
`docs/results/low_resource.svg`.
"""

from __future__ import annotations

import pathlib
import re
from typing import NamedTuple

RESULTS = pathlib.Path(__file__).resolve().parents[1] / "results"


class Result(NamedTuple):
    """A row of the table.

    Attributes:
        model: How the model was trained.
        search: How it was decoded.
        wer: Word error rate, percent.
        low: Lower end of its 95% interval.
        high: Upper end of its 95% interval.
    """

    model: str
    search: str
    wer: float
    low: float
    high: float


def results(page: str) -> list[Result]:
    """Returns the rows of the table of results in a page."""
    number = r"\**([\d.]+)\**"
    row = rf"^\| ([\w -]+) \| ([\w -]+) \| {number} \({number} to {number}\)"
    return [
        Result(model, search, *map(float, numbers))
        for model, search, *numbers in re.findall(row, page, re.MULTILINE)
    ]


def draw(rows: list[Result], path: pathlib.Path) -> None:
    """Draws a bar with its interval per row, grouped by the search."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    # The same bytes on every run; text stays text.
    matplotlib.rcParams.update({"svg.hashsalt": "maestro_jax", "svg.fonttype": "none"})
    searches = list(dict.fromkeys(row.search for row in rows))
    colours = {"from scratch": "#b0bec5", "pretrained and fine-tuned": "#3f51b5"}
    figure, axes = plt.subplots(figsize=(7.2, 2.9), layout="constrained")
    for row in rows:
        place = searches.index(row.search) + (0.2 if row.model == "from scratch" else -0.2)
        errors = [[row.wer - row.low], [row.high - row.wer]]
        axes.barh(place, row.wer, height=0.36, color=colours[row.model])
        axes.errorbar(row.wer, place, xerr=errors, color="#202124", capsize=3, linewidth=1)
        axes.text(row.high + 1.5, place, f"{row.wer:.1f}", va="center")
    for model, colour in reversed(colours.items()):
        axes.barh(0, 0, color=colour, label=model)
    axes.set_yticks(range(len(searches)), searches)
    axes.invert_yaxis()
    axes.set_xlim(0, 105)
    axes.set_xlabel("word error rate, %, with 95% intervals")
    axes.set_title("Slovene from 24 transcribed utterances (MiniVox)", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(frameon=False, loc="outside lower center", ncols=2)
    figure.savefig(path, metadata={"Date": None}, facecolor="white")
    plt.close(figure)


def main() -> None:
    """Writes the picture."""
    page = (RESULTS / "low_resource.md").read_text(encoding="utf-8")
    draw(results(page), RESULTS / "low_resource.svg")


if __name__ == "__main__":
    main()

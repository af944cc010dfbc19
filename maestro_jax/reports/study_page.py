"""The page of a study: tables, curves with confidence bands, significance, costs, provenance.

It is written as `study.json`, `study.md` (with its figures beside it) and `study.html`, which
needs no other file.
"""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from maestro_jax.files import as_path, write_atomically
from maestro_jax.reports.figures import COLORS, new_figure, save_figure, thousands
from maestro_jax.reports.html_report import STYLE
from maestro_jax.tables import align_columns

STUDY_JSON, STUDY_MARKDOWN, STUDY_HTML = "study.json", "study.md", "study.html"
AVERAGE = "average"

Row = Mapping[str, Any]
_Table = tuple[list[str], list[list[str]]]


def write_study_page(summary: Mapping[str, Any], directory: epath.PathLike) -> epath.Path:
    """Writes the page.

    Args:
        summary: As of `maestro_jax.experiments.study_summary.summarise`.
        directory: Where to write the files.

    Returns:
        The path of the HTML page.
    """
    directory = as_path(directory)
    content = json.dumps(summary, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_atomically(directory / STUDY_JSON, content.encode())
    figures = _figures(summary)
    for name, (png, _) in figures.items():
        write_atomically(directory / f"{name}.png", png)
    sections = _sections(summary)
    write_atomically(directory / STUDY_MARKDOWN, _markdown(summary, sections, figures).encode())
    write_atomically(directory / STUDY_HTML, _html(summary, sections, figures).encode())
    return directory / STUDY_HTML


def summary_text(summary: Mapping[str, Any]) -> str:
    """Formats the tables of the summary for a terminal."""
    parts = []
    for title, notes, table in _sections(summary):
        lines = [title]
        if table is not None:
            header, rows = table
            lines += ["", align_columns(header, rows, _alignment(header))]
        parts.append("\n".join([*lines, *notes]))
    return "\n\n".join(parts)


def _sections(summary: Mapping[str, Any]) -> list[tuple[str, list[str], _Table | None]]:
    """Returns title, notes and table of each section."""
    cells = summary["cells"]
    sections: list[tuple[str, list[str], _Table | None]] = []
    notes = [f"{cells['done']} of {cells['all']} cells are done."]
    notes += [f"Failed: {name}: {error}" for name, error in cells["failed"].items()]
    if cells["missing"]:
        notes.append(f"Not done: {', '.join(cells['missing'])}.")
    if any(summary["trials"].values()):
        notes.append(_trials_note(summary))
    sections.append((summary["study"], notes, None))
    for table in summary["tables"]:
        if not table["condition"]:
            sections += _score_sections(summary, table)
    sections += _conditions_sections(summary)
    if summary["costs"]:
        sections.append(
            (
                "What a cell takes, on average over its seeds",
                [
                    "Model FLOPs of training as the runs logged them; hours of all starts with "
                    "compilation and evaluation; the largest memory of a process and of a device."
                ],
                _cost_table(summary["costs"]),
            )
        )
    return sections


def _trials_note(summary: Mapping[str, Any]) -> str:
    """Says which trial each method has, and how it was chosen."""
    chosen = "; ".join(f"{name}: {trial}" for name, trial in summary["chosen"].items())
    count = max(summary["trials"].values())
    if count == 1:
        return "Each row is a trial."
    how = summary["chosen_by"]
    how = f"chosen by {how}" if how else "set by hand (maestro study --tune chooses)"
    return f"Trials, one of {count} for each method, {how}: {chosen}."


def _score_sections(
    summary: Mapping[str, Any], table: Mapping[str, Any]
) -> list[tuple[str, list[str], _Table | None]]:
    rows = table["rows"]
    first = rows[0]
    metric, title = first["metric"], first["title"]
    several = len(summary["amounts"]) > 1
    header = ["method", *(["paired"] if several else []), "minutes", title]
    header += ["95%, utterances", "95%, seeds", "sd", "by seed"]
    baseline = summary["baseline"]
    if baseline:
        header.append("relative")
    languages = [name for name in first["scores"] if name != AVERAGE]
    cells = []
    for row in rows:
        spread = row["scores"][AVERAGE][metric]
        line = [
            row["method"],
            *([row["amount"]] if several else []),
            _minutes(row["minutes"], languages),
            _number(spread["mean"]),
            _interval(row["intervals"][AVERAGE]),
            _interval(spread["interval"]),
            _number(spread["sd"]),
            " ".join(_number(spread["by_seed"].get(str(seed))) for seed in summary["seeds"]),
        ]
        if baseline:
            line.append(_relative(row))
        cells.append(line)
    sections: list[tuple[str, list[str], _Table | None]] = [
        (
            f"{table['test_set']}: {title}",
            _notes(summary, table),
            (header, cells),
        )
    ]
    compared = [row for row in rows if row["comparison"] is not None]
    if compared:
        sections.append(
            (
                f"{table['test_set']}: {title} against {baseline}",
                [
                    "Relative differences over the seeds that both have, with intervals on the "
                    "same draws of utterances. p: of a difference as large between methods that "
                    "are equally good, by two tests over utterances; the larger of both, corrected "
                    "for all rows (Holm); and by Welch's t-test over seeds. An asterisk: below "
                    "0.05 with the correction."
                ],
                _comparison_table(summary, compared),
            )
        )
    if len(languages) > 1:
        sections.append(
            (
                f"{table['test_set']}: {title} by language",
                ["Means over seeds; in parentheses the change relative to the baseline."],
                _language_table(summary, table, languages),
            )
        )
    return sections


def _notes(summary: Mapping[str, Any], table: Mapping[str, Any]) -> list[str]:
    notes = [
        "Means over seeds, with two 95% intervals: of these seeds over other utterances, by the "
        "bootstrap (an utterance is drawn with its hypotheses of all seeds), and of the mean over "
        "other seeds, by Student's t."
    ]
    if summary["baseline"]:
        notes.append(
            f"Relative: against {summary['baseline']} with as much paired speech; an asterisk: "
            "significant (below)."
        )
    lacking = [
        f"{row['method']} ({row['amount']}): {len(row['seeds'])}"
        for row in table["rows"]
        if len(row["seeds"]) < len(summary["seeds"])
    ]
    if lacking:
        notes.append(f"Fewer seeds than {len(summary['seeds'])}: {', '.join(lacking)}.")
    return notes


def _relative(row: Row) -> str:
    found = row["comparison"]
    if found is None:
        return ""
    ratio = found["average"]["ratio"]
    mark = " *" if found["significant"] else ""
    return "-" if ratio is None else f"{100 * (ratio - 1):+.1f}%{mark}"


def _comparison_table(summary: Mapping[str, Any], rows: Sequence[Row]) -> _Table:
    several = len(summary["amounts"]) > 1
    header = ["method", *(["paired"] if several else []), "relative", "95%, utterances"]
    header += ["p, bootstrap", "p, randomisation", "p, all rows", "p, seeds"]
    cells = []
    for row in rows:
        found = row["comparison"]
        average = found["average"]
        ends = average["ratio_interval"]
        cells.append(
            [
                row["method"],
                *([row["amount"]] if several else []),
                _relative(row),
                "-"
                if ends is None
                else f"{100 * (ends[0] - 1):+.1f}% to {100 * (ends[1] - 1):+.1f}%",
                _p_value(average["bootstrap_p_value"]),
                _p_value(average["randomisation_p_value"]),
                _p_value(found["adjusted_p_value"]),
                _p_value(found["seeds_p_value"]),
            ]
        )
    return header, cells


def _language_table(
    summary: Mapping[str, Any], table: Mapping[str, Any], languages: Sequence[str]
) -> _Table:
    several = len(summary["amounts"]) > 1
    header = ["method", *(["paired"] if several else []), *languages, AVERAGE]
    cells = []
    for row in table["rows"]:
        found = row["comparison"]
        compared = {} if found is None else {each["name"]: each for each in found["rows"]}
        if found is not None:
            compared[AVERAGE] = found["average"]
        line = [row["method"], *([row["amount"]] if several else [])]
        for name in (*languages, AVERAGE):
            # The average of error rates has a name of its own; a language has its metric.
            metric = compared[name]["metric"] if name in compared else row["metric"]
            scores = row["scores"][name]
            text = _number((scores.get(metric) or scores[row["metric"]])["mean"])
            ratio = compared.get(name, {}).get("ratio")
            line.append(text if ratio is None else f"{text} ({100 * (ratio - 1):+.0f}%)")
        cells.append(line)
    return header, cells


def _conditions_sections(
    summary: Mapping[str, Any],
) -> list[tuple[str, list[str], _Table | None]]:
    """Returns a section for each test set that was evaluated under conditions as well."""
    by_set: dict[str, list[Mapping[str, Any]]] = {}
    for table in summary["tables"]:
        by_set.setdefault(table["test_set"], []).append(table)
    several = len(summary["amounts"]) > 1
    sections: list[tuple[str, list[str], _Table | None]] = []
    for test_set, tables in by_set.items():
        if len(tables) < 2:
            continue
        rows: dict[tuple[str, str], list[str]] = {}
        for place, table in enumerate(tables):
            for row in table["rows"]:
                cells = rows.setdefault((row["method"], row["amount"]), ["-"] * len(tables))
                cells[place] = _with_change(row)
        conditions = [table["condition"] or "clean" for table in tables]
        header = ["method", *(["paired"] if several else []), *conditions]
        lines = [[m, *([amount] if several else []), *own] for (m, amount), own in rows.items()]
        note = "Means and standard deviations over seeds; in parentheses relative to the baseline."
        title = f"{test_set} in several domains: {tables[0]['rows'][0]['title']}"
        sections.append((title, [note], (header, lines)))
    return sections


def _with_change(row: Row) -> str:
    """Formats mean, standard deviation, and the change relative to the baseline if there is one."""
    spread, found = row["scores"][AVERAGE][row["metric"]], row["comparison"]
    text = f"{_number(spread['mean'])} \u00b1 {_number(spread['sd'])}"
    if found is None or found["average"]["ratio"] is None:
        return text
    mark = "*" if found["significant"] else ""
    return f"{text} ({100 * (found['average']['ratio'] - 1):+.0f}%{mark})"


def _cost_table(costs: Sequence[Mapping[str, Any]]) -> _Table:
    several = len({cost["amount"] for cost in costs}) > 1
    on_device = any(cost["device_gib"] for cost in costs)
    header = ["method", *(["paired"] if several else []), "pretraining steps", "fine-tuning steps"]
    header += ["FLOPs", "hours", "host GiB", *(["device GiB"] if on_device else [])]
    cells = [
        [
            cost["method"],
            *([cost["amount"]] if several else []),
            str(cost["steps"].get("pretrain", "")),
            str(cost["steps"].get("finetune", "")),
            "-" if cost["flops"] is None else f"{cost['flops']:.2e}",
            f"{cost['hours']:.3f}",
            f"{cost['host_gib']:.1f}",
            *([_number(cost["device_gib"])] if on_device else []),
        ]
        for cost in costs
    ]
    return header, cells


def _figures(summary: Mapping[str, Any]) -> dict[str, tuple[bytes, str]]:
    """Draws the figures; returns png and caption by name."""
    figures = {}
    tables = [t for t in summary["tables"] if t["split"] == "test" and not t["condition"]]
    for index, table in enumerate(tables):
        suffix = str(index or "")
        figures[f"scores{suffix}"] = (
            _draw_scores(summary, table),
            f"{table['test_set']}: a dot is a seed, the line the 95% interval of the mean over "
            "utterances.",
        )
        if len(summary["amounts"]) > 1:
            figures[f"amounts{suffix}"] = (
                _draw_amounts(summary, table),
                f"{table['test_set']} beside the minutes of paired speech; bands: 95% confidence "
                "of the mean over seeds (Student's t).",
            )
    if summary["curves"]:
        figures["curves"] = (
            _draw_curves(summary),
            "Validation over the steps of fine-tuning; bands: 95% confidence of the mean over "
            "seeds (Student's t).",
        )
    return figures


def _draw_scores(summary: Mapping[str, Any], table: Mapping[str, Any]) -> bytes:
    rows = table["rows"]
    several = len(summary["amounts"]) > 1
    figure = new_figure(9.0, 1.0 + 0.36 * len(rows))
    axis = figure.subplots()
    for place, row in enumerate(rows):
        color = COLORS[summary["methods"].index(row["method"]) % len(COLORS)]
        spread, interval = row["scores"][AVERAGE][row["metric"]], row["intervals"][AVERAGE]
        if interval is not None:
            axis.plot(interval, [place, place], color=color, linewidth=2.2, alpha=0.45)
        values = [value for value in spread["by_seed"].values() if value is not None]
        axis.plot(values, [place] * len(values), "o", color=color, markersize=4.5, alpha=0.7)
        if spread["mean"] is not None:
            axis.plot([spread["mean"]], [place], "|", color=color, markersize=16, markeredgewidth=2)
    labels = [f"{r['method']}, {r['amount']}" if several else r["method"] for r in rows]
    axis.set_yticks(range(len(rows)), labels, parse_math=False)
    axis.set_ylim(len(rows) - 0.4, -0.6)
    axis.set_xlabel(rows[0]["title"])
    axis.grid(alpha=0.25, axis="x")
    return _png(figure)


def _draw_amounts(summary: Mapping[str, Any], table: Mapping[str, Any]) -> bytes:
    figure = new_figure(9.0, 4.6)
    axis = figure.subplots()
    languages = [name for name in table["rows"][0]["scores"] if name != AVERAGE]
    ticks = sorted({_paired_minutes(row["minutes"], languages) for row in table["rows"]})
    for index, method in enumerate(summary["methods"]):
        rows = [row for row in table["rows"] if row["method"] == method]
        if not rows:
            continue
        minutes = [_paired_minutes(row["minutes"], languages) for row in rows]
        spreads = [row["scores"][AVERAGE][row["metric"]] for row in rows]
        _draw_band(
            axis,
            np.array(minutes),
            *(np.array(each) for each in zip(*map(_t_band, spreads), strict=True)),
            index=index,
            label=method,
        )
    axis.set_xscale("log" if ticks[0] > 0 else "linear")
    axis.set_xticks(ticks, [f"{tick:.1f}" for tick in ticks])
    axis.set_xticks([], minor=True)
    axis.set_xlabel("minutes of paired speech")
    _show_means(axis)
    axis.set_ylabel(table["rows"][0]["title"])
    axis.grid(alpha=0.25)
    axis.legend(frameon=False, fontsize=8, ncols=2)
    return _png(figure)


def _t_band(spread: Mapping[str, Any]) -> tuple[float, float, float]:
    mean = np.nan if spread["mean"] is None else spread["mean"]
    low, high = spread["interval"] or (np.nan, np.nan)
    return mean, low, high


def _draw_curves(summary: Mapping[str, Any]) -> bytes:
    panels = list(dict.fromkeys((curve["amount"], curve["metric"]) for curve in summary["curves"]))
    figure = new_figure(9.0, 3.9 * len(panels))
    axes = figure.subplots(len(panels), 1, squeeze=False).ravel()
    for axis, (amount, metric) in zip(axes, panels, strict=True):
        for curve in summary["curves"]:
            if (curve["amount"], curve["metric"]) == (amount, metric):
                bands = (np.array(curve[key], np.float64) for key in ("mean", "low", "high"))
                index = summary["methods"].index(curve["method"])
                _draw_band(
                    axis, np.array(curve["steps"]), *bands, index=index, label=curve["method"]
                )
        name = "validation" + (f", paired: {amount}" if len(summary["amounts"]) > 1 else "")
        axis.set_title(name, parse_math=False, fontsize=11)
        axis.set_ylabel(metric.upper())
        axis.set_xlabel("step of fine-tuning")
        _show_means(axis)
        axis.xaxis.set_major_formatter(thousands)
        axis.grid(alpha=0.25)
        axis.legend(frameon=False, fontsize=8, ncols=2)
    return _png(figure)


def _draw_band(
    axis: Any,
    steps: np.ndarray,
    mean: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    *,
    index: int,
    label: str,
) -> None:
    """Draws a curve and its band."""
    color = COLORS[index % len(COLORS)]
    style = ("-", "--", ":")[index // len(COLORS) % 3]
    axis.plot(steps, mean, style, color=color, linewidth=1.6, marker="o", markersize=3, label=label)
    axis.fill_between(steps, low, high, color=color, alpha=0.12, linewidth=0)


def _show_means(axis: Any) -> None:
    """Begins the vertical axis at 0, and cuts off bands that are far wider than the means."""
    means = np.concatenate([line.get_ydata() for line in axis.lines])
    highest = float(np.nanmax(means, initial=0.0))
    if highest > 0:
        axis.set_ylim(0, 1.3 * highest)


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    save_figure(figure, buffer)
    return buffer.getvalue()


def _provenance(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    git = summary["git"]
    now = "unknown" if git is None else git["commit"] + (" with changes" if git["changed"] else "")
    return [
        ("command", " ".join(summary["argv"])),
        ("commits of the runs", ", ".join(summary["commits"]) or "none yet"),
        ("commit of this page", now),
        ("trained on", ", ".join(summary["trained"]) or "nothing yet"),
        ("written", summary["date"]),
        ("devices of a cell", ", ".join(summary["devices"]) or "none yet"),
        ("seeds", ", ".join(map(str, summary["seeds"]))),
    ]


def _markdown(
    summary: Mapping[str, Any],
    sections: Sequence[tuple[str, list[str], _Table | None]],
    figures: Mapping[str, tuple[bytes, str]],
) -> str:
    lines = []
    for index, (title, notes, table) in enumerate(sections):
        lines += [f"{'#' if not index else '##'} {title}", ""]
        if table is not None:
            header, rows = table
            escaped = [[cell.replace("|", "\\|") for cell in row] for row in rows]
            lines += [align_columns(header, escaped, _alignment(header), "pipe"), ""]
        lines += [*(f"- {note}" for note in notes), ""]
    if figures:
        lines += ["## Figures", ""]
    for name, (_, caption) in figures.items():
        lines += [f"![{caption}]({name}.png)", "", caption, ""]
    lines += ["## How it was made", ""]
    lines += [f"- {name}: `{value}`" for name, value in _provenance(summary)]
    return "\n".join(lines) + "\n"


def _html(
    summary: Mapping[str, Any],
    sections: Sequence[tuple[str, list[str], _Table | None]],
    figures: Mapping[str, tuple[bytes, str]],
) -> str:
    parts = []
    for index, (title, notes, table) in enumerate(sections):
        level = 2 if index else 1
        parts.append(f"<h{level}>{html.escape(title)}</h{level}>")
        if table is not None:
            parts.append(_html_table(*table))
        parts += [f'<p class="note">{html.escape(note)}</p>' for note in notes]
    for png, caption in figures.values():
        image = base64.b64encode(png).decode()
        text = html.escape(caption)
        parts.append(
            f'<figure><img src="data:image/png;base64,{image}" alt="{text}">'
            f"<figcaption>{text}</figcaption></figure>"
        )
    parts.append("<h2>How it was made</h2>")
    rows = "\n".join(
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>"
        for name, value in _provenance(summary)
    )
    parts.append(f"<table>\n{rows}\n</table>")
    title = html.escape(f"Study: {summary['study']}")
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{STYLE}
.scroll {{ overflow-x: auto; }} td.number, th.number {{ text-align: right; white-space: nowrap; }}
</style>
</head>
<body>
{chr(10).join(parts)}
</body>
</html>
"""


def _html_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    classes = [' class="number"' if side == "right" else "" for side in _alignment(header)]

    def line(cells: Sequence[str], tag: str) -> str:
        return "".join(
            f"<{tag}{kind}>{html.escape(cell)}</{tag}>"
            for cell, kind in zip(cells, classes, strict=True)
        )

    body = "\n".join(f"<tr>{line(row, 'td')}</tr>" for row in rows)
    return f'<div class="scroll"><table>\n<tr>{line(header, "th")}</tr>\n{body}\n</table></div>'


def _alignment(header: Sequence[str]) -> list[str]:
    return ["left" if name in ("method", "paired") else "right" for name in header]


def _paired_minutes(minutes: Mapping[str, float], languages: Sequence[str]) -> float:
    """Returns the minutes of the languages of a test set together."""
    return sum(minutes.get(name, minutes.get(name.partition("-")[0], 0.0)) for name in languages)


def _minutes(minutes: Mapping[str, float], languages: Sequence[str]) -> str:
    return f"{_paired_minutes(minutes, languages):.1f}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _interval(interval: Sequence[float] | None) -> str:
    return "-" if interval is None else f"{interval[0]:.1f} to {interval[1]:.1f}"


def _p_value(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"

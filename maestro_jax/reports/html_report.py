"""`report.html`: scores, health checks and diagnostics of a run on one page without any other file.

It is made of what training and evaluation write (`metrics.jsonl`, `diagnostics/`, `evaluation/`),
while training runs or at any time after it.
"""

from __future__ import annotations

import base64
import dataclasses
import html
import io
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath

from maestro_jax.files import as_path, storage_error, write_atomically
from maestro_jax.reports.figures import (
    Panel,
    plot_alignment,
    plot_bars,
    plot_code_usage,
    plot_durations,
    plot_losses,
    plot_panels,
    plot_similarities,
    plot_similarity,
)
from maestro_jax.reports.health_checks import FAIL, OK, WARN, check_health, last
from maestro_jax.reports.run_log import Curve, RunLog, read_curves, read_run_log
from maestro_jax.training.callbacks import Callback
from maestro_jax.training.metrics import duration
from maestro_jax.training.run import TrainRun
from maestro_jax.training.trainer import Trainer, train

log = logging.getLogger(__name__)

REPORT_FILE = "report.html"
_STATUSES = {OK: "OK", WARN: "warning", FAIL: "failed"}
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 68rem; margin: 2rem auto;
       padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin: 2.2rem 0 .4rem;
       border-bottom: 1px solid #ddd; }
nav a { margin-right: .9rem; } a { color: #0072B2; }
table { border-collapse: collapse; margin: .6rem 0; }
td, th { padding: .2rem .8rem .2rem 0; text-align: left; vertical-align: top; }
th { font-weight: 600; white-space: nowrap; }
.mark { display: inline-block; min-width: 4.5rem; padding: 0 .5rem; border-radius: .6rem;
        text-align: center; color: #fff; }
.ok { background: #00795a; } .warn { background: #b06f00; } .fail { background: #b33a00; }
.bar { display: inline-block; height: .7rem; background: #0072B2; }
figure { margin: 1rem 0; } img { max-width: 100%; height: auto; }
figcaption, .note { color: #555; font-size: .92em; }
"""


@dataclasses.dataclass(frozen=True)
class ReportFigure:
    """A figure of the report.

    Attributes:
        png: Content of the png file.
        caption: One or two sentences.
        name: Name of the figure in TensorBoard, for one of the latest probe; empty for curves,
            which TensorBoard draws itself.
    """

    png: bytes
    caption: str
    name: str = ""


def write_report(model_dir: epath.PathLike) -> tuple[epath.Path, dict[str, bytes]]:
    """Writes `report.html` into a model directory.

    Args:
        model_dir: The model directory.

    Returns:
        The path of the page, and its figures as png by name.

    Raises:
        UserError: The directory has no metrics.
    """
    directory = as_path(model_dir)
    run_log = read_run_log(directory)
    pngs: dict[str, bytes] = {}
    sections = []
    for name, title, draw in SECTIONS:
        figures = draw(run_log)
        for index, figure in enumerate(figures):
            pngs[figure.name or f"{name}_{index}"] = figure.png
        body = "\n".join(map(_figure_html, figures))
        body = body or f'<p class="note">{_reason_for_no_figure(name)}</p>'
        sections.append(_section(name, title, body))
    path = directory / REPORT_FILE
    write_atomically(path, _page(directory.name, run_log, sections).encode())
    return path, pngs


def tensorboard_images(pngs: Mapping[str, bytes]) -> dict[str, np.ndarray]:
    """Decodes the figures of `write_report` that are no curves, `[height, width, 3]` uint8."""
    if not pngs:
        return {}
    from matplotlib.image import imread

    return {
        f"report/{name}": (imread(io.BytesIO(pngs[name]))[..., :3] * 255).astype(np.uint8)
        for name in ("durations", "alignment", "similarity", "codes")
        if name in pngs
    }


def update_report(model_dir: epath.PathLike, step: int) -> dict[str, np.ndarray]:
    """Writes the report during training; logs errors instead of raising them.

    Args:
        model_dir: The model directory.
        step: Training step, for messages.

    Returns:
        The figures for TensorBoard.
    """
    try:
        return tensorboard_images(write_report(model_dir)[1])
    except Exception as error:
        # A figure that cannot be drawn must not end a run of days.
        trouble = storage_error(error)
        said = "" if trouble is None else f" ({trouble})"
        details = error if trouble is None else None
        log.error("%s could not be written at step %d%s", REPORT_FILE, step, said, exc_info=details)
        return {}


class ReportWriter(Callback):
    """Writes the report with all diagnostics and validations, and gives trackers its figures."""

    def on_log(self, trainer: Trainer, step: int, metrics: Mapping[str, float]) -> None:
        """Writes the report if diagnostics or a validation have been logged."""
        if {"diagnostics_seconds", "validation_seconds"}.isdisjoint(metrics):
            return
        if jax.process_index() == 0:
            with trainer.paused():
                # The report is made of the metrics, which a bucket does not have line by line.
                for tracker in trainer.trackers:
                    tracker.flush()
                images = update_report(trainer.model_dir, step)
                for tracker in trainer.trackers:
                    tracker.log_images(step, images)


def train_with_report(
    run: TrainRun,
    *,
    model_dir: str | Path,
    data_dir: str | Path | None = None,
    callbacks: Sequence[Callback] = (),
    allow_changes: bool = False,
    take_over: bool = False,
) -> None:
    """Trains, and writes `report.html` with all diagnostics and at the end.

    Args:
        run: The run.
        model_dir: The model directory.
        data_dir: Root of the prepared data.
        callbacks: Callbacks besides those of the run.
        allow_changes: As of `trainer.Trainer`.
        take_over: As of `trainer.Trainer`.
    """
    train(
        run,
        model_dir=model_dir,
        data_dir=data_dir,
        callbacks=[*callbacks, ReportWriter()],
        allow_changes=allow_changes,
        take_over=take_over,
    )
    path = as_path(model_dir) / REPORT_FILE
    if jax.process_index() == 0:
        if not (run.diagnostics.every or run.validation.every) or not path.exists():
            update_report(model_dir, run.steps)
        log.info("the report of the run is %s", path)


def draw_curves(model_dir: epath.PathLike) -> epath.Path:
    """Draws the loss curves of a run to `evaluation/losses.png`, and returns that path."""
    path = as_path(model_dir) / "evaluation" / "losses.png"
    plot_losses(read_curves(model_dir, ["loss", "loss/*"]), path)
    return path


def draw_probe(model_dir: epath.PathLike) -> list[epath.Path]:
    """Draws an alignment, durations and the similarity of speech and text of a run's last probe.

    Args:
        model_dir: Model directory of a run with diagnostics; figures go to its `evaluation` folder.

    Returns:
        The paths of the figures; none for a run without probes.

    Raises:
        UserError: The directory has no metrics.
    """
    run_log = read_run_log(model_dir)
    if not run_log.probes:
        return []
    step, arrays = run_log.probes[-1]
    seconds = run_log.frame_seconds
    directory = as_path(model_dir) / "evaluation"
    title = "".join(run_log.pieces).replace("\u2581", " ").strip()
    paths = [directory / f"{name}.png" for name in ("alignment", "durations", "similarity")]
    plot_alignment(
        arrays["emission_frames"],
        run_log.pieces,
        seconds,
        paths[0],
        mel=arrays["mel"],
        mel_frame_seconds=run_log.mel_frame_seconds,
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


def _section(name: str, title: str, body: str) -> str:
    return f'<section id="{name}">\n<h2>{html.escape(title)}</h2>\n{body}\n</section>'


def _page(name: str, run_log: RunLog, figure_sections: Sequence[str]) -> str:
    first = [("summary", "Summary", _summary(run_log)), ("health", "Health", _health(run_log))]
    if time_spent := _goodput(run_log):
        first.append(("goodput", "Goodput", time_spent))
    if run_log.scores:
        tables = [_scores(title, content) for title, content in run_log.scores.items()]
        first.append(("scores", "Scores", "\n".join(tables)))
    names = [(section, title) for section, title, _ in (*first, *SECTIONS)]
    links = "".join(f'<a href="#{section}">{html.escape(title)}</a>' for section, title in names)
    sections = [*(_section(*section) for section in first), *figure_sections]
    title = html.escape(f"Training report: {name}")
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{STYLE}</style>
</head>
<body>
<h1>{title}</h1>
<nav>{links}</nav>
{chr(10).join(sections)}
</body>
</html>
"""


def _summary(run_log: RunLog) -> str:
    curves, run = run_log.curves, run_log.description
    done = max(int(steps[-1]) for steps, _ in curves.values())
    rows = [("steps", f"{done:,} of {run['steps']:,}" if "steps" in run else f"{done:,}")]
    elapsed = last(curves, "elapsed_seconds")
    if elapsed is not None:
        rows.append(("elapsed time", duration(elapsed)))
    spent = curves.get("diagnostics_seconds")
    if spent is not None:
        rows.append(("spent on diagnostics", duration(float(np.nansum(spent[1])))))
    if run:
        rows += [
            ("model", f"{run['model']}, {run['parameters']:,} parameters"),
            ("objective", run["objective"]),
            ("device", f"{run['device']}, mesh {run['mesh']}"),
            ("seed", str(run["seed"])),
        ]
        if run["weights"]:
            weights = ", ".join(f"{name} {weight}" for name, weight in run["weights"].items())
            rows.append(("loss weights", weights))
        for name, stream in run["streams"].items():
            buckets = (stream.get("buckets") or {}).get("batch_sizes", ())
            sizes = " or ".join(str(size) for size in (*buckets, stream["batch_size"]))
            rows.append((f"stream {name}", f"{stream['mixture']}, {sizes} examples per step"))
        if run_log.probes:
            held = run["held_out"]
            rows.append(("held-out pairs", f"{held['mixture']}, split {held['split']}"))
    cells = "\n".join(
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>"
        for name, value in rows
    )
    return f"<table>\n{cells}\n</table>"


def _health(run_log: RunLog) -> str:
    rows = "\n".join(
        f'<tr><td><span class="mark {check.status}">{_STATUSES[check.status]}</span></td>'
        f"<th>{html.escape(check.subject)}</th><td>{html.escape(check.text)}</td></tr>"
        for check in check_health(run_log.curves, run_log.description, run_log.codes)
    )
    return f"<table>\n{rows}\n</table>"


_MEANINGS = {
    "start": "from the start of a process to its first step",
    "compile": "steps that were compiled",
    "input": "devices waited for a batch",
    "step": "all other steps",
    "checkpoint": "saving, as far as training waited for it",
    "diagnostics": "diagnostics, validation, reports, checks",
    "lost": "done again after a restart or a rollback",
    "down": "between two processes",
}


def _goodput(run_log: RunLog) -> str:
    """Formats the account of the run's time as a table; empty for a run without one."""
    curves = run_log.curves
    seconds = {part: last(curves, f"goodput/{part}_seconds") or 0.0 for part in _MEANINGS}
    total = sum(seconds.values())
    if not total:
        return ""
    rows = "\n".join(
        f"<tr><th>{part}</th><td>{duration(spent)}</td><td>{spent / total:.1%}</td>"
        f'<td><span class="bar" style="width: {12 * spent / total:.2f}rem"></span></td>'
        f"<td>{_MEANINGS[part]}</td></tr>"
        for part, spent in seconds.items()
    )
    notes = [f"{seconds['step'] / total:.1%} of {duration(total)} were steps."]
    # The speed of the steps, and that of the run, all its time counted.
    for name, text in (
        ("mfu", "Model-FLOPs utilisation: {:.1%} during steps, {:.1%} of the whole time."),
        ("audio_hours_per_second", "Audio per second: {:.3g} h during steps, {:.3g} h over all."),
    ):
        if name in curves and np.isfinite(curves[name][1]).any():
            mean = float(np.nanmean(curves[name][1]))
            busy = seconds["step"] + seconds["input"]
            notes.append(text.format(mean, mean * busy / total))
    return f"<p>{' '.join(notes)}</p>\n<table>\n{rows}\n</table>"


def _scores(title: str, content: Mapping[str, Any]) -> str:
    """Formats a score file of `maestro eval` as a table with all metrics that it has."""
    metrics = [name for name in content["units"] if name != "error_rate"]
    # Files of earlier versions have no titles.
    titles = content.get("titles", {})
    header = ["", "utterances", *(titles.get(name, name.upper()) for name in metrics)]
    rows = [
        [row["direction"], str(row["utterances"])]
        + [_score(row.get(name), row.get(f"{name}_interval")) for name in metrics]
        for row in content["rows"]
    ]
    rows += [
        [
            f"average of {len(average['rows'])}"
            + ("" if average["name"] == "all" else f", {average['name']}"),
            "",
        ]
        + [_score(average.get(name)) for name in metrics]
        for average in content["averages"]
    ]
    lines = ["<tr>" + "".join(f"<th>{html.escape(cell)}</th>" for cell in header) + "</tr>"]
    lines += [
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>"
        for cells in rows
    ]
    by_character = [
        row["direction"] for row in content["rows"] if row.get("primary_metric") == "cer"
    ]
    note = ""
    if by_character:
        note = (
            f"\n<p>{html.escape(', '.join(by_character))}: the CER counts, for there are no spaces "
            "between words.</p>"
        )
    return f"<h3>{html.escape(title)}</h3>\n<table>\n{chr(10).join(lines)}\n</table>{note}"


def _score(value: float | None, interval: Sequence[float] | None = None) -> str:
    if value is None:
        return "-"
    return f"{value:.1f}" + (f" ({interval[0]:.1f} to {interval[1]:.1f})" if interval else "")


def _figure_html(figure: ReportFigure) -> str:
    data = base64.b64encode(figure.png).decode()
    caption = html.escape(figure.caption)
    return (
        f'<figure><img alt="{caption}" src="data:image/png;base64,{data}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _reason_for_no_figure(section: str) -> str:
    needs = {
        "validation": "EVAL_EVERY above 0, and a validation split",
        "gradients": "DiagnosticsConfig.every above 0",
        "durations": "diagnostics with held-out pairs",
        "alignment": "diagnostics with held-out pairs",
        "retrieval": "diagnostics with held-out pairs",
        "codes": "a quantizer and a stream of speech",
    }.get(section, "a log point")
    return f"Nothing to show: this section needs {needs}."


def losses(run_log: RunLog) -> list[ReportFigure]:
    """Draws the whole loss, and its terms before weighting."""
    units = run_log.description.get("term_units", {})
    by_unit: dict[str, dict[str, Curve]] = {}
    for name, curve in run_log.series("loss/").items():
        by_unit.setdefault(units.get(name, "loss"), {})[name] = curve
    held_out = run_log.named(transducer_held_out="probe/transducer_loss")
    if held_out:
        by_unit.setdefault(units.get("transducer", "loss"), {}).update(held_out)
    panels = [
        Panel("total loss", "loss", run_log.named(loss="loss"), smooth=True),
        *(
            Panel(f"terms in {unit}", unit, curves, log=True, smooth=True)
            for unit, curves in by_unit.items()
        ),
    ]
    return _panels(panels, "Terms before weighting; held out: on the held-out pairs of the probe.")


def validation(run_log: RunLog) -> list[ReportFigure]:
    """Draws losses and scores of the validation sample, one panel for the losses and per metric."""
    panels: dict[str, dict[str, Curve]] = {}
    for name, curve in run_log.series("validation/").items():
        # `loss/<term>`, `wer/<language>`; the stream comes before them if there are two.
        parts = name.split("/")
        metric = parts[1] if parts[0] in ("paired", "st") else parts[0]
        panels.setdefault(metric, {})[name] = curve
    return _panels(
        [Panel(f"validation {metric}", metric, series) for metric, series in panels.items()],
        "A fixed sample of the validation split, with averaged weights, decoded greedily.",
    )


def gradients(run_log: RunLog) -> list[ReportFigure]:
    """Draws norms of gradients: of each term, and of the whole loss."""
    norms = run_log.series("grad_norm/")
    panels = [
        *(
            [Panel("of each term, before weighting", "gradient norm", norms, log=True)]
            if any(len(steps) > 1 for steps, _ in norms.values())
            else []
        ),
        Panel(
            "of the whole loss",
            "gradient norm",
            run_log.named(grad_norm="grad_norm"),
            log=True,
            smooth=True,
        ),
    ]
    figures = _panels(panels, "Norms over all parameters, before clipping.")
    weights = run_log.description.get("weights", {})
    bars: dict[str, dict[str, float]] = {}
    for name, (_, values) in norms.items():
        if values[-1] > 0:
            bars[name] = {"before weighting": float(values[-1])}
            weight = weights.get(name)
            if isinstance(weight, int | float) and weight > 0:
                bars[name]["times its weight"] = float(values[-1]) * weight
    if bars:
        png = _draw(lambda to: plot_bars(bars, to, unit="gradient norm"))
        step = max(int(steps[-1]) for steps, _ in norms.values())
        figures.append(ReportFigure(png, f"The last measurement, at step {step}."))
    return figures


def durations(run_log: RunLog) -> list[ReportFigure]:
    """Draws predicted durations against those of the alignment."""
    panels = [
        Panel(
            "error on held-out pairs",
            "encoder frames",
            run_log.named(
                predicted="probe/duration_error",
                constant_per_utterance="probe/duration_error_constant",
                predicted_in_training="paired/duration_error_frames",
            ),
            references=("constant per utterance",),
            from_zero=True,
        ),
        Panel(
            "predicted over spoken length",
            "ratio",
            run_log.named(length_of_texts="probe/duration_ratio"),
            from_zero=True,
        ),
    ]
    figures = _panels(
        panels, "Mean absolute error of the duration model against the transducer's best path."
    )
    for step, arrays in run_log.probes[-1:]:
        if arrays["aligned"].size:
            buffer = io.BytesIO()
            plot_durations(
                arrays["aligned"],
                arrays["predicted"],
                buffer,
                frame_seconds=run_log.frame_seconds,
                title="",
            )
            caption = f"Durations of held-out labels at step {step}."
            figures.append(ReportFigure(buffer.getvalue(), caption, "durations"))
    return figures


def alignments(run_log: RunLog) -> list[ReportFigure]:
    """Draws the entropy of alignments, and one alignment at the first and at the last probe."""
    figures = []
    for step, arrays in run_log.probes:
        if not arrays["posterior"].size:
            continue

        def draw(to: io.BytesIO, arrays: Mapping[str, np.ndarray] = arrays) -> None:
            plot_alignment(
                arrays["posterior"].astype(np.float32),
                run_log.pieces,
                run_log.frame_seconds,
                to,
                mel=arrays["mel"],
                mel_frame_seconds=run_log.mel_frame_seconds,
                emissions=arrays["emission_frames"],
                title="",
            )

        name = "alignment" if step == run_log.probes[-1][0] else ""
        figures.append(ReportFigure(_draw(draw), f"A held-out utterance at step {step}.", name))
    panels = [
        Panel(
            "entropy of the frame of a label",
            "nats per label",
            run_log.named(held_out="probe/alignment_entropy", training="paired/alignment_entropy"),
            from_zero=True,
        ),
        Panel(
            "frames that the first and the last label own",
            "fraction of the frames",
            run_log.named(
                first_label="paired/first_label_fraction", last_label="paired/last_label_fraction"
            ),
            from_zero=True,
        ),
    ]
    return figures + _panels(
        panels, "Entropy 0: all paths agree. A first or last label that owns most: a collapse."
    )


def retrieval(run_log: RunLog) -> list[ReportFigure]:
    """Draws retrieval and cosine of matched frames, and all cosines of one utterance."""
    panels = []
    for prefix, where in (("", "input of the shared encoder"), ("top_", "output of it")):
        metric = f"probe/retrieval/{prefix}"
        panels += [
            Panel(
                f"retrieval, {where}",
                "accuracy",
                run_log.named(
                    speech_to_text=f"{metric}speech_to_text",
                    text_to_speech=f"{metric}text_to_speech",
                    chance=f"{metric}chance",
                    the_token=f"{metric}token_speech_to_text",
                    the_token_by_chance=f"{metric}token_chance",
                ),
                references=("chance", "the token by chance"),
                from_zero=True,
            ),
            Panel(
                f"cosine, {where}",
                "cosine",
                run_log.named(
                    matched_frames=f"probe/{prefix}cosine",
                    other_frames=f"probe/{prefix}cosine_unmatched",
                ),
                references=("other frames",),
            ),
        ]
    figures = _panels(
        panels,
        "Accuracy of finding, among all frames of the utterance, the frame (or a frame of the "
        "token) that the alignment matches a frame with.",
    )
    matrices: dict[str, np.ndarray] = {}
    for step, arrays in run_log.probes:
        if arrays["similarity"].size:
            matrices[f"input, step {step}"] = arrays["similarity"]
            matrices[f"output, step {step}"] = arrays["top_similarity"]
    if matrices:
        png = _draw(lambda to: plot_similarities(matrices, to, frame_seconds=run_log.frame_seconds))
        figures.append(
            ReportFigure(
                png,
                "Speech against resampled text; matched frames are on the diagonal.",
                "similarity",
            )
        )
    return figures


def codes(run_log: RunLog) -> list[ReportFigure]:
    """Draws how many codes are in use, and how evenly."""
    panels = [
        Panel(
            "codes in use",
            "codes",
            {
                **run_log.named(
                    perplexity_in_training="speech/code_perplexity",
                    perplexity_held_out="probe/code_perplexity",
                    occurring_held_out="probe/codes_used",
                ),
                **_all_codes(run_log),
            },
            references=("all",),
            from_zero=True,
        ),
        Panel(
            "accuracy on masked frames",
            "accuracy",
            run_log.named(
                contrastive="speech/contrastive_accuracy",
                prediction="speech/masked_accuracy",
                contrastive_by_chance="speech/contrastive_chance",
                commonest_code="speech/masked_chance",
            ),
            references=("contrastive by chance", "commonest code"),
            from_zero=True,
        ),
    ]
    figures = _panels(
        panels, "Perplexity: the number of codes that would be as diverse if they were used evenly."
    )
    usage = {
        f"step {step}": arrays["code_counts"].sum(axis=0)
        for step, arrays in run_log.probes
        if arrays["code_counts"].sum()
    }
    if usage:
        png = _draw(lambda to: plot_code_usage(usage, to))
        figures.append(ReportFigure(png, "Codes of held-out frames.", "codes"))
    return figures


def learning_rates(run_log: RunLog) -> list[ReportFigure]:
    """Draws every learning rate."""
    rates = run_log.series("learning_rate")
    rates = {name.strip("/_") or "learning rate": curve for name, curve in rates.items()}
    return _panels([Panel("learning rate", "per update", rates, from_zero=True)], "")


def throughput(run_log: RunLog) -> list[ReportFigure]:
    """Draws the speed of the run and of each stream."""
    quantities = (
        ("examples", "examples/s"),
        ("audio_seconds", "seconds of audio/s"),
        ("tokens", "tokens/s"),
    )
    panels = [
        Panel("steps", "steps/s", run_log.named(all="steps_per_second"), from_zero=True),
        Panel(
            "model FLOPs utilisation",
            "fraction of the peak",
            run_log.named(all="mfu"),
            from_zero=True,
        ),
        *(
            Panel(
                f"{quantity.replace('_', ' ')} of each stream",
                unit,
                {
                    name.split("/")[0]: curve
                    for name, curve in run_log.curves.items()
                    if name.endswith(f"/{quantity}_per_second")
                },
                from_zero=True,
            )
            for quantity, unit in quantities
        ),
    ]
    return _panels(
        panels,
        "Time of diagnostics and compilation is left out.",
    )


def _all_codes(run_log: RunLog) -> dict[str, Curve]:
    """Returns a line at the size of the codebook."""
    steps = [steps for name, (steps, _) in run_log.curves.items() if "/code" in name]
    if run_log.codes is None or not steps:
        return {}
    ends = np.asarray([min(s[0] for s in steps), max(s[-1] for s in steps)])
    return {"all": (ends, np.full(2, float(run_log.codes)))}


def _panels(panels: Sequence[Panel], caption: str) -> list[ReportFigure]:
    """Draws the panels that have curves in one figure; none if none has."""
    drawable = [panel for panel in panels if panel.series]
    if not drawable:
        return []
    return [ReportFigure(_draw(lambda to: plot_panels(drawable, to)), caption)]


def _draw(draw: Callable[[io.BytesIO], None]) -> bytes:
    buffer = io.BytesIO()
    draw(buffer)
    return buffer.getvalue()


# In the order of the page.
SECTIONS: tuple[tuple[str, str, Callable[[RunLog], list[ReportFigure]]], ...] = (
    ("losses", "Losses", losses),
    ("validation", "Validation", validation),
    ("gradients", "Gradients", gradients),
    ("durations", "Durations", durations),
    ("alignment", "Alignment", alignments),
    ("retrieval", "Speech and text: retrieval and cosine", retrieval),
    ("codes", "Code usage", codes),
    ("learning_rates", "Learning rates", learning_rates),
    ("throughput", "Throughput", throughput),
)

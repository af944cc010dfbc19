"""`report.html`: the diagnostics of a run on one page that needs nothing but itself.

It is made of what training writes, `metrics.jsonl` and `diagnostics/`, while training runs or at
any time after it.
"""

from __future__ import annotations

import base64
import html
import importlib.util
import io
import json
import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from etils import epath

from maestro_jax.reports import report_sections
from maestro_jax.reports.curves import read_curves
from maestro_jax.reports.report_sections import Diagnosis, Picture
from maestro_jax.reports.verdicts import BAD, GOOD, WATCH, last, verdicts
from maestro_jax.training.model_vocabulary import token_names

log = logging.getLogger(__name__)

REPORT_FILE = "report.html"
# In the order of the page.
SECTIONS: tuple[tuple[str, str, Callable[[Diagnosis], list[Picture]]], ...] = (
    ("losses", "Losses", report_sections.losses),
    ("gradients", "Gradients", report_sections.gradients),
    ("durations", "Durations", report_sections.durations),
    ("alignment", "Alignment", report_sections.alignments),
    ("retrieval", "Speech and text: retrieval and cosine", report_sections.nearness),
    ("codes", "Code usage", report_sections.codes),
    ("learning_rates", "Learning rates", report_sections.learning_rates),
    ("throughput", "Throughput", report_sections.throughput),
)
_STATES = {GOOD: "good", WATCH: "look at it", BAD: "not (yet) healthy"}
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 68rem; margin: 2rem auto;
       padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin: 2.2rem 0 .4rem;
       border-bottom: 1px solid #ddd; }
nav a { margin-right: .9rem; } a { color: #0072B2; }
table { border-collapse: collapse; margin: .6rem 0; }
td, th { padding: .2rem .8rem .2rem 0; text-align: left; vertical-align: top; }
th { font-weight: 600; white-space: nowrap; }
.mark { display: inline-block; min-width: 8.4rem; padding: 0 .5rem; border-radius: .6rem;
        text-align: center; color: #fff; }
.good { background: #00795a; } .watch { background: #b06f00; } .bad { background: #b33a00; }
figure { margin: 1rem 0; } img { max-width: 100%; height: auto; }
figcaption, .note { color: #555; font-size: .92em; }
"""


def read_diagnosis(model_dir: epath.PathLike) -> Diagnosis:
    """What a run has written about itself.

    Args:
        model_dir: The model directory.

    Returns:
        Metrics, the description of the run, and its first and last probe; the latter are empty for
        a run without diagnostics.

    Raises:
        UserError: The directory has no metrics.
    """
    directory = epath.Path(model_dir).expanduser()
    curves = read_curves(directory)
    folder = directory / "diagnostics"
    description: dict[str, Any] = {}
    if (folder / "run.json").exists():
        description = json.loads((folder / "run.json").read_text())
    paths = sorted(folder.glob("*.npz"), key=lambda path: path.stem) if folder.exists() else []
    probes = []
    for path in [*paths[:1], *paths[1:][-1:]]:
        with np.load(io.BytesIO(path.read_bytes())) as arrays:
            probes.append((int(path.stem), dict(arrays)))
    pieces: Sequence[str] = ()
    if probes:
        pieces = token_names(directory, probes[-1][1]["tokens"])
    return Diagnosis(curves, description, probes, pieces)


def write_report(model_dir: epath.PathLike) -> tuple[epath.Path, dict[str, bytes]]:
    """Write `report.html` into a model directory.

    Where matplotlib is not installed, the page has no pictures, and a line of the log says so.

    Args:
        model_dir: The model directory.

    Returns:
        The page, and its pictures as png by name.

    Raises:
        UserError: The directory has no metrics.
    """
    directory = epath.Path(model_dir).expanduser()
    diagnosis = read_diagnosis(directory)
    drawing = importlib.util.find_spec("matplotlib") is not None
    if not drawing:
        log.warning("%s has no pictures: matplotlib is not installed", REPORT_FILE)
    pictures: dict[str, bytes] = {}
    parts = []
    for name, title, draw in SECTIONS:
        drawn = draw(diagnosis) if drawing else []
        figures = []
        for index, picture in enumerate(drawn):
            pictures[picture.name or f"{name}_{index}"] = picture.png
            figures.append(_figure(picture))
        body = "\n".join(figures) or f'<p class="note">{_absent(name, drawing)}</p>'
        parts.append(f'<section id="{name}">\n<h2>{html.escape(title)}</h2>\n{body}\n</section>')
    path = directory / REPORT_FILE
    path.write_text(_page(directory.name, diagnosis, parts), encoding="utf-8")
    return path, pictures


def tensorboard_pictures(pictures: dict[str, bytes]) -> dict[str, np.ndarray]:
    """Those of the pictures that are no curves, as `[height, width, 3]` uint8."""
    if not pictures:
        return {}
    from matplotlib.image import imread

    return {
        f"report/{name}": (imread(io.BytesIO(pictures[name]))[..., :3] * 255).astype(np.uint8)
        for name in ("durations", "alignment", "similarity", "codes")
        if name in pictures
    }


def reporter(model_dir: epath.PathLike) -> Callable[[int], dict[str, np.ndarray]]:
    """What `train` may call each time that diagnostics have been written.

    Args:
        model_dir: The model directory.

    Returns:
        A function that writes the report and gives its pictures for TensorBoard.
    """

    def write(step: int) -> dict[str, np.ndarray]:
        try:
            return tensorboard_pictures(write_report(model_dir)[1])
        except Exception:
            # A picture that cannot be drawn must not end a run of days.
            log.exception("%s could not be written at step %d", REPORT_FILE, step)
            return {}

    return write


def _page(name: str, diagnosis: Diagnosis, parts: Sequence[str]) -> str:
    links = "".join(
        f'<a href="#{section}">{html.escape(title)}</a>'
        for section, title in (
            ("summary", "Summary"),
            ("health", "Health"),
            *((section, title) for section, title, _ in SECTIONS),
        )
    )
    title = html.escape(f"Training report: {name}")
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>{title}</h1>
<nav>{links}</nav>
<section id="summary">
<h2>Summary</h2>
{_summary(diagnosis)}
</section>
<section id="health">
<h2>Health</h2>
{_health(diagnosis)}
</section>
{chr(10).join(parts)}
</body>
</html>
"""


def _summary(diagnosis: Diagnosis) -> str:
    curves, run = diagnosis.curves, diagnosis.description
    done = max(int(steps[-1]) for steps, _ in curves.values())
    rows = [("steps", f"{done:,} of {run['steps']:,}" if "steps" in run else f"{done:,}")]
    elapsed = last(curves, "elapsed_seconds")
    if elapsed is not None:
        rows.append(("elapsed", _time(elapsed)))
    spent = curves.get("diagnostics_seconds")
    if spent is not None:
        rows.append(("of it for diagnostics, without drawing", _time(float(np.nansum(spent[1])))))
    if run:
        rows += [
            ("model", f"{run['model']}, {run['parameters']:,} parameters"),
            ("objective", run["objective"]),
            ("device", f"{run['device']}, mesh {run['mesh']}"),
            ("seed", str(run["seed"])),
        ]
        if run["weights"]:
            told = ", ".join(f"{name} {weight}" for name, weight in run["weights"].items())
            rows.append(("weights", told))
        for name, stream in run["streams"].items():
            buckets = (stream.get("buckets") or {}).get("batch_sizes", ())
            sizes = " or ".join(str(size) for size in (*buckets, stream["batch_size"]))
            rows.append((f"stream {name}", f"{stream['mixture']}, {sizes} a step"))
        if diagnosis.probes:
            held = run["held_out"]
            rows.append(("held-out pairs", f"{held['mixture']}, split {held['split']}"))
    return _table(rows)


def _health(diagnosis: Diagnosis) -> str:
    judged = verdicts(diagnosis.curves, diagnosis.description, diagnosis.codes)
    rows = "\n".join(
        f'<tr><td><span class="mark {each.state}">{_STATES[each.state]}</span></td>'
        f"<th>{html.escape(each.subject)}</th><td>{html.escape(each.text)}</td></tr>"
        for each in judged
    )
    return f"<table>\n{rows}\n</table>"


def _table(rows: Sequence[tuple[str, str]]) -> str:
    cells = "\n".join(
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>"
        for name, value in rows
    )
    return f"<table>\n{cells}\n</table>"


def _figure(picture: Picture) -> str:
    data = base64.b64encode(picture.png).decode()
    caption = html.escape(picture.caption)
    return (
        f'<figure><img alt="{caption}" src="data:image/png;base64,{data}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _absent(name: str, drawing: bool) -> str:
    if not drawing:
        return "No picture: matplotlib is not installed."
    needs = {
        "gradients": "DiagnosticsConfig.every above 0",
        "durations": "diagnostics with held-out pairs",
        "alignment": "diagnostics with held-out pairs",
        "retrieval": "diagnostics with held-out pairs",
        "codes": "a quantizer and a stream of speech",
    }.get(name, "a log point")
    return f"Nothing here yet; it takes {needs}."


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"

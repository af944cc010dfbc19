"""What a run has logged, read back from its model directory: metrics, diagnostics, scores."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import numbers
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
from etils import epath

from maestro_jax.errors import UserError, near_misses
from maestro_jax.files import as_path, models_below
from maestro_jax.renamed_metrics import present_name
from maestro_jax.training.model_vocabulary import token_names

METRICS_FILE = "metrics.jsonl"

Curve = tuple[np.ndarray, np.ndarray]
"""Steps and values of a metric."""


@dataclasses.dataclass(frozen=True)
class RunLog:
    """What a run has logged.

    Attributes:
        curves: Steps and values by metric.
        description: Content of `diagnostics/run.json`; empty for a run without diagnostics.
        probes: Step and arrays of the first and of the last probe of held-out pairs, if any.
        pieces: Tokens of the held-out utterance that figures show, as text.
        scores: Content of the score files of `evaluation`, by their test set, with
            the folder that they are in, which names a search.
    """

    curves: Mapping[str, Curve]
    description: Mapping[str, Any]
    probes: Sequence[tuple[int, Mapping[str, np.ndarray]]]
    pieces: Sequence[str]
    scores: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)

    @property
    def frame_seconds(self) -> float:
        """Duration of an encoder frame in seconds."""
        return self.description.get("frame_seconds") or 0.04

    @property
    def mel_frame_seconds(self) -> float:
        """Step between frames of the spectrogram in seconds."""
        return self.description.get("mel_frame_seconds") or 0.01

    @property
    def codes(self) -> int | None:
        """Number of entries of a codebook; None where it is not known."""
        shapes = [arrays["code_counts"].shape for _, arrays in self.probes]
        return int(shapes[-1][1]) if shapes and shapes[-1][0] else None

    def series(self, prefix: str) -> dict[str, Curve]:
        """Returns the curves whose names begin with `prefix`, by the rest of their names."""
        return {
            name.removeprefix(prefix): curve
            for name, curve in self.curves.items()
            if name.startswith(prefix)
        }

    def named(self, **names: str) -> dict[str, Curve]:
        """Returns curves by label, for pairs of label and metric; those not logged are left out."""
        return {
            label.replace("_", " "): self.curves[name]
            for label, name in names.items()
            if name in self.curves
        }


def read_run_log(model_dir: epath.PathLike) -> RunLog:
    """Reads what a run has logged into its model directory.

    Args:
        model_dir: The model directory.

    Returns:
        Metrics, description of the run, first and last probe, and scores.

    Raises:
        UserError: The directory has no metrics.
    """
    directory = as_path(model_dir)
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
    return RunLog(curves, description, probes, pieces, _read_scores(directory))


def _read_scores(directory: epath.Path) -> dict[str, Mapping[str, Any]]:
    """Reads the score files that `maestro eval` wrote, with the present names of their keys."""
    folder = directory / "evaluation"
    scores: dict[str, Mapping[str, Any]] = {}
    if not folder.exists():
        return scores
    # A folder in it holds the scores of another search, as in the output of `maestro demo`.
    for path in (*sorted(folder.glob("*.json")), *sorted(folder.glob("*/*.json"))):
        content = json.loads(path.read_text())
        if not isinstance(content, dict) or "rows" not in content:
            continue
        for row in content["rows"]:
            # The key of earlier versions.
            row.setdefault("primary_metric", row.get("leading"))
        search = "" if path.parent == folder else f" ({path.parent.name.replace('_', ' ')})"
        scores[content["name"] + search] = content
    return scores


def read_curves(
    model_dir: epath.PathLike, names: Sequence[str] | None = None
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Reads the curve of every metric that a run logged.

    A run that was interrupted goes back to its last checkpoint and logs some steps again: the
    later value counts. A last line that was cut off in writing is left out. Metrics that earlier
    versions logged under other names have their present names.

    Args:
        model_dir: Model directory, or the metrics file itself.
        names: Metrics, or patterns of them such as `loss/*`; None for all.

    Returns:
        For each metric, in order of its first appearance (with `names`: in their order), steps
        int64 [points], ascending, and values float64 [points]. A value may be NaN or infinite:
        a run that diverged shows it.

    Raises:
        UserError: If the file is missing or empty, is not JSON lines, or a name is unknown.
    """
    path = as_path(model_dir)
    if path.is_dir() or path.suffix != ".jsonl":
        path = path / METRICS_FILE
    try:
        lines = path.read_bytes().decode(errors="replace").split("\n")
    except OSError as error:
        reason = error.strerror or "there is no such file"
        raise UserError(
            f"cannot read the metrics of a run from {path}: {reason}; "
            f"name a model directory that a training run has logged to{models_below(model_dir)}"
        ) from error
    curves: dict[str, dict[int, float]] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            step = int(record["step"])
        except (TypeError, KeyError, ValueError) as error:
            # Every whole line ends in a newline, so what follows the last one is a cut-off line.
            if number == len(lines):
                continue
            raise UserError(
                f"line {number} of {path} is not a JSON object with a step; "
                "remove the line or name another model directory"
            ) from error
        for name, value in record.items():
            # A value that was not finite is logged as null.
            value = math.nan if value is None else value
            if name != "step" and isinstance(value, numbers.Real) and not isinstance(value, bool):
                curves.setdefault(present_name(name), {})[step] = float(value)
    if not curves:
        raise UserError(f"{path} holds no metrics yet; wait for the run's first logging step")
    selected = list(curves) if names is None else _matching(names, list(curves), path)
    return {name: _arrays(curves[name]) for name in selected}


def _matching(patterns: Sequence[str], names: Sequence[str], path: epath.Path) -> list[str]:
    selected: dict[str, None] = {}
    for pattern in patterns:
        matches = [name for name in names if fnmatchcase(name, present_name(pattern))]
        if not matches:
            raise UserError(f"no metric {pattern!r} in {path}.{near_misses(pattern, names)}")
        selected.update(dict.fromkeys(matches))
    return list(selected)


def _arrays(points: dict[int, float]) -> tuple[np.ndarray, np.ndarray]:
    steps = sorted(points)
    return np.asarray(steps, np.int64), np.asarray([points[step] for step in steps], np.float64)

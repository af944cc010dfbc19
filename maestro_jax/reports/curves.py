"""Loss curves of a run, read back from the ``metrics.jsonl`` of its model directory."""

from __future__ import annotations

import json
import math
import numbers
from collections.abc import Sequence
from fnmatch import fnmatchcase

import numpy as np
from etils import epath

from maestro_jax.errors import UserError, near_misses

METRICS_FILE = "metrics.jsonl"


def read_curves(
    model_dir: epath.PathLike, names: Sequence[str] | None = None
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The curve of every metric that a run logged.

    A run that was interrupted goes back to its last checkpoint and logs some steps again: the
    later value counts. A last line that was cut off in writing is left out.

    Args:
        model_dir: Model directory, or the metrics file itself.
        names: Metrics, or patterns of them such as ``loss/*``; None for all.

    Returns:
        For each metric, in order of its first appearance (with `names`: in their order), steps
        int64 [points], ascending, and values float64 [points]. A value may be NaN or infinite:
        a run that diverged shows it.

    Raises:
        UserError: If the file is missing or empty, is not JSON lines, or a name is unknown.
    """
    path = epath.Path(model_dir).expanduser()
    if path.is_dir() or path.suffix != ".jsonl":
        path = path / METRICS_FILE
    try:
        lines = path.read_bytes().decode(errors="replace").split("\n")
    except OSError as error:
        raise UserError(
            f"cannot read the metrics of a run from {path}: {error.strerror}; "
            "name a model directory that a training run has logged to"
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
                curves.setdefault(name, {})[step] = float(value)
    if not curves:
        raise UserError(f"{path} holds no metrics yet; wait for the run's first logging step")
    chosen = list(curves) if names is None else _matching(names, list(curves), path)
    return {name: _arrays(curves[name]) for name in chosen}


def _matching(patterns: Sequence[str], names: Sequence[str], path: epath.Path) -> list[str]:
    chosen: dict[str, None] = {}
    for pattern in patterns:
        matches = [name for name in names if fnmatchcase(name, pattern)]
        if not matches:
            raise UserError(f"no metric {pattern!r} in {path}.{near_misses(pattern, names)}")
        chosen.update(dict.fromkeys(matches))
    return list(chosen)


def _arrays(points: dict[int, float]) -> tuple[np.ndarray, np.ndarray]:
    steps = sorted(points)
    return np.asarray(steps, np.int64), np.asarray([points[step] for step in steps], np.float64)

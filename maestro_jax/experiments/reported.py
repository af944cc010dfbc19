"""Training that keeps a report of itself in its model directory."""

from __future__ import annotations

import logging
from pathlib import Path

import jax
from etils import epath

from maestro_jax.reports.html_report import REPORT_FILE, report_writer
from maestro_jax.training.loop import train
from maestro_jax.training.run import TrainRun

log = logging.getLogger(__name__)


def train_with_report(
    run: TrainRun, *, model_dir: str | Path, data_dir: str | Path | None = None
) -> None:
    """Train, and write `report.html` with all diagnostics and at the end.

    Args:
        run: The run.
        model_dir: The model directory.
        data_dir: The root of the prepared data.
    """
    write = report_writer(model_dir)
    train(run, model_dir=model_dir, data_dir=data_dir, on_look=write)
    path = epath.Path(model_dir).expanduser() / REPORT_FILE
    if jax.process_index() == 0:
        if not run.diagnostics.every or not path.exists():
            write(run.steps)
        log.info("the report of the run is %s", path)

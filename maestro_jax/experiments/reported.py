"""Training that keeps a report of itself in its model directory."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import jax
from etils import epath

from maestro_jax.reports.html_report import REPORT_FILE, report_writer
from maestro_jax.training.callbacks import Callback
from maestro_jax.training.run import TrainRun
from maestro_jax.training.trainer import Trainer, train

log = logging.getLogger(__name__)


class ReportWriter(Callback):
    """Writes `report.html` with all diagnostics and validations, and when training ends."""

    def on_log(self, trainer: Trainer, step: int, metrics: Mapping[str, float]) -> None:
        """Writes the report, and gives its figures to the trackers."""
        if {"diagnostics_seconds", "validation_seconds"}.isdisjoint(metrics):
            return
        if jax.process_index() == 0:
            with trainer.paused():
                images = report_writer(trainer.model_dir)(step)
                for tracker in trainer.trackers:
                    tracker.log_images(step, images)


def train_with_report(
    run: TrainRun, *, model_dir: str | Path, data_dir: str | Path | None = None
) -> None:
    """Trains, and writes `report.html` with all diagnostics and at the end.

    Args:
        run: The run.
        model_dir: The model directory.
        data_dir: Root of the prepared data.
    """
    train(run, model_dir=model_dir, data_dir=data_dir, callbacks=[ReportWriter()])
    path = epath.Path(model_dir).expanduser() / REPORT_FILE
    if jax.process_index() == 0:
        if not (run.diagnostics.every or run.validation.every) or not path.exists():
            report_writer(model_dir)(run.steps)
        log.info("the report of the run is %s", path)

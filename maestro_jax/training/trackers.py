"""Trackers: where the metrics of a run are written.

``metrics.jsonl`` is always written, TensorBoard files unless `TrainRun.tensorboard` is off. Others
are named in gin:

    from maestro_jax.training import trackers
    TrainRun.trackers = (@trackers.WandbTracker(),)
    trackers.WandbTracker.project = "speech"

A tracker of one's own derives from `Tracker`, in a module that the gin file imports.
"""

from __future__ import annotations

import importlib
import json
import logging
import math
import secrets
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from maestro_jax.errors import UserError
from maestro_jax.files import as_path, is_remote, storage_failure, write_atomically

log = logging.getLogger(__name__)

METRICS_FILE = "metrics.jsonl"


class Tracker:
    """Writes the metrics of a run somewhere; only process 0 calls it."""

    def start(self, model_dir: epath.Path, start_step: int, config: Mapping[str, Any]) -> None:
        """Prepares for the first metrics; called once, before any other method.

        Args:
            model_dir: The model directory, which exists.
            start_step: Step from which training continues. What was written of later steps belongs
                to a process that died; those steps are done again.
            config: Description of the run, as JSON values.
        """

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes the metrics of a step.

        Args:
            step: The step.
            metrics: Values by name; they may be NaN or infinite.
        """
        raise NotImplementedError(f"{type(self).__name__} has no method log")

    def log_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Writes images; does nothing unless overridden.

        Args:
            step: The step.
            images: Arrays `[height, width, channels]` uint8 by name.
        """

    def log_histograms(self, step: int, samples: Mapping[str, np.ndarray]) -> None:
        """Writes histograms; does nothing unless overridden.

        Args:
            step: The step.
            samples: Samples of which to make a histogram, by name.
        """

    def flush(self) -> None:
        """Makes sure that everything is written; called with every checkpoint."""

    def close(self) -> None:
        """Releases what the tracker holds; called when training ends, after an error as well."""


class JsonlTracker(Tracker):
    """Writes one line of JSON per log point to ``metrics.jsonl`` in the model directory.

    Lines of steps that will be done again are removed at the start, so that a step has one line. A
    value that is not finite is null.

    Buckets cannot append: there the whole file is written again, with every checkpoint and report,
    and once a minute in between. If that fails, the next time does it.
    """

    _UPLOAD_SECONDS = 60.0

    def start(self, model_dir: epath.Path, start_step: int, config: Mapping[str, Any]) -> None:
        """Opens the file."""
        directory = as_path(model_dir)
        directory.mkdir(parents=True, exist_ok=True)
        self._path = directory / METRICS_FILE
        self._lines = [
            line
            for line in (self._path.read_text().splitlines() if self._path.exists() else [])
            if _step_of(line) <= start_step
        ]
        self._appends = not is_remote(directory)
        write_atomically(self._path, self._content())
        self._uploaded, self._is_new = time.monotonic(), False

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Appends a line."""
        finite = {
            name: float(value) if math.isfinite(value) else None for name, value in metrics.items()
        }
        line = json.dumps({"step": step, **finite}, allow_nan=False)
        self._lines.append(line)
        if self._appends:
            with self._path.open("a") as file:
                file.write(line + "\n")
            return
        self._is_new = True
        if time.monotonic() - self._uploaded >= self._UPLOAD_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Writes the file again where it cannot be appended to."""
        if self._appends or not self._is_new:
            return
        self._uploaded = time.monotonic()
        try:
            write_atomically(self._path, self._content())
            self._is_new = False
        except Exception as error:
            # A failure of some minutes must not end a run of days.
            if (reason := storage_failure(error)) is None:
                raise
            log.warning("%s was not written: %s", self._path, reason)

    def close(self) -> None:
        """Flushes the file."""
        self.flush()

    def _content(self) -> bytes:
        return "".join(line + "\n" for line in self._lines).encode()


def _step_of(line: str) -> float:
    """Returns the step of a line; infinity for a line that was cut off when its process died."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


class TensorBoardTracker(Tracker):
    """Writes TensorBoard files to ``metrics/`` in the model directory.

    Where TensorFlow is not installed, it writes nothing, and a line of the log says so.
    """

    def start(self, model_dir: epath.Path, start_step: int, config: Mapping[str, Any]) -> None:
        """Opens the files."""
        self._writer: Any = None
        try:
            # Imported here: it imports TensorFlow, which training can do without.
            from clu import metric_writers
        except ImportError as error:
            log.warning(
                "No TensorBoard files are written (%s); %s has all metrics", error, METRICS_FILE
            )
            return
        directory = as_path(model_dir) / "metrics"
        self._writer = metric_writers.AsyncWriter(metric_writers.SummaryWriter(str(directory)))

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes scalars."""
        if self._writer is not None:
            self._writer.write_scalars(step, dict(metrics))

    def log_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Writes images."""
        if self._writer is not None and images:
            self._writer.write_images(step, {name: image[None] for name, image in images.items()})

    def log_histograms(self, step: int, samples: Mapping[str, np.ndarray]) -> None:
        """Writes histograms."""
        if self._writer is not None and samples:
            self._writer.write_histograms(step, dict(samples))

    def flush(self) -> None:
        """Flushes the files."""
        if self._writer is not None:
            self._writer.flush()

    def close(self) -> None:
        """Flushes and closes the files."""
        if self._writer is not None:
            self._writer.close()


class WandbTracker(Tracker):
    """Logs to Weights & Biases, which is not installed with this project: ``pip install wandb``.

    A restarted run continues the same W&B run, whose id is kept in ``wandb_id.txt`` in the model
    directory.

    Args:
        project: Name of the W&B project.
        entity: User or team that owns it; None for the default of the account.
        name: Name of the run; None for the name of the model directory.
        mode: ``online``, ``offline`` or ``disabled``; None for what ``WANDB_MODE`` says.
    """

    def __init__(
        self,
        project: str,
        entity: str | None = None,
        name: str | None = None,
        mode: str | None = None,
    ) -> None:
        self._project, self._entity, self._name, self._mode = project, entity, name, mode
        self._run: Any = None

    def start(self, model_dir: epath.Path, start_step: int, config: Mapping[str, Any]) -> None:
        """Begins or continues the W&B run.

        Raises:
            UserError: W&B is not installed.
        """
        try:
            self._wandb = importlib.import_module("wandb")
        except ImportError as error:
            raise UserError(
                f"WandbTracker needs the package wandb ({error}): pip install wandb, or leave the "
                "tracker out of TrainRun.trackers."
            ) from error
        path = model_dir / "wandb_id.txt"
        if not path.exists():
            path.write_text(secrets.token_hex(4))
        self._run = self._wandb.init(
            project=self._project,
            entity=self._entity,
            name=self._name or model_dir.name,
            id=path.read_text().strip(),
            resume="allow",
            # W&B writes local files, which it sends itself.
            dir=None if is_remote(model_dir) else str(model_dir),
            mode=self._mode,
            config=dict(config),
        )

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Logs scalars."""
        self._run.log(dict(metrics), step=step)

    def log_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Logs images."""
        if images:
            self._run.log({n: self._wandb.Image(image) for n, image in images.items()}, step=step)

    def log_histograms(self, step: int, samples: Mapping[str, np.ndarray]) -> None:
        """Logs histograms."""
        if samples:
            self._run.log({n: self._wandb.Histogram(s) for n, s in samples.items()}, step=step)

    def close(self) -> None:
        """Finishes the W&B run."""
        if self._run is not None:
            self._run.finish()

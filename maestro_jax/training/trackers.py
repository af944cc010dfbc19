"""Trackers: where the metrics of a run are written.

``metrics.jsonl`` is always written, TensorBoard files unless `TrainRun.tensorboard` is off. Others
are named in gin:

    from maestro_jax.training import trackers
    TrainRun.trackers = (@trackers.WandbTracker(),)
    trackers.WandbTracker.project = "speech"

A tracker of one's own derives from `Tracker`, in a module that the gin file imports.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import math
import secrets
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from etils import epath

from maestro_jax.errors import UserError
from maestro_jax.files import as_path, is_remote, storage_error, write_atomically

log = logging.getLogger(__name__)

METRICS_FILE = "metrics.jsonl"


class Tracker:
    """Writes the metrics of a run somewhere; only process 0 calls it."""

    def start(self, model_dir: epath.Path, start_step: int, config: Mapping[str, Any]) -> None:
        """Prepares for the first metrics; called once, before any other method.

        Args:
            model_dir: The model directory, which exists.
            start_step: Step from which training continues. What was written of later steps belongs
                to a process that died, or to steps that were rolled back; those steps are done
                again. At step 0 that is all, for what is measured before the first step is measured
                again, too; but not on a second call, after a rollback to step 0.
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

    Lines of steps that will be done again are removed at the start, and what is logged of a step
    that has a line goes into that line, so that a step has one. A value that is not finite is null.

    Buckets cannot append: there the whole file is written again, with every checkpoint and report,
    and once a minute in between. If that fails, the next time does it.
    """

    _UPLOAD_SECONDS = 60.0

    def __init__(self) -> None:
        self._has_started = False

    def start(self, model_dir: epath.Path, start_step: int, config: Mapping[str, Any]) -> None:
        """Opens the file."""
        directory = as_path(model_dir)
        directory.mkdir(parents=True, exist_ok=True)
        self._path = directory / METRICS_FILE
        written = self._path.read_text().splitlines() if self._path.exists() else []
        by_step = {step: line for line in written if (step := _step_of(line)) <= start_step}
        if not start_step and not self._has_started:
            by_step = {}
        self._has_started = True
        self._lines = [by_step[step] for step in sorted(by_step)]
        self._last_step = max(by_step, default=-1)
        self._appends = not is_remote(directory)
        write_atomically(self._path, self._content())
        self._uploaded, self._is_new = time.monotonic(), False

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Appends a line."""
        values = {
            name: float(value) if math.isfinite(value) else None for name, value in metrics.items()
        }
        is_again = step == self._last_step
        if is_again:
            values = {**json.loads(self._lines.pop()), **values}
        line = json.dumps({"step": step, **values}, allow_nan=False)
        self._lines.append(line)
        self._last_step = step
        if self._appends and not is_again and not self._is_new:
            with contextlib.suppress(OSError):  # `flush` tries again, and says what is wrong.
                with self._path.open("a") as file:
                    file.write(line + "\n")
                return
        self._is_new = True
        if self._appends or time.monotonic() - self._uploaded >= self._UPLOAD_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Writes the file again where it could not be appended to."""
        if not self._is_new:
            return
        self._uploaded = time.monotonic()
        try:
            write_atomically(self._path, self._content())
            self._is_new = False
        except Exception as error:
            # A failure of some minutes must not end a run of days.
            if (reason := storage_error(error)) is None:
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

    Each process writes a file of its own, and removes from those of earlier ones the steps that
    will be done again.

    Where TensorFlow is not installed, it writes nothing, and a line of the log says so.
    """

    def __init__(self) -> None:
        self._has_started = False

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
        _prepare_events(directory, start_step + 1 if start_step or self._has_started else 0)
        self._has_started = True
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


def _prepare_events(directory: epath.Path, first: int) -> None:
    """Removes what TensorBoard files say from a step on, and moves files of the future.

    There is an event by which a file tells readers to forget what others say. TensorBoard obeys,
    but its `EventAccumulator`, with which scripts read the files, does not for scalars of today's
    kind.
    """
    from tensorboard.compat.proto.event_pb2 import Event

    if not directory.exists():
        return
    now, prefix = int(time.time()), "events.out.tfevents."
    late: list[str] = []
    for name in sorted(path.name for path in directory.iterdir()):
        if not name.startswith(prefix):
            continue
        path = directory / name
        content = path.read_bytes()
        kept: list[bytes] = []
        for record, message in _records(content):
            event = Event.FromString(message)
            if event.HasField("file_version") or event.step < first:
                kept.append(record)
        if len(kept) <= 1:  # No more than the version.
            path.unlink()
            continue
        if len(rest := b"".join(kept)) < len(content):
            write_atomically(path, rest)
        second = name.removeprefix(prefix).partition(".")[0]
        if second.isdecimal() and int(second) >= now - 1:
            late.append(name)
    # Readers take files by their names, which begin with the second in which they were made: that
    # of the next file, if a run is restarted at once, or a later one, if the clock was set back.
    for number, name in enumerate(late):
        ending = name.removeprefix(prefix).partition(".")[2]
        target = directory / f"{prefix}{now - 1:010d}.{number:04d}.{ending}"
        if target.name != name:
            (directory / name).rename(target)


def _records(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yields the records of a TFRecord file and their messages, up to one that was cut off."""
    begin = 0
    while begin + 12 <= len(content):
        # The length, a checksum of it, the message, a checksum of that.
        end = begin + 12 + int.from_bytes(content[begin : begin + 8], "little") + 4
        if end > len(content):
            return
        yield content[begin:end], content[begin + 12 : end - 4]
        begin = end


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

"""Goodput: which part of the time of a run goes into steps, and where the rest goes.

The parts add up to the time from the start of the first process until now:

- ``start``: from the start of a process to its first step: imports, restoring, opening the data;
- ``compile``: steps that were compiled;
- ``input``: devices waited for a batch;
- ``step``: all other steps, which is the goodput;
- ``checkpoint``: saving, as far as training waits for it;
- ``diagnostics``: diagnostics, validation, reports and checks;
- ``lost``: all that came after the checkpoint from which a later process went on, or to which the
  run rolled back;
- ``down``: between the processes. A process that is killed says nothing of its last seconds, which
  count as this.

The record of a checkpoint has the seconds up to it, ``goodput.json`` in the model directory those
up to the last time it was written; what is between them is lost when a process begins.
"""

from __future__ import annotations

import json
import logging
import os
import pathlib
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax

from maestro_jax.files import is_remote, storage_failure, write_atomically
from maestro_jax.training.callbacks import Callback, LogWindow, StepInfo

if TYPE_CHECKING:
    from maestro_jax.training.trainer import Trainer

log = logging.getLogger(__name__)

GOODPUT_FILE = "goodput.json"
PARTS = ("start", "compile", "input", "step", "checkpoint", "diagnostics", "lost", "down")
_WRITE_SECONDS, _UPLOAD_SECONDS = 5.0, 60.0
_counts_process = False


def count_from_process_start() -> None:
    """Makes the next training of this process count what the process has done before as start."""
    global _counts_process
    _counts_process = True


def _seconds_before() -> float:
    """Returns for how long the process has existed, if that counts."""
    global _counts_process
    if not _counts_process:
        return 0.0
    _counts_process = False
    try:
        # The name of the program, in parentheses, may have spaces; the 20th field after it is the
        # time of the start, in ticks since the machine started.
        fields = pathlib.Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        uptime = float(pathlib.Path("/proc/uptime").read_text().split()[0])
        return max(uptime - int(fields[19]) / os.sysconf("SC_CLK_TCK"), 0.0)
    except (OSError, ValueError, IndexError):
        return 0.0


class Goodput(Callback):
    """Keeps account of the time of a run over all of its processes."""

    def __init__(self) -> None:
        # Seconds by part, of earlier processes; with those of the timer they are the whole run's.
        self._earlier: dict[str, float] = {}
        # Those that the record of the checkpoint has.
        self._restored: Mapping[str, float] = {}
        self._trainer: Trainer | None = None
        self._before = _seconds_before()
        self._began = time.monotonic()
        self._written = 0.0

    @property
    def seconds(self) -> dict[str, float]:
        """Returns the seconds of each part so far."""
        own = {} if self._trainer is None else self._trainer.timer.spent()
        return {part: self._earlier.get(part, 0.0) + own.get(part, 0.0) for part in PARTS}

    def on_start(self, trainer: Trainer) -> None:
        """Finds out what was lost since the checkpoint."""
        # From the making of the trainer to that of its timer, and before.
        age = self._before + time.monotonic() - self._began
        self._earlier["start"] = (
            self._earlier.get("start", 0.0) + age - sum(trainer.timer.spent().values())
        )
        previous = _read(trainer) if jax.process_index() == 0 else None
        if previous is not None:
            lost = max(sum(previous["seconds"].values()) - sum(self._restored.values()), 0.0)
            again = previous["step"] - trainer.step
            if again > 0:
                self._earlier["lost"] = self._earlier.get("lost", 0.0) + lost
                log.info("%d steps are done again, for which %.0f s had been spent", again, lost)
            else:
                # It saved its last step, and has only closed what was open since.
                for part in PARTS:
                    since = previous["seconds"][part] - self._restored.get(part, 0.0)
                    self._earlier[part] = self._earlier.get(part, 0.0) + since
            # Clocks of two machines, or one that was set, may say less than nothing.
            down = max(time.time() - age - previous["time"], 0.0)
            self._earlier["down"] = self._earlier.get("down", 0.0) + down
        self._trainer = trainer
        self.write()

    def on_step(self, trainer: Trainer, info: StepInfo) -> None:
        """Writes the file now and then."""
        every = _UPLOAD_SECONDS if is_remote(trainer.model_dir) else _WRITE_SECONDS
        if time.monotonic() - self._written >= every:
            self.write()

    def log_values(self, trainer: Trainer, window: LogWindow) -> Mapping[str, float]:
        """Returns the seconds of each part, and the share of the steps."""
        return values(self.seconds)

    def write(self) -> None:
        """Writes ``goodput.json``, on the first process."""
        trainer = self._trainer
        if trainer is None or jax.process_index() != 0:
            return
        self._written = time.monotonic()
        content = {"step": trainer.step, "time": time.time(), "seconds": self.seconds}
        try:
            write_atomically(trainer.model_dir / GOODPUT_FILE, json.dumps(content).encode())
        except Exception as error:
            # It is an account, and not worth a run.
            if not isinstance(error, OSError) and storage_failure(error) is None:
                raise
            log.warning("%s was not written: %s", GOODPUT_FILE, error)

    def state(self) -> Mapping[str, Any]:
        """Returns the seconds up to the checkpoint."""
        return {"seconds": self.seconds}

    def load(self, state: Mapping[str, Any]) -> None:
        """Goes on from the seconds up to a checkpoint."""
        saved = {part: float(state.get("seconds", {}).get(part, 0.0)) for part in PARTS}
        if self._trainer is None:
            self._restored = saved
            self._earlier = dict(saved)
            return
        # The run rolls back: what this process has done since then is lost.
        now, own = self.seconds, self._trainer.timer.spent()
        saved["lost"] += sum(now.values()) - sum(saved.values())
        self._earlier = {part: saved[part] - own.get(part, 0.0) for part in PARTS}


def values(seconds: Mapping[str, float]) -> dict[str, float]:
    """Returns the metrics of an account: the seconds of each part, and the share of the steps."""
    total = sum(seconds.values())
    return {
        **{f"goodput/{part}_seconds": spent for part, spent in seconds.items()},
        "goodput/fraction": seconds["step"] / total if total > 0 else 0.0,
    }


def _read(trainer: Trainer) -> dict[str, Any] | None:
    """Reads what the process before has written; None if there is nothing of use."""
    path = trainer.model_dir / GOODPUT_FILE
    try:
        content = json.loads(path.read_text())
        return {
            "step": int(content["step"]),
            "time": float(content["time"]),
            "seconds": {part: float(content["seconds"].get(part, 0.0)) for part in PARTS},
        }
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        log.warning("%s cannot be read (%s); the account of lost work is not whole", path, error)
        return None

"""Ends a run that hangs, after writing where every thread of every process is.

A device or a collective operation that hangs gives no error: the main thread waits inside JAX for
ever. So a thread looks at how long the run has been doing the same thing, and compares a step with
those before it.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import logging
import math
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from etils import epath

from maestro_jax.errors import RESTART_EXIT_CODE, UserError
from maestro_jax.field_types import check_fields
from maestro_jax.training.process_group import end_process

if TYPE_CHECKING:
    from maestro_jax.training.trainer import Trainer

log = logging.getLogger(__name__)

STACKS_DIRECTORY = "stacks"
_TURN_SECONDS = 1.0
_WRITE_SECONDS = 15.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class WatchdogConfig:
    """Limits after which a run that hangs is ended, to be started again.

    Attributes:
        step_seconds: A step may take so long in any case.
        step_factor: And so many times as long as the longest of the steps before it.
        other_seconds: Anything else may take so long: opening data, restoring, compiling,
            validation, diagnostics, saving.
        input_warning_seconds: A batch that is waited for so long is reported.
        input_seconds: After so long, the run saves its state and ends.
        save_seconds: A stop that is asked for (SIGTERM, a notice of preemption) and whose state is
            not saved so long afterwards is reported.
    """

    step_seconds: float = 300.0
    step_factor: float = 20.0
    other_seconds: float = 7200.0
    input_warning_seconds: float = 60.0
    input_seconds: float = 900.0
    save_seconds: float = 25.0

    def __post_init__(self) -> None:
        """Checks the limits."""
        check_fields(self)
        for field in dataclasses.fields(self):
            if not getattr(self, field.name) > 0:
                raise UserError(
                    f"WatchdogConfig.{field.name} is {getattr(self, field.name)}; it must be above "
                    "0 (a very large number sets no limit)."
                )


class Activity:
    """What a run is doing, and since when.

    Attributes:
        name: What it is doing: ``step 12``.
    """

    def __init__(self) -> None:
        self.name = "starting"
        self._kind = "other"
        self._since = time.monotonic()
        self._steps: collections.deque[float] = collections.deque(maxlen=100)

    @property
    def seconds(self) -> float:
        """Returns for how long the run has been doing the same."""
        return time.monotonic() - self._since

    def begin(self, name: str, kind: str = "other") -> None:
        """Says what the run does from now on.

        Args:
            name: What it does.
            kind: ``step`` for what is compared with earlier steps, ``input`` for waiting for a
                batch, ``other`` for all else.
        """
        if self._kind == "step":
            self._steps.append(self.seconds)
        self.name, self._kind, self._since = name, kind, time.monotonic()

    @contextlib.contextmanager
    def during(self, name: str, kind: str = "other") -> Iterator[None]:
        """Says what the run does in a block; afterwards it does again what it did before."""
        before = self.name, self._kind
        self.begin(name, kind)
        try:
            yield
        finally:
            self.begin(*before)

    def limit(self, config: WatchdogConfig) -> float:
        """Returns the seconds that it may take."""
        if self._kind == "input":
            return math.inf  # Who waits for it has its own limit, and saves the state.
        if self._kind == "step":
            return max(config.step_seconds, config.step_factor * max(self._steps, default=0.0))
        return config.other_seconds

    def restart(self) -> None:
        """Measures from now on: the process itself has been stopped meanwhile."""
        self._since = time.monotonic()


@contextlib.contextmanager
def watching(trainer: Trainer) -> Iterator[None]:
    """Watches a run in a block, from its setup on.

    A run that hangs is ended with exit status 75, after writing the stacks of all threads.
    """
    closed = threading.Event()
    trainer.processes.where = lambda: trainer.activity.name
    trainer.processes.on_stacks = lambda: write_stacks(trainer)
    threading.Thread(target=_watch, args=(trainer, closed), name="Watchdog", daemon=True).start()
    try:
        yield
    finally:
        closed.set()


def _watch(trainer: Trainer, closed: threading.Event) -> None:
    activity, warned = trainer.activity, ""
    turn = time.monotonic()
    while not closed.wait(_TURN_SECONDS):
        now = time.monotonic()
        if now - turn > 10 * _TURN_SECONDS:
            activity.restart()
        turn = now
        name, seconds = activity.name, activity.seconds
        limit = activity.limit(trainer.run.watchdog)
        if seconds > limit:
            _end(trainer, f"{name} has taken {seconds:.0f} s, its limit is {limit:.0f} s")
        elif seconds > limit / 2 and warned != name:
            warned = name
            log.warning("%s has taken %.0f s; stacks of all threads:\n%s", name, seconds,
                        stacks_of_threads())  # fmt: skip


def _end(trainer: Trainer, what: str) -> None:
    processes = trainer.processes
    if processes.count > 1:
        what += f" ({processes.places()})"
    write_stacks(trainer)
    processes.fail(what, RESTART_EXIT_CODE, stacks=True)
    directory = trainer.model_dir / STACKS_DIRECTORY
    line = f"{what}; the stacks of all threads are in {directory}; {processes.resume()}"
    end_process(line, RESTART_EXIT_CODE)


def stacks_of_threads() -> str:
    """Returns the stacks of all threads of this process, by the name of the thread."""
    names: Mapping[int | None, str] = {t.ident: t.name for t in threading.enumerate()}
    return "\n".join(
        f"thread {names.get(ident, ident)}:\n{''.join(traceback.format_stack(frame)).rstrip()}"
        for ident, frame in sys._current_frames().items()
    )


def write_stacks(trainer: Trainer) -> None:
    """Writes the stacks of all threads to the log, and to a file in the model directory."""
    text = f"{time.strftime('%F %T')} {trainer.processes.name}, {trainer.activity.name}\n"
    text += stacks_of_threads() + "\n"
    log.error("stacks of all threads: %s", text)
    path = trainer.model_dir / STACKS_DIRECTORY / f"process-{trainer.processes.index:05d}.txt"
    # In a thread: the storage may hang as well.
    writer = threading.Thread(target=_write, args=(path, text), daemon=True)
    writer.start()
    writer.join(_WRITE_SECONDS)


def _write(path: epath.Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    except Exception as error:  # noqa: BLE001 - the log has it already.
        log.warning("cannot write %s: %s", path, error)

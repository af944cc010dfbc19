"""Stops training with its state saved when a signal arrives."""

from __future__ import annotations

import logging
import signal
import threading
from types import FrameType
from typing import TYPE_CHECKING, Any

import jax

from maestro_jax.training.callbacks import Callback, StepInfo

if TYPE_CHECKING:
    from maestro_jax.training.trainer import Trainer

log = logging.getLogger(__name__)


class TrainingPreempted(SystemExit):  # noqa: N818 - an exit, not an error
    """Raised when training was stopped by a signal, after its state had been saved.

    The exit code is 143 after SIGTERM and 130 after SIGINT, as a shell reports them.
    """


class PreemptionHandler(Callback):
    """Stops training after the current step when SIGTERM or SIGINT arrives.

    The first signal asks for a checkpoint and a stop; a second one acts at once. In a run of
    several processes, all must stop at the same step: there the preemption service of JAX, which
    watches SIGTERM itself, is asked instead.
    """

    def __init__(self) -> None:
        self._received: int | None = None
        self._previous: dict[int, Any] = {}

    def on_start(self, trainer: Trainer) -> None:
        """Installs the handlers, if this is the main thread of the only process."""
        is_main = threading.current_thread() is threading.main_thread()
        if is_main and jax.process_count() == 1:
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._receive)

    def on_step(self, trainer: Trainer, info: StepInfo) -> None:
        """Stops training, if a signal has arrived."""
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            if multihost_utils.reached_preemption_sync_point(info.step):
                trainer.stop(128 + signal.SIGTERM)
        elif self._received is not None:
            trainer.stop(128 + self._received)

    def on_end(self, trainer: Trainer) -> None:
        """Restores the previous handlers."""
        self._restore()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self._received = number
        log.warning(
            "%s: saving after this step; send it again to stop at once",
            signal.Signals(number).name,
        )
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

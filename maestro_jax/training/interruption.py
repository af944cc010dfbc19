"""SIGTERM and SIGINT: finish the step, save, and leave with the exit code that shells expect."""

from __future__ import annotations

import logging
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

import jax

log = logging.getLogger(__name__)


class Interrupted(SystemExit):  # noqa: N818 - an exit, not an error
    """Training was stopped by a signal after its state had been saved.

    The exit code is 143 after SIGTERM and 130 after SIGINT, as a shell reports them.
    """


class StopSignals:
    """A context in which the first signal asks for a stop, and a second one acts at once.

    In a run of several processes, all must stop at the same step: there the preemption service of
    JAX, which watches SIGTERM itself, is asked instead.
    """

    def __init__(self) -> None:
        """Nothing is changed before the context is entered."""
        self._received: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        """Install the handlers, if this is the main thread of the only process."""
        is_main = threading.current_thread() is threading.main_thread()
        if is_main and jax.process_count() == 1:
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Put the former handlers back."""
        self._restore()

    def exit_code(self, step: int) -> int | None:
        """The code to exit with after this step, or None to go on.

        Args:
            step: The step just done, the same in all processes.
        """
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            stop = multihost_utils.reached_preemption_sync_point(step)
            return 128 + signal.SIGTERM if stop else None
        return None if self._received is None else 128 + self._received

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

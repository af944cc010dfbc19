"""Sees signals in a thread of its own, whatever the main thread does.

Python runs a handler in its main thread, between two of its instructions. It runs late when that
thread is inside a library, and an exception that it raises is lost when the garbage collector calls
Python code, as JAX makes it do. The number of the signal, however, is written to a file descriptor
at once (`signal.set_wakeup_fd`), from which a thread reads here.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

_ECHO_SECONDS = 1.0
"""The same signal within this time counts once: launchers and terminals often both send it."""


def stop_signals() -> tuple[int, ...]:
    """Returns the signals that ask a run to stop.

    They are SIGTERM and SIGINT, and under Slurm also SIGUSR1, which ``sbatch --signal=USR1@600``
    sends before the time limit.
    """
    slurm = (signal.SIGUSR1,) if "SLURM_JOB_ID" in os.environ else ()
    return (signal.SIGTERM, signal.SIGINT, *slurm)


class SignalWatch:
    """Calls a function in a thread when a signal arrives.

    Args:
        numbers: The signals.
        on_signal: Is called with the number of the signal. It must not raise.
    """

    def __init__(self, numbers: Sequence[int], on_signal: Callable[[int], None]) -> None:
        self._numbers = numbers
        self._on_signal = on_signal
        self._previous: dict[int, Any] = {}
        self._previous_descriptor = -1

    def start(self) -> bool:
        """Begins to watch; returns False in a thread that is not the main one, which cannot."""
        if threading.current_thread() is not threading.main_thread():
            return False
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        self._previous_descriptor = signal.set_wakeup_fd(
            self._writer.fileno(), warn_on_full_buffer=False
        )
        for number in self._numbers:
            self._previous[number] = signal.signal(number, lambda *_: None)
        threading.Thread(target=self._read, name="SignalWatch", daemon=True).start()
        return True

    def stop(self) -> None:
        """Restores the previous handlers."""
        if not self._previous:
            return
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
        signal.set_wakeup_fd(self._previous_descriptor)
        self._writer.close()  # Ends the thread.

    def _read(self) -> None:
        last: tuple[int, float] = (0, 0.0)
        with self._reader:
            while received := self._reader.recv(64):
                for number in received:
                    now = time.monotonic()
                    if number in self._numbers and not (
                        number == last[0] and now - last[1] < _ECHO_SECONDS
                    ):
                        last = (number, now)
                        self._on_signal(number)

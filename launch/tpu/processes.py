"""Runs commands with a time limit, and waits, so that signals are served meanwhile."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import os
import random
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import IO, TypeVar

TIMED_OUT = 124
_T = TypeVar("_T")


class Failure(Exception):
    """What ends a verb: printed as one line ``error: ...``.

    Args:
        message: What happened, and the remedy.
        code: The exit status: 2 if a repetition would fail again, 1 otherwise.
    """

    def __init__(self, message: str, code: int = 2) -> None:
        super().__init__(message)
        self.code = code


class Interrupted(Exception):
    """SIGINT, SIGTERM or SIGHUP came."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a command returned.

    Attributes:
        code: Its exit status; 124 after the time limit.
        output: What it wrote to stdout, also if it was ended by the limit.
        errors: What it wrote to stderr.
    """

    code: int
    output: str = ""
    errors: str = ""

    @property
    def reason(self) -> str:
        """The last line of stderr."""
        lines = [line for line in self.errors.splitlines() if line.strip()]
        return lines[-1].strip() if lines else f"exit status {self.code}"


def say(text: str) -> None:
    """Prints a line with the time to stderr, which may be closed after a hangup."""
    with contextlib.suppress(OSError):
        print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def complain(text: str) -> None:
    """Prints `error: ...` to stderr."""
    with contextlib.suppress(OSError):
        print(f"error: {text}", file=sys.stderr, flush=True)


def show(text: str) -> None:
    """Prints to stdout, which may be closed."""
    with contextlib.suppress(OSError):
        print(text, flush=True)


def quoted(words: list[str]) -> str:
    """Returns words as a shell reads them."""
    return " ".join(map(shlex.quote, words))


class System:
    """The clock, chance, signals and processes: a test takes others.

    Attributes:
        tolerated: So many signals are only counted. One more raises `Interrupted` in `sleep` and
            `execute`, the only places that wait.
    """

    def __init__(self) -> None:
        self.tolerated = 0
        self.signals: list[int] = []
        self.random = random.Random()

    def now(self) -> float:
        """Returns seconds, of a clock that goes on while the machine sleeps if there is one."""
        clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
        return time.clock_gettime(clock)

    def catch_signals(self) -> None:
        """Counts SIGINT, SIGTERM and, unless nohup ignores it, SIGHUP from now on."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signals.append(number)

    def check_signals(self) -> None:
        """Raises `Interrupted` after more signals than are tolerated."""
        if len(self.signals) > self.tolerated:
            raise Interrupted(self.signals[-1])

    def sleep(self, seconds: float) -> None:
        """Waits."""
        end = self.now() + seconds
        while True:
            self.check_signals()
            left = end - self.now()
            if left <= 0:
                return
            time.sleep(min(left, 0.2))

    def back_off(self, attempt: int, base: float, limit: float) -> float:
        """Returns the pause after a number of failures in a row: it doubles up to a limit.

        The last half of it is left to chance, so that several machines do not call together.
        """
        return min(limit, base * 2 ** min(attempt - 1, 30)) * self.random.uniform(0.5, 1)

    def at_once(self, call: Callable[[_T], Answer], items: list[_T]) -> list[Answer]:
        """Calls a function for each item, in threads."""
        with concurrent.futures.ThreadPoolExecutor(max(len(items), 1)) as pool:
            return list(pool.map(call, items))

    def execute(
        self, words: list[str], limit: float | None, on_line: Callable[[str], None] | None = None
    ) -> Answer:
        """Runs a command until it ends, or is ended by a signal or the time limit.

        Args:
            words: The command and its arguments.
            limit: Seconds; for ever if None.
            on_line: Gets each line of stdout when it comes; the answer then has none.
        """
        # A group of its own, which can be ended as a whole: gcloud starts ssh.
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        collected: tuple[list[str], list[str]] = ([], [])

        def read(stream: IO[str], lines: list[str], tell: Callable[[str], None] | None) -> None:
            with contextlib.suppress(ValueError):  # closed
                for line in stream:
                    if tell:
                        tell(line.rstrip("\n"))
                    else:
                        lines.append(line)

        assert process.stdout and process.stderr
        readers = [
            threading.Thread(
                target=read, args=(process.stdout, collected[0], on_line), daemon=True
            ),
            threading.Thread(target=read, args=(process.stderr, collected[1], None), daemon=True),
        ]
        for reader in readers:
            reader.start()
        end = None if limit is None else self.now() + limit
        code = None
        try:
            while code is None:
                self.check_signals()
                if end is not None and self.now() > end:
                    break
                with contextlib.suppress(subprocess.TimeoutExpired):
                    code = process.wait(timeout=0.2)
        finally:
            if code is None:
                _end_group(process)
        for reader in readers:
            # Something that left the group may keep the pipe open.
            reader.join(timeout=5)
        output, errors = ("".join(lines) for lines in collected)
        if code is None:
            errors += f"\nno answer within {limit:g} seconds"
        elif code < 0:
            code = 128 - code
        return Answer(TIMED_OUT if code is None else code, output, errors)


def _end_group(process: subprocess.Popen[str]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=2)
            if number == signal.SIGTERM:
                continue  # The group may have members left.
            return

"""Progress of long work, for people who watch and for log files."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TextIO


class Progress:
    """One line that says how much is done and how long the rest will take.

    On a terminal the line is rewritten in place. Elsewhere (a log file, a pipe) a whole line is
    written about every 10 seconds and at the end, so that logs stay readable. Quick work that is
    not on a terminal writes its last line only.

    Example:
        >>> with Progress(total=1000, label="speaking") as progress:
        ...     for _ in range(1000):
        ...         progress.update(1)
    """

    def __init__(self, total: int, label: str, *, stream: TextIO | None = None) -> None:
        """Starts the clock.

        Args:
            total: How many units the work has; 0 if nobody knows.
            label: What is being done, e.g. "speaking".
            stream: Where to write; standard error by default.
        """
        self.total = total
        self.label = label
        self.done = 0
        self._stream = sys.stderr if stream is None else stream
        self._terminal = self._stream.isatty()
        self._period = 0.1 if self._terminal else 10.0
        self._start = self._last = time.monotonic()
        self._width = 0
        self._closed = False

    def update(self, count: int = 1) -> None:
        """Counts `count` more units as done."""
        self.done += count
        now = time.monotonic()
        if now - self._last >= self._period:
            self._last = now
            self._write(self._line(now))

    def update_to(self, done: int) -> None:
        """Counts up to `done` units in all."""
        self.update(done - self.done)

    def wipe(self) -> None:
        """Clears the line of a terminal, for other output; the next update writes it again."""
        if self._terminal and self._width:
            self._stream.write("\r" + " " * self._width + "\r")
            self._stream.flush()

    def close(self) -> None:
        """Writes the last line. Further calls do nothing."""
        if self._closed:
            return
        self._closed = True
        self._write(self._line(time.monotonic()), last=True)

    def __enter__(self) -> Progress:
        """Returns the progress itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Writes the last line."""
        self.close()

    def _line(self, now: float) -> str:
        seconds = now - self._start
        if self.done > self.total:  # The total was not known.
            return f"{self.label}: {self.done} in {_duration(seconds)}"
        share = f"{100 * self.done // self.total:d}%" if self.total else "100%"
        line = f"{self.label}: {share} {self.done}/{self.total} in {_duration(seconds)}"
        if 0 < self.done < self.total:
            rest = seconds * (self.total - self.done) / self.done
            line += f", {_duration(rest)} left"
        return line

    def _write(self, line: str, last: bool = False) -> None:
        if self._terminal:
            # Blanks wipe what a longer line before has left.
            self._stream.write("\r" + line.ljust(self._width) + ("\n" if last else ""))
            self._width = len(line)
        else:
            self._stream.write(line + "\n")
        self._stream.flush()


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{seconds:02d}s" if minutes else f"{seconds}s"

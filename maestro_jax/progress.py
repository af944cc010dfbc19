"""Progress of long work: a bar on terminals, a line now and then in log files."""

from __future__ import annotations

import sys
from typing import TextIO

from tqdm import tqdm

_SECONDS_BETWEEN_LINES = 10.0


class Progress(tqdm):
    """A tqdm bar that stays readable in files.

    On a terminal it is tqdm's own bar. Elsewhere (a log file, a pipe) a whole line is written about
    every 10 seconds and at the end; quick work writes its last line only.

    Example:
        >>> with Progress(total=1000, label="synthesising", unit="utterance") as progress:
        ...     for _ in range(1000):
        ...         progress.update(1)
    """

    # Every update looks at the clock, so no thread has to watch for slow ones.
    monitor_interval = 0
    disable: bool

    def __init__(
        self, total: int, label: str, *, unit: str = "it", stream: TextIO | None = None
    ) -> None:
        """Starts the clock.

        Args:
            total: Units of work; 0 if not known.
            label: What is being done, e.g. `reading`.
            unit: What is counted, in the singular.
            stream: Where to write; standard error by default.
        """
        stream = sys.stderr if stream is None else stream
        self._terminal = stream.isatty()
        super().__init__(
            total=total or None,
            desc=label,
            unit=f" {unit}",
            file=stream,
            mininterval=0.1 if self._terminal else _SECONDS_BETWEEN_LINES,
            miniters=1,
            dynamic_ncols=True,
        )

    def update_to(self, count: int) -> None:
        """Counts up to `count` units in all."""
        self.update(count - self.n)

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Writes the bar, or a line of a file; nothing to a file before any work is done."""
        if self._terminal:
            return super().display(msg, pos)
        if self.n:
            self.fp.write(self._line() + "\n")
            self.fp.flush()
        return True

    def clear(self, nolock: bool = False) -> None:
        """Clears the bar of a terminal, for other output; the next update writes it again."""
        if self._terminal:
            super().clear(nolock)

    def close(self) -> None:
        """Writes the last state. Further calls do nothing."""
        if self._terminal or self.disable:
            super().close()
            return
        self.disable = True
        self._decr_instances(self)
        self.display()

    def _line(self) -> str:
        seconds = self.format_dict["elapsed"]
        elapsed = self.format_interval(seconds)
        if not self.total or self.n > self.total:
            return f"{self.desc}: {self.n} in {elapsed}"
        line = f"{self.desc}: {100 * self.n // self.total}% {self.n}/{self.total} in {elapsed}"
        if self.n < self.total:
            remaining = seconds * (self.total - self.n) / self.n
            line += f", {self.format_interval(remaining)} left"
        return line

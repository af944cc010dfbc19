"""The processes of one evaluation, which meet in a directory that all of them share.

While they decode, processes need nothing of each other, and a collective operation would hang, or
end in a stack trace after minutes, when one of them dies. So they tell each other by small files
where they are. Each rewrites its own every few seconds; the first process reads those of the
others, which read that of the first.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import sys
import threading
import time
from types import TracebackType
from typing import Any

from etils import epath

from maestro_jax.errors import UserError
from maestro_jax.files import as_path

log = logging.getLogger(__name__)

BEAT_SECONDS = 4.0
PATIENCE_SECONDS = 40.0
"""Silence after which a process is taken for dead."""
FIRST_PATIENCE_SECONDS = 300.0
"""The same before its first word: hosts start at different times."""
_SHORTEST_POLL, _LONGEST_POLL = 0.05, 2.0
_STALE_SECONDS = 600.0
_RUNNING = "running"


@dataclasses.dataclass
class _Seen:
    """What was read of another process, and when it last changed."""

    content: dict[str, Any] | None = None
    changed: float = dataclasses.field(default_factory=time.monotonic)


class Processes:
    """Lets the processes of an evaluation wait for each other, and notices when one dies.

    Use it as a context manager. If the block ends with an error, the other processes end too, with
    the same message; so they do within a minute when a process disappears.

    Args:
        directory: A directory that all processes can read and write.
        index: Number of this process.
        count: Number of processes; a single one writes no files.
        session: A number that all processes of this start share, and no other start has.
    """

    def __init__(
        self, directory: epath.PathLike, *, index: int = 0, count: int = 1, session: int = 0
    ) -> None:
        self.index, self.count = index, count
        self._directory = as_path(directory) / f"processes-{session}"
        self._lock = threading.Lock()
        self._own: dict[str, Any] = {"beat": 0, "state": _RUNNING, "points": [], "values": {}}
        watched = range(1, count) if index == 0 else range(min(1, count - 1))
        self._seen = {other: _Seen() for other in watched}
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Processes:
        """Begins to watch the other processes."""
        if self.count > 1:
            try:
                self._directory.mkdir(parents=True, exist_ok=True)
                if self.index == 0:
                    self._remove_stale()
                self._write()
            except OSError as error:
                raise UserError(
                    f"cannot write {self._directory.parent} ({error.strerror or error}); give an "
                    "--output_dir that all hosts can write"
                ) from error
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Tells the other processes how it ended here."""
        if self.count == 1:
            return
        if error is None:
            self.meet("the end")
        self._closed.set()
        self._thread.join()
        if error is not None:
            with self._lock:
                self._own["state"] = " ".join(str(error).split()) or type(error).__name__
            self._write()
            self._let_others_read()
        elif self.index:
            # The first process removes the directory when nobody needs it any more.
            self._path(self.index).unlink()
        else:
            deadline = time.monotonic() + PATIENCE_SECONDS
            while any(self._path(other).exists() for other in self._seen):
                if time.monotonic() > deadline:
                    return
                time.sleep(_SHORTEST_POLL)
            self._directory.rmtree()

    def meet(self, point: str, value: Any = None) -> Any:
        """Waits until all processes have come to a point.

        Args:
            point: Name of the point; each process comes to the same points in the same order.
            value: A value for JSON; that of the first process counts.

        Returns:
            The value of the first process.
        """
        if self.count == 1:
            return value
        with self._lock:
            self._own["points"].append(point)
            number = len(self._own["points"])
        if self.index:
            self._write()
        wait = _SHORTEST_POLL
        while not self._arrived(number):
            time.sleep(wait)
            wait = min(1.5 * wait, _LONGEST_POLL)
            self._read_all()
        if self.index:
            first = self._seen[0].content
            assert first is not None
            return first["values"].get(str(number))
        with self._lock:
            # The others go on when they see that the first process, which waits for all, has.
            self._own["values"] = {str(number): value}
            self._own["met"] = number
        self._write()
        return value

    def _arrived(self, number: int) -> bool:
        contents = [seen.content for seen in self._seen.values()]
        if self.index:
            first = contents[0]
            return first is not None and first.get("met", 0) >= number
        return all(content and len(content["points"]) >= number for content in contents)

    def _let_others_read(self) -> None:
        """Waits until the others know why this ends: JAX ends them in a stack trace without it."""
        if self.index == 0:
            time.sleep(2 * BEAT_SECONDS)

    def _remove_stale(self) -> None:
        """Removes what starts that were killed left behind."""
        for path in self._directory.parent.glob("processes-*"):
            files = [file.stat().mtime for file in path.iterdir()]
            if path != self._directory and time.time() - max(files, default=0) > _STALE_SECONDS:
                path.rmtree()

    def _path(self, index: int) -> epath.Path:
        return self._directory / f"{index:05d}.json"

    def _write(self) -> None:
        with self._lock:
            self._own["beat"] += 1
            # Rewritten in place: on a network disk a renamed file may be seen a minute later.
            self._path(self.index).write_text(json.dumps(self._own))

    def _read_all(self) -> None:
        for index, seen in self._seen.items():
            try:
                content = json.loads(self._path(index).read_text())
            except (OSError, ValueError):
                continue  # Not there yet, or just being written.
            if content != seen.content:
                seen.content, seen.changed = content, time.monotonic()

    def _watch(self) -> None:
        while not self._closed.wait(BEAT_SECONDS):
            try:
                self._write()
            except OSError as error:
                log.warning("cannot write %s: %s", self._path(self.index), error)
            self._read_all()
            if (reason := self._trouble()) is not None:
                self._end(reason)

    def _trouble(self) -> str | None:
        """Returns why this process cannot go on; None if all is well."""
        for index, seen in self._seen.items():
            state = seen.content["state"] if seen.content else _RUNNING
            if state != _RUNNING:
                return f"process {index} stopped: {state}"
            patience = PATIENCE_SECONDS if seen.content else FIRST_PATIENCE_SECONDS
            silence = time.monotonic() - seen.changed
            if silence > patience:
                never = "" if seen.content else f", nor been seen in {self._directory}"
                return (
                    f"process {index} of {self.count} has not been heard of for {silence:.0f} s"
                    f"{never}: it has died, or does not share the directory of the results; "
                    "the same command goes on where this one stood"
                )
        return None

    def _end(self, reason: str) -> None:
        """Ends this process from its watching thread, whatever it is doing."""
        with self._lock:
            self._own["state"] = reason
        try:
            self._write()
            self._let_others_read()
        finally:
            print(f"error: {reason}", file=sys.stderr, flush=True)
            sys.stdout.flush()
            # An orderly end would wait for the dead process, and then print a stack trace.
            os._exit(2)

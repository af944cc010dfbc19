"""Runs the cells of a study, one or several at a time, each in a process of its own.

What a cell takes of memory ends with its process, and a crash ends that cell alone: it is written
down, the others go on, and the next start of the study tries it again. Cells that run at the same
time have cores of their own.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import fcntl
import itertools
import json
import os
import pathlib
import queue
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO

from etils import epath

from maestro_jax.errors import RESTART_EXIT_CODE, RestartableError, UserError
from maestro_jax.experiments.study import (
    FAILURE,
    LOG,
    Cell,
    Study,
    cell_directory,
    read_result,
)
from maestro_jax.files import is_remote, write_atomically
from maestro_jax.training.distributed import is_multiprocess
from maestro_jax.training.metrics import duration

PARENT_VARIABLE = "MAESTRO_STUDY_PROCESS"
"""Environment variable of a cell's process with the number of the process that started it."""

_TRIES = 3
_PAUSE_SECONDS = 5.0
_STOPPED = (130, 143)


def run_cells(
    study: Study,
    cells: Sequence[Cell],
    output: epath.PathLike,
    command: Callable[[Cell], Sequence[str]],
    *,
    environment: Mapping[str, str],
    jobs: int = 1,
    done: Callable[[], None] = lambda: None,
) -> list[Cell]:
    """Runs the cells that are not done, and prints a line at the begin and end of each.

    Args:
        study: The study.
        cells: The cells to run.
        output: Directory of the study.
        command: The command line that runs a cell.
        environment: Environment variables of its process.
        jobs: Number of cells that run at the same time, each on an equal part of the cores.
        done: Called when another cell is done or has failed.

    Returns:
        The cells that have failed.

    Raises:
        SystemExit: The process of a cell was told to stop; its state is saved.
        RestartableError: A cell failed for a reason that may pass, at all tries.
    """
    failed: list[Cell] = []
    passing: list[str] = []
    start = time.monotonic()
    processes = _Processes()
    shares: queue.SimpleQueue[frozenset[int]] = queue.SimpleQueue()
    for share in shares_of_cores(jobs):
        shares.put(share)

    def run(number: int, cell: Cell) -> int | None:
        """Runs a cell in a thread of its own; returns its status, None once all were stopped."""
        if processes.stopped_by:
            return None
        left = time_left(cells[number - 1 :], study, output)
        about = "" if left is None else f", about {duration(left / jobs)} left"
        _say(f"[{number}/{len(cells)}] {cell.name}: begins{about}")
        cores = shares.get_nowait()  # As many threads as shares.
        began = time.monotonic()
        try:
            status = _run(cell, output, command(cell), environment, processes, cores)
        finally:
            shares.put(cores)
        spent = duration(time.monotonic() - began)
        if status in _STOPPED:
            _say(f"[{number}/{len(cells)}] {cell.name}: stopped; the same command continues it")
            processes.stop(status - 128)
        # Of several processes that train together, the first one may still be writing the result.
        elif status == 0 or read_result(output, cell) is not None:
            _say(f"[{number}/{len(cells)}] {cell.name}: done in {spent}")
            status = 0
        else:
            _say(f"[{number}/{len(cells)}] {cell.name}: failed after {spent}")
            _say(f"    {write_failure(output, cell, status)}")
        return status

    waiting = [
        (number, cell)
        for number, cell in enumerate(cells, start=1)
        if read_result(output, cell) is None
    ]
    with _stopping(processes), concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        running = {pool.submit(run, number, cell): cell for number, cell in waiting}
        try:
            for future in concurrent.futures.as_completed(running):
                cell, status = running[future], future.result()
                if status is None or status in _STOPPED:
                    continue
                if status:
                    failed.append(cell)
                if status == RESTART_EXIT_CODE:
                    passing.append(cell.name)
                done()
        except BaseException:
            # Otherwise the pool would run all other cells before it is left.
            processes.stop(signal.SIGTERM)
            raise
    if processes.stopped_by:
        raise SystemExit(128 + processes.stopped_by)
    took = duration(time.monotonic() - start)
    _say(f"{len(cells) - len(failed)} of {len(cells)} cells are done; this start took {took}")
    if passing:
        raise RestartableError(f"{', '.join(passing)} failed for a reason that may pass")
    return [cell for cell in cells if cell in failed]


def shares_of_cores(jobs: int) -> list[frozenset[int]]:
    """Divides the cores of this process among jobs; no cores where each job may have all of them.

    Raises:
        UserError: There are fewer cores than jobs.
    """
    if jobs < 1:
        raise UserError(f"--jobs {jobs}: it must be at least 1")
    if jobs == 1 or not hasattr(os, "sched_getaffinity"):
        return [frozenset()] * jobs
    cores = sorted(os.sched_getaffinity(0))
    if jobs > len(cores):
        raise UserError(f"--jobs {jobs}: this process has {len(cores)} cores")
    bounds = [len(cores) * job // jobs for job in range(jobs + 1)]
    return [frozenset(cores[first:last]) for first, last in itertools.pairwise(bounds)]


def time_left(
    cells: Sequence[Cell],
    study: Study,
    output: epath.PathLike | None,
    expected: Mapping[str, float] | None = None,
) -> float | None:
    """Estimates the seconds that cells will take, one after the other.

    A cell takes what done cells of its method took; else what it is expected to take; else what any
    took.

    Args:
        cells: The cells to run; those that are done take no time.
        study: The study.
        output: Its directory; None if there is none.
        expected: Seconds by name of a cell, where they are known.

    Returns:
        None if nothing is known.
    """
    known = {}
    by_method: dict[str, list[float]] = collections.defaultdict(list)
    for cell in study.cells() if output is not None else ():
        if (result := read_result(output, cell)) is not None:
            known[cell.name] = float(result["seconds"])
            by_method[cell.method.name].append(known[cell.name])
    total = 0.0
    for cell in cells:
        if cell.name in known:
            continue
        times = by_method.get(cell.method.name)
        if times is None and cell.name in (expected or {}):
            times = [(expected or {})[cell.name]]
        if times is None and not known:
            return None
        total += statistics.mean(times or known.values())
    return total


def write_failure(output: epath.PathLike, cell: Cell, status: int) -> str:
    """Writes down that a cell failed; returns its error and where its log is, in one line."""
    directory = cell_directory(output, cell)
    log = directory / LOG
    error = f"exit status {status}" if status >= 0 else f"ended by {_signal_name(-status)}"
    if log.exists():
        text = log.read_bytes().decode(errors="replace")
        lines = [line for line in text.splitlines() if line.strip()]
        told = [line for line in lines if line.startswith("error: ")] or lines
        error += f": {told[-1].removeprefix('error: ')} (see {log})" if told else ""
    failure = {"status": status, "error": error}
    write_atomically(directory / FAILURE, (json.dumps(failure, indent=2) + "\n").encode())
    return error


class _Processes:
    """The processes of the cells that run now, which a signal to stop reaches.

    Attributes:
        stopped_by: Number of the signal that stopped them; 0 before.
    """

    def __init__(self) -> None:
        self.stopped_by = 0
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self._stop = threading.Event()

    def run(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        log: IO[bytes] | None,
        cores: frozenset[int],
    ) -> int:
        """Runs a command to its end; returns its status, or that of the signal to stop."""
        with self._lock:
            if self.stopped_by:
                return 128 + self.stopped_by
            process = subprocess.Popen(
                command,
                env={**environment, PARENT_VARIABLE: str(os.getpid())},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT if log is not None else None,
                # Ctrl-C reaches it once, from here.
                start_new_session=True,
            )
            self._running.add(process)
        if cores:
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(process.pid, cores)
        status = process.wait()
        with self._lock:
            self._running.discard(process)
        return 128 + self.stopped_by if self.stopped_by else status

    def pause(self, seconds: float) -> None:
        """Waits, but not beyond a signal to stop."""
        self._stop.wait(seconds)

    def stop(self, number: int) -> None:
        """Tells all processes to stop, which save their states, and starts no others."""
        self.stopped_by = self.stopped_by or number
        self._stop.set()
        with self._lock:
            for process in self._running:
                process.send_signal(signal.SIGTERM)


@contextlib.contextmanager
def _stopping(processes: _Processes) -> Iterator[None]:
    """Lets SIGTERM and Ctrl-C stop processes."""

    def stop(number: int, _: object) -> None:
        # Not in the handler, which may have interrupted the thread that holds the lock.
        threading.Thread(target=processes.stop, args=(number,)).start()

    previous = {each: signal.signal(each, stop) for each in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _run(
    cell: Cell,
    output: epath.PathLike,
    command: Sequence[str],
    environment: Mapping[str, str],
    processes: _Processes,
    cores: frozenset[int],
) -> int:
    """Runs a cell's process until it ends, again after a failure that may pass."""
    for attempt in range(_TRIES):
        if attempt:
            processes.pause(_PAUSE_SECONDS * 2 ** (attempt - 1))
        with _log(output, cell) as log:
            status = processes.run(command, environment, log, cores)
        if status != RESTART_EXIT_CODE:
            break
    return status


@contextlib.contextmanager
def _log(output: epath.PathLike, cell: Cell) -> Iterator[IO[bytes] | None]:
    """Opens the log of a cell; None, for this process's own output, where files cannot grow."""
    if is_remote(output):
        yield None
        return
    directory = pathlib.Path(cell_directory(output, cell))
    directory.mkdir(parents=True, exist_ok=True)
    with open(directory / LOG, "ab") as log:
        yield log


@contextlib.contextmanager
def alone(cell: Cell, output: epath.PathLike) -> Iterator[None]:
    """Waits until no other process of this machine runs a cell, and keeps others waiting.

    A process that was told to stop, or whose parent was killed, takes a while to save its state.
    """
    if is_remote(output) or is_multiprocess():
        yield
        return
    directory = pathlib.Path(cell_directory(output, cell))
    directory.mkdir(parents=True, exist_ok=True)
    with open(directory / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def end_with_parent(parent: int) -> None:
    """Ends this process once the one that started it is gone, with its state saved if it can.

    Without this, a cell whose study was killed would go on beside the next start of the study.

    Args:
        parent: Number of the process that started this one.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="parent", daemon=True).start()


def parse_shard(text: str) -> tuple[int, int]:
    """Reads `I/N`, the I-th of N shards from 0.

    Raises:
        UserError: It is none.
    """
    index, slash, count = text.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise UserError(f"--shard {text}: write I/N with I from 0 to N - 1, as in --shard 0/4")
    return int(index), int(count)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _say(line: str) -> None:
    print(line, file=sys.stdout, flush=True)

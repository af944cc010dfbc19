"""Runs the cells of a study one after the other, each in a process of its own.

What a cell takes of memory ends with its process, and a crash ends that cell alone: it is written
down, the others go on, and the next start of the study tries it again.
"""

from __future__ import annotations

import collections
import contextlib
import fcntl
import json
import os
import pathlib
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
    done: Callable[[], None] = lambda: None,
) -> list[Cell]:
    """Runs the cells that are not done, and prints a line at the begin and end of each.

    Args:
        study: The study.
        cells: The cells to run.
        output: Directory of the study.
        command: The command line that runs a cell.
        environment: Environment variables of its process.
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
    for number, cell in enumerate(cells, start=1):
        if read_result(output, cell) is not None:
            continue
        left = time_left(cells[number - 1 :], study, output)
        about = "" if left is None else f", about {duration(left)} left"
        _say(f"[{number}/{len(cells)}] {cell.name}: begins{about}")
        began = time.monotonic()
        status = _run(cell, output, command(cell), environment)
        spent = duration(time.monotonic() - began)
        if status in _STOPPED:
            _say(f"[{number}/{len(cells)}] {cell.name}: stopped; the same command continues it")
            raise SystemExit(status)
        # Of several processes that train together, the first one may still be writing the result.
        if status == 0 or read_result(output, cell) is not None:
            _say(f"[{number}/{len(cells)}] {cell.name}: done in {spent}")
        else:
            failed.append(cell)
            _say(f"[{number}/{len(cells)}] {cell.name}: failed after {spent}")
            _say(f"    {write_failure(output, cell, status)}")
            if status == RESTART_EXIT_CODE:
                passing.append(cell.name)
        done()
    took = duration(time.monotonic() - start)
    _say(f"{len(cells) - len(failed)} of {len(cells)} cells are done; this start took {took}")
    if passing:
        raise RestartableError(f"{', '.join(passing)} failed for a reason that may pass")
    return failed


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


def _run(
    cell: Cell, output: epath.PathLike, command: Sequence[str], environment: Mapping[str, str]
) -> int:
    """Runs a cell's process until it ends, again after a failure that may pass."""
    for attempt in range(_TRIES):
        if attempt:
            time.sleep(_PAUSE_SECONDS * 2 ** (attempt - 1))
        with _log(output, cell) as log:
            process = subprocess.Popen(
                command,
                env={**environment, PARENT_VARIABLE: str(os.getpid())},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT if log is not None else None,
                # Ctrl-C reaches it once, from here.
                start_new_session=True,
            )
            status = _wait(process)
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


def _wait(process: subprocess.Popen[bytes]) -> int:
    """Waits for a process; a signal to stop reaches it, and it saves its state."""
    stopping: list[int] = []

    def stop(number: int, _: object) -> None:
        stopping.append(number)
        process.send_signal(signal.SIGTERM)

    previous = {each: signal.signal(each, stop) for each in (signal.SIGTERM, signal.SIGINT)}
    try:
        status = process.wait()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    return 128 + stopping[0] if stopping else status


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

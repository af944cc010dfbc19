"""Functions called in other processes, with the answers in order."""

from __future__ import annotations

import collections
import concurrent.futures
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Self


class Processes:
    """Processes that work through requests.

    They are started as fresh interpreters, not forked (TensorFlow does not survive that) and not by
    `multiprocessing` (which would run the caller's script again). They end when this is closed or
    when its process dies.

    Example:
        >>> with Processes(workers=2) as processes:
        ...     for length in processes.results(len, [("a",), ("bc",)]):
        ...         print(length)
    """

    def __init__(self, workers: int | None = None) -> None:
        """Prepares them; processes start with the first work.

        Args:
            workers: How many processes; one for every core by default.
        """
        self.workers = workers or cores()
        self._threads = concurrent.futures.ThreadPoolExecutor(self.workers)
        self._own = threading.local()
        self._processes: list[subprocess.Popen[bytes]] = []

    def results(
        self, function: Callable[..., Any], requests: Iterable[tuple[Any, ...]], *, ahead: int = 4
    ) -> Iterator[Any]:
        """Calls a function with each request's arguments.

        Args:
            function: A function at the top of a module that can be imported by its name.
            requests: Its arguments, call by call; read no further than needed.
            ahead: Calls begun or waiting for each process before an answer is taken, so that memory
                does not grow with the work.

        Returns:
            The answers, in the order of the requests.

        Raises:
            UserError: The function raised it.
            RuntimeError: The function raised something else, or a process died.
        """
        pending: collections.deque[concurrent.futures.Future[Any]] = collections.deque()
        for arguments in requests:
            pending.append(self._threads.submit(self._ask, function, arguments))
            if len(pending) >= ahead * self.workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()

    def close(self) -> None:
        """Ends the processes. Work that has not begun is dropped."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        for process in self._processes:
            process.terminate()
        self._threads.shutdown(wait=True)
        for process in self._processes:
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()

    def __enter__(self) -> Self:
        """Returns the object itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Ends the processes."""
        self.close()

    def _ask(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        # Every thread talks to one process of its own.
        process = getattr(self._own, "process", None)
        if process is None:
            process = self._own.process = self._start()
        assert process.stdin is not None and process.stdout is not None
        name = f"{function.__module__}.{function.__qualname__}"
        try:
            pickle.dump((function, arguments), process.stdin)
            process.stdin.flush()
            kind, answer = pickle.load(process.stdout)
        except (EOFError, BrokenPipeError, ValueError, pickle.UnpicklingError) as error:
            raise RuntimeError(f"a process that ran {name} died: {error!r}") from error
        if kind == "user error":
            raise answer
        if kind == "error":
            raise RuntimeError(f"{name} failed in another process:\n{answer}")
        return answer

    def _start(self) -> subprocess.Popen[bytes]:
        environment = dict(os.environ)
        # The child imports what this process would import, wherever it was found.
        environment["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)
        # One process a core: threads inside of them would only wait for each other.
        for library in ("OMP", "OPENBLAS", "MKL"):
            environment[f"{library}_NUM_THREADS"] = "1"
        process = subprocess.Popen(
            [sys.executable, "-m", "maestro_jax.data.process_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )
        self._processes.append(process)
        return process


def cores() -> int:
    """How many cores this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # Not on macOS.
        return os.cpu_count() or 1

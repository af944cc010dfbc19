"""Calls functions in other processes, and gives their answers in order.

Neither `multiprocessing` nor `loky` will do: the former runs the caller's script again in each
process, and those of the latter go on when the caller is killed. Here a process reads pickled
requests `(function, arguments)` from its standard input until that ends, and writes pickled answers
to its standard output: `("answer", value)`, `("trouble", error)` for an error of one line or of a
disk, or `("error", traceback)`.
"""

from __future__ import annotations

import collections
import concurrent.futures
import os
import pickle
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Self

from maestro_jax.errors import UserError
from maestro_jax.files import storage_error


class Processes:
    """Processes that work through requests.

    They are fresh interpreters, not forks, which TensorFlow does not survive. They end when the
    object is closed or when the process that made it dies.

    Example:
        >>> with Processes(workers=2) as processes:
        ...     for length in processes.results(len, [("a",), ("bc",)]):
        ...         print(length)
    """

    def __init__(self, workers: int | None = None) -> None:
        """Prepares the processes; each starts with its first work.

        Args:
            workers: Number of processes; by default one per core.
        """
        self.workers = workers or num_cores()
        self._threads = concurrent.futures.ThreadPoolExecutor(self.workers)
        self._of_thread = threading.local()
        self._processes: list[subprocess.Popen[bytes]] = []

    def results(
        self, function: Callable[..., Any], requests: Iterable[tuple[Any, ...]], *, ahead: int = 4
    ) -> Iterator[Any]:
        """Calls a function with the arguments of each request.

        Args:
            function: A function at the top of a module that can be imported by its name.
            requests: Arguments of each call; read no further than needed.
            ahead: Calls per process that are begun or wait before an answer is taken, so that
                memory does not grow with the work.

        Yields:
            The answers, in the order of the requests.

        Raises:
            UserError: The function raised it, or a disk did.
            RestartableError: A disk raised what may be over later.
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
        process = getattr(self._of_thread, "process", None)
        if process is None:
            process = self._of_thread.process = self._start()
        assert process.stdin is not None and process.stdout is not None
        name = f"{function.__module__}.{function.__qualname__}"
        try:
            pickle.dump((function, arguments), process.stdin)
            process.stdin.flush()
            kind, answer = pickle.load(process.stdout)
        except (EOFError, BrokenPipeError, ValueError, pickle.UnpicklingError) as error:
            raise RuntimeError(f"a process that ran {name} died: {error!r}") from error
        if kind == "trouble":
            raise answer
        if kind == "error":
            raise RuntimeError(f"{name} failed in another process:\n{answer}")
        return answer

    def _start(self) -> subprocess.Popen[bytes]:
        environment = dict(os.environ)
        # The child imports what this process would import, wherever it was found.
        environment["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)
        # One process per core: threads inside of them would only wait for each other.
        for library in ("OMP", "OPENBLAS", "MKL"):
            environment[f"{library}_NUM_THREADS"] = "1"
        # By its full name, and not as `__main__`, so that functions of this module can be pickled.
        command = "from maestro_jax.data.processes import answer_requests; answer_requests()"
        process = subprocess.Popen(
            [sys.executable, "-c", command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )
        self._processes.append(process)
        return process


def answer_requests() -> None:
    """Answers requests until standard input ends; what a process of `Processes` does."""
    # An interrupt from the keyboard reaches the whole group; the parent process ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    requests = sys.stdin.buffer
    # Answers have a descriptor of their own: whatever a library prints goes to standard error.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    while True:
        answer: tuple[str, object]
        try:
            function, arguments = pickle.load(requests)
        except EOFError:
            return
        try:
            answer = "answer", function(*arguments)
        except UserError as error:
            answer = "trouble", error
        except Exception as error:  # noqa: BLE001 - the other process raises it.
            # A full disk is no bug of ours, wherever it is noticed.
            trouble = storage_error(error)
            answer = ("error", traceback.format_exc()) if trouble is None else ("trouble", trouble)
        try:
            pickle.dump(answer, answers, protocol=pickle.HIGHEST_PROTOCOL)
            answers.flush()
        except BrokenPipeError:  # The process that asked was killed.
            os._exit(1)


def num_cores() -> int:
    """Returns the number of cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # Not on macOS.
        return os.cpu_count() or 1

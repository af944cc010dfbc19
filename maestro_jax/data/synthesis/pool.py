"""Examples made by several processes, in order."""

from __future__ import annotations

import collections
import concurrent.futures
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator

from maestro_jax.data.synthesis.config import CorpusConfig
from maestro_jax.data.synthesis.corpus import Example
from maestro_jax.errors import UserError

_CHUNK = 16


class Pool:
    """Processes that make examples.

    They are started as fresh interpreters, not forked (TensorFlow does not survive that) and not by
    `multiprocessing` (which would run the caller's script again). They end when the pool is closed
    or when its process dies.

    Example:
        >>> with Pool(workers=2) as pool:
        ...     for example in pool.examples(SMALL, "paired_de_train", 1500):
        ...         print(example.text)
    """

    def __init__(self, workers: int | None = None) -> None:
        """Prepares the pool; processes start with the first work.

        Args:
            workers: How many processes; one for every core by default.
        """
        self._workers = workers or cores()
        self._threads = concurrent.futures.ThreadPoolExecutor(self._workers)
        self._own = threading.local()
        self._processes: list[subprocess.Popen[bytes]] = []

    def examples(self, config: CorpusConfig, split: str, count: int) -> Iterator[Example]:
        """Makes the first `count` examples of a split.

        Raises:
            UserError: espeak-ng or another package is missing.
            RuntimeError: A process died.
        """
        chunks = (
            (config, split, start, min(start + _CHUNK, count)) for start in range(0, count, _CHUNK)
        )
        pending: collections.deque[concurrent.futures.Future[list[Example]]] = collections.deque()
        for chunk in chunks:
            pending.append(self._threads.submit(self._ask, chunk))
            # A bounded number waits to be taken, so that memory does not grow with the corpus.
            if len(pending) >= 4 * self._workers:
                yield from pending.popleft().result()
        while pending:
            yield from pending.popleft().result()

    def close(self) -> None:
        """Ends the processes. Work that has not begun is dropped."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        for process in self._processes:
            process.terminate()
        self._threads.shutdown(wait=True)
        for process in self._processes:
            process.wait()
            for pipe in (process.stdin, process.stdout):
                pipe.close()

    def __enter__(self) -> Pool:
        """Returns the pool itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Ends the processes."""
        self.close()

    def _ask(self, request: tuple[CorpusConfig, str, int, int]) -> list[Example]:
        # Every thread talks to one process of its own.
        process = getattr(self._own, "process", None)
        if process is None:
            process = self._own.process = self._start()
        try:
            pickle.dump(request, process.stdin)
            process.stdin.flush()
            answer = pickle.load(process.stdout)
        except (EOFError, BrokenPipeError, ValueError, pickle.UnpicklingError) as error:
            raise RuntimeError(f"a process that made {request[1]} died: {error!r}") from error
        if isinstance(answer, UserError):
            raise answer
        return answer

    def _start(self) -> subprocess.Popen[bytes]:
        environment = dict(os.environ)
        # The child imports what this process would import, wherever it was found.
        environment["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)
        # One process a core: threads inside of them would only wait for each other.
        for library in ("OMP", "OPENBLAS", "MKL"):
            environment[f"{library}_NUM_THREADS"] = "1"
        process = subprocess.Popen(
            [sys.executable, "-m", "maestro_jax.data.synthesis.worker"],
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

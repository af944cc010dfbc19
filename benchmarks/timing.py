"""Times contenders that take turns, each in its own process on given cores.

A contender is a module of this directory with a function `prepare(job) -> (report, run)`, which
loads and compiles all it needs; `run()` does the work once. The process is pinned to its cores
before any library can count them, and may use another Python with other packages. This module
imports only the standard library.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

Prepare = Callable[[dict[str, Any]], tuple[dict[str, Any], Callable[[], object]]]


class ContenderError(Exception):
    """Raised if a contender cannot run.

    Attributes:
        missing: Whether a package is missing.
    """

    def __init__(self, message: str, *, missing: bool) -> None:
        super().__init__(message)
        self.missing = missing


@dataclasses.dataclass(frozen=True)
class Timing:
    """Wall-clock seconds of the repeats of one contender."""

    seconds: tuple[float, ...]

    @property
    def best(self) -> float:
        """Returns the seconds of the fastest repeat."""
        return min(self.seconds)

    @property
    def median(self) -> float:
        """Returns the median seconds of the repeats."""
        return statistics.median(self.seconds)


class Contender:
    """A process of a contender, which works on request.

    Args:
        module: Name of the module of this directory.
        job: What `prepare` is given; anything that JSON holds.
        cores: How many cores the process may use.
        python: The interpreter; this one by default.
        environment: Variables to set; JAX_PLATFORMS is `cpu` where nothing else is said.

    Raises:
        ContenderError: If it cannot prepare itself.
    """

    def __init__(
        self,
        module: str,
        job: Mapping[str, Any],
        *,
        cores: int,
        python: str = sys.executable,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        request = json.dumps({"module": module, "cores": cores, "job": dict(job)})
        self._process = subprocess.Popen(
            [python, __file__, request],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **(environment or {})},
        )
        self.report = self._answer()

    def run(self) -> float:
        """Works once and returns the seconds that it took."""
        assert self._process.stdin is not None
        self._process.stdin.write("run\n")
        self._process.stdin.flush()
        return float(self._answer()["seconds"])

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            raise ContenderError(f"the process ended with status {code}", missing=False)
        answer = json.loads(line)
        if "error" in answer:
            self._process.wait()
            raise ContenderError(answer["error"], missing=answer["missing"])
        return answer

    def __enter__(self) -> Contender:
        return self

    def __exit__(self, *_: object) -> None:
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        self._process.wait()


def take_turns(contenders: Mapping[str, Contender], repeats: int) -> dict[str, Timing]:
    """Times every contender once per round, in alternating order, for equal disturbances.

    Args:
        contenders: By name; a first, unmeasured round warms them up.
        repeats: Rounds that count.

    Returns:
        The times by name.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(repeats + 1):
        order = list(contenders) if number % 2 else list(reversed(contenders))
        for name in order:
            took = contenders[name].run()
            if number:
                seconds[name].append(took)
    return {name: Timing(tuple(values)) for name, values in seconds.items()}


def available_cores() -> int:
    """Returns the cores that this process may use."""
    return len(os.sched_getaffinity(0))


def machine() -> str:
    """Returns processor, cores and operating system in one line."""
    model = platform.processor() or platform.machine()
    info = pathlib.Path("/proc/cpuinfo")
    if info.exists():
        lines = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        model = lines[0].split(":", 1)[1].strip() if lines else model
    return f"{model}, {available_cores()} cores, {platform.system()} {platform.machine()}"


def progress(message: str) -> None:
    """Prints progress to stderr; results go to stdout."""
    print(message, file=sys.stderr, flush=True)


def _serve() -> None:
    """Runs the contender: prepares, reports it, then works once for every line that is read."""
    request = json.loads(sys.argv[1])
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: request["cores"]])
    # Before NumPy and PyTorch create their thread pools.
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ[name] = str(request["cores"])
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    # Output of libraries must not mix with the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(**fields: Any) -> None:
        answers.write(json.dumps(fields) + "\n")
        answers.flush()

    try:
        prepare: Prepare = importlib.import_module(request["module"]).prepare
        report, run = prepare(request["job"] | {"cores": request["cores"]})
    except ImportError as error:
        answer(error=str(error), missing=True)
        return
    answer(**report)
    for _ in sys.stdin:
        start = time.perf_counter()
        run()
        answer(seconds=time.perf_counter() - start)


if __name__ == "__main__":
    _serve()

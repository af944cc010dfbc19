"""A run that a campaign disturbs: its processes, what it says, and what it must have at its end.

A run has one process or several over loopback. It plays the user, or the supervisor: it starts the
same command again after whatever has stopped it.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tests.faults import control as faulty
from tests.faults import driver

ROOT = pathlib.Path(__file__).resolve().parents[2]
START_LIMIT = 90.0
"""Seconds from a start to its first step; on an idle machine it takes two."""
SECOND_LIMIT = 30.0
"""Seconds in which a second run on a model directory is refused."""
EXIT_LIMIT = 60.0
"""Seconds in which all processes end when one has been killed, or has been asked to stop."""
DOCUMENTED = {0, 2, 75, 130, 143}
"""Exit statuses that the documentation explains."""
_NOISE = re.compile(
    r"Traceback \(most recent call last\)|Fatal Python error|Exception ignored|^\s+@ +0x|"
    r"^[EF]\d{4} \d\d:\d\d:\d\d|terminate called|Segmentation fault|AssertionError"
)
_STEP = re.compile(r"^step +(\d+)/\d+", re.MULTILINE)
# What differs between two runs that are the same: times, and counts of what has gone wrong.
_INCIDENTAL = re.compile(
    r"failures|seconds|per_second|data_wait|mfu|goodput|memory|audio_hours|restarts|"
    r"compil|lost_work|host_"
)
# In a record, what says on how many devices the run was going on.
_OF_TOPOLOGY = {"batch_parts"}
_LEFT_BEHIND = re.compile(r"tmp|lease|\.part$|/\.[^/]*$")


def patience(seconds: float) -> float:
    """Returns a time limit for this machine, which may have more to do than it has cores."""
    return seconds * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


class Failure(Exception):
    """What must not happen."""


@dataclasses.dataclass(frozen=True)
class Program:
    """What is run: a toy model on batches of random tokens, which starts in two seconds.

    Attributes:
        steps: Steps of a run.
        pace: Seconds that a step takes at least while faults are injected.
    """

    steps: int
    pace: float = 0.05

    def prepare(self) -> None:
        """Makes what all runs of the program share."""

    def write_data(self, directory: pathlib.Path) -> None:
        """Writes the data that it trains on."""
        driver.write_data(directory, self.steps)

    def command(self, model_dir: pathlib.Path, data_dir: pathlib.Path) -> list[str]:
        """Returns the command line."""
        options = {"model_dir": model_dir, "data_dir": data_dir, "steps": self.steps}
        words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
        return [sys.executable, "-m", "tests.faults.driver", *words]

    def shards(self, data_dir: pathlib.Path) -> list[pathlib.Path]:
        """Returns the files of data that can be damaged so that reading must notice."""
        return []


@dataclasses.dataclass(frozen=True)
class MiniVoxProgram(Program):
    """`maestro train` with a small model on MiniVox, which is prepared once for all runs.

    Attributes:
        prepared: Directory of the data.
    """

    prepared: pathlib.Path = pathlib.Path()

    def prepare(self) -> None:
        """Prepares the data, unless they exist."""
        from maestro_jax.minivox import dataset

        dataset.prepare("tiny", self.prepared)

    def write_data(self, directory: pathlib.Path) -> None:
        """Copies the data."""
        shutil.copytree(self.prepared, directory)

    def command(self, model_dir: pathlib.Path, data_dir: pathlib.Path) -> list[str]:
        """Returns the command line."""
        sizes = {
            "INIT_FROM": None,
            "WARMUP_STEPS": 1,
            "FEATURES": 16,
            "HIDDEN": 16,
            "SPEECH_LAYERS": 1,
            "SHARED_LAYERS": 1,
            "VOCAB_SIZE": 96,
            "EVAL_EVERY": 20,
            "EVAL_EXAMPLES": 4,
            "CHECKPOINT_EVERY": 5,
            "LOG_EVERY": 1,
            "STEPS": self.steps,
        }
        words = ["--gin_file", "runs/demo_finetune_asr.gin", "--gin_file", "data/minivox_tiny.gin"]
        words += [f"--gin.{name}={value}" for name, value in sizes.items()]
        words += ["--data_dir", str(data_dir), "--model_dir", str(model_dir)]
        return [sys.executable, "-m", "maestro_jax.cli.main", "train", *words]

    def shards(self, data_dir: pathlib.Path) -> list[pathlib.Path]:
        """Returns the shards of speech to train on."""
        return sorted(data_dir.glob("minivox/tiny/*/*paired*_train*.array_record*"))


class SmallRun:
    """One run.

    Args:
        program: What is run.
        processes: Number of processes.
        directory: Directory for everything of the run; it must not exist.
        shared: Directory of what all runs share: the compilation cache and the library of faults.
        rng: Draws moments.

    Attributes:
        model_dir: The model directory.
        data_dir: The data.
        control: Turns faults of storage on and off; without a C compiler they have no effect.
        children: The processes of the present attempt, in order; empty between two attempts.
        attempts: Number of starts.
        topologies: Numbers of processes that the run has had.
    """

    def __init__(
        self,
        program: Program,
        processes: int,
        directory: pathlib.Path,
        shared: pathlib.Path,
        rng: random.Random,
    ) -> None:
        self.program, self.processes, self.rng = program, processes, rng
        self.directory, self.shared = directory, shared
        self.model_dir, self.data_dir = directory / "model", directory / "data"
        directory.mkdir(parents=True)
        program.write_data(self.data_dir)
        self.control = faulty.Control(directory / "control")
        self.control.pace = program.pace
        self.children: list[subprocess.Popen[bytes]] = []
        self.attempts = 0
        self.topologies = {processes}

    # ------------------------------------------------------------------------- its processes

    def start(self, processes: int | None = None) -> None:
        """Starts the command in all processes."""
        assert not self.children
        self.attempts += 1
        self.control.progress = -1
        count = self.processes if processes is None else processes
        self.topologies.add(count)
        self.children = self._spawn(count, f"attempt{self.attempts}")

    def _spawn(self, count: int, name: str) -> list[subprocess.Popen[bytes]]:
        cache = self.shared / "xla"
        # As a user's shell has it: JAX, which this process imports to read checkpoints, has set
        # TF_CPP_MIN_LOG_LEVEL in its own environment.
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "TF_"))}
        environment = {
            **inherited,
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": "--xla_backend_optimization_level=0",
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
            "MPLBACKEND": "Agg",
            faulty.CONTROL: str(self.control.path),
        }
        library = self.shared / "faulty_system.so"
        if library.exists():
            paths = {"model": self.model_dir, "cache": cache, "data": self.data_dir}
            environment |= faulty.environment(library, self.control, paths)
        if count > 1:
            with socket.socket() as free:
                free.bind(("localhost", 0))
                port = free.getsockname()[1]
            environment["JAX_COORDINATOR_ADDRESS"] = f"localhost:{port}"
            environment["JAX_NUM_PROCESSES"] = str(count)
        children = []
        for index in range(count):
            environment["JAX_PROCESS_ID"] = str(index)
            if count == 1:
                del environment["JAX_PROCESS_ID"]
            with self._log(name, index).open("wb") as log:
                children.append(
                    subprocess.Popen(
                        self.program.command(self.model_dir, self.data_dir),
                        env=environment,
                        cwd=ROOT,
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=log,
                        start_new_session=True,
                    )
                )
        return children

    def _log(self, name: str, index: int) -> pathlib.Path:
        return self.directory / f"{name}.process{index}.log"

    def log_text(self, index: int = 0) -> str:
        """Returns what a process of the present or latest attempt has written so far."""
        return self._log(f"attempt{self.attempts}", index).read_text(errors="replace")

    @property
    def step(self) -> int:
        """Returns the last step of which the present attempt is known to have done something."""
        if (progress := self.control.progress) >= 0:
            return progress
        steps = _STEP.findall(self.log_text()) if self.attempts else ()
        return int(steps[-1]) if steps else -1

    def until(self, condition: Callable[[], Any], limit: float) -> bool:
        """Waits until a condition holds or a process has ended; returns whether it holds."""
        deadline = time.monotonic() + patience(limit)
        while not condition():
            if self.has_ended:
                return bool(condition())
            if time.monotonic() > deadline:
                return False
            time.sleep(0.005)
        return True

    def rest(self, seconds: float) -> None:
        """Waits so long, or until a process has ended."""
        deadline = time.monotonic() + seconds
        while not self.has_ended and time.monotonic() < deadline:
            time.sleep(0.005)

    @property
    def has_ended(self) -> bool:
        """Returns whether a process has ended, or none was started."""
        return not self.children or any(child.poll() is not None for child in self.children)

    def advance(self, steps: int, limit: float = START_LIMIT) -> bool:
        """Waits until so many more steps are done; returns False where the run ends before."""
        target = max(self.step, 0) + steps
        if self.until(lambda: self.step >= target, limit):
            return True
        if self.has_ended:
            return False
        raise Failure(f"stands still at step {self.step} for {limit:.0f} s")

    def wait_for_exit(self, limit: float = EXIT_LIMIT) -> list[int]:
        """Waits until all processes have ended, checks what they say, and returns their statuses.

        Raises:
            Failure: One does not end, ends with a status that nothing explains, or with a traceback
                instead of a line.
        """
        deadline = time.monotonic() + patience(limit)
        alive = list(self.children)
        while alive and time.monotonic() < deadline:
            time.sleep(0.01)
            alive = [child for child in alive if child.poll() is None]
        if alive:
            numbers = [self.children.index(child) for child in alive]
            self.kill()
            raise Failure(f"process {numbers} still there after {limit:.0f} s")
        # As a shell has it: SIGTERM just before or after training ends a process by itself. What
        # must have been saved by then is checked by the fault.
        codes = [{-signal.SIGTERM: 143}.get(c.returncode, c.returncode) for c in self.children]
        self.children = []
        for index, code in enumerate(codes):
            if code != -signal.SIGKILL:
                check_words(code, self.log_text(index), f"process {index}")
        return codes

    def kill(self) -> None:
        """Kills all processes at once."""
        for child in self.children:
            child.send_signal(signal.SIGCONT)
            child.kill()
        for child in self.children:
            child.wait()
        self.children = []

    def recover(self, processes: int | None = None) -> str:
        """Makes sure that the run does a new step, as a supervisor does.

        Returns:
            What the user, or the supervisor, had to do: "nothing" or "restart".

        Raises:
            Failure: It does not; or it asks for help although nothing is wrong any more.
        """
        had_to = "nothing"
        for _ in range(3):
            if not self.children:
                had_to = "restart"
                self.start(processes)
                before = -1
            else:
                before = self.step
            if self.until(lambda before=before: self.step > max(before, 0), START_LIMIT):
                return had_to
            if not self.has_ended:
                raise Failure(f"no new step in {START_LIMIT:.0f} s")
            codes = self.wait_for_exit()
            if set(codes) == {0}:
                return had_to
            if not set(codes) & {75, 130, 143}:
                raise Failure(f"restarted with nothing wrong, it exits with {codes}")
        raise Failure("three restarts in a row have done no step")

    def second_run(self) -> tuple[int, str]:
        """Starts the same command beside the present processes; returns its status and words."""
        (child,) = self._spawn(1, f"second{self.attempts}")
        try:
            code = child.wait(patience(SECOND_LIMIT))
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
            raise Failure("a second run on the model directory is not refused") from None
        return code, self._log(f"second{self.attempts}", 0).read_text(errors="replace")

    # ------------------------------------------------------------------------ its checkpoints

    def steps(self) -> list[int]:
        """Returns the steps of the complete checkpoints, ascending."""
        directory = self.model_dir / "checkpoints"
        names = os.listdir(directory) if directory.is_dir() else []
        return sorted(int(name) for name in names if name.isdecimal())

    def is_saving(self) -> bool:
        """Returns whether a checkpoint is being written at this moment."""
        directory = self.model_dir / "checkpoints"
        return directory.is_dir() and any("tmp" in name for name in os.listdir(directory))

    # ------------------------------------------------------------------------------ its end

    def finish(self) -> None:
        """Turns all faults off, and lets the run end."""
        self.control.heal()
        self.control.pace = 0.0
        for _ in range(4):
            if not self.children:
                self.start()
            codes = self.wait_for_exit(START_LIMIT + 60)
            if set(codes) == {0}:
                return
            if not set(codes) & {75, 130, 143, -signal.SIGKILL}:
                raise Failure(f"undisturbed, it exits with {codes}")
        raise Failure("undisturbed, it does not reach its end")

    def check_against(self, reference: SmallRun, tolerance: float = 0.0) -> None:
        """Compares the run with the undisturbed one.

        Args:
            reference: The undisturbed run.
            tolerance: Largest relative difference of arrays and metrics; 0 for the same bits.

        Raises:
            Failure: They differ.
        """
        compare_arrays(final_arrays(self), final_arrays(reference), tolerance)
        compare_metrics(
            metrics_of(self.model_dir), metrics_of(reference.model_dir), tolerance or 0.0
        )
        compare_records(final_record(self), final_record(reference), tolerance)
        extra = files_of(self.model_dir) - files_of(reference.model_dir)
        left = sorted(name for name in extra if _LEFT_BEHIND.search(name))
        if left:
            raise Failure(f"left behind: {', '.join(left[:4])}")
        if alive := processes_of(self.control.path):
            raise Failure(f"left behind: the processes {alive}")


# ------------------------------------------------------------------------------------- checks


def check_words(code: int, text: str, who: str) -> None:
    """Checks how a process has ended: a documented status, and one line that says why.

    Raises:
        Failure: It has not.
    """
    noise = [line for line in text.splitlines() if _NOISE.search(line)]
    if noise:
        raise Failure(f"{who} exits with {code} and says: {_last_words(text)}")
    if code not in DOCUMENTED:
        raise Failure(f"{who} exits with {code}, which is not documented: {_last_words(text)}")
    errors = [line for line in text.splitlines() if line.startswith("error: ")]
    if code in (2, 75) and len(errors) != 1:
        raise Failure(f"{who} exits with {code} and {len(errors)} lines that say why")


def _last_words(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " ".join(lines[-1:])[:300]


def metrics_of(model_dir: pathlib.Path) -> list[dict[str, Any]]:
    """Reads metrics.jsonl."""
    lines = (model_dir / "metrics.jsonl").read_text().splitlines()
    try:
        return [json.loads(line) for line in lines]
    except ValueError as error:
        raise Failure(f"a line of metrics.jsonl is torn ({error})") from error


def compare_metrics(
    found: Sequence[Mapping[str, Any]], expected: Sequence[Mapping[str, Any]], tolerance: float
) -> None:
    """Compares two logs: the same steps in the same order, and the same values but for times.

    Raises:
        Failure: They differ.
    """
    steps, wanted = ([line["step"] for line in lines] for lines in (found, expected))
    if steps != wanted:
        double = sorted({step for step in steps if steps.count(step) > 1})
        missing = sorted(set(wanted) - set(steps))
        more = sorted(set(steps) - set(wanted))
        raise Failure(f"metrics.jsonl: twice {double}, missing {missing}, besides {more}")
    for line, want in zip(found, expected, strict=True):
        for name in line.keys() | want.keys():
            if _INCIDENTAL.search(name):
                continue
            here, there = line.get(name), want.get(name)
            if here != there and not _close(here, there, tolerance):
                raise Failure(f"metrics.jsonl: {name} of step {line['step']}: {here} for {there}")


def _close(here: Any, there: Any, tolerance: float) -> bool:
    if not isinstance(here, float) or not isinstance(there, float):
        return False
    return abs(here - there) <= tolerance * max(1.0, abs(there))


def final_arrays(run: SmallRun) -> dict[str, np.ndarray]:
    """Reads parameters, averages and optimizer from the last checkpoint, with Orbax alone."""
    import orbax.checkpoint as ocp
    from absl import logging

    logging.set_verbosity(logging.ERROR)
    steps = run.steps()
    if not steps or steps[-1] != run.program.steps:
        raise Failure(f"the last checkpoint is {steps[-1:]}, not {run.program.steps}")
    with ocp.PyTreeCheckpointer() as checkpointer:
        state = run.model_dir / "checkpoints" / str(steps[-1]) / "state"
        tree = checkpointer.metadata(state).item_metadata.tree
        import jax

        arguments = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        restored = checkpointer.restore(state, restore_args=arguments)
    leaves = jax.tree_util.tree_flatten_with_path(restored)[0]
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def compare_arrays(
    found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray], tolerance: float
) -> None:
    """Compares two states.

    Raises:
        Failure: They differ.
    """
    if found.keys() != expected.keys() or not found:
        raise Failure(f"other arrays: {sorted(found.keys() ^ expected.keys())[:3]}")
    for name, want in expected.items():
        have = found[name]
        if have.dtype != want.dtype or have.shape != want.shape:
            raise Failure(f"{name} is {have.dtype} {have.shape}")
        if have.tobytes() == want.tobytes():
            continue
        scale = max(1.0, float(np.abs(want).max(initial=0.0)))
        difference = float(np.abs(have.astype(float) - want.astype(float)).max()) / scale
        if not difference <= tolerance:
            raise Failure(f"the array {name} differs by {difference:.2g}")


def final_record(run: SmallRun) -> dict[str, Any]:
    """Reads the JSON record of the last checkpoint."""
    path = run.model_dir / "checkpoints" / str(run.program.steps) / "data" / "metadata"
    return json.loads(path.read_text())


def compare_records(found: Any, expected: Any, tolerance: float, path: str = "record") -> None:
    """Compares two records but for times, and for the number of devices with a tolerance.

    Raises:
        Failure: They differ.
    """
    if isinstance(expected, dict) and isinstance(found, dict):
        for name in found.keys() | expected.keys():
            if not (_INCIDENTAL.search(name) or (tolerance and name in _OF_TOPOLOGY)):
                there = expected.get(name)
                compare_records(found.get(name), there, tolerance, f"{path}/{name}")
    elif isinstance(expected, list) and isinstance(found, list) and len(found) == len(expected):
        for index, (here, there) in enumerate(zip(found, expected, strict=True)):
            compare_records(here, there, tolerance, f"{path}/{index}")
    elif found != expected and not _close(found, expected, tolerance):
        raise Failure(f"{path} is {str(found)[:100]}, not {str(expected)[:100]}")


def files_of(directory: pathlib.Path) -> set[str]:
    """Returns the files below a directory, but for those of checkpoints that are set aside."""
    names = (str(path.relative_to(directory)) for path in directory.rglob("*"))
    return {f"/{name}" for name in names if not name.startswith("damaged_checkpoints")}


def processes_of(control: pathlib.Path) -> list[int]:
    """Returns the processes that were started with a control file."""
    word = f"{faulty.CONTROL}={control}".encode()
    found = []
    for entry in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            environment = (entry / "environ").read_bytes().split(b"\0")
            state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if word in environment and state != "Z":
            found.append(int(entry.name))
    return found

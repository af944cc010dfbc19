"""A storage server on loopback, with an empty bucket for each test."""

from __future__ import annotations

import itertools
import os
import pathlib
import socket
import subprocess
import sys

import pytest
from google_cloud import StorageEmulator, storage_emulator

_numbers = itertools.count()


@pytest.fixture(scope="session")
def emulator(tmp_path_factory) -> StorageEmulator:
    """The server; commands find it by `emulator.environment`."""
    with storage_emulator(tmp_path_factory.mktemp("authority")) as running:
        yield running


@pytest.fixture
def bucket(emulator) -> str:
    """The name of an empty bucket."""
    name = f"bucket{next(_numbers)}"
    emulator.make_bucket(name)
    return name


# A model that is trained in seconds, on the smallest MiniVox.
RUN = ["--gin_file", "runs/demo_finetune_asr.gin", "--gin_file", "data/minivox_tiny.gin"]
SIZES = {
    "INIT_FROM": "None",
    "WARMUP_STEPS": 1,
    "FEATURES": 16,
    "HIDDEN": 16,
    "SPEECH_LAYERS": 1,
    "SHARED_LAYERS": 1,
    "VOCAB_SIZE": 96,
    "EVAL_EVERY": 2,
    "EVAL_EXAMPLES": 4,
    "CHECKPOINT_EVERY": 2,
    "LOG_EVERY": 1,
}
RUN += [f"--gin.{name}={value}" for name, value in SIZES.items()]


class Maestro:
    """The command, in processes of its own, whose working directory stays empty."""

    def __init__(self, emulator, directory: pathlib.Path) -> None:
        self.directory = directory / "working"
        self.directory.mkdir()
        self.environment = {
            **os.environ,
            **emulator.environment,
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": "--xla_backend_optimization_level=0",
            "XDG_CACHE_HOME": str(directory / "cache"),
        }

    def start(self, *arguments: str, **variables: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "maestro_jax.cli.main", *arguments],
            cwd=self.directory,
            env=self.environment | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str, code: int = 0, **variables: str) -> tuple[str, str]:
        """Returns what the command writes to stdout and stderr."""
        process = self.start(*arguments, **variables)
        out, error = process.communicate(timeout=600)
        assert process.returncode == code, error
        assert list(self.directory.iterdir()) == [], "a bucket was taken for a local directory"
        return out, error

    def run_on_two(self, *arguments: str) -> list[tuple[str, str]]:
        with socket.socket() as probe:
            probe.bind(("localhost", 0))
            port = probe.getsockname()[1]
        address = {"JAX_COORDINATOR_ADDRESS": f"localhost:{port}", "JAX_NUM_PROCESSES": "2"}
        processes = [self.start(*arguments, **address, JAX_PROCESS_ID=index) for index in "01"]
        written = [process.communicate(timeout=600) for process in processes]
        assert [process.returncode for process in processes] == [0, 0], written
        assert list(self.directory.iterdir()) == []
        return written


@pytest.fixture
def finetune() -> list[str]:
    """Options of a run that takes seconds."""
    return list(RUN)


@pytest.fixture
def maestro(emulator, tmp_path) -> Maestro:
    from maestro_jax.minivox import dataset

    dataset.prepare("tiny")
    return Maestro(emulator, tmp_path)

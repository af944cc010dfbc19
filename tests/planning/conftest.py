"""Running programs that need a JAX of their own: several devices, or the TPU compiler."""

from __future__ import annotations

import importlib.util
import os
import pathlib
import subprocess
import sys
import textwrap

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]


def run_python(program: str, **environment: str) -> str:
    process = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu", **environment},
    )
    assert process.returncode == 0, process.stderr[-4000:]
    return process.stdout


@pytest.fixture
def on_eight_devices():
    """Runs a program on eight devices of the CPU, and returns what it printed."""
    return lambda program: run_python(program, XLA_FLAGS="--xla_force_host_platform_device_count=8")


@pytest.fixture
def with_tpu_compiler():
    """Runs a program that may compile for TPUs, and returns what it printed."""
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu is not installed")
    return lambda program: run_python(
        program, TPU_SKIP_MDS_QUERY="1", ALLOW_MULTIPLE_LIBTPU_LOAD="1"
    )

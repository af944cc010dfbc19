"""What commands set before JAX and TensorFlow are imported."""

from __future__ import annotations

import os

import pytest

from maestro_jax.cli import environment


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", "--xla_gpu_shard_autotuning=false"),
        ("--a=b", "--a=b --xla_gpu_shard_autotuning=false"),
        ("--xla_gpu_shard_autotuning=true", "--xla_gpu_shard_autotuning=true"),
    ],
)
def test_processes_compile_alone_unless_they_are_told_otherwise(
    monkeypatch: pytest.MonkeyPatch, before: str, after: str
) -> None:
    monkeypatch.setenv("XLA_FLAGS", before)
    environment.compile_alone()
    assert os.environ["XLA_FLAGS"] == after
    environment.compile_alone()
    assert os.environ["XLA_FLAGS"] == after

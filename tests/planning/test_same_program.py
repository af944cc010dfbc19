"""Every process of a run, and every restart, has to lower the same programs.

The order of a Python set differs between processes. Where it reaches a program, hosts of a pod
compile different ones, and a restart does not find its own in the compilation cache.
"""

from __future__ import annotations

import hashlib
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]

PROGRAM = """
import hashlib
from maestro_jax.gin_utils import gin_config
from maestro_jax.planning.plan import lower_decoding, lower_training
from tests.shared.narrow_model import NARROW

run = gin_config.parse_and_build(["runs/demo_pretrain.gin"], NARROW | {"VOCAB_SIZE": "32"})
mesh = run.partitioning.mesh()
for lowered in (lower_training(run, mesh), lower_decoding(run, mesh, beam_size=2)):
    print(hashlib.sha256(lowered.as_text().encode()).hexdigest())
"""


@pytest.mark.extended
def test_programs_do_not_depend_on_the_order_of_sets() -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            cwd=ROOT,
            env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "PYTHONHASHSEED": seed},
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in ("1", "2")
    ]
    hashes = [process.communicate()[0].split() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert len(hashes[0]) == 2 and len(hashes[0][0]) == hashlib.sha256().digest_size * 2
    assert hashes[0] == hashes[1]

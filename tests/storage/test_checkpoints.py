"""Checkpoints in a bucket whose bytes have changed."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

_CODE = """
import logging, sys
logging.basicConfig(format="%(message)s")
import jax, jax.numpy as jnp, numpy as np
from maestro_jax.cli.main import main
from maestro_jax.errors import UserError
from maestro_jax.files import as_path, files_below
from maestro_jax.training import checkpoint_files
from maestro_jax.training.checkpoints import Checkpoints
from maestro_jax.training.partial_restore import restore_params
from maestro_jax.training.saved_checkpoints import find_checkpoint
from maestro_jax.training.state import TrainState

# Small files are digested at once. These stand for large ones, which are not.
checkpoint_files._SMALL = 3000
root = "gs://BUCKET/run"

def state(step):
    kernel = np.random.default_rng(step).normal(size=(60, 50)).astype(np.float32)
    params = {"kernel": jnp.asarray(kernel)}
    return TrainState(jnp.int32(step), params, (), None)

checkpoints = Checkpoints(root)
for step in (4, 5):
    checkpoints.save(state(step), {"step": step, "seed": 0})
checkpoints.close()
assert main(["checkpoints", root, "verify"]) == 0

large = [path for path in files_below(as_path(root) / "checkpoints/5/state")
         if path.stat().length > 3000]
assert large
for path in large:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(bytes(content))
assert checkpoint_files.damage(as_path(root) / "checkpoints/5") is None, "sizes are as they were"
assert main(["checkpoints", root, "verify"]) == 2
try:
    restore_params(f"{root}/checkpoints/5", "params")
except UserError as error:
    print("refused:", error)
abstract = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state(0))
checkpoints = Checkpoints(root)
restored, record = checkpoints.restore_latest(abstract)
assert record["step"] == 4 and int(restored.step) == 4
np.testing.assert_array_equal(restored.params["kernel"], state(4).params["kernel"])
assert checkpoints.all_steps() == [4]
checkpoints.close()
assert (as_path(root) / "damaged_checkpoints/5/state/_METADATA").exists()
"""


@pytest.mark.slow
def test_a_flipped_bit_in_a_bucket_is_found(emulator, bucket, tmp_path):
    environment = {**os.environ, **emulator.environment, "XDG_CACHE_HOME": str(tmp_path)}
    code = textwrap.dedent(_CODE).replace("BUCKET", bucket)
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert (
        "refused: The checkpoint gs://" in done.stdout and "the array params/kernel" in done.stdout
    )
    assert "checkpoints/5 is damaged (the array params/kernel" in done.stderr
    assert "continuing from step 4" in done.stderr and "Traceback" not in done.stderr

"""Checkpoints on a local disk, more often than a bucket or a file server would take them.

A run with `TrainRun.local_checkpoint_dir` has two directories of checkpoints: its model directory,
which outlives the machine, and one on a disk that is fast and may be lost with the machine. The
newest checkpoint of both is restored. The file ``local_checkpoints.json`` in the model directory
names the local one, so that a run never continues from what another run has left on the disk.
"""

from __future__ import annotations

import json
import secrets

import jax
from etils import epath
from jax.experimental import multihost_utils

from maestro_jax.errors import UserError
from maestro_jax.files import local_directory, write_atomically
from maestro_jax.training.checkpoints import Checkpoints
from maestro_jax.training.distributed import first_process_decides

LOCAL_FILE = "local_checkpoints.json"


class LocalCheckpoints(Checkpoints):
    """Manages the checkpoints of one run on a local disk.

    Args:
        model_dir: The model directory of the run.
        parent: Directory on the disk, which runs may share. Every process must see the same one.
        keep: Number of newest checkpoints to keep.
    """

    def __init__(self, model_dir: epath.Path, parent: str, *, keep: int = 1) -> None:
        path = model_dir / LOCAL_FILE
        number = int(json.loads(path.read_text())["run"], 16) if path.exists() else 0
        self._number = first_process_decides(number or secrets.randbits(31) or 1)
        self._model_dir = model_dir
        place = local_directory(parent, "directory of local checkpoints")
        super().__init__(place / f"{model_dir.name}-{self._number:08x}", keep=keep)

    def claim(self) -> None:
        """Makes the directory and names it in the model directory.

        Raises:
            UserError: It cannot be made, or another process does not see it.
        """
        failure = None
        try:
            if jax.process_index() == 0:
                self.directory.mkdir(parents=True, exist_ok=True)
                text = json.dumps({"run": f"{self._number:08x}", "directory": str(self.directory)})
                write_atomically(self._model_dir / LOCAL_FILE, text.encode() + b"\n")
            if jax.process_count() > 1:
                multihost_utils.sync_global_devices("local checkpoints claimed")
            if not self.directory.is_dir():
                failure = "it is not the same directory on every process"
        except OSError as error:
            failure = error.strerror or str(error)
        failure = self._agreed(failure)
        if failure is not None:
            raise UserError(
                f"local_checkpoint_dir: {self.directory} cannot be used ({failure}); name a "
                "directory that all processes of the run can write, or leave it out."
            )

    def discard(self) -> None:
        """Removes the directory, when the run is complete."""
        self.close()
        if jax.process_index() == 0:
            self.directory.parent.rmtree(missing_ok=True)
            (self._model_dir / LOCAL_FILE).unlink(missing_ok=True)

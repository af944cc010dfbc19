"""Processes that work through requests: what becomes of the errors of a disk."""

from __future__ import annotations

import math
import os
import shutil

import pytest

from maestro_jax.data.processes import Processes
from maestro_jax.errors import RestartableError


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_a_full_disk_is_no_bug() -> None:
    with Processes(workers=1) as processes:
        with pytest.raises(RestartableError, match="No space left on device; free some space"):
            list(processes.results(shutil.copyfile, [(__file__, "/dev/full")]))
        # The process goes on.
        assert list(processes.results(math.sqrt, [(4.0,)])) == [2.0]
        with pytest.raises(RuntimeError, match="math domain error"):
            list(processes.results(math.sqrt, [(-4.0,)]))

"""Joins the processes of a run, if the environment says that there are several."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import traceback
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from maestro_jax.errors import RESTART_EXIT_CODE, RestartableError, UserError

log = logging.getLogger(__name__)

# Set by a cluster's launcher: the number of processes.
_PROCESS_COUNTS = ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")


def is_multiprocess(environment: Mapping[str, str] | None = None) -> bool:
    """Returns whether the environment says that this is one of several processes.

    It does with ``JAX_COORDINATOR_ADDRESS`` set, with ``MAESTRO_MULTIHOST=1`` (TPU pods, whose
    hosts are found from the metadata server), with several names in ``TPU_WORKER_HOSTNAMES``,
    or under Slurm or Open MPI with more than one task. ``MAESTRO_MULTIHOST=0`` says no to all.

    Args:
        environment: The environment variables; those of this process by default.
    """
    environment = os.environ if environment is None else environment
    explicit = environment.get("MAESTRO_MULTIHOST", "")
    if explicit:
        return explicit not in ("0", "false", "no")
    if environment.get("JAX_COORDINATOR_ADDRESS"):
        return True
    if len([name for name in environment.get("TPU_WORKER_HOSTNAMES", "").split(",") if name]) > 1:
        return True
    return any(
        environment.get(name, "1").isdigit() and int(environment.get(name, "1")) > 1
        for name in _PROCESS_COUNTS
    )


def initialize() -> bool:
    """Joins the other processes, if there are any; to be called before any device is used.

    With ``JAX_COORDINATOR_ADDRESS`` set, ``JAX_NUM_PROCESSES`` and ``JAX_PROCESS_ID`` say how many
    processes there are and which this is; without them JAX asks the cluster.

    Returns:
        Whether there are several processes.

    Raises:
        UserError: The environment is contradictory, or the other processes cannot be found.
    """
    if not is_multiprocess():
        return False
    values: dict[str, Any] = {}
    for argument, name in (
        ("num_processes", "JAX_NUM_PROCESSES"),
        ("process_id", "JAX_PROCESS_ID"),
    ):
        text = os.environ.get(name)
        if text is None:
            continue
        if not text.isdigit():
            raise UserError(f"{name}={text!r} is not a number; set it or leave it out.")
        values[argument] = int(text)
    try:
        jax.distributed.initialize(**values)
    except ValueError as error:
        raise UserError(
            f"Several processes were announced, but cannot be joined ({error}); set "
            "JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, or MAESTRO_MULTIHOST=0."
        ) from error
    log.info(
        "process %d of %d: %d of %d devices, %s",
        jax.process_index(),
        jax.process_count(),
        jax.local_device_count(),
        jax.device_count(),
        jax.devices()[0].device_kind,
    )
    return True


@contextlib.contextmanager
def leaving_alone() -> Iterator[None]:
    """Ends this process at once if the block fails and there are several.

    The orderly end of a process waits for the others, which may never come to theirs.
    """
    try:
        yield
    except BaseException as error:
        if jax.process_count() == 1:
            raise
        code = 1
        if isinstance(error, (UserError, RestartableError)):
            print("error: " + " ".join(str(error).split()), file=sys.stderr)
            code = 2 if isinstance(error, UserError) else RESTART_EXIT_CODE
        else:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def part() -> bool:
    """Takes leave of the other processes, if each has a single device: they go on by themselves.

    JAX ends a process in a stack trace when the first one dies, even if it needs nothing of it.
    With several devices it does: their programs find each other through the first process.

    Afterwards nothing collective works, `first_process_decides` included; the devices and the
    number of this process stay. Every process must call this, which waits for all.

    Returns:
        Whether they have parted.
    """
    if jax.process_count() == 1 or jax.device_count() > jax.process_count():
        return False
    jax.distributed.shutdown()
    return True


def first_process_decides(value: int) -> int:
    """Returns the value of the first process, on every process.

    Args:
        value: A number below 2**31; that of the first process counts.
    """
    if jax.process_count() == 1:
        return value
    return int(multihost_utils.broadcast_one_to_all(np.int32(value)))


def first_process_says(value: Any) -> Any:
    """Returns a JSON value of the first process, on every process.

    Args:
        value: The value; that of the first process counts.
    """
    if jax.process_count() == 1:
        return value
    content = np.frombuffer(json.dumps(value).encode(), np.uint8)
    size = first_process_decides(len(content))
    sent = content if jax.process_index() == 0 else np.zeros(size, np.uint8)
    return json.loads(np.asarray(multihost_utils.broadcast_one_to_all(sent)).tobytes())

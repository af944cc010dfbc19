"""Joins the processes of a run, if the environment says that there are several."""

from __future__ import annotations

import atexit
import contextlib
import itertools
import json
import logging
import os
import re
import sys
import traceback
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from jax._src import distributed as jax_distributed

from maestro_jax.errors import RESTART_EXIT_CODE, RestartableError, UserError
from maestro_jax.files import storage_error
from maestro_jax.training.coordinator_relay import Relay
from maestro_jax.training.process_group import AgreedStop, ProcessGroup, end_process, end_within
from maestro_jax.training.signal_watch import SignalWatch, stop_signals

log = logging.getLogger(__name__)

# Set by a cluster's launcher: the number of processes.
_PROCESS_COUNTS = ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")

# JAX takes a process for lost that has been silent for so long by the clock of the wall, which may
# jump by hours. `ProcessGroup` goes by another clock, and is faster by far.
_JAX_HEARTBEAT_TIMEOUT_SECONDS = 30 * 24 * 3600
# Of XLA's collective operations and the coordination service.
_UNREACHABLE = re.compile(
    "DEADLINE_EXCEEDED|UNAVAILABLE|Gloo.* failed|[Cc]onnection (refused|reset)"
)
_MEETING_SECONDS = 120
_ORDERLY_END_SECONDS = 60.0
# It may have to count the letters of a corpus first.
_FIRST_PROCESS_SECONDS = 1200
_GROUP_KEY = "maestro_jax/process_group"

_group = ProcessGroup()
_said = itertools.count()


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
    # The notices of JAX's own service are those of `preemption`, which knows more of them.
    jax.config.update("jax_enable_preemption_service", False)
    # Else it aborts all processes, with stacks, when it takes one for lost; a clock that is set
    # back does that whatever the limit, since the time since then is negative.
    jax.config.update("jax_enable_recoverability", True)
    try:
        with _through_relays():
            jax.distributed.initialize(
                **values, heartbeat_timeout_seconds=_JAX_HEARTBEAT_TIMEOUT_SECONDS
            )
    except ValueError as error:
        raise UserError(
            f"Several processes were announced, but cannot be joined ({error}); set "
            "JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, or MAESTRO_MULTIHOST=0."
        ) from error
    _join_group()
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
def _through_relays() -> Iterator[None]:
    """Lets JAX's clients reach the coordinator through a `Relay`, while the block connects them."""
    library = jax_distributed._jax
    create = library.get_distributed_runtime_client

    def create_relayed(address: str, node_id: int, **options: Any) -> Any:
        # The first process has the coordinator within itself. Certificates name the real host.
        if node_id and not any("tls" in name for name in options):
            address = Relay(address).address
            local = [os.environ.get("no_grpc_proxy", os.environ.get("no_proxy", "")), "127.0.0.1"]
            os.environ["no_grpc_proxy"] = ",".join(filter(None, local))
        return create(address, node_id, **options)

    library.get_distributed_runtime_client = create_relayed
    try:
        yield
    finally:
        library.get_distributed_runtime_client = create


def _join_group() -> None:
    """Connects this process to the others, and watches over signals from now on."""
    global _group
    state: Any = jax_distributed.global_state
    group = ProcessGroup(state.process_id, state.num_processes)
    if group.count > 1:
        if group.index == 0:
            state.client.key_value_set(_GROUP_KEY, group.listen())
        else:
            told = state.client.blocking_key_value_get(_GROUP_KEY, 1000 * _MEETING_SECONDS)
            try:
                group.connect(state.coordinator_address.rsplit(":", 1)[0].strip("[]"), told)
            except OSError as error:
                raise UserError(
                    f"Process {group.index} cannot reach port {told.split()[0]} of process 0 "
                    f"({error}); processes need all ports of each other: open them in the firewall."
                ) from error
        # Until a training has other plans, a signal to one of several ends all of them.
        SignalWatch(stop_signals(), lambda number: group.on_signal(number)).start()
    _group = group
    # Before JAX's own: it waits for all processes, without watching over them.
    atexit.register(_leave)


def _leave() -> None:
    """Takes leave of the other processes when the interpreter ends."""
    error = getattr(sys, "last_value", None)
    if error is not None and _group.count > 1:
        _group.fail(_summary(error), 1)
        sys.stderr.flush()
        os._exit(1)
    _group.leave(jax.distributed.shutdown)


def process_group() -> ProcessGroup:
    """Returns the processes of this run; a new group of this process alone, if it is the only one.

    Such a group is new each time: its trainings have nothing to do with each other.
    """
    return _group if _group.count > 1 else ProcessGroup()


@contextlib.contextmanager
def ending_together() -> Iterator[None]:
    """Ends all processes of the run at once if the block fails here, with the same line.

    The orderly end of a process waits for the others, which may never come to theirs. A stop that
    all have agreed on (`SystemExit`) is orderly. With a single process nothing changes.
    """
    try:
        yield
    except SystemExit:
        raise
    except BaseException as raised:
        if _group.count == 1:
            raise
        # Failures of disks and buckets are lines of their own, as in `maestro_jax.cli.main`.
        network_error = _network_error(raised)
        error = storage_error(raised) or network_error or raised
        if isinstance(error, AgreedStop):
            # All come here; none may end another that still writes.
            end_within(_ORDERLY_END_SECONDS, RESTART_EXIT_CODE)
            _group.leave()
            end_process(str(error), RESTART_EXIT_CODE)
        code = _exit_code(error)
        if code == 1 or network_error is not None:
            # Not an error of its own if another process is lost: that ends this one. A collective
            # operation, or the barrier of a checkpoint, fails in many ways then.
            _group.wait_for_verdict()
        if code == 1:
            traceback.print_exc()
        _group.fail(_summary(error), code)
        end_process(_summary(error), code)


def _network_error(error: BaseException) -> RestartableError | None:
    """Describes what JAX raises when processes do not reach each other; None for other errors."""
    text = " ".join(str(error).split())
    if not isinstance(error, jax.errors.JaxRuntimeError) or not _UNREACHABLE.search(text):
        return None
    return RestartableError(
        f"the processes do not reach each other ({text[:200]}): see to their network; the same "
        "command continues"
    )


def _exit_code(error: BaseException) -> int:
    if isinstance(error, (UserError, RestartableError)):
        return 2 if isinstance(error, UserError) else RESTART_EXIT_CODE
    return 130 if isinstance(error, KeyboardInterrupt) else 1


def _summary(error: BaseException) -> str:
    """Returns an error as one line."""
    text = " ".join(str(error).split())
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    if isinstance(error, (UserError, RestartableError)):
        return text
    text = text if len(text) < 300 else text[:300] + " ..."
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


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
    _group.leave(jax.distributed.shutdown)
    return True


def first_process_decides(value: int) -> int:
    """Returns the value of the first process, on every process.

    Args:
        value: A number; that of the first process counts.

    Raises:
        RestartableError: The first process does not come to this point.
    """
    return int(first_process_says(value))


def first_process_says(value: Any) -> Any:
    """Returns a JSON value of the first process, on every process.

    All processes call it at the same points. It needs no device.

    Args:
        value: The value; that of the first process counts.

    Raises:
        RestartableError: The first process does not come to this point within twenty minutes.
    """
    client = jax_distributed.global_state.client
    if jax.process_count() == 1 or client is None:
        return value
    key = f"maestro_jax/first_process_says/{next(_said)}"
    if jax.process_index() == 0:
        client.key_value_set(key, json.dumps(value))
        return value
    try:
        return json.loads(client.blocking_key_value_get(key, 1000 * _FIRST_PROCESS_SECONDS))
    except jax.errors.JaxRuntimeError as error:
        raise RestartableError(
            f"{_group.name} has waited for the first process for {_FIRST_PROCESS_SECONDS} s "
            f"({_group.places()}): {_summary(error)}"
        ) from error


def meet(point: str, *, seconds: int = _FIRST_PROCESS_SECONDS) -> None:
    """Waits until all processes have come to a point; all call it at the same ones, in order.

    Args:
        point: Name of the point.
        seconds: The longest wait.

    Raises:
        RestartableError: Not all have come in time.
    """
    client = jax_distributed.global_state.client
    if jax.process_count() == 1 or client is None:
        return
    try:
        client.wait_at_barrier(f"maestro_jax/{point}/{next(_said)}", 1000 * seconds)
    except jax.errors.JaxRuntimeError as error:
        raise RestartableError(
            f"{_group.name} has waited for {seconds} s for all processes to come to {point!r} "
            f"({_group.places()})"
        ) from error

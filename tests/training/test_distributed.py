"""When a process believes that it is one of several."""

from __future__ import annotations

import jax
import pytest

from maestro_jax.errors import RestartableError, UserError
from maestro_jax.training import distributed


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, False),
        ({"JAX_COORDINATOR_ADDRESS": "host:1234"}, True),
        ({"TPU_WORKER_HOSTNAMES": "host-0"}, False),
        ({"TPU_WORKER_HOSTNAMES": "host-0,host-1"}, True),
        ({"SLURM_NTASKS": "1"}, False),
        ({"SLURM_NTASKS": "16"}, True),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, True),
        ({"MAESTRO_MULTIHOST": "1"}, True),
        ({"MAESTRO_MULTIHOST": "0", "SLURM_NTASKS": "16"}, False),
    ],
)
def test_detection(environment, expected):
    assert distributed.is_multiprocess(environment) is expected


def test_a_single_process_joins_nobody(monkeypatch):
    monkeypatch.setenv("MAESTRO_MULTIHOST", "0")
    monkeypatch.setattr(jax.distributed, "initialize", lambda **_: pytest.fail("called"))
    assert distributed.initialize() is False


def test_the_environment_is_handed_on(monkeypatch):
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **values: calls.append(values))
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "host:1234")
    monkeypatch.setenv("JAX_NUM_PROCESSES", "4")
    monkeypatch.setenv("JAX_PROCESS_ID", "3")
    assert distributed.initialize() is True
    [values] = calls
    assert (values["num_processes"], values["process_id"]) == (4, 3)
    monkeypatch.setenv("JAX_PROCESS_ID", "three")
    with pytest.raises(UserError, match="JAX_PROCESS_ID='three' is not a number"):
        distributed.initialize()


@pytest.mark.parametrize(
    ("message", "is_mended_by_a_restart"),
    [
        ("UNKNOWN: Gloo context initialization failed: DEADLINE_EXCEEDED: GetKeyValue()", True),
        ("UNAVAILABLE: failed to connect to all addresses", True),
        ("RESOURCE_EXHAUSTED: Out of memory allocating 8589934592 bytes.", False),
        ("INVALID_ARGUMENT: Executable expected parameter 0 of size 4", False),
    ],
)
def test_processes_that_do_not_reach_each_other_are_started_again(
    message: str, is_mended_by_a_restart: bool
) -> None:
    error = distributed._network_error(jax.errors.JaxRuntimeError(message))
    assert isinstance(error, RestartableError) is is_mended_by_a_restart
    assert distributed._network_error(ValueError(message)) is None

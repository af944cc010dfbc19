"""launch/local_run.sh with a stand-in for maestro, and with real processes."""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import time

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "launch" / "local_run.sh"

# Each start of a process acts as the variable FIRST, SECOND and so on of its number says.
STAND_IN = r"""#!/bin/bash
start=$(cat "$FAKE/starts-$JAX_PROCESS_ID" 2>/dev/null || echo 0)
echo $((start + 1)) >"$FAKE/starts-$JAX_PROCESS_ID"
seen="$JAX_COORDINATOR_ADDRESS $JAX_NUM_PROCESSES ${XLA_FLAGS:-}"
echo "$$ $seen $*" >>"$FAKE/log-$JAX_PROCESS_ID"
trap 'echo saved; exit 143' TERM
trap 'echo saved; exit 130' INT
sleep 1000 & # What a worker is: it must not be left behind.
echo $! >>"$FAKE/workers"
names=(FIRST SECOND THIRD FOURTH)
act=${names[start]:-LAST}_$JAX_PROCESS_ID
eval "${!act:-exit 0}"
"""
SERVE = "while :; do sleep 0.05; done"


class Local:
    def __init__(self, directory: pathlib.Path) -> None:
        self.directory = directory
        (directory / "maestro").write_text(STAND_IN)
        (directory / "maestro").chmod(0o755)

    def start(self, *arguments: str, **variables: str) -> subprocess.Popen[str]:
        environment = {
            **os.environ,
            "FAKE": str(self.directory),
            "MAESTRO_COMMAND": str(self.directory / "maestro"),
            "MAESTRO_RESTART_PAUSE": "0",
            **variables,
        }
        return subprocess.Popen(
            ["bash", str(SCRIPT), *arguments], env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def run(self, **variables: str) -> tuple[int, str, str]:
        process = self.start("2", "--", "train", "--model_dir", "a b", **variables)
        out, error = process.communicate(timeout=60)
        return process.returncode, out, error

    def starts(self) -> list[int]:
        return [int((self.directory / f"starts-{n}").read_text()) for n in (0, 1)]

    def assert_nothing_left(self) -> None:
        for name in ("workers", "log-0", "log-1"):
            for line in (self.directory / name).read_text().splitlines():
                state = pathlib.Path(f"/proc/{line.split()[0]}/stat")
                assert not state.exists() or state.read_text().split()[2] == "Z"


@pytest.fixture
def local(tmp_path: pathlib.Path) -> Local:
    return Local(tmp_path)


def test_processes_find_each_other_and_end_together(local: Local) -> None:
    process = local.start("2", "--devices", "4", "--", "train", "--model_dir", "a b", "*")
    assert process.communicate(timeout=60) == ("", "") and process.returncode == 0
    lines = [(local.directory / f"log-{n}").read_text().split(maxsplit=1)[1] for n in (0, 1)]
    assert lines[0] == lines[1]
    assert lines[0].startswith("127.0.0.1:")
    assert "device_count=4 train --model_dir a b *" in lines[0]
    local.assert_nothing_left()


def test_a_failure_that_a_restart_mends_starts_all_again(local: Local) -> None:
    code, out, error = local.run(
        FIRST_1="kill -9 $$",
        FIRST_0="sleep 0.4; echo 'error: host b (process 1 of 2) was lost' >&2; exit 75",
    )
    assert code == 0 and local.starts() == [2, 2]
    assert "process 1 of 2, ended by SIGKILL: starting all processes again" in error
    assert "0: error: host b (process 1 of 2) was lost" in out
    local.assert_nothing_left()


def test_an_error_of_the_user_is_the_last_line(local: Local) -> None:
    code, _, error = local.run(
        FIRST_1="echo 'error: no such task' >&2; exit 2",
        FIRST_0="sleep 0.6; echo 'error: process 1 stopped: no such task' >&2; exit 2",
    )
    assert code == 2 and local.starts() == [1, 1]
    assert error.splitlines()[-1] == "error: process 1 of 2, exit status 2: no such task"
    local.assert_nothing_left()


def test_without_progress_it_gives_up(local: Local) -> None:
    again = "echo 'INFO continuing from step 7 of m'; exit 75"
    code, _, error = local.run(
        MAESTRO_RESTARTS="2", FIRST_0="exit 75", SECOND_0=again, THIRD_0=again, FOURTH_0=again,
        LAST_0="exit 0",
    )  # fmt: skip
    # From scratch, from step 7 (progress), and twice more from there.
    assert code == 75 and local.starts() == [4, 4]
    assert "giving up after 3 starts without progress" in error
    local.assert_nothing_left()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_are_passed_on(local: Local, number: int) -> None:
    process = local.start("2", "--", "train", FIRST_0=SERVE, FIRST_1=SERVE)
    while not all((local.directory / f"starts-{n}").exists() for n in (0, 1)):
        time.sleep(0.02)
    time.sleep(0.3)
    process.send_signal(number)
    out, error = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert "0: saved" in out and "1: saved" in out and error.startswith("stopped: ")
    assert local.starts() == [1, 1]
    local.assert_nothing_left()


@pytest.mark.parametrize(
    "arguments", [(), ("two",), ("2", "train"), ("2", "--"), ("2", "--devices", "x", "--", "train")]
)
def test_bad_input_is_one_line(local: Local, arguments: tuple[str, ...]) -> None:
    process = local.start(*arguments)
    error = process.communicate(timeout=30)[1]
    assert process.returncode == 2 and error.startswith("error: ") and error.count("\n") == 1

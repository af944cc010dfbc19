"""The Slurm script, with stand-ins for srun, scancel and scontrol that act on this machine."""

from __future__ import annotations

import os
import pathlib
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "launch" / "slurm_train.sbatch"
EVALUATION = ROOT / "launch" / "slurm_eval.sbatch"
STUDY = ROOT / "launch" / "slurm_study.sbatch"

# srun starts one process a task, as SLURM_NTASKS says, and its status is the highest of theirs;
# scancel sends a signal to the tasks; scontrol only keeps what it was asked.
COMMANDS = {
    "srun": """
echo "srun $*" >>"$FAKE/calls"
while [[ $1 == --* ]]; do shift; done
export SLURM_STEP_NODELIST=localhost SLURM_STEP_NUM_TASKS=$SLURM_NTASKS
pids=()
for ((task = 0; task < SLURM_NTASKS; task++)); do
  SLURM_PROCID=$task SLURM_LOCALID=$task "$@" >>"$FAKE/task-$task.log" 2>&1 &
  pids+=($!)
done
echo "${pids[@]}" >"$FAKE/pids"
highest=0
for pid in "${pids[@]}"; do
  code=0
  wait "$pid" || code=$?
  ((code <= highest)) || highest=$code
done
exit "$highest"
""",
    # Slurm names a step <job>.<number>.
    "scancel": """
echo "scancel $*" >>"$FAKE/calls"
kill "-${1#--signal=}" $(cat "$FAKE/pids") 2>/dev/null
""",
    "scontrol": """
echo "scontrol $*" >>"$FAKE/calls"
[[ $(grep -c ^scontrol "$FAKE/calls") -gt ${REQUEUE_FAILS:-0} ]]
""",
}
TRAIN = ["--model_dir", "/shared/a", "--gin.MESH=(-1, 2, 2)", "--gin.A='$HOME'", "", "*"]


class Job:
    """What sbatch does: a copy of the script, in a directory of Slurm's, with Slurm's variables."""

    def __init__(
        self, directory: pathlib.Path, maestro: str, script: pathlib.Path = SCRIPT
    ) -> None:
        self.directory = directory
        (directory / "bin").mkdir(parents=True)
        for name, text in {**COMMANDS, "maestro": maestro}.items():
            path = directory / "bin" / name
            path.write_text(text if text.startswith("#!") else f"#!/bin/bash\n{text}\n")
            path.chmod(0o755)
        self.script = directory / "slurm_script"
        shutil.copy(script, self.script)

    def start(self, *arguments: str, **variables: str) -> subprocess.Popen[str]:
        environment = {
            **os.environ,
            "PATH": f"{self.directory / 'bin'}:{os.environ['PATH']}",
            "FAKE": str(self.directory),
            "SLURM_SUBMIT_DIR": str(ROOT),
            "SLURM_JOB_ID": "4711",
            "SLURM_NTASKS": "2",
            "SLURM_NTASKS_PER_NODE": "2",
            "SLURM_GPUS_PER_NODE": "2",
            "MAESTRO_COMMAND": str(self.directory / "bin" / "maestro"),
            **variables,
        }
        return subprocess.Popen(
            ["bash", self.script, *arguments],
            env=environment,
            cwd=self.directory,
            stderr=subprocess.PIPE,
            text=True,
        )

    def calls(self) -> list[str]:
        return (self.directory / "calls").read_text().splitlines()

    def wait_for(
        self, text: str, process: subprocess.Popen[str], tasks: tuple[int, ...] = (0,)
    ) -> None:
        """Waits until tasks have printed something, at most 100 seconds."""
        logs = [self.directory / f"task-{task}.log" for task in tasks]
        for _ in range(2000):
            if all(log.exists() and text in log.read_text() for log in logs):
                return
            if process.poll() is not None:
                break
            time.sleep(0.05)
        found = [log.read_text() if log.exists() else "no log" for log in logs]
        pytest.fail(f"no {text!r}: {found}")


# Once in the job, three times in all, without pauses.
LIMITS = {"MAESTRO_RESTARTS": "0", "MAESTRO_REQUEUES": "3", "MAESTRO_PAUSE": "0"}
KEEPS_ARGUMENTS = r"""
printf '%s\0' "$@" >"$FAKE/received-$SLURM_PROCID"
echo "$XLA_FLAGS" >"$FAKE/flags"
if [[ ${DEAF:-} ]]; then trap '' TERM; else trap 'echo saved; exit 143' TERM; fi
echo started
[[ ${SERVE:-} ]] || exit "${CODE:-0}"
while :; do sleep 0.05; done
"""


def test_each_task_gets_the_arguments_as_they_were_given(tmp_path: pathlib.Path) -> None:
    job = Job(tmp_path, KEEPS_ARGUMENTS)
    process = job.start(*TRAIN, XLA_FLAGS="--mine=1")
    assert process.communicate(timeout=30)[0] is None and process.returncode == 0
    for task in (0, 1):
        received = (tmp_path / f"received-{task}").read_text().split("\0")[:-1]
        assert received == ["train", *TRAIN]
    flags = (tmp_path / "flags").read_text().split()
    assert "--xla_gpu_enable_latency_hiding_scheduler=true" in flags and flags[-1] == "--mine=1"
    assert [call.split()[0] for call in job.calls()] == ["srun"]


def test_before_the_time_limit_the_run_saves_and_the_job_is_put_back(tmp_path) -> None:
    job = Job(tmp_path, KEEPS_ARGUMENTS)
    process = job.start(*TRAIN, SERVE="1")
    job.wait_for("started", process, tasks=(0, 1))
    process.send_signal(signal.SIGUSR1)
    process.communicate(timeout=30)
    assert process.returncode == 143
    assert job.calls()[1:] == ["scancel --signal=TERM 4711", "scontrol requeue 4711"]
    assert (tmp_path / "task-1.log").read_text().splitlines()[-1] == "saved"


def test_an_evaluation_is_a_job_like_training(tmp_path: pathlib.Path) -> None:
    job = Job(tmp_path, KEEPS_ARGUMENTS, EVALUATION)
    process = job.start(*TRAIN, SERVE="1")
    job.wait_for("started", process, tasks=(0, 1))
    process.send_signal(signal.SIGUSR1)
    process.communicate(timeout=30)
    assert process.returncode == 143
    assert job.calls()[1:] == ["scancel --signal=TERM 4711", "scontrol requeue 4711"]
    for task in (0, 1):
        received = (tmp_path / f"received-{task}").read_text().split("\0")[:-1]
        assert received == ["eval", *TRAIN]


def array(index: int, *, first: int = 0, jobs: int = 4) -> dict[str, str]:
    """Slurm's variables of a job of an array; the last one has the number of the array itself."""
    return {
        "SLURM_JOB_ID": "4711" if index == jobs - 1 else f"{4712 + index}",
        "SLURM_ARRAY_JOB_ID": "4711",
        "SLURM_ARRAY_TASK_ID": str(index + first),
        "SLURM_ARRAY_TASK_COUNT": str(jobs),
        "SLURM_ARRAY_TASK_MIN": str(first),
        "SLURM_ARRAY_TASK_MAX": str(first + jobs - 1),
    }


def test_each_job_of_an_array_runs_its_part_of_a_study(tmp_path: pathlib.Path) -> None:
    wanted = ["--gin_file", "runs/study.gin", "--output_dir", "/shared/s"]
    job = Job(tmp_path, KEEPS_ARGUMENTS, STUDY)
    process = job.start(*wanted, SERVE="1", **array(3))
    job.wait_for("started", process, tasks=(0, 1))
    process.send_signal(signal.SIGUSR1)
    process.communicate(timeout=30)
    # 4711 alone would be all jobs of the array.
    assert job.calls()[1:] == ["scancel --signal=TERM 4711_3", "scontrol requeue 4711_3"]
    received = (tmp_path / "received-0").read_text().split("\0")[:-1]
    assert received == ["study", *wanted, "--shard", "3/4"]
    shifted = Job(tmp_path / "shifted", "exit 0", STUDY).start(*wanted, **array(0, first=1))
    assert "number them from 0" in shifted.communicate(timeout=30)[1]
    assert shifted.returncode == 2


@pytest.mark.parametrize("code", ["75", "137"])
def test_tasks_that_a_restart_mends_start_again_in_the_job(tmp_path, code: str) -> None:
    fails_twice = """
n=$(cat "$FAKE/n-$SLURM_PROCID" 2>/dev/null || echo 0); echo $((n + 1)) >"$FAKE/n-$SLURM_PROCID"
((n >= 2)) || exit "$CODE"
"""
    job = Job(tmp_path, fails_twice)
    process = job.start(*TRAIN, CODE=code, MAESTRO_RESTART_PAUSE="0")
    error = process.communicate(timeout=30)[1]
    assert process.returncode == 0
    assert [call.split()[0] for call in job.calls()] == ["srun"] * 3
    assert error.count("starting all tasks again") == 2
    quick = {"MAESTRO_RESTART_PAUSE": "0", "MAESTRO_REQUEUES": "0"}
    always = Job(tmp_path / "always", 'exit "$CODE"')
    process = always.start(*TRAIN, CODE=code, MAESTRO_RESTARTS="3", **quick)
    process.communicate(timeout=30)
    assert process.returncode == int(code) and len(always.calls()) == 4


@pytest.mark.parametrize("code", ["75", "137"])
def test_what_starts_in_the_job_do_not_mend_is_put_back_up_to_a_limit(tmp_path, code: str) -> None:
    job = Job(tmp_path, KEEPS_ARGUMENTS)
    process = job.start(*TRAIN, CODE=code, SLURM_RESTART_COUNT="2", **LIMITS)
    errors = process.communicate(timeout=30)[1]
    assert process.returncode == int(code)
    assert job.calls()[1:] == ["scontrol requeue 4711"]
    assert re.search("requeueing after (exit status 75|ended by SIGKILL)", errors)
    process = job.start(*TRAIN, CODE=code, SLURM_RESTART_COUNT="3", **LIMITS)
    errors = process.communicate(timeout=30)[1]
    assert job.calls()[2:] == [job.calls()[0]]
    assert "error: " in errors and "after 3 restarts (MAESTRO_REQUEUES)" in errors


@pytest.mark.parametrize(("failures", "calls"), [(2, 3), (9, 5)])
def test_a_requeue_that_fails_is_repeated_then_said(tmp_path, failures: int, calls: int) -> None:
    job = Job(tmp_path, KEEPS_ARGUMENTS)
    process = job.start(*TRAIN, CODE="75", REQUEUE_FAILS=str(failures), **LIMITS)
    errors = process.communicate(timeout=30)[1]
    assert process.returncode == 75
    assert job.calls().count("scontrol requeue 4711") == calls
    assert ("was not requeued: call sbatch again" in errors) == (calls == 5)


def test_tasks_that_hang_at_the_time_limit_are_killed_and_the_job_is_put_back(tmp_path) -> None:
    job = Job(tmp_path, KEEPS_ARGUMENTS)
    process = job.start(*TRAIN, SERVE="1", DEAF="1", MAESTRO_GRACE="1", MAESTRO_PAUSE="1")
    job.wait_for("started", process, tasks=(0, 1))
    process.send_signal(signal.SIGUSR1)
    errors = process.communicate(timeout=30)[1]
    assert process.returncode == 137 and "have not ended after 1 seconds" in errors
    assert job.calls()[1:] == [
        "scancel --signal=TERM 4711",
        "scancel --signal=KILL 4711.0",
        "scontrol requeue 4711",
    ]


@pytest.mark.slow
def test_srun_that_hangs_is_killed_and_the_job_is_put_back(tmp_path) -> None:
    """Nothing starts, and no signal that Slurm passes on ends it."""
    job = Job(tmp_path, KEEPS_ARGUMENTS)
    hangs = '#!/bin/bash\necho "srun" >>"$FAKE/calls"\ntrap "" TERM\nwhile :; do sleep 0.1; done\n'
    (tmp_path / "bin" / "srun").write_text(hangs)
    process = job.start(*TRAIN, MAESTRO_GRACE="1", MAESTRO_PAUSE="1")
    while not (tmp_path / "calls").exists():
        time.sleep(0.05)
    process.send_signal(signal.SIGUSR1)
    process.communicate(timeout=60)
    assert process.returncode == 137 and job.calls()[-1] == "scontrol requeue 4711"


@pytest.mark.parametrize("code", ["1", "2", "143"])
def test_a_job_that_ends_by_itself_or_is_cancelled_is_not_put_back(tmp_path, code: str) -> None:
    job = Job(tmp_path, KEEPS_ARGUMENTS)
    process = job.start(*TRAIN, CODE=code)
    process.communicate(timeout=30)
    assert process.returncode == int(code)
    assert [call.split()[0] for call in job.calls()] == ["srun"]


@pytest.mark.parametrize(
    ("variables", "arguments", "message"),
    [
        ({"SLURM_SUBMIT_DIR": "/"}, TRAIN, "/ is not the checkout"),
        ({"MAESTRO_COMMAND": "/no/maestro"}, TRAIN, "there is no /no/maestro"),
        ({}, ["--gin_file", "a"], "needs --model_dir"),
        ({"SLURM_GPUS_PER_TASK": "1"}, TRAIN, "--gpus-per-task hides GPUs"),
        ({"SLURM_GPUS_PER_NODE": "a100:8"}, TRAIN, "2 tasks and a100:8 GPUs per node"),
    ],
)
def test_bad_input_is_one_line(tmp_path, variables, arguments, message) -> None:
    process = Job(tmp_path, "exit 0").start(*arguments, **variables)
    error = process.communicate(timeout=30)[1]
    assert process.returncode == 2 and error.startswith("error: ") and error.count("\n") == 1
    assert message in error


@pytest.mark.parametrize(
    ("script", "job_name", "seconds"),
    [(SCRIPT, "maestro", 600), (EVALUATION, "maestro_eval", 120), (STUDY, "maestro_study", 600)],
)
def test_the_lines_for_sbatch_stand_before_the_first_command(script, job_name, seconds) -> None:
    """Slurm reads #SBATCH lines up to the first line that is neither a comment nor empty."""
    head = script.read_text().split("\nset -euo pipefail\n")[0]
    assert all(not line or line.startswith("#") for line in head.splitlines())
    options = dict(re.findall(r"^#SBATCH --([a-z-]+)=?(.*)$", head, re.MULTILINE))
    assert options["ntasks-per-node"] == options["gpus-per-node"]
    assert options["signal"] == f"B:USR1@{seconds}" and "requeue" in options
    assert options["job-name"] == job_name
    assert script.read_text().count("#SBATCH --") == len(options)


def test_this_xla_knows_the_flags() -> None:
    """XLA ends the process at a flag that it does not know, also where there is no GPU."""
    command = '. launch/xla_gpu_flags.sh; exec "$0" -c "import jax; jax.devices()"'
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    done = subprocess.run(
        ["bash", "-c", command, sys.executable], cwd=ROOT, env=environment, capture_output=True
    )
    assert done.returncode == 0, done.stderr


# In the place of the `maestro` command: its start as one of several, and the loop, on the toy.
TRAINS = """#!{python}
import logging, os, sys, time
sys.path[:0] = [{root!r}, {toy!r}]
from maestro_jax.training import distributed
assert distributed.initialize()
import jax
assert jax.process_count() == 2 and jax.process_index() == int(os.environ["SLURM_PROCID"])
from conftest import toy_batches, toy_run
from maestro_jax.training.trainer import train
from maestro_jax.training.partitioning import Partitioning
logging.basicConfig(level=logging.INFO, force=True)
partitioning = Partitioning(mesh_shape=(-1, 1, 1))
index = jax.process_index()

def own_rows(start):
    for batch in toy_batches(start):
        time.sleep(float(os.environ["PAUSE"]))
        yield jax.tree.map(lambda x: x[index * 4 : (index + 1) * 4], batch)

steps = int(os.environ["STEPS"])
run = toy_run(partitioning=partitioning, steps=steps, checkpoint_every=1_000_000)
train(run, sys.argv[sys.argv.index("--model_dir") + 1], batches=own_rows)
"""


def job_id() -> str:
    """A job whose port for the coordinator, which JAX computes from its number, is free."""
    while True:
        number = random.randrange(4096)
        with socket.socket() as probe:
            if probe.connect_ex(("localhost", number + 65535 - 4096 + 1)):
                return str(number)


@pytest.mark.slow
@pytest.mark.multiprocess
def test_two_tasks_find_each_other_save_and_continue(tmp_path: pathlib.Path) -> None:
    toy = str(ROOT / "tests" / "training")
    program = TRAINS.format(python=sys.executable, root=str(ROOT), toy=toy)
    job = Job(tmp_path, program)
    model_dir = tmp_path / "model"
    variables = {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
        "SLURM_JOB_ID": job_id(),
    }
    process = job.start("--model_dir", str(model_dir), STEPS="1000000", PAUSE="0.05", **variables)
    job.wait_for("first step after", process)
    process.send_signal(signal.SIGUSR1)
    process.communicate(timeout=100)
    assert process.returncode == 143, (tmp_path / "task-0.log").read_text()
    (saved,) = (int(path.name) for path in (model_dir / "checkpoints").iterdir())
    assert job.calls()[-1] == f"scontrol requeue {variables['SLURM_JOB_ID']}"

    again = variables | {"SLURM_JOB_ID": job_id(), "SLURM_RESTART_COUNT": "1"}
    process = job.start("--model_dir", str(model_dir), STEPS=str(saved + 2), PAUSE="0", **again)
    process.communicate(timeout=100)
    assert process.returncode == 0, (tmp_path / "task-0.log").read_text()
    assert max(int(path.name) for path in (model_dir / "checkpoints").iterdir()) == saved + 2

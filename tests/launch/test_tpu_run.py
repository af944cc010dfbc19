"""tpu_run.sh: what it asks of gcloud, and what arrives on the hosts."""

from __future__ import annotations

import hashlib
import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import tarfile
import time

import pytest

TRAIN = ["--gin_file", "runs/pretrain.gin", "--model_dir", "gs://bucket/runs/a"]
# What a shell, ssh's second shell or a careless script would change.
NASTY = [
    "--gin.MESH=(-1, 2, 2)",
    "--gin.TEXT='it''s'",
    '--gin.NAME="a  b"',
    "--gin.DOLLAR=$HOME ${x} $(touch broken) `touch broken`",
    "--gin.STAR=*",
    "--gin.LIST=[1, 2]; exit 3 & # no | < >",
    "--gin.BACK=a\\b\\\\c!",
    "--gin.LINES=first\nsecond\t~",
    "",
    "--env",
    "é",
]


def commit(checkout: pathlib.Path) -> str:
    command = ["git", "-C", str(checkout), "rev-parse", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def lines(cloud, *arguments: str) -> list[str]:
    """What a dry run prints; it must not call gcloud."""
    done = cloud.run(*arguments, "--dry_run", *(["--", *TRAIN] if arguments[0] == "train" else []))
    assert done.returncode == 0, done.stderr
    assert cloud.calls() == []
    return done.stdout.splitlines()


RUN = hashlib.sha256("\0".join(["train", *TRAIN]).encode()).hexdigest()[:12]
WHERE = "--zone=us-east5-b --quiet"
IN_PROJECT = "--zone=us-east5-b --project=p --quiet"
BILL = (
    "queued resource pod (ACTIVE), TPU VM pod (READY): costs money; delete: "
    "launch/tpu_run.sh delete --name pod --zone us-east5-b"
)
QUEUED = "gcloud compute tpus queued-resources"
DIRECT = "gcloud compute tpus tpu-vm"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            "create --spot --project p",
            [
                f"{QUEUED} create pod --node-id=pod --accelerator-type=v6e-16 "
                f"--runtime-version=v2-alpha-tpuv6e --spot {IN_PROJECT}"
            ],
        ),
        (
            "create --slices 2 --reserved --type=v5p-128 --create_arg=--network=n",
            [
                f"{QUEUED} create pod --node-count=2 --node-prefix=pod --accelerator-type=v5p-128 "
                f"--runtime-version=v2-alpha-tpuv5 --reserved --network=n {WHERE}"
            ],
        ),
        (
            "create --slices 2 --direct --type v5litepod-16",
            [
                f"{DIRECT} create pod-{slice_} --accelerator-type=v5litepod-16 "
                f"--version=v2-alpha-tpuv5-lite {WHERE}"
                for slice_ in (0, 1)
            ],
        ),
        ("wait", [f"{QUEUED} describe pod '--format=value(state.state)' {WHERE}"]),
        ("delete", [f"{QUEUED} delete pod --force {WHERE}"]),
        ("delete --direct", [f"{DIRECT} delete pod {WHERE}"]),
        (
            "stop --ssh_arg --internal-ip",
            [
                f"{DIRECT} ssh pod --worker=all "
                f"'--command=bash tpu_host.sh stop' --internal-ip {WHERE}"
            ],
        ),
        (
            "logs --lines 5 --follow",
            [f"{DIRECT} ssh pod --worker=all '--command=bash tpu_host.sh logs 5 --follow' {WHERE}"],
        ),
        (
            "train --cache_dir gs://b/c --env LIBTPU_INIT_ARGS=--a=1",
            [
                f"{DIRECT} ssh pod --worker=all '--command=bash tpu_host.sh start train "
                f"{RUN} --env MAESTRO_MULTIHOST=1 --env JAX_PLATFORMS=tpu,cpu "
                "--env JAX_COMPILATION_CACHE_DIR=gs://b/c --env LIBTPU_INIT_ARGS=--a=1 -- "
                f"--gin_file runs/pretrain.gin --model_dir gs://bucket/runs/a' {WHERE}"
            ],
        ),
    ],
)
def test_a_dry_run_prints_the_commands(cloud, arguments: str, expected: list[str]) -> None:
    assert lines(cloud, *arguments.split()) == expected


def test_setup_sends_the_commit(cloud) -> None:
    checkout = cloud.checkout
    archive = f"{checkout}/build/launch/pod/maestro_code.tar.gz"
    sha = commit(checkout)
    assert lines(cloud, "setup", "--data", "gs://bucket/my data") == [
        f"mkdir -p '{checkout}/build/launch/pod'",
        f"git -C '{checkout}' archive --format=tar.gz '--output={archive}' {sha}",
        f"{DIRECT} scp '{checkout}/launch/tpu_host.sh' '{archive}' pod: --worker=all {WHERE}",
        f"{DIRECT} ssh pod --worker=all '--command=bash tpu_host.sh setup "
        f"""--label {sha} --data '"'"'gs://bucket/my data'"'"' --data_by mount' {WHERE}""",
    ]


def test_what_a_dry_run_prints_is_what_runs(cloud) -> None:
    """A shell reads the printed commands back as the arguments that gcloud gets."""
    cloud.run("create")
    (cloud.directory / "calls.jsonl").unlink()
    printed = lines(cloud, "setup") + lines(cloud, "train")
    assert cloud.run("setup").returncode == 0
    assert cloud.run("train", "--", *TRAIN).returncode == 0
    calls = cloud.calls()
    for text, call in zip([x for x in printed if x.startswith("gcloud")], calls, strict=True):
        shown = subprocess.run(
            ["bash", "-c", f'gcloud() {{ printf "%s\\0" "$@"; }}; {text}'],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split("\0")[:-1]
        assert shown == call


def test_arguments_arrive_as_they_were_given(cloud) -> None:
    for verb in ("create", "setup"):
        assert cloud.run(verb).returncode == 0
    done = cloud.run("train", "--env", "XLA_FLAGS=--a='$x' --b", "--", *TRAIN, *NASTY)
    assert done.returncode == 0, done.stderr
    assert cloud.received() == [["train", *TRAIN, *NASTY]] * 2
    for home in cloud.homes():
        variables = cloud.variables(home)
        assert variables["MAESTRO_MULTIHOST"] == "1"
        assert variables["JAX_PLATFORMS"] == "tpu,cpu"
        assert variables["JAX_COMPILATION_CACHE_DIR"] == "gs://bucket/runs/a/xla_cache"
        assert variables["XLA_FLAGS"] == "--a='$x' --b"
        assert variables["MAESTRO_DATA_DIR"] == f"{home}/maestro/data"
        assert variables["MAESTRO_GIT_COMMIT"] == commit(cloud.checkout)
        assert not any(name.startswith("MEGASCALE") for name in variables)
        assert not (home / "broken").exists()


def test_slices_created_one_by_one_are_told_of_each_other(cloud) -> None:
    cloud.plan(["CREATING", "READY"])
    common = ("--direct", "--slices", "3", "--poll", "0")
    for verb in ("create", "setup"):
        done = cloud.run(verb, *common)
        assert done.returncode == 0, done.stderr
    assert cloud.run("train", *common, "--", *TRAIN, *NASTY).returncode == 0
    assert [home.name for home in cloud.homes()] == [f"pod-{s}-w-{w}" for s in "012" for w in "01"]
    assert cloud.received() == [["train", *TRAIN, *NASTY]] * 6
    for number, home in enumerate(cloud.homes()):
        variables = cloud.variables(home)
        assert {name: x for name, x in variables.items() if name.startswith("MEGASCALE")} == {
            "MEGASCALE_COORDINATOR_ADDRESS": "10.0.0.2:8081",
            "MEGASCALE_PORT": "8081",
            "MEGASCALE_NUM_SLICES": "3",
            "MEGASCALE_SLICE_ID": str(number // 2),
        }


def test_a_multislice_queued_resource_reaches_all_hosts(cloud) -> None:
    common = ("--slices", "2")
    for verb in ("create", "setup"):
        assert cloud.run(verb, *common).returncode == 0
    assert cloud.run("train", *common, "--", *TRAIN).returncode == 0
    assert [home.name for home in cloud.homes()] == [f"pod-{s}-w-{w}" for s in "01" for w in "01"]
    assert cloud.received() == [["train", *TRAIN]] * 4


def test_hosts_get_the_commit_and_its_versions(cloud) -> None:
    cloud.run("create")
    done = cloud.run("setup", "--data", "gs://bucket/a/b/")
    assert done.returncode == 0, done.stderr
    for home in cloud.homes():
        code = home / "maestro" / "code"
        with tarfile.open(home / "maestro_code.tar.gz") as archive:
            assert "launch/tpu_host.sh" in archive.getnames()
        wanted = (cloud.checkout / "launch" / "tpu_run.sh").read_bytes()
        assert (code / "launch" / "tpu_run.sh").read_bytes() == wanted
        assert not (code / ".git").exists()
        assert (home / "maestro" / "label").read_text().strip() == commit(cloud.checkout)
    home = cloud.homes()[0]
    mine = [call for call in cloud.host_calls() if str(home) in call]
    assert mine == [
        f"uv venv --quiet --python 3.12 {home}/maestro/venv",
        f"uv pip install --quiet --python {home}/maestro/venv/bin/python --constraint "
        f"{home}/maestro/code/constraints/py312.txt --editable {home}/maestro/code[tpu]",
        f"gcsfuse -o ro --implicit-dirs --only-dir a/b bucket {home}/maestro/data",
    ]


def test_a_package_instead_of_the_commit(cloud) -> None:
    cloud.run("create")
    spec = "maestro_jax[tpu] @ git+https://example.com/x@v1"
    assert cloud.run("setup", "--spec", spec).returncode == 0
    home = cloud.homes()[0]
    assert not (home / "maestro" / "code").exists()
    wanted = f"uv pip install --quiet --python {home}/maestro/venv/bin/python {spec}"
    assert wanted in cloud.host_calls()


def test_changes_that_are_not_committed_are_not_left_behind_in_silence(
    cloud, checkout: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    dirty = tmp_path / "dirty"
    shutil.copytree(checkout, dirty)
    (dirty / "setup.cfg").write_text("changed\n")
    cloud.checkout = dirty
    done = cloud.run("setup", "--dry_run")
    assert done.returncode == 2 and "not committed" in done.stderr
    assert cloud.run("setup", "--dry_run", "--allow_dirty").returncode == 0
    shutil.rmtree(dirty / ".git")
    done = cloud.run("setup", "--dry_run", GIT_CEILING_DIRECTORIES=str(tmp_path))
    assert done.returncode == 2 and "--spec" in done.stderr


def test_status_logs_and_stop(cloud) -> None:
    cloud.behaviour("serve")
    assert cloud.run("status").stdout == "pod MISSING\n"
    cloud.run("create")
    assert cloud.run("status").stdout.splitlines() == [
        "pod ACTIVE",
        "pod-w-0 absent",
        "pod-w-1 absent",
        BILL,
    ]
    cloud.run("setup")
    sha = commit(cloud.checkout)
    assert cloud.run("status").stdout.splitlines()[1:3] == [
        f"pod-w-0 ready {sha}",
        f"pod-w-1 ready {sha}",
    ]
    assert cloud.run("train", "--", *TRAIN).returncode == 0
    assert re.match(
        r"pod ACTIVE\npod-w-0 running \d+\npod-w-1 running \d+\n", cloud.run("status").stdout
    )
    again = cloud.run("train", "--", *TRAIN, "--gin.STEPS=7")
    assert again.returncode == 2 and "stop it first" in again.stderr
    # The answer to the first call may have been lost.
    again = cloud.run("train", "--", *TRAIN)
    assert again.returncode == 0 and "is running already" in again.stdout
    assert "pod-w-1: training as pod-w-1" in cloud.run("logs").stdout
    done = cloud.run("stop")
    assert sorted(done.stdout.splitlines()) == [
        f"pod-w-{w}: stopped; exit status 143" for w in "01"
    ]
    assert cloud.run("status").stdout.splitlines()[1:3] == [f"pod-w-{w} stopped 143" for w in "01"]
    output = cloud.directory / "logs"
    cloud.run("logs", "--output_dir", str(output))
    assert sorted(path.name for path in (output / "slice-0").iterdir()) == ["0.log", "1.log"]
    log = (output / "slice-0" / "1.log").read_text().splitlines()
    assert " === maestro train " in log[0] and log[0].endswith(" ".join(TRAIN))
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z saved", log[-1])


def test_an_evaluation_on_all_hosts(cloud) -> None:
    """`eval` is supervised as `train` is, with a log of its own, on the same hosts after it."""
    cloud.behaviour("0", "serve", "3")
    cloud.run("create")
    cloud.run("setup")
    assert cloud.run("train", "--", *TRAIN).returncode == 0
    wanted = ["--model_dir", "gs://bucket/runs/a", *NASTY]
    done = cloud.run("eval", "--env", "A=b c", "--", *wanted)
    assert done.returncode == 0, done.stderr
    assert cloud.received() == [["eval", *wanted]] * 2
    variables = cloud.variables(cloud.homes()[1])
    assert variables["A"] == "b c" and variables["MAESTRO_MULTIHOST"] == "1"
    assert variables["JAX_COMPILATION_CACHE_DIR"] == "gs://bucket/runs/a/xla_cache"
    assert re.match(
        r"pod ACTIVE\npod-w-0 running \d+\npod-w-1 running \d+\n", cloud.run("status").stdout
    )
    log = cloud.run("logs").stdout
    assert " maestro eval --model_dir " in log and "maestro train" not in log
    again = cloud.run("train", "--", *TRAIN)
    assert again.returncode != 0 and "stop it first" in again.stderr
    done = cloud.run("stop")
    assert sorted(done.stdout.splitlines()) == [
        f"pod-w-{w}: stopped; exit status 143" for w in "01"
    ]
    # The same command continues it; here it fails.
    assert cloud.run("eval", "--", *wanted).returncode == 0
    for _ in range(100):
        if "running" not in (status := cloud.run("status").stdout):
            break
    assert status.splitlines()[1:] == [
        "pod-w-0 exited 3: training as pod-w-0",
        "pod-w-1 exited 3: training as pod-w-1",
        BILL,
    ]


def test_any_command_runs_on_the_first_host_alone(cloud) -> None:
    cloud.run("create")
    cloud.run("setup")
    done = cloud.run("run", "--env", "A=1", "--", "report", "gs://bucket/runs/a", "a b")
    assert done.returncode == 0, done.stderr
    first, second = cloud.homes()
    assert (first / "received").read_text().split("\0")[:-1] == [
        "report",
        "gs://bucket/runs/a",
        "a b",
    ]
    assert not (second / "received").exists()
    variables = cloud.variables(first)
    assert variables["MAESTRO_MULTIHOST"] == "0" and variables["JAX_PLATFORMS"] == "cpu"


def test_logs_of_all_hosts_come_in_the_order_of_their_time(cloud) -> None:
    cloud.run("create", "--slices", "2")
    cloud.run("setup", "--slices", "2")
    for index, home in enumerate(cloud.homes()):
        run = home / "maestro" / "run"
        (run / "command").write_text("train\n")
        lines = [f"2026-01-02T03:04:0{i}.{index}00000Z line {i}" for i in range(3)]
        (run / "train.log").write_text("\n".join([*lines, ""]))
    wanted = [
        f"03:04:0{i}.{index}00 {home.name}: line {i}"
        for i in range(3)
        for index, home in enumerate(cloud.homes())
    ]
    assert cloud.run("logs", "--slices", "2").stdout.splitlines() == wanted
    # Nothing runs, so that following ends at once.
    assert cloud.run("logs", "--slices", "2", "--follow").stdout.splitlines() == wanted


def test_following_ends_with_the_run(cloud) -> None:
    cloud.behaviour("serve")
    cloud.run("create")
    cloud.run("setup")
    cloud.run("train", "--", *TRAIN)
    follower = subprocess.Popen(
        ["bash", cloud.checkout / "launch" / "tpu_run.sh", "logs", "--follow"],
        env=cloud.environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    for _ in range(3):  # of each host: the command and the first line
        assert follower.stdout.readline()
    cloud.run("stop")
    lines = follower.communicate(timeout=30)[0].splitlines()
    assert [line.split()[-1] for line in lines[-2:]] == ["saved", "saved"]
    assert lines[-2].split()[0] <= lines[-1].split()[0]


def test_deletion_is_repeated_until_it_is_confirmed(cloud) -> None:
    cloud.run("create")
    cloud.faults(delete=["fail", "ignore", "fail"])
    done = cloud.run("delete", "--poll", "0.1")
    assert done.returncode == 0, done.stderr
    assert cloud.verbs().count("delete") == 4
    assert "cannot delete pod: ERROR: (gcloud) INTERNAL" in done.stderr
    assert done.stderr.splitlines()[-1].endswith("nothing of pod is left")
    assert cloud.run("status").stdout == "pod MISSING\n"


@pytest.mark.slow
def test_what_cannot_be_deleted_is_said_last(cloud) -> None:
    cloud.run("create", "--direct")
    cloud.faults(delete=["fail"] * 100)
    done = cloud.run("delete", "--direct", "--poll", "0.01", "--project", "p")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "error: TPU VM pod (ACTIVE): costs money; delete: "
        "launch/tpu_run.sh delete --name pod --zone us-east5-b --project p --direct"
    )


def test_a_call_is_repeated_but_not_one_that_is_refused(cloud) -> None:
    cloud.run("create")
    cloud.faults(describe=["fail", "hang", "fail"])
    done = cloud.run("status", "--poll", "0.1", "--call_limit", "1")
    assert done.stdout.startswith("pod ACTIVE\n")
    assert "describe: no answer within 1 seconds: again in" in done.stderr
    cloud.faults(ssh=["fail", "hang"])
    done = cloud.run("setup", "--poll", "0.1", "--call_limit", "3", "--spec", "x")
    assert done.returncode == 0, done.stderr
    cloud.faults(describe=["refuse"])
    before = len(cloud.calls())
    done = cloud.run("create")
    assert done.returncode == 2 and len(cloud.calls()) == before + 1
    assert done.stderr.splitlines()[-1] == "error: ERROR: (gcloud) PERMISSION_DENIED: tpu"


def test_after_a_reboot_the_bucket_is_mounted_again(cloud) -> None:
    cloud.behaviour("serve", "0")
    cloud.run("create")
    cloud.run("setup", "--data", "gs://bucket/data")
    assert cloud.run("train", "--", *TRAIN).returncode == 0
    home = cloud.homes()[1]
    cloud.reboot(home)
    assert "pod-w-1 exited killed (rebooted)" in cloud.run("status").stdout
    assert cloud.run("train", "--", *TRAIN).returncode == 0
    mounts = [call.split()[-1] for call in cloud.host_calls() if call.startswith("gcsfuse")]
    assert mounts.count(f"{home}/maestro/data") == 2
    assert mounts.count(f"{cloud.homes()[0]}/maestro/data") == 1


def test_a_host_that_goes_down_leaves_an_exit_status(cloud) -> None:
    """A SIGTERM that reaches everything on a host leaves an exit status behind."""
    cloud.behaviour("serve")
    cloud.run("create")
    cloud.run("setup")
    assert cloud.run("train", "--", *TRAIN).returncode == 0
    run = cloud.homes()[0] / "maestro" / "run"
    for name in ("supervisor", "pid"):
        os.kill(int((run / name).read_text()), 15)
    for _ in range(100):
        if (run / "exit").exists():
            break
        time.sleep(0.05)
    assert (run / "exit").read_text() == "143\n"


@pytest.mark.parametrize(
    ("type_", "runtime"),
    [
        ("v2-8", "tpu-ubuntu2204-base"),
        ("v3-32", "tpu-ubuntu2204-base"),
        ("v4-64", "tpu-ubuntu2204-base"),
        ("v5litepod-256", "v2-alpha-tpuv5-lite"),
        ("v5p-128", "v2-alpha-tpuv5"),
        ("v6e-256", "v2-alpha-tpuv6e"),
    ],
)
def test_every_type_has_googles_runtime_version(cloud, type_: str, runtime: str) -> None:
    (line,) = lines(cloud, "create", "--type", type_)
    assert f" --accelerator-type={type_} --runtime-version={runtime} " in line


def test_another_runtime_version(cloud) -> None:
    (line,) = lines(cloud, "create", "--type", "v9-8", "--runtime", "new")
    assert " --accelerator-type=v9-8 --runtime-version=new " in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "a verb is missing"),
        (["launch"], "there is no verb 'launch'"),
        (["create", "--typ", "v4-8"], "there is no option '--typ'"),
        (["create", "--type"], "--type needs a value"),
        (["create", "--type", "v7-8"], "no runtime version is known for --type v7-8"),
        (["create", "--type", "v5e-16"], "--type v5litepod-16"),
        (["create", "--type", "tpu7x-16"], "by Kubernetes only"),
        (["create", "--type", "v4"], "--type v4 has no size"),
        (["create", "--type", ""], "the accelerator type is missing"),
        (["create", "--name", "My_pod"], "--name My_pod"),
        (["create", "--name", ""], "the name of the slices is missing"),
        (["create", "--zone="], "the zone is missing"),
        (["create", "--slices", "0"], "--slices 0 is not a whole number above 0"),
        (["create", "--spot", "--reserved"], "exclude each other"),
        (["create", "--", "x"], "create takes no arguments"),
        (["setup", "--data", "/data"], "--data /data is not gs://"),
        (["setup", "--data", "gs://b", "--data_by", "magic"], "--data_by magic"),
        (["train"], "maestro train needs a model directory"),
        (["eval", "--", "--task", "a"], "maestro eval needs a model directory"),
        (["eval", "--", "--model_dir", "runs/a"], "--model_dir runs/a is not on gs://"),
        (["study", "--", "--gin_file", "a"], "maestro study needs an output directory"),
        (["study", "--", "--output_dir", "a"], "--output_dir a is not on gs://"),
        (
            ["eval", "--", "--model_dir", "gs://b/a", "--output_dir=out"],
            "--output_dir out is not on gs://",
        ),
        (["train", "--", "--model_dir"], "needs a model directory"),
        (["train", "--", "--model_dir", "runs/a"], "--model_dir runs/a is not on gs://"),
        (["train", "--", *TRAIN, "--data_dir=/x"], "give --data gs://BUCKET/PATH to setup"),
        (["train", "--env", "1=2", "--", *TRAIN], "--env 1=2 is not NAME=VALUE"),
        (["train", "--cache_dir", "cache", "--", *TRAIN], "--cache_dir cache is not on gs://"),
        (["babysit", "--poll", "soon", "--", *TRAIN], "--poll soon"),
        (["babysit", "--max_hours", "x", "--", *TRAIN], "--max_hours x is not a number of hours"),
        (["babysit", "--delete_at_end", "--", *TRAIN], "without --delete_at_end"),
        (["babysit", "--max_creations", "0", "--", *TRAIN], "--max_creations 0 is not a whole"),
        (["train", "--command", "eval", "--", *TRAIN], "--command is an option of babysit"),
        (["run", "--", "--model_dir", "gs://b/a"], "run needs a command of maestro"),
        (["stop", "--worker", "first"], "--worker first is neither a number nor all"),
    ],
)
def test_bad_input_is_one_line(cloud, arguments: list[str], message: str) -> None:
    done = cloud.run(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert message in done.stderr
    assert done.stdout == "" and cloud.calls() == []


def test_without_gcloud(cloud) -> None:
    empty = cloud.directory / "empty"
    empty.mkdir()
    for name in ("bash", "dirname", "git"):
        (empty / name).symlink_to(shutil.which(name))
    done = cloud.run("status", PATH=str(empty))
    assert done.returncode == 2 and done.stderr == (
        "error: there is no python3, which gcloud needs, too\n"
    )
    (empty / "python3").symlink_to(sys.executable)
    done = cloud.run("status", PATH=str(empty))
    assert done.returncode == 2 and done.stderr.startswith("error: gcloud is not installed")


def test_a_host_that_was_not_set_up_says_so(cloud) -> None:
    cloud.run("create")
    done = cloud.run("train", "--", *TRAIN)
    assert done.returncode != 0
    assert not any((home / "received").exists() for home in cloud.homes())


@pytest.mark.multiprocess
def test_the_check_counts_processes_and_devices(tmp_path: pathlib.Path) -> None:
    root = pathlib.Path(__file__).resolve().parents[2]
    python = tmp_path / "maestro" / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    processes = []
    for index in "01":
        variables = {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": "--xla_force_host_platform_device_count=3",
            "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
            "JAX_NUM_PROCESSES": "2",
            "JAX_PROCESS_ID": index,
        }
        options = [x for name, y in variables.items() for x in ("--env", f"{name}={y}")]
        processes.append(
            subprocess.Popen(
                ["bash", root / "launch" / "tpu_host.sh", "check", *options],
                env={"HOME": str(tmp_path), "PATH": os.environ["PATH"], "PYTHONPATH": str(root)},
                stdout=subprocess.PIPE,
                text=True,
            )
        )
    for process in processes:
        assert process.communicate(timeout=100)[0].endswith(": 2 hosts, 6 devices, sum 6\n")


def test_help_names_every_verb(cloud) -> None:
    text = cloud.run("--help").stdout
    for verb in "create wait setup check train eval run status logs stop delete babysit".split():
        assert re.search(rf"^  {verb} ", text, re.MULTILINE)

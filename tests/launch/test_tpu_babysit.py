"""tpu_run.sh babysit: a run that goes on through preemptions, and gives up where it should."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import time

import pytest

TRAIN = ["--gin_file", "runs/pretrain.gin", "--gin.MESH=(-1, 2, 2)", "--model_dir", "gs://b/a"]
QUICK = ("--poll", "0.05")


def babysit(cloud, *options: str) -> subprocess.CompletedProcess[str]:
    return cloud.run("babysit", *QUICK, *options, "--", *TRAIN)


def without_looks(verbs: list[str]) -> list[str]:
    """What was done, without the questions for states."""
    return [verb for verb in verbs if verb not in ("describe", "ssh status", "storage ls")]


FROM_NOTHING = ["create", "scp", "ssh setup", "ssh start"]


def test_a_run_from_nothing_to_its_end(cloud) -> None:
    cloud.plan(["ACCEPTED", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"])
    done = babysit(cloud)
    assert done.returncode == 0, done.stderr
    assert [x for x in done.stdout.splitlines() if "started" in x]
    assert cloud.verbs() == [
        "describe",  # nothing is there
        "describe",
        "storage ls",  # no checkpoint either
        "create",
        "describe",
        "describe",
        "describe",
        "describe",  # ACTIVE
        "ssh status",
        "scp",
        "ssh setup",
        "ssh start",
        "describe",
        "ssh status",  # exited 0
        "describe",  # the queued resource and the TPU VM
        "describe",
        "delete",
        *["describe"] * 6,  # three looks find nothing
    ]
    assert done.stderr.splitlines()[-1].endswith("nothing of pod is left")
    assert "PROVISIONING" in done.stderr and "the run is done" in done.stderr


@pytest.mark.parametrize("state", ["SUSPENDED", pytest.param("FAILED", marks=pytest.mark.slow)])
def test_a_preempted_queued_resource_is_made_again(cloud, state: str) -> None:
    cloud.plan(["ACTIVE", "ACTIVE", "SUSPENDING", state], ["PROVISIONING", "ACTIVE"])
    cloud.behaviour("serve", "0")
    done = babysit(cloud, "--spot", "--slices", "2")
    assert done.returncode == 0, done.stderr
    two = ["create", *["scp"] * 2, *["ssh setup"] * 2, *["ssh start"] * 2]
    assert without_looks(cloud.verbs()) == [*two, "delete", *two, "delete"]
    creations = [call for call in cloud.calls() if "create" in call]
    assert creations[0] == creations[1] and "--spot" in creations[0]
    starts = [call for call in cloud.calls() if any("tpu_host.sh start" in word for word in call)]
    assert sorted(starts[:2]) == sorted(starts[2:])  # the same model directory, so it continues


@pytest.mark.slow
def test_a_preempted_tpu_vm_is_made_again(cloud) -> None:
    cloud.plan(["READY", "READY", "PREEMPTED"], ["CREATING", "READY"])
    cloud.behaviour("serve", "0")
    done = babysit(cloud, "--direct")
    assert done.returncode == 0, done.stderr
    assert without_looks(cloud.verbs()) == [*FROM_NOTHING, "delete", *FROM_NOTHING, "delete"]
    assert all(call[2] == "tpu-vm" for call in cloud.calls() if call[0] == "compute")


@pytest.mark.slow
def test_one_lost_slice_of_several_takes_all_along(cloud) -> None:
    cloud.plan(["READY", "READY", "PREEMPTED"], ["READY"])
    cloud.behaviour("serve", "0")
    done = babysit(cloud, "--direct", "--slices", "2")
    assert done.returncode == 0, done.stderr
    verbs = without_looks(cloud.verbs())
    assert verbs.count("create") == 4 and verbs.count("delete") == 4


@pytest.mark.slow
def test_a_saved_run_on_hosts_that_stay_is_started_again(cloud) -> None:
    cloud.behaviour("143", "0")
    done = babysit(cloud)
    assert done.returncode == 0, done.stderr
    again = ["ssh end", "ssh start", "delete"]
    assert without_looks(cloud.verbs()) == [*FROM_NOTHING, *again]


def test_a_run_that_fails_at_the_same_place_is_given_up(cloud) -> None:
    cloud.behaviour("1", "1", "1", "1")
    done = babysit(cloud, "--max_failures", "3")
    assert done.returncode == 1
    error, bill = done.stderr.replace("pod-w-1", "pod-w-0").splitlines()[-2:]
    assert error == (
        "error: maestro train on pod-w-0: ended with 1: training as pod-w-0 (3 times without a new "
        "checkpoint; launch/tpu_run.sh logs): giving up"
    )
    assert bill.endswith("nothing of pod is left")
    assert cloud.verbs().count("ssh start") == 3


@pytest.mark.slow
def test_a_run_that_gets_somewhere_may_fail_more_often(cloud) -> None:
    cloud.behaviour(*(f"checkpoint {step}" for step in (10, 20, 30, 40)), "0")
    done = babysit(cloud, "--max_failures", "2")
    assert done.returncode == 0, done.stderr
    assert cloud.verbs().count("ssh start") == 5
    looked_at = [call for call in cloud.calls() if call[:2] == ["storage", "ls"]]
    assert looked_at[0] == ["storage", "ls", "gs://b/a/checkpoints/"]


def test_the_failure_of_one_host_ends_the_others(cloud) -> None:
    """A host that waits for the one that failed is ended, before the run starts again on both."""
    cloud.behaviour("serve", "7", "0")
    (cloud.directory / "starts-pod-w-1").write_text("x\n")  # its first start does the second
    done = babysit(cloud, "--max_failures", "2")
    assert done.returncode == 1
    assert "maestro train on pod-w-1: ended with 7" in done.stderr
    assert "ssh end" in cloud.verbs()
    assert "pod-w-0: ended" in done.stdout


@pytest.mark.slow
def test_it_gives_up_where_nothing_can_be_had(cloud) -> None:
    done = babysit(cloud, "--create_arg=--no-such-option")
    assert done.returncode == 2
    assert "error: cannot create pod: ERROR: (gcloud) unrecognized arguments" in done.stderr
    assert cloud.verbs().count("create") == 1


def test_an_error_of_the_user_is_given_up_at_once(cloud) -> None:
    cloud.behaviour("error 2 x.gin: no such file", "0")
    done = babysit(cloud)
    assert done.returncode == 2
    error, bill = done.stderr.replace("pod-w-1", "pod-w-0").splitlines()[-2:]
    assert error == (
        "error: maestro train on pod-w-0: ended with 2: error: x.gin: no such file: giving up"
    )
    assert bill.endswith("nothing of pod is left")
    assert cloud.verbs().count("ssh start") == 1


@pytest.mark.slow
def test_what_a_restart_mends_is_started_again(cloud) -> None:
    """An exit with 75, a death by a signal, and hosts that were started again."""
    cloud.behaviour("error 75 lost process 1", "error 137 x", "serve", "0")
    watcher = start(cloud, "--max_failures", "9", "--data", "gs://bucket/data")
    wait_for(watcher, lambda: cloud.verbs().count("ssh start") == 3 and running(cloud))
    for home in cloud.homes():
        cloud.reboot(home)
    errors = watcher.communicate(timeout=120)[1]
    assert watcher.returncode == 0, errors
    assert re.search(r"on pod-w-\d: ended with 75: error: lost process 1: starting", errors)
    assert "ended with 137" in errors and "the host was started again" in errors
    assert cloud.verbs().count("ssh setup") == 1 and cloud.verbs().count("create") == 1
    mounts = [call for call in cloud.host_calls() if call.startswith("gcsfuse")]
    assert len(mounts) == 4


def test_an_interrupt_makes_the_run_save_and_deletes_the_slices(cloud) -> None:
    cloud.behaviour("serve")
    watcher = start(cloud)
    wait_for(watcher, lambda: running(cloud) and looks_since_start(cloud) > 1)
    cloud.faults(delete=["fail", "hang"])
    watcher.send_signal(signal.SIGHUP)
    output, errors = watcher.communicate(timeout=120)
    assert watcher.returncode == 128 + signal.SIGHUP
    assert sorted(x for x in output.splitlines() if "status" in x) == [
        f"pod-w-{i}: stopped; exit status 143" for i in (0, 1)
    ]
    assert errors.splitlines()[-2] == "error: interrupted by SIGHUP"
    assert errors.splitlines()[-1].endswith("nothing of pod is left")
    assert "no answer within 5 seconds" in errors
    assert not list((cloud.directory / "resources").iterdir())
    assert not (cloud.directory / "object.json").exists()


@pytest.mark.slow
def test_slices_that_are_kept_are_named_with_the_command_to_delete_them(cloud) -> None:
    done = babysit(cloud, "--keep")
    assert done.returncode == 0
    assert done.stderr.splitlines()[-1].endswith(
        "kept: queued resource pod (ACTIVE), TPU VM pod (READY): costs money; delete: "
        "launch/tpu_run.sh delete --name pod --zone us-east5-b"
    )


@pytest.mark.extended
def test_a_babysitter_that_was_killed_is_replaced_and_two_do_not_fight(cloud) -> None:
    cloud.behaviour("serve")
    first = start(cloud)
    wait_for(first, lambda: running(cloud))
    second = babysit(cloud)
    assert second.returncode == 2
    assert second.stderr.startswith(f"error: process {first.pid} on ")
    assert second.stderr.endswith("looks after pod already\n")
    refused = cloud.run("delete")
    assert refused.returncode == 2 and "would create pod again" in refused.stderr
    # From another machine, with a state directory of its own, the lease in the bucket says so.
    elsewhere = cloud.run(
        "babysit", "--poll", "1", "--", *TRAIN, XDG_STATE_HOME=str(cloud.directory / "other")
    )
    assert elsewhere.returncode == 2
    assert f"process {first.pid} on " in elsewhere.stderr and "end it there" in elsewhere.stderr

    first.kill()
    first.communicate()
    assert running(cloud)
    before = cloud.verbs().count("ssh status")
    third = start(cloud)
    wait_for(third, lambda: cloud.verbs().count("ssh status") > before + 1)
    assert cloud.run("stop").returncode == 0
    errors = third.communicate(timeout=120)[1]
    assert third.returncode == 0, errors
    assert "taking over from process" in errors and "the run is in progress" in errors
    assert cloud.verbs().count("ssh start") == 1 and cloud.verbs().count("create") == 1


@pytest.mark.slow
def test_a_babysitter_that_was_replaced_leaves_the_slices_alone(cloud) -> None:
    cloud.behaviour("serve")
    watcher = start(cloud)
    wait_for(watcher, lambda: running(cloud))
    path = cloud.directory / "object.json"
    taken = json.dumps({"holder": "process 1 on elsewhere", "token": "x"})
    path.write_text(json.dumps([1000, taken]))
    errors = watcher.communicate(timeout=120)[1]
    assert watcher.returncode == 1
    assert errors.splitlines()[-1] == (
        "error: process 1 on elsewhere looks after this run now: leaving the slices to it"
    )
    assert running(cloud) and "delete" not in cloud.verbs()


def test_another_run_on_the_slices_is_left_alone(cloud) -> None:
    cloud.behaviour("serve")
    for verb in ("create", "setup"):
        assert cloud.run(verb).returncode == 0
    assert cloud.run("train", "--", *TRAIN, "--gin.STEPS=7").returncode == 0
    done = babysit(cloud)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: another run is in progress on pod")
    assert running(cloud) and "delete" not in cloud.verbs()


def start(cloud, *options: str) -> subprocess.Popen[str]:
    script = cloud.checkout / "launch" / "tpu_run.sh"
    return subprocess.Popen(
        ["bash", script, "babysit", *QUICK, "--call_limit", "5", *options, "--", *TRAIN],
        env=cloud.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Below nohup it would be ignored, by a babysitter as by any other program.
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
    )


def wait_for(process: subprocess.Popen[str], condition) -> None:
    """Waits at most 50 seconds, and no longer than the process lives."""
    for _ in range(500):
        if condition():
            return
        if process.poll() is not None:
            pytest.fail(process.communicate()[1])
        time.sleep(0.1)
    process.kill()
    pytest.fail(process.communicate()[1])


def running(cloud) -> bool:
    """Whether maestro runs on all hosts."""
    runs = [home / "maestro" / "run" for home in cloud.homes()]
    return bool(runs) and all((run / "pid").exists() for run in runs)


def looks_since_start(cloud) -> int:
    verbs = cloud.verbs()
    last = len(verbs) - verbs[::-1].index("ssh start") if "ssh start" in verbs else len(verbs)
    return verbs[last:].count("ssh status")


def test_it_ends_when_the_run_is_stopped_and_can_be_started_meanwhile(cloud) -> None:
    """Babysitting is no part of the run: it may die and be started again beside a run."""
    cloud.behaviour("serve")
    for verb in ("create", "setup"):
        assert cloud.run(verb).returncode == 0
    assert cloud.run("train", "--", *TRAIN).returncode == 0
    watcher = start(cloud)
    wait_for(watcher, lambda: cloud.verbs().count("ssh status") > 1)
    assert cloud.run("stop").returncode == 0
    assert "the run is stopped" in watcher.communicate(timeout=20)[1]
    assert watcher.returncode == 0
    assert cloud.verbs().count("ssh start") == 1 and cloud.verbs().count("create") == 1


def test_a_dry_run_of_it(cloud) -> None:
    done = babysit(cloud, "--dry_run")
    assert done.returncode == 0 and cloud.calls() == []
    gcloud = [line.split()[3:5] for line in done.stdout.splitlines() if line.startswith("gcloud")]
    assert gcloud == [
        ["queued-resources", "create"],
        ["tpu-vm", "scp"],
        ["tpu-vm", "ssh"],
        ["tpu-vm", "ssh"],
        ["queued-resources", "delete"],
    ]

"""tpu_run.sh babysit: a run that goes on through preemptions, and gives up where it should."""

from __future__ import annotations

import subprocess
import time

import pytest

TRAIN = ["--gin_file", "runs/pretrain.gin", "--gin.MESH=(-1, 2, 2)", "--model_dir", "gs://b/a"]
QUICK = ("--poll", "0.05")


def babysit(cloud, *options: str) -> subprocess.CompletedProcess[str]:
    return cloud.run("babysit", *QUICK, *options, "--", *TRAIN)


def without_looks(verbs: list[str]) -> list[str]:
    """What was done, without the questions for states."""
    return [verb for verb in verbs if verb not in ("describe", "ssh status")]


FROM_NOTHING = ["create", "scp", "ssh setup", "ssh start"]


def test_a_run_from_nothing_to_its_end(cloud) -> None:
    cloud.plan(["ACCEPTED", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"])
    done = babysit(cloud)
    assert done.returncode == 0, done.stderr
    assert cloud.verbs() == [
        "describe",  # nothing is there
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
    ]
    assert "PROVISIONING" in done.stderr and "the run is done" in done.stderr
    assert cloud.received() == [["train", *TRAIN]] * 2


@pytest.mark.parametrize("state", ["SUSPENDED", pytest.param("FAILED", marks=pytest.mark.slow)])
def test_a_preempted_queued_resource_is_made_again(cloud, state: str) -> None:
    cloud.plan(["ACTIVE", "ACTIVE", "SUSPENDING", state], ["PROVISIONING", "ACTIVE"])
    cloud.behaviour("serve", "0")
    done = babysit(cloud, "--spot", "--slices", "2", "--delete_at_end")
    assert done.returncode == 0, done.stderr
    two = ["create", *["scp"] * 2, *["ssh setup"] * 2, *["ssh start"] * 2]
    assert without_looks(cloud.verbs()) == [*two, "delete", *two, "delete"]
    creations = [call for call in cloud.calls() if call[3] == "create"]
    assert creations[0] == creations[1] and "--spot" in creations[0]
    starts = [call for call in cloud.calls() if any("tpu_host.sh start" in word for word in call)]
    assert sorted(starts[:2]) == sorted(starts[2:])  # the same model directory, so it continues


def test_a_preempted_tpu_vm_is_made_again(cloud) -> None:
    cloud.plan(["READY", "READY", "PREEMPTED"], ["CREATING", "READY"])
    cloud.behaviour("serve", "0")
    done = babysit(cloud, "--direct")
    assert done.returncode == 0, done.stderr
    assert without_looks(cloud.verbs()) == [*FROM_NOTHING, "delete", *FROM_NOTHING]
    assert all(call[2] == "tpu-vm" for call in cloud.calls())


@pytest.mark.slow
def test_one_lost_slice_of_several_takes_all_along(cloud) -> None:
    cloud.plan(["READY", "READY", "PREEMPTED"], ["READY"])
    cloud.behaviour("serve", "0")
    done = babysit(cloud, "--direct", "--slices", "2")
    assert done.returncode == 0, done.stderr
    verbs = without_looks(cloud.verbs())
    assert verbs.count("create") == 4 and verbs.count("delete") == 2


def test_a_saved_run_on_hosts_that_stay_is_started_again(cloud) -> None:
    cloud.behaviour("143", "0")
    done = babysit(cloud)
    assert done.returncode == 0, done.stderr
    assert without_looks(cloud.verbs()) == [*FROM_NOTHING, "ssh start"]


def test_a_run_that_fails_at_the_same_place_is_given_up(cloud) -> None:
    cloud.behaviour("1", "1", "1", "1")
    done = babysit(cloud, "--max_failures", "3")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(
        "error: maestro train ended with 1 (3 times without a new checkpoint): giving up"
    )
    assert cloud.verbs().count("ssh start") == 3


@pytest.mark.slow
def test_a_run_that_gets_somewhere_may_fail_more_often(cloud) -> None:
    cloud.behaviour(*(f"checkpoint {step}" for step in (10, 20, 30, 40)), "0")
    done = babysit(cloud, "--max_failures", "2")
    assert done.returncode == 0, done.stderr
    assert cloud.verbs().count("ssh start") == 5
    looked_at = [call for call in cloud.calls() if call[0] == "storage"]
    assert looked_at[0] == ["storage", "ls", "gs://b/a/checkpoints/"]


def test_the_failure_of_one_host_ends_the_others(cloud) -> None:
    """A host that waits for the one that failed is ended, before the run starts again on both."""
    cloud.behaviour("serve", "7", "0")
    (cloud.directory / "starts-pod-w-1").write_text("x\n")  # its first start does the second
    done = babysit(cloud, "--max_failures", "2")
    assert done.returncode == 2
    assert "maestro train ended with 7" in done.stderr
    assert "ssh end" in cloud.verbs()
    assert "pod-w-0: ended" in done.stdout


@pytest.mark.slow
def test_it_gives_up_where_nothing_can_be_had(cloud) -> None:
    done = babysit(cloud, "--create_arg=--no-such-option")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        "error: cannot create pod (3 times in a row): giving up"
    )
    assert cloud.verbs().count("create") == 3


def test_it_ends_when_the_run_is_stopped_and_can_be_started_meanwhile(cloud) -> None:
    """Babysitting is no part of the run: it may die and be started again beside a run."""
    cloud.behaviour("serve")
    for verb in ("create", "setup"):
        assert cloud.run(verb).returncode == 0
    assert cloud.run("train", "--", *TRAIN).returncode == 0
    watcher = subprocess.Popen(
        ["bash", cloud.checkout / "launch" / "tpu_run.sh", "babysit", *QUICK, "--", *TRAIN],
        env=cloud.environment(),
        stderr=subprocess.PIPE,
        text=True,
    )
    time.sleep(0.5)
    assert watcher.poll() is None
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
    ]

"""A storage service in trouble: what is tried again, and what ends in one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import time

import pytest
from google_cloud import StorageFaults

# Waits between two tries, which are seconds otherwise.
QUICK = {
    "GCS_RETRY_CONFIG_MAX_RETRIES": "8",
    "GCS_RETRY_CONFIG_INIT_DELAY_TIME_US": "20000",
    "GCS_RETRY_CONFIG_MAX_DELAY_TIME_US": "200000",
}

_SINGLE_FILES = """
from maestro_jax.files import as_path, local_copy, read_bytes, write_atomically

root = as_path("gs://{bucket}/runs")
for number in range(8):
    content = bytes([number]) * (1 << 15)
    write_atomically(root / str(number), content)
    assert read_bytes(root / str(number)) == content
    assert local_copy(root / str(number)).read_bytes() == content
assert sorted(path.name for path in root.iterdir()) == list("01234567")
"""


def _run(code: str, emulator, cache) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **emulator.environment, **QUICK, "XDG_CACHE_HOME": str(cache)}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.fixture
def troubled(emulator):
    """The emulator, whose faults end with the test."""
    yield emulator
    emulator.faults = StorageFaults()


@pytest.mark.extended
def test_single_files_on_a_service_in_trouble(troubled, bucket, tmp_path):
    troubled.faults = StorageFaults(rate=0.35, seed=1)
    done = _run(_SINGLE_FILES.format(bucket=bucket), troubled, tmp_path)
    assert done.returncode == 0, done.stderr
    injected = troubled.faults.injected
    assert set(injected) == set(StorageFaults.KINDS), injected
    for number in range(8):
        assert troubled.read(bucket, f"runs/{number}") == bytes([number]) * (1 << 15)


@pytest.mark.slow
def test_a_run_on_a_service_in_trouble(troubled, bucket, tmp_path, maestro, finetune):
    """It is killed, meets an outage of some seconds, and still has what a run on a disk has."""
    run, disk = f"gs://{bucket}/run", tmp_path / "disk"
    maestro.environment |= QUICK
    train = ["train", *finetune, "--gin.STEPS=8"]
    maestro.run(*train, "--model_dir", str(disk))

    troubled.faults = StorageFaults(rate=0.1, seed=2)
    process = maestro.start(*train, "--model_dir", run)
    _wait_for(lambda: troubled.objects(bucket, "run/checkpoints/2/commit_success"), process)
    process.kill()
    process.communicate()
    process = maestro.start(*train, "--model_dir", run)
    _wait_for(lambda: troubled.objects(bucket, "run/checkpoints/4/commit_success"), process)
    troubled.faults.rate = 1.0
    time.sleep(3.0)
    troubled.faults.rate = 0.1
    _, words = process.communicate(timeout=300)
    if process.returncode == 75:  # One line, and the same command continues.
        assert len([x for x in words.splitlines() if x.startswith("error: ")]) == 1, words
        maestro.run(*train, "--model_dir", run)
    else:
        assert process.returncode == 0 and "Traceback" not in words, words
    here, there = (
        [json.loads(line) for line in content.decode().splitlines()]
        for content in (
            (disk / "metrics.jsonl").read_bytes(),
            troubled.read(bucket, "run/metrics.jsonl"),
        )
    )
    for name in ("step", "loss", "grad_norm"):
        assert [line[name] for line in there] == [line[name] for line in here]

    task = ["--task", "minivox_tiny_paired_de", "--json"]
    scores = [
        json.loads(maestro.run("eval", "--model_dir", place, *task)[0])[0]["rows"]
        for place in (run, str(disk))
    ]
    assert scores[0] == scores[1]
    maestro.run("report", run)
    assert len(troubled.faults.injected) == len(StorageFaults.KINDS)


@pytest.mark.slow
def test_an_outage_is_one_line(troubled, bucket, maestro, finetune):
    run = f"gs://{bucket}/run"
    maestro.environment |= QUICK | {"GCS_RETRY_CONFIG_MAX_RETRIES": "2"}
    troubled.faults = StorageFaults(rate=1.0, kinds=["unavailable"])
    train = ["train", *finetune, "--gin.STEPS=2", "--model_dir", run]
    for arguments in (train, ["report", run], ["eval", "--model_dir", run]):
        _, words = maestro.run(*arguments, code=75)
        lines = [line for line in words.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1 and "Traceback" not in words, words


@pytest.mark.slow
@pytest.mark.multiprocess
def test_two_processes_evaluate_on_a_bucket(bucket, maestro, finetune):
    run = f"gs://{bucket}/run"
    maestro.run("train", *finetune, "--gin.STEPS=2", "--model_dir", run)
    evaluate = ["eval", "--model_dir", run, "--task", "minivox_tiny_paired_de", "--json"]
    outputs = maestro.run_on_two(*evaluate, "--output_dir", f"gs://{bucket}/two")
    # On CPUs, the library of collectives says on stdout that it is connected.
    two, nothing = (
        "".join(line for line in out.splitlines(True) if not line.startswith("[Gloo]"))
        for out, _ in outputs
    )
    one, _ = maestro.run(*evaluate, "--output_dir", f"gs://{bucket}/one")
    assert nothing == "" and json.loads(two)[0]["rows"] == json.loads(one)[0]["rows"]


def _wait_for(condition, process) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            raise AssertionError(process.communicate()[1])
        time.sleep(0.05)

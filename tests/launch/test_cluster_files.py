"""The files for Kubernetes and SkyPilot, against schemas of their authors."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest
import yaml

from maestro_jax.cli import main
from maestro_jax.errors import RESTART_EXIT_CODE

LAUNCH = pathlib.Path(__file__).resolve().parents[2] / "launch"
JOB_SETS = ["jobset.yaml", "jobset_gpu.yaml"]


def read(name: str) -> dict[str, Any]:
    return yaml.safe_load((LAUNCH / name).read_text())


def lost(given: Any, understood: Any, place: str = "") -> list[str]:
    """Where a file says what the schema does not have, or has otherwise."""
    if isinstance(given, dict) and isinstance(understood, dict):
        return [x for key in given for x in lost(given[key], understood.get(key), f"{place}.{key}")]
    if isinstance(given, list) and isinstance(understood, list):
        pairs = enumerate(zip(given, understood, strict=True))
        return [x for i, (a, b) in pairs for x in lost(a, b, f"{place}[{i}]")]
    return [] if given == understood else [place]


@pytest.mark.parametrize("name", JOB_SETS)
def test_a_job_set_is_one_of_its_schema(name: str) -> None:
    """Kubeflow's models are generated from JobSet's schema; they drop what it does not have."""
    models = pytest.importorskip("kubeflow_trainer_api.models.jobset_v1alpha2_job_set")
    job_set = models.JobsetV1alpha2JobSet
    given = read(name)
    assert lost(given, job_set.from_dict(given).to_dict()) == []
    wrong = read(name)
    job = wrong["spec"]["replicatedJobs"][0]["template"]["spec"]
    job["template"]["spec"]["containers"][0]["comand"] = ["x"]
    assert lost(wrong, job_set.from_dict(wrong).to_dict()) == [
        ".spec.replicatedJobs[0].template.spec.template.spec.containers[0].comand"
    ]
    del job["template"]
    with pytest.raises(ValueError, match="template"):
        job_set.from_dict(wrong)


@pytest.mark.parametrize("name", JOB_SETS)
def test_a_job_set_restarts_all_but_errors_of_the_user(name: str) -> None:
    spec = read(name)["spec"]
    (rule,) = spec["failurePolicy"]["rules"]
    assert rule["action"] == "FailJobSet" and rule["onJobFailureReasons"] == ["PodFailurePolicy"]
    job = spec["replicatedJobs"][0]["template"]["spec"]
    assert job["backoffLimit"] == 0 and job["parallelism"] == job["completions"]
    (policy,) = job["podFailurePolicy"]["rules"]
    assert policy["action"] == "FailJob" and policy["onExitCodes"]["values"] == [2]
    pod = job["template"]["spec"]
    # Kubernetes demands this beside a pod failure policy.
    assert pod["restartPolicy"] == "Never"
    (container,) = pod["containers"]
    assert policy["onExitCodes"]["containerName"] == container["name"]
    _, arguments = main._parse([*container["command"][1:], *container["args"]])
    assert arguments.model_dir == "gs://BUCKET/runs/xl"
    assert {x["name"] for x in container["volumeMounts"]} == {x["name"] for x in pod["volumes"]}


def test_processes_with_gpus_find_each_other() -> None:
    given = read("jobset_gpu.yaml")
    (replicated,) = given["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    variables = {x["name"]: x.get("value") for x in job["template"]["spec"]["containers"][0]["env"]}
    assert variables["JAX_NUM_PROCESSES"] == str(job["completions"])
    # JobSet names pods <set>-<job>-<replica>-<index>, below a service of its own name.
    name = given["metadata"]["name"]
    address = f"{name}-{replicated['name']}-0-0.{name}:8476"
    assert variables["JAX_COORDINATOR_ADDRESS"] == address


def test_skypilot_reads_its_file() -> None:
    """Its package brings 400 MB, so that it is not among those for tests: pip install skypilot."""
    schemas = pytest.importorskip("sky.utils.schemas")
    jsonschema = pytest.importorskip("jsonschema")
    given = read("skypilot.yaml")
    jsonschema.validate(given, schemas.get_task_schema())
    jsonschema.validate(given["resources"], schemas.get_resources_schema())


def test_skypilot_starts_again_what_a_restart_mends() -> None:
    given = read("skypilot.yaml")
    recovery = given["resources"]["job_recovery"]
    assert recovery["recover_on_exit_codes"] == [RESTART_EXIT_CODE]
    words = given["run"].split("maestro/bin/maestro ")[1].split()
    for name, value in given["envs"].items():
        words = [word.strip('"').replace(f"${name}", value) for word in words]
    _, arguments = main._parse(words)
    assert arguments.model_dir == given["envs"]["MODEL_DIR"]
    assert (LAUNCH.parent / "gin" / given["envs"]["GIN_FILE"]).exists()

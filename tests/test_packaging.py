"""What a wheel holds, and that an installed one works without the checkout."""

from __future__ import annotations

import configparser
import dataclasses
import json
import os
import pathlib
import re
import subprocess
import sys
import tomllib
import zipfile

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]


@dataclasses.dataclass(frozen=True)
class Installed:
    """An installed wheel.

    Attributes:
        target: Where its files are.
        directory: Where its programs are run.
        environment: What they see.
    """

    target: pathlib.Path
    directory: pathlib.Path
    environment: dict[str, str]

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run Python, and fail where it fails."""
        process = subprocess.run(
            [sys.executable, *arguments],
            capture_output=True,
            text=True,
            cwd=self.directory,
            env=self.environment,
        )
        assert process.returncode == 0, process.stderr
        return process


def setup_cfg() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def requirements(text: str) -> list[str]:
    """The names of a requirements field, without versions and extras."""
    lines = [line.strip() for line in text.splitlines()]
    return [
        re.match(r"[\w.-]+", line)[0].lower().replace("_", "-")
        for line in lines
        if line and not line.startswith("#")
    ]


def test_every_directory_of_modules_is_a_package() -> None:
    listed = set(setup_cfg()["options"]["packages"].split())
    found = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for path in (ROOT / "maestro_jax").rglob("*.py")
    }
    assert listed == found | {"maestro_jax.tasks", "maestro_jax.configs"}


@pytest.mark.parametrize("version", ["311", "312", "313"])
def test_constraints_pin_every_dependency_and_name_no_host(version: str) -> None:
    text = (ROOT / "constraints" / f"py{version}.txt").read_text()
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.!+]+", line) for line in lines)
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in lines}
    config = setup_cfg()
    needed = requirements(config["options"]["install_requires"])
    for extra in ("minivox", "dev", "docs"):
        needed += requirements(config["options.extras_require"][extra])
    assert set(needed) <= pinned


def test_the_pairs_of_jax_and_flax() -> None:
    pins = {}
    for version in ("311", "312", "313"):
        text = (ROOT / "constraints" / f"py{version}.txt").read_text()
        pins[version] = dict(re.findall(r"^(jax|flax)==([\d.]+)$", text, re.MULTILINE))
    assert pins["311"] == {"jax": "0.10.2", "flax": "0.12.8"}
    for version in ("312", "313"):
        numbers = {name: tuple(map(int, text.split("."))) for name, text in pins[version].items()}
        assert numbers["jax"] >= (0, 11, 1) and numbers["flax"] >= (0, 12, 12)


def test_marks_of_the_default_suite() -> None:
    """What `make test` leaves out is a mark that pytest knows."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    marks = {line.split(":")[0] for line in settings["tool"]["pytest"]["ini_options"]["markers"]}
    makefile = (ROOT / "Makefile").read_text()
    default = re.search(r"^DEFAULT_MARKS := (.*)$", makefile, re.MULTILINE)[1]
    assert set(re.findall(r"not (\w+)", default)) <= marks


def test_ci_runs_what_the_readme_says() -> None:
    readme = (ROOT / "README.md").read_text()
    script = (ROOT / ".ci" / "run").read_text()
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    commands = re.findall(r"^(?:exec )?(make [\w-]+)$", script, re.MULTILINE)
    assert commands == ["make lint", "make docs", "make test", "make test-extended"]
    assert "make test" in readme and "make demo" in readme


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    directory = tmp_path_factory.mktemp("wheel")
    source = directory / "source"
    source.mkdir()
    # From a copy, so that no build directory is left in the checkout.
    names = ["maestro_jax", "tasks", "gin", "setup.cfg", "pyproject.toml", "README.md", "LICENSE"]
    for name in names:
        subprocess.run(["cp", "-r", str(ROOT / name), str(source)], check=True)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index"]
    subprocess.run(
        [*command, "--no-build-isolation", "--wheel-dir", str(directory), str(source)], check=True
    )
    (path,) = directory.glob("*.whl")
    return path


def test_the_wheel_holds_every_file_and_nothing_else(wheel: pathlib.Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if ".dist-info/" not in name]
    assert {name.split("/")[0] for name in names} == {"maestro_jax"}
    places = {
        "maestro_jax": "maestro_jax",
        "tasks": "maestro_jax/tasks",
        "gin": "maestro_jax/configs",
    }
    expected = {
        f"{target}/{path.relative_to(ROOT / directory).as_posix()}"
        for directory, target in places.items()
        for pattern in ("*.py", "*.gin", "*.json", "*.html")
        for path in (ROOT / directory).rglob(pattern)
    }
    assert set(names) == expected


@pytest.fixture(scope="module")
def installed(wheel: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The wheel in a directory of its own, run from a directory far from the checkout."""
    target = tmp_path_factory.mktemp("installed")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*command, "--target", str(target), str(wheel)], check=True)
    environment = {**os.environ, "PYTHONPATH": str(target), "PYTHONDONTWRITEBYTECODE": "1"}
    # One device, as a user has it.
    environment.pop("XLA_FLAGS", None)
    return Installed(target, tmp_path_factory.mktemp("elsewhere"), environment)


def test_an_installed_wheel_works_without_the_checkout(installed: Installed) -> None:
    program = (
        "import maestro_jax, maestro_jax.tasks\n"
        "from maestro_jax.gin_utils.gin_source import config_root\n"
        "print(maestro_jax.__file__, maestro_jax.tasks.__file__, config_root())"
    )
    for path in installed.run("-c", program).stdout.split():
        assert pathlib.Path(path).is_relative_to(installed.target)
    rows = json.loads(installed.run("-m", "maestro_jax.cli.main", "tasks", "--json").stdout)
    names = {row["name"] for row in rows}
    assert "minivox_small_paired" in names


@pytest.mark.extended
def test_an_installed_wheel_trains_with_a_gin_file_that_it_carries(installed: Installed) -> None:
    from maestro_jax.data.data_dir import data_root
    from maestro_jax.minivox import dataset

    dataset.prepare("tiny")
    sizes = {
        "INIT_FROM": "None",
        "STEPS": 2,
        "WARMUP_STEPS": 1,
        "FEATURES": 16,
        "HIDDEN": 16,
        "SPEECH_LAYERS": 1,
        "SHARED_LAYERS": 1,
        "VOCAB_SIZE": 96,
    }
    arguments = ["train", "--gin_file", "runs/demo_finetune_asr.gin", "--model_dir", "model"]
    arguments += ["--gin_file", "data/minivox_tiny.gin", "--data_dir", str(data_root())]
    arguments += [f"--gin.{name}={value}" for name, value in sizes.items()]
    installed.run("-m", "maestro_jax.cli.main", *arguments)
    model = installed.directory / "model"
    lines = (model / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["step"] == 2
    assert (model / "checkpoints" / "2").is_dir()
    assert (model / "vocabulary.model").is_file()

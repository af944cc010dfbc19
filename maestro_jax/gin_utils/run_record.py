"""The record of a run in its model directory: configuration, versions, command line."""

from __future__ import annotations

import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence

from etils import epath

from maestro_jax.errors import UserError
from maestro_jax.files import as_path, models_below, naming_failures

_ENVIRONMENT = ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "JAX_PLATFORMS", "JAX_ENABLE_X64")
_PACKAGES = (
    "maestro_jax jax jaxlib libtpu flax optax orbax-checkpoint numpy seqio tensorflow "
    "tensorflow-text tensorflow-datasets array_record sentencepiece gin-config clu"
).split()


def write(
    model_dir: str | os.PathLike[str], texts: Mapping[str, str], argv: Sequence[str]
) -> list[epath.Path]:
    """Writes texts, and `versions.json`, without overwriting what an earlier start wrote.

    A file that says the same as the latest one is not written again; one that says something else
    takes the next suffix: `config.gin`, `config.gin.1`, `config.gin.2`.

    Args:
        model_dir: Created if need be.
        texts: File name to content.
        argv: The command line, kept in `versions.json`.

    Returns:
        The files that were written.

    Raises:
        UserError: If the directory cannot be written.
    """
    directory = as_path(model_dir)
    written = []
    with naming_failures(model_dir, "model directory"):
        directory.mkdir(parents=True, exist_ok=True)
        for name, text in {**texts, "versions.json": versions_text(argv)}.items():
            newest = _newest(directory, name)
            if newest is not None and newest[1].read_text() == text:
                continue
            number = 0 if newest is None else newest[0] + 1
            path = directory / (f"{name}.{number}" if number else name)
            path.write_text(text)
            written.append(path)
    return written


def latest(model_dir: str | os.PathLike[str], name: str) -> epath.Path:
    """Returns the newest of `name`, `name.1`, `name.2` ... in a model directory.

    Raises:
        UserError: The directory or the file does not exist.
    """
    directory = as_path(model_dir)
    if not directory.is_dir():
        raise UserError(f"there is no model directory {model_dir}; check the path")
    newest = _newest(directory, name)
    if newest is None:
        raise UserError(
            f"{model_dir} is not a model directory: it has no {name}{models_below(directory)}"
        )
    return newest[1]


def versions_text(argv: Sequence[str]) -> str:
    """Returns versions, git commit, command line and XLA flags of this process as JSON."""
    installed = {}
    for package in _PACKAGES:
        try:
            installed[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    record = {
        "argv": list(argv),
        "python": platform.python_version(),
        "packages": installed,
        "git": _git_state(),
        "environment": {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
    }
    return json.dumps(record, indent=2) + "\n"


def command_line() -> list[str]:
    """Returns the command line of this process, with the name of the program only."""
    return [pathlib.Path(sys.argv[0]).name, *sys.argv[1:]]


def _newest(directory: epath.Path, name: str) -> tuple[int, epath.Path] | None:
    """Returns the highest suffix of a file (0 for none) and its path."""
    found = []
    for path in directory.glob(f"{name}*"):
        rest = path.name[len(name) :]
        if not rest:
            found.append((0, path))
        elif rest[0] == "." and rest[1:].isdigit():
            found.append((int(rest[1:]), path))
    return max(found, key=lambda pair: pair[0], default=None)


def _git_state() -> dict[str, str | bool] | None:
    """Returns the commit of the package's checkout, and whether files differ from it.

    Where there is no checkout, it is `$MAESTRO_GIT_COMMIT`, which launch scripts set on hosts that
    get an archive.
    """
    package = pathlib.Path(__file__).resolve().parents[1]

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(package), *arguments]
        process = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
        return process.stdout

    try:
        # A wheel installed below some other repository must not report that repository's commit.
        if not git("ls-files", "__init__.py"):
            return _git_announced()
        commit = git("rev-parse", "HEAD").strip()
        changed = bool(git("status", "--porcelain", "--untracked-files=no").strip())
    except (OSError, subprocess.SubprocessError):
        return _git_announced()
    return {"commit": commit, "changed": changed}


def _git_announced() -> dict[str, str | bool] | None:
    commit = os.environ.get("MAESTRO_GIT_COMMIT")
    return {"commit": commit, "changed": False} if commit else None

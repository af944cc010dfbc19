"""Which versions, which commit and which command line produced a file."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import pathlib
import platform
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

_ENVIRONMENT = ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "JAX_PLATFORMS", "JAX_ENABLE_X64")
_PACKAGES = (
    "maestro_jax jax jaxlib libtpu flax optax orbax-checkpoint numpy seqio tensorflow "
    "tensorflow-text tensorflow-datasets array_record sentencepiece gin-config clu jiwer sacrebleu"
).split()


def versions(argv: Sequence[str]) -> dict[str, Any]:
    """Returns versions, git commit, command line and XLA flags of this process, for JSON files.

    Args:
        argv: The command line.
    """
    installed = {}
    for package in _PACKAGES:
        try:
            installed[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "argv": list(argv),
        "python": platform.python_version(),
        "packages": installed,
        "git": git_state(),
        "environment": {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
    }


def digest(content: str | bytes) -> str:
    """Returns a short hash of a text or of bytes, by which two of them can be told apart."""
    content = content.encode() if isinstance(content, str) else content
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def command_line() -> list[str]:
    """Returns the command line of this process, with the name of the program only."""
    return [pathlib.Path(sys.argv[0]).name, *sys.argv[1:]]


def git_state() -> dict[str, str | bool] | None:
    """Returns the commit of the package's checkout, and whether files differ from it.

    Where there is no checkout, it is `$MAESTRO_GIT_COMMIT`, which launch scripts set on hosts that
    get an archive.
    """
    package = pathlib.Path(__file__).resolve().parent

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

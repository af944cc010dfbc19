"""The record of a run in its model directory: configuration, versions, command line."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import jax
from etils import epath

from maestro_jax.errors import UserError
from maestro_jax.files import as_path, models_below, naming_failures, write_atomically
from maestro_jax.provenance import versions
from maestro_jax.training.callbacks import Callback

if TYPE_CHECKING:
    from maestro_jax.training.trainer import Trainer


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
        record = json.dumps(versions(argv), indent=2) + "\n"
        for name, text in {**texts, "versions.json": record}.items():
            found = _numbered(directory, name)
            if found and found[-1][1].read_text() == text:
                continue
            number = found[-1][0] + 1 if found else 0
            path = directory / (f"{name}.{number}" if number else name)
            write_atomically(path, text.encode())
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
    # A full disk left empty files to earlier versions.
    whole = [path for _, path in _numbered(directory, name) if path.stat().length]
    if not whole:
        raise UserError(
            f"{model_dir} is not a model directory: it has no {name}{models_below(directory)}"
        )
    return whole[-1]


class RunRecord(Callback):
    """Writes the record of a run when its start has been accepted, on the first process.

    Args:
        texts: File name to content.
        argv: The command line.
    """

    def __init__(self, texts: Mapping[str, str], argv: Sequence[str]) -> None:
        self._texts, self._argv = texts, argv

    def on_start(self, trainer: Trainer) -> None:
        """Writes it."""
        if jax.process_index() == 0:
            write(trainer.model_dir, self._texts, self._argv)


def _numbered(directory: epath.Path, name: str) -> list[tuple[int, epath.Path]]:
    """Returns the suffixes of a file, ascending (0 for none), each with its path."""
    found = []
    for path in directory.glob(f"{name}*"):
        rest = path.name[len(name) :]
        if not rest:
            found.append((0, path))
        elif rest[0] == "." and rest[1:].isdigit():
            found.append((int(rest[1:]), path))
    return sorted(found, key=lambda pair: pair[0])

"""The record of a run in its model directory: configuration, versions, command line."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence

from etils import epath

from maestro_jax.errors import UserError
from maestro_jax.files import as_path, models_below, naming_failures
from maestro_jax.provenance import versions


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

"""The data directory: where data sets, vocabularies and downloads live.

Tasks are registered when a module is imported, before a data directory is known. Their sources and
vocabularies therefore ask for it when they are first read: it is that of the innermost
`data_scope`, else `data_root()`.
"""

from __future__ import annotations

import contextlib
import contextvars
import os
from collections.abc import Iterator
from pathlib import Path
from typing import cast

from maestro_jax.files import as_path, is_remote, local_directory

ENVIRONMENT_VARIABLE = "MAESTRO_DATA_DIR"

_scope: contextvars.ContextVar[Path | None] = contextvars.ContextVar("data_scope", default=None)


def data_root(data_dir: str | Path | None = None) -> Path:
    """Returns the directory that holds all data.

    Args:
        data_dir: A directory named by the user, which wins over everything else.

    Returns:
        `data_dir`, else the directory that `$MAESTRO_DATA_DIR` names, else `~/maestro_data`. It may
        not exist yet.

    Raises:
        UserError: It is an address that is not of a bucket on `gs://`.
    """
    directory = data_dir or os.environ.get(ENVIRONMENT_VARIABLE) or "~/maestro_data"
    if is_remote(directory):
        # It has those methods of a Path that readers of prepared data use.
        return cast(Path, as_path(directory))
    return local_directory(directory, "data directory")


def local_data_root(data_dir: str | Path | None = None) -> Path:
    """Returns `data_root` for what writes data, which needs a disk.

    Raises:
        UserError: It is in a bucket.
    """
    return local_directory(data_root(data_dir), "data directory to write to")


@contextlib.contextmanager
def data_scope(data_dir: str | Path | None) -> Iterator[Path]:
    """Makes tasks that are opened inside the block read below a data directory.

    Args:
        data_dir: The data root; None keeps the one in force.

    Yields:
        The root in force inside the block.
    """
    if data_dir is None:
        yield active_data_root()
        return
    root = data_root(data_dir)
    token = _scope.set(root)
    try:
        yield root
    finally:
        _scope.reset(token)


def active_data_root() -> Path:
    """Returns the data root in force, of the innermost `data_scope` or the user's default."""
    return _scope.get() or data_root()

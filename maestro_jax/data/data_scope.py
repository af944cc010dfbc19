"""Which data root the lazily opened tasks read from.

Tasks are registered when a module is imported, long before anybody names a data directory. Their
sources and vocabularies therefore ask for the root when they are first read: the innermost
`data_scope`, else `data_root()`.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator
from pathlib import Path

from maestro_jax.data.data_dir import data_root

_scope: contextvars.ContextVar[Path | None] = contextvars.ContextVar("data_scope", default=None)


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
    """The data root in force: of the innermost `data_scope`, else the user's default."""
    return _scope.get() or data_root()

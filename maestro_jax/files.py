"""Writing files that are never seen half written; finding model directories."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from etils import epath


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file so that a reader sees all of it or none of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def models_below(directory: epath.PathLike) -> str:
    """Names the model directories right below a directory, to end a message; empty without any."""
    path = epath.Path(directory).expanduser()
    children = sorted(path.iterdir()) if path.is_dir() else []
    names = [child.name for child in children if (child / "checkpoints").is_dir()]
    return f"; below it are {', '.join(names[:5])}" if names else ""

"""Whether the files of a checkpoint are those that were written.

A full disk, an interrupted copy or a crash leaves checkpoints with files that are missing, cut off
or full of zeros. Most of that Orbax notices in the middle of reading, some of it not at all: an
array whose bytes changed is an array. So each checkpoint gets a list of its files, ``files.json``,
which is gone through before anything is read. A checkpoint from before there were such lists is
read once more instead.

The list begins with the sizes, which are known when the checkpoint is written. Digests are added
when it is complete, for they take another reading of all of it, and a machine that is to stop soon
may not have the time.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from typing import Any

from etils import epath

from maestro_jax.errors import UserError

FILES = "files.json"
"""In the directory of a step: from the name of each file to its bytes and their digest."""

STATE, RECORD = "state", "data"
"""The items of a checkpoint: the training state, and a JSON record."""

_CHUNK = 1 << 24
# Written by Orbax when all is done; nothing reads them.
_MARKERS = ("commit_success.txt",)


def write_list(step_directory: epath.PathLike, *, digests: bool) -> None:
    """Write down the files of a checkpoint, or add to such a list what it lacks.

    Args:
        step_directory: Of the checkpoint, also under the name that it has until it is complete.
        digests: Whether to read all files for their digests; those of a store that checks its
            bytes itself are not.
    """
    directory = epath.Path(step_directory)
    digests = digests and not _is_remote(directory)
    found = {
        str(path.relative_to(directory)): (path.stat().length, _digest(path) if digests else "")
        for item in (STATE, RECORD)
        for path in _files(directory / item)
        if path.name not in _MARKERS
    }
    # By a change of name: half a list would condemn a whole checkpoint.
    part = directory / f"{FILES}.part"
    part.write_text(json.dumps(found, indent=1) + "\n")
    part.replace(directory / FILES)


def damage(step_directory: epath.PathLike) -> str | None:
    """What is wrong with a checkpoint.

    Args:
        step_directory: Of the checkpoint.

    Returns:
        The first file that is not as it was written, in a few words; None if all are.
    """
    try:
        return _damage(epath.Path(step_directory))
    except OSError as error:
        # A bad sector, a stale handle of a network: as good as damaged to whoever has to read it.
        return f"it cannot be read: {error}"


def _damage(directory: epath.Path) -> str | None:
    listed = directory / FILES
    if not listed.exists():
        return _unreadable(directory)
    try:
        expected = json.loads(listed.read_text())
        described = {name: (int(size), str(digest)) for name, (size, digest) in expected.items()}
    except (ValueError, TypeError, AttributeError):
        return f"{FILES} cannot be read"
    # All sizes first, for they take no time.
    for name, (size, _) in described.items():
        path = directory / name
        if not path.exists():
            return f"{name} is missing"
        if path.stat().length != size:
            return f"{name} has {path.stat().length} of {size} bytes"
    for name, (_, digest) in described.items():
        if digest and _digest(directory / name) != digest:
            return f"{name} has other bytes than were written"
    return None


def newest_whole(
    directory: epath.PathLike, steps: Iterable[int]
) -> tuple[int | None, dict[int, str]]:
    """The newest checkpoint that is whole.

    Args:
        directory: Of the checkpoints, each of which is called by its step.
        steps: Of those to choose from.

    Returns:
        Its step, None if none is whole; and what is wrong with each newer one.
    """
    damaged: dict[int, str] = {}
    for step in sorted(steps, reverse=True):
        reason = damage(epath.Path(directory) / str(step))
        if reason is None:
            return step, damaged
        damaged[step] = reason
    return None, damaged


def check_whole(step_directory: epath.Path) -> None:
    """Refuse a damaged checkpoint: what is read is called by its step, and another is another.

    Raises:
        UserError: It is damaged; the message names the newest one before it that is not.
    """
    reason = damage(step_directory)
    if reason is None:
        return
    parent, older = step_directory.parent, []
    if step_directory.name.isdecimal():
        names = [path.name for path in parent.iterdir() if path.name.isdecimal()]
        older = [int(name) for name in names if int(name) < int(step_directory.name)]
    step, _ = newest_whole(parent, older)
    remedy = "copy it again from where it is whole"
    if step is not None:
        remedy = f"use {parent / str(step)}, the newest before it that is whole, or {remedy}"
    raise UserError(f"The checkpoint {step_directory} is damaged ({reason}); {remedy}.")


def _files(directory: epath.Path) -> Iterator[epath.Path]:
    """All files below a directory; a path of epath has no such function of its own."""
    for path in sorted(directory.iterdir()):
        if path.is_dir():
            yield from _files(path)
        else:
            yield path


def _is_remote(path: epath.Path) -> bool:
    """Whether a file is in a store that checks its bytes itself, and would have to be fetched."""
    return "://" in os.fspath(path)


def _digest(path: epath.Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _unreadable(directory: epath.Path) -> str | None:
    """What cannot be read of a checkpoint that has no list of its files."""
    parsed: dict[str, Any] = {}
    for name in (f"{STATE}/_METADATA", f"{RECORD}/metadata"):
        path = directory / name
        if not path.exists():
            return f"{name} is missing"
        try:
            parsed[name] = json.loads(path.read_text())
        except ValueError:
            return f"{name} cannot be read"
    try:
        arrays = [
            ".".join(str(key["key"]) for key in leaf["key_metadata"])
            for leaf in parsed[f"{STATE}/_METADATA"]["tree_metadata"].values()
            if not leaf["value_metadata"].get("skip_deserialize")
        ]
    except (KeyError, TypeError, AttributeError):
        return f"{STATE}/_METADATA is not what was written"
    return next((reason for name in arrays if (reason := _unreadable_array(directory, name))), None)


def _unreadable_array(directory: epath.Path, name: str) -> str | None:
    import tensorstore

    base = os.fspath(directory / STATE)
    store = {
        "driver": "ocdbt",
        "base": base if _is_remote(directory) else f"file://{base}",
        "path": f"{name}/",
    }
    try:
        tensorstore.open({"driver": "zarr", "kvstore": store}, read=True).result().read().result()
    except (ValueError, OSError):
        return f"the array {name} in {STATE} cannot be read"
    return None

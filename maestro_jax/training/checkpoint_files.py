"""Checks that the files of a checkpoint are those that were written.

A full disk, an interrupted copy or a crash leaves checkpoints whose files are missing, truncated or
full of zeros. Orbax notices some of that while it reads, and some not at all. So each checkpoint
has a list of its files, ``files.json``, which is verified before anything is read. Checkpoints of
earlier versions have no such list; they are read once more instead.

The list first has sizes, which are known when the checkpoint is written. Digests are added later,
because they need another pass over all files, for which a preempted machine may not have the time.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from typing import Any

from etils import epath

from maestro_jax.errors import UserError
from maestro_jax.files import files_below, is_remote

FILES = "files.json"
"""File in the directory of a step: from the name of each file to its size and digest."""

STATE, RECORD = "state", "data"
"""Items of a checkpoint: the training state, and a JSON record."""

_CHUNK = 1 << 24
# Written by Orbax when all is done; nothing reads them.
_MARKERS = ("commit_success.txt",)


def write_list(step_directory: epath.PathLike, *, digests: bool) -> None:
    """Writes the list of files of a checkpoint, or completes it.

    Args:
        step_directory: Directory of the checkpoint, which has another name until it is complete.
        digests: Whether to read all files for their digests; files in object stores, which verify
            bytes themselves, are not read.
    """
    directory = epath.Path(step_directory)
    digests = digests and not is_remote(directory)
    files = {
        str(path.relative_to(directory)): (path.stat().length, _digest(path) if digests else "")
        for item in (STATE, RECORD)
        for path in files_below(directory / item)
        if path.name not in _MARKERS
    }
    # Renamed when complete: half a list would make an intact checkpoint look damaged.
    part = directory / f"{FILES}.part"
    part.write_text(json.dumps(files, indent=1) + "\n")
    part.replace(directory / FILES)


def damage(step_directory: epath.PathLike) -> str | None:
    """Returns what is wrong with a checkpoint.

    Args:
        step_directory: Directory of the checkpoint.

    Returns:
        A description of the first file that is not as it was written; None if all are.
    """
    try:
        return _damage(epath.Path(step_directory))
    except OSError as error:
        # A bad sector or a stale network handle: it cannot be read, so it counts as damaged.
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
    # All sizes first, because they take no time.
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
    """Finds the newest undamaged checkpoint.

    Args:
        directory: Directory of the checkpoints, each named by its step.
        steps: Steps to choose from.

    Returns:
        Its step, None if all are damaged; and what is wrong with each newer one.
    """
    damaged: dict[int, str] = {}
    for step in sorted(steps, reverse=True):
        reason = damage(epath.Path(directory) / str(step))
        if reason is None:
            return step, damaged
        damaged[step] = reason
    return None, damaged


def check_whole(step_directory: epath.Path) -> None:
    """Checks a checkpoint that was asked for by its step, and never falls back to another one.

    Raises:
        UserError: It is damaged; the message names the newest undamaged one before it.
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


def _digest(path: epath.Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _unreadable(directory: epath.Path) -> str | None:
    """Returns what cannot be read of a checkpoint without a list of its files."""
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
        "base": base if is_remote(directory) else f"file://{base}",
        "path": f"{name}/",
    }
    try:
        tensorstore.open({"driver": "zarr", "kvstore": store}, read=True).result().read().result()
    except (ValueError, OSError):
        return f"the array {name} in {STATE} cannot be read"
    return None

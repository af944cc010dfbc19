"""Checks that a checkpoint is the one that was written, file by file and array by array.

A full disk, an interrupted copy, a crash or a bad sector leaves checkpoints whose files are
missing, truncated, full of zeros or different in a bit. Orbax notices some of that while it reads,
and some not at all. So each checkpoint has two lists, which are written before it is complete:

- ``files.json``: the size of each file, and the digest of each small one. Digests of large files
  are added afterwards, because they need another pass over the state, for which a preempted machine
  may not have the time.
- ``arrays.json``: the checksum of each array, which was computed where the array was before it was
  written (`array_checksums`). It tells for files without a digest, also in buckets, where the files
  of a state are not read twice.

Checkpoints of earlier versions have no lists; they are read once more instead.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Hashable, Iterable, Mapping
from typing import Any

import numpy as np
from etils import epath

from maestro_jax.errors import RestartableError, UserError
from maestro_jax.files import files_below, is_remote, storage_failure
from maestro_jax.training import array_checksums

FILES = "files.json"
"""File in the directory of a step: from the name of each file to its size and digest."""

ARRAYS = "arrays.json"
"""File in the directory of a step: from the name of each array to its type and checksum."""

_PART = ".part"
"""Ending of a list that is being written."""

STATE, RECORD = "state", "data"
"""Items of a checkpoint: the training state, and a JSON record."""

_CHUNK = 1 << 24
# Files up to this size are digested at once: the record, metadata, indices of arrays.
_SMALL = 1 << 20
# Written by Orbax when all is done; nothing reads them.
_MARKERS = ("commit_success.txt",)
# What TensorStore, whose errors are ValueErrors, says of a storage that does not answer.
_OUTAGE = re.compile(
    r"UNAVAILABLE|DEADLINE_EXCEEDED|RESOURCE_EXHAUSTED|UNAUTHENTICATED|PERMISSION_DENIED|ABORTED"
)
_STORAGE = re.compile(_OUTAGE.pattern + r"|os_error_code|OS error|HTTP response code|[Ww]riting ")

# What was found of a checkpoint, with the state of its files then: commands ask several times.
_found: dict[str, tuple[Any, str | None]] = {}


def write_list(step_directory: epath.PathLike, *, arrays: Mapping[str, Any] | None = None) -> None:
    """Writes the lists of files and arrays of a checkpoint, with the digests of small files.

    Args:
        step_directory: Directory of the checkpoint, which has another name until it is complete.
        arrays: Type and checksum of each array by name, as pairs; None if they are listed already.
    """
    directory = epath.Path(step_directory)
    if arrays is not None:
        text = json.dumps({name: [kind, int(sum_)] for name, (kind, sum_) in arrays.items()})
        _write(directory / ARRAYS, text.replace("], ", "],\n ") + "\n")
    paths = [
        path
        for item in (STATE, RECORD)
        for path in files_below(directory / item)
        if path.name not in _MARKERS
    ]
    if (directory / ARRAYS).exists():
        paths.append(directory / ARRAYS)
    files: dict[str, tuple[int, str]] = {}
    for path in paths:
        size = path.stat().length
        files[str(path.relative_to(directory))] = (size, _digest(path) if size <= _SMALL else "")
    _write_files(directory, files)


def add_digests(step_directory: epath.PathLike) -> None:
    """Adds the digests of large files to the list of a checkpoint, unless it is in a bucket.

    A file that is no longer as it was listed stays without a digest, and listed as it was: what
    happened to it since the checkpoint was complete is damage.

    Raises:
        OSError: The checkpoint has been removed.
    """
    directory = epath.Path(step_directory)
    if is_remote(directory):
        return
    files: dict[str, tuple[int, str]] = json.loads((directory / FILES).read_text())
    for name, (size, digest) in files.items():
        path = directory / name
        if not digest and path.exists() and path.stat().length == size:
            files[name] = (size, _digest(path))
    _write_files(directory, files)


def _write_files(directory: epath.Path, files: Mapping[str, tuple[int, str]]) -> None:
    _write(directory / FILES, json.dumps(files, indent=1) + "\n")


def listed_arrays(step_directory: epath.PathLike) -> dict[str, tuple[str, int]]:
    """Reads the type and the checksum of each array; empty for a checkpoint without such a list."""
    path = epath.Path(step_directory) / ARRAYS
    if not path.exists():
        return {}
    return {
        name: (str(kind), int(sum_)) for name, (kind, sum_) in json.loads(path.read_text()).items()
    }


def damage(step_directory: epath.PathLike, *, thorough: bool = False) -> str | None:
    """Returns what is wrong with a checkpoint.

    Args:
        step_directory: Directory of the checkpoint.
        thorough: Whether to read arrays also where that takes long: in an object store.

    Returns:
        A description of the first file or array that is not as it was written; None if all are.

    Raises:
        RestartableError: The storage does not answer, so that nothing is known.
    """
    directory = epath.Path(step_directory)
    try:
        state = state_of_files(directory)
        known = None if thorough else _found.get(os.fspath(directory))
        if known is None or known[0] != state:
            known = (state, _damage(directory, thorough))
            _found[os.fspath(directory)] = known
        return known[1]
    except OSError as error:
        if is_remote(directory):
            raise _outage(directory, str(error)) from error
        # A bad sector or a stale network handle: it cannot be read, so it counts as damaged.
        return f"it cannot be read: {error}"
    except Exception as error:
        reason = storage_failure(error)
        if reason is None:
            raise
        raise _outage(directory, reason) from error


def _outage(directory: epath.Path, reason: str) -> RestartableError:
    return RestartableError(
        f"the checkpoint {directory} cannot be read now: {one_line(reason)}; the same command "
        "continues when the storage answers again."
    )


def state_of_files(directory: epath.Path) -> Hashable:
    """Returns something that changes with the files of a checkpoint.

    For objects, which are not edited, it is their list.
    """
    if is_remote(directory):
        listed = directory / FILES
        return listed.read_text() if listed.exists() else None
    return tuple(
        (str(path), status.st_size, status.st_mtime_ns)
        for path in (files_below(directory) if directory.is_dir() else ())
        # A list that is being written, with digests, is renamed at any moment.
        if not path.name.endswith(_PART)
        for status in (os.stat(path),)
    )


def _damage(directory: epath.Path, thorough: bool) -> str | None:
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
    if thorough or (not is_remote(directory) and not all(sum_ for _, sum_ in described.values())):
        return _damaged_array(directory)
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
        UserError: It is damaged; the message names the newest one that is whole.
    """
    reason = damage(step_directory)
    if reason is not None:
        raise refusal(step_directory, reason)


class DamagedCheckpointError(UserError):
    """A checkpoint that is damaged.

    Args:
        message: Names the checkpoint, and the remedy.
        reason: What is wrong with it.
    """

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


def refusal(step_directory: epath.Path, reason: str) -> DamagedCheckpointError:
    """Returns the error for a checkpoint that is damaged, with the newest one that is whole."""
    parent = step_directory.parent
    names = [path.name for path in parent.iterdir() if path.name.isdecimal()]
    step, _ = newest_whole(parent, [int(name) for name in names if name != step_directory.name])
    remedy = "copy it again from where it is whole"
    if step is not None:
        remedy = f"use {parent / str(step)}, the newest that is whole, or {remedy}"
    message = f"The checkpoint {step_directory} is damaged ({reason}); {remedy}."
    return DamagedCheckpointError(message, reason)


def describe_failure(error: BaseException) -> str | None:
    """Describes what a disk or an object store answered, in one line.

    Args:
        error: What Orbax, TensorStore, a client of object stores or Python has raised.

    Returns:
        The description; None for an error that is not of the storage.
    """
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}{f': {error.filename}' if error.filename else ''}"
    reason = storage_failure(error)
    if reason is not None:
        return one_line(reason)
    if isinstance(error, OSError):  # TimeoutError included.
        return one_line(str(error) or type(error).__name__)
    text = str(error)
    if isinstance(error, ValueError | RuntimeError | KeyError) and _STORAGE.search(text):
        code = re.search(r"os_error_code='(\d+)'", text)
        return os.strerror(int(code[1])) if code else one_line(text)
    return None


def one_line(text: str) -> str:
    """Shortens a message to a line."""
    text = " ".join(text.split())
    return text if len(text) <= 200 else f"{text[:197]}..."


def _write(path: epath.Path, text: str) -> None:
    # Renamed when complete: half a list would make an intact checkpoint look damaged. In contrast
    # to `files.write_atomically`, the directory is not made anew if it has been removed.
    part = path.parent / f"{path.name}{_PART}"
    part.write_text(text)
    part.replace(path)


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
            "/".join(str(key["key"]) for key in leaf["key_metadata"])
            for leaf in parsed[f"{STATE}/_METADATA"]["tree_metadata"].values()
            if not leaf["value_metadata"].get("skip_deserialize")
        ]
    except (KeyError, TypeError, AttributeError):
        return f"{STATE}/_METADATA is not what was written"
    return next(
        (
            f"the array {name} in {STATE} cannot be read"
            for name in arrays
            if _array(directory, name) is None
        ),
        None,
    )


def _damaged_array(directory: epath.Path) -> str | None:
    """Reads all arrays that are listed, and describes the first that is not as it was."""
    for name, (_, expected) in listed_arrays(directory).items():
        array = _array(directory, name)
        if array is None:
            return f"the array {name} in {STATE} cannot be read"
        if array_checksums.host_checksum(array) != expected:
            return f"the array {name} in {STATE} has other values than were written"
    return None


def _array(directory: epath.Path, name: str) -> np.ndarray | None:
    """Reads an array; None if its bytes make no sense."""
    import tensorstore

    base = os.fspath(directory / STATE)
    store = {
        "driver": "ocdbt",
        "base": base if is_remote(directory) else f"file://{base}",
        "path": f"{name.replace('/', '.')}/",
    }
    try:
        spec = {"driver": "zarr", "kvstore": store}
        return tensorstore.open(spec, read=True).result().read().result()
    except (ValueError, OSError) as error:
        if is_remote(directory) and _OUTAGE.search(str(error)):
            raise _outage(directory, str(error)) from error
        return None

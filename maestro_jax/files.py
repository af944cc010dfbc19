"""Paths that users give, local or `gs://`: reading, whole writing, local copies.

Every path that a user names goes through `as_path`. `pathlib.Path("gs://bucket/run")` is the local
directory ``gs:/bucket/run``, in which a command would find nothing, or write.

Three libraries speak to Google Cloud Storage: TensorFlow for single files (through `epath`),
TensorStore for the arrays of checkpoints, and google-cloud-storage, with which Orbax asks what kind
of bucket it is.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import os
import pathlib
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator

from etils import epath

from maestro_jax.errors import UserError

_CHUNK = 1 << 24
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")


def as_path(path: epath.PathLike) -> epath.Path:
    """Returns a path that a user gave, local (with ``~`` expanded) or in a bucket.

    Args:
        path: `/a/b`, `~/a`, `a/b` or `gs://bucket/a`.

    Raises:
        UserError: An object store that is not supported, an address that lost a slash, or a client
            that is not installed.
    """
    text = os.fspath(path)
    scheme = _SCHEME.match(text)
    if scheme is None:
        return epath.Path(text).expanduser()
    if not text.startswith("gs://"):
        if text.startswith("gs:/"):
            raise UserError(f"{text} has one slash too few: write gs://{text[4:].lstrip('/')}")
        raise UserError(
            f"{text}: of object stores only gs:// is supported; mount the bucket as a directory, "
            "or copy it."
        )
    if not text.removeprefix("gs://").split("/")[0]:
        raise UserError(f"{text} names no bucket: write gs://BUCKET/PATH")
    _check_clients(text)
    return epath.Path(text)


def absolute_path(path: epath.PathLike) -> epath.Path:
    """Returns `as_path` of a path, from the root if it is local.

    The methods `absolute` and `resolve` of `epath` make ``gs://bucket/run`` a local path below the
    working directory.
    """
    found = as_path(path)
    return found if is_remote(found) else epath.Path(os.path.abspath(found))


def is_remote(path: epath.PathLike) -> bool:
    """Returns whether a path is in an object store, which cannot append and verifies bytes."""
    return "://" in os.fspath(path)


def write_atomically(path: epath.PathLike, content: bytes) -> None:
    """Writes a file so that a reader sees all of it or none of it."""
    if is_remote(path):
        # An object appears when its upload is complete.
        epath.Path(path).write_bytes(content)
        return
    local = pathlib.Path(path)
    local.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=local.parent, prefix=f".{local.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(name, 0o644)
        os.replace(name, local)
    except BaseException:
        pathlib.Path(name).unlink(missing_ok=True)
        raise


def read_bytes(path: epath.PathLike, what: str = "file") -> bytes:
    """Reads a whole file.

    Args:
        path: The file, as `as_path` takes it.
        what: What it is, for messages.

    Raises:
        UserError: It does not exist, or cannot be read.
    """
    with naming_failures(path, what):
        return as_path(path).read_bytes()


@contextlib.contextmanager
def naming_failures(path: epath.PathLike, what: str = "file") -> Iterator[None]:
    """Turns what reading or writing a path raises, local or in a bucket, into one line.

    Args:
        path: The path, for messages.
        what: What it is, for messages.

    Raises:
        UserError: Reading or writing failed.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise UserError(f"there is no {what} {os.fspath(path)}; check the path") from error
    except OSError as error:
        reason: str | None = error.strerror or str(error)
        raise UserError(f"the {what} {os.fspath(path)} cannot be used: {reason}") from error
    except Exception as error:
        reason = storage_failure(error)
        if reason is None:
            raise
        raise UserError(f"the {what} {os.fspath(path)} cannot be used: {reason}") from error


def storage_failure(error: BaseException) -> str | None:
    """Describes an error of a client of an object store in one line.

    Args:
        error: Any exception.

    Returns:
        What happened and what to do; None for an exception of another kind.
    """
    text = " ".join(str(error).split())
    module = type(error).__module__.split(".")
    if module[:2] == ["google", "auth"]:
        return (
            f"no credentials for gs:// ({text}); log in with `gcloud auth application-default "
            "login`, or set GOOGLE_APPLICATION_CREDENTIALS"
        )
    if module[:2] in (["google", "api_core"], ["google", "cloud"]):
        return f"Google Cloud Storage answered: {text}"
    # TensorFlow's errors, which are no OSError. It is not imported for this.
    tensorflow = sys.modules.get("tensorflow")
    if tensorflow is None or not isinstance(error, tensorflow.errors.OpError):
        return None
    if "gs://" not in text and "googleapis" not in text:
        return None
    if isinstance(
        error, (tensorflow.errors.UnauthenticatedError, tensorflow.errors.PermissionDeniedError)
    ):
        return (
            f"access was denied ({text}); log in with `gcloud auth application-default login`, "
            "and ask for the rights to the bucket"
        )
    return f"Google Cloud Storage failed: {text}"


def local_copy(path: epath.PathLike, what: str = "file") -> pathlib.Path:
    """Returns a file for libraries that read local files only.

    A file in a bucket is copied once to `maestro_jax/files` below `$XDG_CACHE_HOME` or `~/.cache`.
    Its copy is used as long as its size and time in the bucket are the same.

    Args:
        path: The file, as `as_path` takes it.
        what: What it is, for messages.

    Returns:
        The file itself if it is local, else its copy, with the same name.

    Raises:
        UserError: It does not exist, or cannot be read.
    """
    source = as_path(path)
    if not is_remote(source):
        return pathlib.Path(source)
    with naming_failures(path, what):
        stat = source.stat()
        if stat.is_directory:
            raise UserError(f"the {what} {source} is a directory; name a file")
        key = f"{os.fspath(source)} {stat.length} {stat.mtime}"
        directory = cache_dir() / "files" / hashlib.sha256(key.encode()).hexdigest()[:16]
        copy = directory / source.name
        if copy.is_file() and copy.stat().st_size == stat.length:
            return copy
        directory.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=directory)
        try:
            with os.fdopen(handle, "wb") as target, source.open("rb") as file:
                shutil.copyfileobj(file, target, _CHUNK)
            os.replace(name, copy)
        except BaseException:
            pathlib.Path(name).unlink(missing_ok=True)
            raise
    return copy


def cache_dir() -> pathlib.Path:
    """Returns the directory of what can be made again, below `$XDG_CACHE_HOME` or `~/.cache`."""
    base = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return base / "maestro_jax"


def models_below(directory: epath.PathLike) -> str:
    """Names the model directories right below a directory, to end a message; empty without any."""
    path = epath.Path(directory).expanduser()
    children = sorted(path.iterdir()) if path.is_dir() else []
    names = [child.name for child in children if (child / "checkpoints").is_dir()]
    return f"; below it are {', '.join(names[:5])}" if names else ""


@functools.cache
def _check_clients(path: str) -> None:
    """Checks that the libraries that speak to Google Cloud Storage are installed.

    Raises:
        UserError: One is not.
    """
    for module in ("tensorflow", "google.cloud.storage"):
        try:
            found = importlib.util.find_spec(module) is not None
        except ModuleNotFoundError:  # A package above it.
            found = False
        if not found:
            raise UserError(
                f"{path} needs the clients of Google Cloud Storage ({module} is not installed): "
                "pip install 'maestro_jax[gcs]'"
            )

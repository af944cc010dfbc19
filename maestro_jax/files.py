"""Paths that users give, local or `gs://`: reading, whole writing, local copies.

Every path that a user names goes through `as_path`. `pathlib.Path("gs://bucket/run")` is the local
directory ``gs:/bucket/run``, in which a command would find nothing, or write.

Three libraries speak to Google Cloud Storage: TensorFlow for single files (through `epath`),
TensorStore for the arrays of checkpoints, and google-cloud-storage, with which Orbax asks what kind
of bucket it is.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import glob
import hashlib
import importlib
import importlib.util
import os
import pathlib
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator

from etils import epath

from maestro_jax.errors import RestartableError, UserError
from maestro_jax.stderr import held_back_stderr

_CHUNK = 1 << 24
# Errors of disks that may pass, and those that stay until somebody does something; with a remedy.
_PASSING = {
    errno.ENOSPC: "free some space, and run the same command again",
    errno.EDQUOT: "free some space, and run the same command again",
    errno.EIO: "run the same command again when the disk answers",
    errno.ESTALE: "run the same command again when the network disk is mounted anew",
    errno.ETIMEDOUT: "run the same command again when the network disk answers",
    errno.ENOTCONN: "run the same command again when the network disk is mounted anew",
}
_LASTING = {
    errno.EROFS: "mount it for writing, or choose another directory",
    errno.EACCES: "ask for the right, or choose another directory",
    errno.EPERM: "ask for the right, or choose another directory",
    errno.EFBIG: "raise the limit to the size of files (ulimit -f), or choose another directory",
}
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
    _load_clients(text)
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
    """Writes a file so that a reader sees all of it or none of it, also after a power failure.

    What a process that was killed has left of an earlier writing is removed.
    """
    if is_remote(path):
        # An object appears when its upload is complete.
        epath.Path(path).write_bytes(content)
        return
    local = pathlib.Path(path)
    local.parent.mkdir(parents=True, exist_ok=True)
    for left in local.parent.glob(f".{glob.escape(local.name)}.*.part"):
        _remove_unless_locked(left)
    handle, name = _locked_part(local)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            os.fchmod(file.fileno(), 0o644)
            os.replace(name, local)
    except BaseException as error:
        pathlib.Path(name).unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = os.fspath(local)
        raise


def _locked_part(path: pathlib.Path) -> tuple[int, str]:
    """Creates a file beside another one, and tells other processes that it is being written.

    Returns:
        An open descriptor, which holds the lock until its process ends, and the file's name.
    """
    while True:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        # Another process that writes the same file may have removed it before it was locked.
        if os.path.exists(name):
            return handle, name
        os.close(handle)


def _remove_unless_locked(path: pathlib.Path) -> None:
    """Removes a file, unless a process is writing it or the file system knows no locks."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()


def write_if_changed(path: epath.PathLike, content: bytes) -> bool:
    """Writes a file as `write_atomically` does, unless it has that content; returns whether."""
    target = epath.Path(path)
    if target.exists() and target.read_bytes() == content:
        return False
    write_atomically(target, content)
    return True


@contextlib.contextmanager
def written_locally(path: epath.PathLike) -> Iterator[pathlib.Path]:
    """Lets a library that writes local files only write a file, which appears when it is complete.

    Args:
        path: The file to write, as `as_path` takes it.

    Yields:
        Another file to write, removed afterwards: beside a local one, else in a directory for
        temporary files, from where it is copied.
    """
    target = as_path(path)
    if not is_remote(target):
        local = pathlib.Path(target)
        part = local.with_name(f".{local.name}.part")
        try:
            yield part
            part.replace(local)
        finally:
            part.unlink(missing_ok=True)
        return
    with tempfile.TemporaryDirectory() as directory:
        part = pathlib.Path(directory) / target.name
        yield part
        with part.open("rb") as source, target.open("wb") as copy:
            shutil.copyfileobj(source, copy, _CHUNK)


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


def check_output(path: epath.PathLike, option: str = "--output") -> epath.Path:
    """Checks, before a long computation, that its output can be written where a user wants it.

    Args:
        path: The file to write.
        option: The option that names it, for messages.

    Returns:
        The path.

    Raises:
        UserError: It is a directory, or its directory does not exist.
    """
    output = as_path(path)
    if output.is_dir():
        raise UserError(f"{option} {os.fspath(path)} is a directory; name a file.")
    # Buckets have no directories that must be there before.
    if not is_remote(output) and not output.parent.is_dir():
        parent = absolute_path(output).parent
        raise UserError(f"{option} {os.fspath(path)}: make the directory {parent}.")
    return output


@contextlib.contextmanager
def naming_failures(path: epath.PathLike, what: str = "file") -> Iterator[None]:
    """Turns what reading or writing a path raises, local or in a bucket, into one line.

    Args:
        path: The path, for messages.
        what: What it is, for messages.

    Raises:
        UserError: Reading or writing failed.
        RestartableError: It failed, and may succeed later.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise UserError(f"there is no {what} {os.fspath(path)}; check the path") from error
    except Exception as error:
        reason = storage_failure(error)
        if reason is None and isinstance(error, OSError):
            reason = error.strerror or str(error)
        if reason is None:
            raise
        kind = RestartableError if is_passing(error) else UserError
        raise kind(f"the {what} {os.fspath(path)} cannot be used: {reason}") from error


def storage_error(error: BaseException) -> UserError | RestartableError | None:
    """Turns what a disk or a client of an object store raises into an error of one line.

    Args:
        error: Any exception.

    Returns:
        The error, which names the file where the exception does; None for an exception of another
        kind.
    """
    reason = storage_failure(error)
    if reason is None:
        return None
    if isinstance(error, OSError) and error.filename is not None:
        reason = f"{os.fspath(error.filename)}: {reason}"
    return RestartableError(reason) if is_passing(error) else UserError(reason)


def is_passing(error: BaseException) -> bool:
    """Returns whether a failure of storage may be over when the same is tried again later."""
    if (number := _errno(error)) is not None:
        return number in _PASSING
    module = type(error).__module__.split(".")
    if module[:3] == ["google", "auth", "exceptions"]:
        return type(error).__name__ == "TransportError"
    if module[:2] == ["google", "api_core"]:
        return int(getattr(error, "code", None) or 0) in (408, 429) or (
            int(getattr(error, "code", None) or 0) >= 500
        )
    tensorflow = sys.modules.get("tensorflow")
    return tensorflow is not None and isinstance(
        error,
        (
            tensorflow.errors.UnavailableError,
            tensorflow.errors.AbortedError,
            tensorflow.errors.DeadlineExceededError,
            tensorflow.errors.ResourceExhaustedError,
            tensorflow.errors.UnknownError,
        ),
    )


def _errno(error: BaseException) -> int | None:
    """Returns the number of an error of a disk; None of another one."""
    if isinstance(error, OSError):
        return error.errno
    # Libraries in C++ have it in words: ArrayRecord raises a RuntimeError.
    words = str(error) if isinstance(error, RuntimeError) else ""
    full = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
    return next((number for number in full if os.strerror(number) in words), None)


def storage_failure(error: BaseException) -> str | None:
    """Describes an error of a disk, or of a client of an object store, in one line.

    Args:
        error: Any exception.

    Returns:
        What happened and what to do; None for an exception of another kind.
    """
    text = " ".join(str(error).split())
    if isinstance(error, OSError) and "Project was not passed" in text:
        return "the project of gs:// is not known: set GOOGLE_CLOUD_PROJECT"
    number = _errno(error)
    if number in (*_PASSING, *_LASTING):
        remedy = (_PASSING | _LASTING)[number]
        words = error.strerror if isinstance(error, OSError) else None
        return f"{words or text}{remedy and f'; {remedy}'}"
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


def files_below(directory: epath.Path) -> Iterator[epath.Path]:
    """Yields all files below a directory, in the order of their names."""
    for path in sorted(directory.iterdir()):
        if path.is_dir():
            yield from files_below(path)
        else:
            yield path


def copy_tree(source: epath.Path, target: epath.Path) -> None:
    """Copies all files below a directory, local or in a bucket, into another one."""
    for path in files_below(source):
        copy = target / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        path.copy(copy, overwrite=True)


def move_tree(source: epath.Path, target: epath.Path) -> None:
    """Moves a directory, local or within a bucket, where each object is copied by the server."""
    if not is_remote(source):
        source.rename(target)
        return
    for path in list(files_below(source)):
        path.replace(target / path.relative_to(source))
    source.rmtree(missing_ok=True)


def local_directory(path: epath.PathLike, what: str) -> pathlib.Path:
    """Returns a directory that libraries use as one on a disk, with random access to its files.

    Args:
        path: The directory.
        what: What it is, for messages.

    Raises:
        UserError: It is in a bucket.
    """
    # As a Path, gs://bucket would silently become the directory gs:/bucket.
    if _SCHEME.match(os.fspath(path)):
        raise UserError(
            f"the {what} {os.fspath(path)} is not on a disk: mount the bucket (gcsfuse), or copy "
            "it."
        )
    return pathlib.Path(path).expanduser()


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


def modification_time(path: epath.PathLike) -> int:
    """Returns when a file was written: nanoseconds on a disk, seconds in a bucket."""
    if is_remote(path):
        return as_path(path).stat().mtime
    return pathlib.Path(path).stat().st_mtime_ns


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


def prepare_clients() -> None:
    """Sets what TensorFlow's client reads when TensorFlow is imported; a variable that is set wins.

    The client keeps sizes of files for five seconds. Where another process writes a file again in
    that time, only as many bytes of it would be read as it had before.
    """
    os.environ.setdefault("GCS_STAT_CACHE_MAX_AGE", "0")


def _load_clients(path: str) -> None:
    """Imports what speaks to Google Cloud Storage, before others do so with a page of messages.

    Raises:
        UserError: A client is not installed.
    """
    for module in ("tensorflow", "google.cloud.storage"):
        if not _is_installed(module):
            raise UserError(
                f"{path} needs the clients of Google Cloud Storage ({module} is not installed): "
                "pip install 'maestro_jax[gcs]'"
            )
    if "tensorflow" not in sys.modules:
        prepare_clients()
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
        with held_back_stderr():
            importlib.import_module("tensorflow")


@functools.cache
def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # A package above it.
        return False

"""Paths that users give: what is refused, and what real clients make of `gs://`."""

from __future__ import annotations

import errno
import fcntl
import importlib.util
import os
import pathlib
import subprocess
import sys
import tempfile
import textwrap

import pytest

from maestro_jax import files
from maestro_jax.errors import RestartableError, UserError
from maestro_jax.files import (
    absolute_path,
    as_path,
    is_remote,
    local_copy,
    read_bytes,
    write_atomically,
)


def test_local_paths(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert os.fspath(as_path("~/a/b")) == f"{tmp_path}/a/b"
    assert os.fspath(as_path("a/b")) == "a/b"
    assert os.fspath(as_path(pathlib.Path("/a"))) == "/a"
    assert os.fspath(absolute_path("a/../b")) == os.path.abspath("b")
    assert not is_remote("/gsm/a") and not is_remote("a:b")
    write_atomically(as_path("~/new/file"), b"content")
    assert read_bytes("~/new/file") == b"content"
    assert local_copy("~/new/file") == tmp_path / "new" / "file"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["file"]


def test_what_a_killed_process_left_is_removed(tmp_path):
    """But not what another one is writing."""
    path = tmp_path / "file[1]"
    left, other, current = (
        tmp_path / f".{name}.part" for name in ("file[1].a", "file.a", "file[1].b")
    )
    for part in (left, other, current):
        part.write_bytes(b"half")
    with current.open("rb") as writing:
        fcntl.flock(writing, fcntl.LOCK_EX)
        write_atomically(path, b"whole")
    assert {each.name for each in tmp_path.iterdir()} == {"file[1]", other.name, current.name}
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new" and not current.exists()


def test_a_file_that_another_process_took_for_left_is_written_again(tmp_path, monkeypatch):
    """A writer can remove what another one has created, but not locked yet."""
    create, created = tempfile.mkstemp, []

    def create_and_lose(**arguments: object) -> tuple[int, str]:
        handle, name = create(**arguments)
        if not created:
            os.unlink(name)
        created.append(name)
        return handle, name

    monkeypatch.setattr(tempfile, "mkstemp", create_and_lose)
    write_atomically(tmp_path / "file", b"content")
    assert (tmp_path / "file").read_bytes() == b"content" and len(created) == 2
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_a_failed_writing_names_the_file_and_leaves_nothing(tmp_path, monkeypatch):
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    write_atomically(tmp_path / "file", b"before")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        write_atomically(tmp_path / "file", b"after")
    assert caught.value.filename == f"{tmp_path}/file"
    assert [each.name for each in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_bytes() == b"before"


def test_a_path_in_a_bucket_stays_one():
    path = as_path("gs://bucket/runs/a")
    assert is_remote(path) and is_remote(path / "checkpoints")
    assert os.fspath(path.parent / "b") == "gs://bucket/runs/b"
    assert os.fspath(as_path(path)) == "gs://bucket/runs/a"
    assert os.fspath(absolute_path(path)) == "gs://bucket/runs/a"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("s3://bucket/a", "s3://bucket/a: of object stores only gs:// is supported"),
        (pathlib.Path("gs://bucket/a"), "gs:/bucket/a has one slash too few: write gs://bucket/a"),
        ("gs://", "names no bucket"),
        ("gs:///a", "names no bucket"),
    ],
)
def test_refused_addresses(path, message):
    with pytest.raises(UserError, match=message):
        as_path(path)


def test_a_client_that_is_not_installed(monkeypatch):
    found = importlib.util.find_spec

    def find_spec(name: str):
        if name == "google.cloud.storage":
            raise ModuleNotFoundError("No module named 'google'")
        return found(name)

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    files._is_installed.cache_clear()
    with pytest.raises(UserError, match=r"pip install 'maestro_jax\[gcs\]'"):
        as_path("gs://bucket/a")
    files._is_installed.cache_clear()


def test_reading_what_is_not_there(tmp_path):
    with pytest.raises(UserError, match=f"there is no vocabulary {tmp_path}/none; check the path"):
        read_bytes(tmp_path / "none", "vocabulary")
    with pytest.raises(UserError, match="the text .* cannot be used: Is a directory"):
        read_bytes(tmp_path, "text")


def test_failures_of_other_code_are_not_called_failures_of_storage():
    assert files.storage_failure(ValueError("gs://bucket")) is None
    assert files.storage_error(FileNotFoundError(2, "No such file or directory", "/a")) is None


def test_files_in_a_bucket(emulator, bucket, tmp_path):
    """Writes, reads, lists and copies with TensorFlow's client, in a process of its own."""
    code = f"""
    import urllib.request
    from maestro_jax.errors import UserError
    from maestro_jax.files import as_path, local_copy, models_below, read_bytes, write_atomically

    def refused(call, *arguments):
        try:
            call(*arguments)
        except UserError as error:
            return print("refused:", error)
        raise AssertionError("it was not refused")

    root = as_path("gs://{bucket}/runs")
    content = bytes(range(256)) * 5000
    write_atomically(root / "a" / "checkpoints" / "x", b"1")
    write_atomically(root / "file.bin", b"before")
    write_atomically(root / "file.bin", content)
    assert read_bytes(str(root / "file.bin")) == content
    assert sorted(path.name for path in root.iterdir()) == ["a", "file.bin"]
    assert models_below(root) == "; below it are a"
    copy = local_copy(root / "file.bin")
    assert copy.name == "file.bin" and copy.read_bytes() == content
    before = copy.stat().st_mtime_ns
    assert local_copy(root / "file.bin").stat().st_mtime_ns == before
    write_atomically(root / "file.bin", b"longer ago")
    assert local_copy(root / "file.bin").read_bytes() == b"longer ago"
    # Written again by another process, a moment after it was looked at.
    shared = root / "a" / "shared.json"
    write_atomically(shared, b"short")
    assert shared.stat().length == 5
    url = "{emulator.url}/upload/storage/v1/b/{bucket}/o?uploadType=media&name=runs/a/shared.json"
    urllib.request.urlopen(urllib.request.Request(url, b"much longer")).close()
    assert read_bytes(shared) == b"much longer"
    (root / "a" / "parts" / "deep").mkdir(parents=True)
    write_atomically(root / "a" / "parts" / "deep" / "x", b"1")
    (root / "a" / "parts").rmtree()
    (root / "a").rmtree()
    assert not (root / "a").exists()
    write_atomically(root / "a" / "checkpoints" / "x", b"1")
    refused(local_copy, root / "none")
    refused(local_copy, root / "a")
    refused(read_bytes, "gs://{bucket}x/none", "text")
    """
    environment = os.environ | emulator.environment | {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        f"refused: there is no file gs://{bucket}/runs/none; check the path",
        f"refused: the file gs://{bucket}/runs/a is a directory; name a file",
        f"refused: there is no text gs://{bucket}x/none; check the path",
    ]
    # What the server has, asked without any of the clients.
    assert emulator.read(bucket, "runs/file.bin") == b"longer ago"
    assert set(emulator.objects(bucket)) == {"runs/a/checkpoints/x", "runs/file.bin"}
    copies = sorted((tmp_path / "cache" / "maestro_jax" / "files").glob("*/*"))
    assert [copy.name for copy in copies] == ["file.bin", "file.bin"]


def test_orbax_has_no_client_of_s3():
    """When this fails, `as_path` need not refuse s3:// for the sake of checkpoints any more."""
    from orbax.checkpoint._src.serialization import tensorstore_utils

    with pytest.raises(ValueError, match="should be absolute"):
        tensorstore_utils.build_kvstore_tspec("s3://bucket/a", "x", use_ocdbt=True)


@pytest.mark.parametrize(
    ("number", "kind", "words"),
    [
        (errno.ENOSPC, RestartableError, "/a/b: No space left on device; free some space"),
        (errno.EIO, RestartableError, "/a/b: Input/output error; run the same command again"),
        (errno.EROFS, UserError, "/a/b: Read-only file system; mount it for writing"),
        (errno.EACCES, UserError, "/a/b: Permission denied; ask for the right"),
    ],
)
def test_failures_of_disks_name_file_and_remedy(number, kind, words):
    error = files.storage_error(OSError(number, os.strerror(number), "/a/b"))
    assert type(error) is kind and str(error).startswith(words)
    with pytest.raises(kind, match="the table /a/b cannot be used: "):
        with files.naming_failures("/a/b", "table"):
            raise OSError(number, os.strerror(number), "/a/b")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_a_full_disk_that_a_library_in_cpp_meets():
    from array_record.python import array_record_module

    writer = array_record_module.ArrayRecordWriter("/dev/full", "group_size:1")
    with pytest.raises(RuntimeError) as caught:
        writer.write(bytes(1 << 20))
        writer.close()
    error = files.storage_error(caught.value)
    assert type(error) is RestartableError and "free some space" in str(error)
    assert files.storage_error(RuntimeError("of another kind")) is None

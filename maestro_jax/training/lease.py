"""One run per model directory: the lease that a run holds while it trains.

Two runs on one model directory remove each other's checkpoints and mix their metrics. A run
therefore holds the file ``train.lease`` in its model directory, which names its host, process and
user. While it runs it writes the file again every `PERIOD` seconds, its beats. At its end the file
is removed.

A run that was killed leaves its lease behind. On the same host, its process is looked up, and the
lease is taken over at once if there is none. On another host, the lease is watched: if a beat
comes, its run is alive; if none comes for `PATIENCE` seconds, it is taken over. No clocks of two
hosts are compared.

In a bucket, an object is written only if it is still the one that was read (a precondition on its
generation), so of two runs exactly one gets it. A shared directory knows no such condition: the
lease is created by a link, which fails where one exists, and taken over by writing it, waiting
`SETTLE` seconds and reading it again; who is in it then has it. Should two runs still believe that
they hold it, one finds the other's name in it at its next beat, and stops.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import getpass
import json
import logging
import os
import pathlib
import platform
import secrets
import tempfile
import threading
import time
from typing import TYPE_CHECKING, Protocol

import jax
from etils import epath

from maestro_jax.errors import UserError
from maestro_jax.files import absolute_path, is_remote, naming_failures, write_atomically
from maestro_jax.training.callbacks import Callback, StepInfo

if TYPE_CHECKING:
    from maestro_jax.training.trainer import Trainer

log = logging.getLogger(__name__)

LEASE_FILE = "train.lease"
PERIOD = 10.0
"""Seconds between two beats."""
PATIENCE = 45.0
"""Seconds without a beat after which the lease of another host may be taken over."""
SETTLE = 1.0
"""Seconds between taking over a lease in a shared directory and reading who has it."""

# This process, whatever its number: two trainings one after the other are not in each other's way.
_PROCESS_TOKEN = secrets.token_hex(8)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Holder:
    """Who holds a lease.

    Attributes:
        token: Random; tells this holder from all others.
        host: Name of its host.
        pid: Number of its process there.
        process: What else tells its process from others on its host: boot, namespace and start.
        user: Its user.
        since: When it began, in UTC.
        beat: Number of times that the lease was written.
    """

    token: str
    host: str
    pid: int
    process: str
    user: str
    since: str
    beat: int = 0

    @classmethod
    def here(cls) -> Holder:
        """Describes this process."""
        try:
            user = getpass.getuser()
        except (KeyError, OSError):  # A container without a name for its user.
            user = str(os.getuid())
        now = datetime.datetime.now(datetime.UTC)
        return cls(
            token=_PROCESS_TOKEN,
            host=platform.node(),
            pid=os.getpid(),
            process=_process_identity(os.getpid()),
            user=user,
            since=now.isoformat(timespec="seconds").replace("+00:00", "Z"),
        )

    @classmethod
    def from_bytes(cls, content: bytes) -> Holder | None:
        """Reads a lease; None for one that is damaged, which nobody beats."""
        try:
            return cls(**json.loads(content))
        except (ValueError, TypeError):
            return None

    def to_bytes(self) -> bytes:
        """Returns the content of the lease."""
        return (json.dumps(dataclasses.asdict(self), indent=1) + "\n").encode()

    def __str__(self) -> str:
        """Names it, for messages."""
        return f"process {self.pid} of {self.user} on {self.host}, since {self.since}"

    def is_dead(self) -> bool:
        """Returns whether it was a process of this host that does not exist any more."""
        if not self.process or self.host != platform.node():
            return False
        mine, theirs = _process_identity(os.getpid()), self.process
        if mine.rsplit(" ", 1)[0] != theirs.rsplit(" ", 1)[0]:
            # Another boot of this host ended it. Another container of this boot did not: its
            # processes have numbers of their own.
            return mine.split(" ")[0] != theirs.split(" ")[0]
        return _process_identity(self.pid) != theirs


def _process_identity(pid: int) -> str:
    """Returns boot, namespace of processes and start of a process; empty if it does not exist."""
    try:
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = os.readlink("/proc/self/ns/pid")
        # Behind the name, which is in parentheses: the state, and 19 further on the start.
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):  # Also where there is no /proc.
        return ""
    return "" if fields[0] in "ZX" else f"{boot} {namespace} {fields[19]}"


class _Storage(Protocol):
    """Where a lease is: a file or an object."""

    settle: float

    def read(self) -> bytes | None:
        """Returns the content, and remembers its version; None if there is none."""

    def create(self, content: bytes) -> bool:
        """Writes it if there is none; returns whether it did."""

    def replace(self, content: bytes) -> bool:
        """Writes it over what was read or written last; returns whether it did."""

    def remove(self) -> None:
        """Removes what was read or written last."""


class _FileStorage:
    def __init__(self, path: epath.Path) -> None:
        self._path = pathlib.Path(path)
        self.settle = SETTLE

    def read(self) -> bytes | None:
        try:
            return self._path.read_bytes()
        except FileNotFoundError:
            return None

    def create(self, content: bytes) -> bool:
        handle, name = tempfile.mkstemp(dir=self._path.parent, prefix=f".{self._path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
            os.chmod(name, 0o644)
            try:
                # Complete from the beginning, and only if there is none: on NFS too.
                os.link(name, self._path)
                return True
            except FileExistsError:
                return False
            except OSError:
                # No links, as in mounted buckets.
                if self._path.exists():
                    return False
                os.replace(name, self._path)
                return True
        finally:
            pathlib.Path(name).unlink(missing_ok=True)

    def replace(self, content: bytes) -> bool:
        write_atomically(self._path, content)
        return True

    def remove(self) -> None:
        self._path.unlink(missing_ok=True)


class _BucketStorage:
    def __init__(self, path: epath.Path) -> None:
        from google.cloud import storage

        bucket, _, self._name = os.fspath(path).removeprefix("gs://").partition("/")
        self._bucket = storage.Client().bucket(bucket)
        self._generation = 0
        self.settle = 0.0

    def read(self) -> bytes | None:
        from google.api_core import exceptions

        # A blob that has a generation asks for that one, so each call makes its own.
        blob = self._bucket.get_blob(self._name)
        self._generation = 0 if blob is None else blob.generation
        try:
            return None if blob is None else blob.download_as_bytes()
        except exceptions.NotFound:  # It was replaced meanwhile.
            return b""

    def create(self, content: bytes) -> bool:
        self._generation = 0
        return self.replace(content)

    def replace(self, content: bytes) -> bool:
        from google.api_core import exceptions

        blob = self._bucket.blob(self._name)
        try:
            blob.upload_from_string(content, if_generation_match=self._generation)
        except exceptions.PreconditionFailed:
            return False
        self._generation = blob.generation
        return True

    def remove(self) -> None:
        from google.api_core import exceptions

        try:
            self._bucket.blob(self._name).delete(if_generation_match=self._generation)
        except (exceptions.NotFound, exceptions.PreconditionFailed):
            return


class Lease:
    """The lease of a model directory, held by the first process of a run.

    Args:
        model_dir: The model directory.
        take_over: Whether to take the lease of a run that may be alive, which then stops itself.

    Attributes:
        taken_by: Who has taken it over, as far as is known; None while it is held.
    """

    def __init__(self, model_dir: epath.PathLike, *, take_over: bool = False) -> None:
        self._directory = absolute_path(model_dir)
        self._take_over = take_over
        self._storage: _Storage | None = None
        self._me = Holder.here()
        self._must_settle_until = 0.0
        self._is_new = False
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self.taken_by: Holder | None = None

    def __enter__(self) -> Lease:
        """Does nothing: `acquire` takes the lease."""
        return self

    def __exit__(self, *unused: object) -> None:
        """Gives the lease back, if it is held."""
        self.release()

    def acquire(self) -> None:
        """Takes the lease, or waits until it is clear whether its holder is alive.

        The first process does, for all of them.

        Raises:
            UserError: Another run holds it, or the directory cannot be written.
        """
        if jax.process_index() != 0:
            return
        path = self._directory / LEASE_FILE
        with naming_failures(self._directory, "model directory"):
            self._is_new = not self._directory.exists()
            self._directory.mkdir(parents=True, exist_ok=True)
            storage = _BucketStorage(path) if is_remote(path) else _FileStorage(path)
            watched: bytes | None = None
            until = time.monotonic() + PATIENCE
            while True:
                content = storage.read()
                if content is None:
                    if storage.create(self._me.to_bytes()):
                        break
                    continue
                holder = Holder.from_bytes(content)
                if self._may_take(holder, content, watched, until):
                    if storage.replace(self._me.to_bytes()):
                        self._must_settle_until = time.monotonic() + storage.settle
                        break
                    continue
                if watched is None:
                    log.warning(
                        "%s may be in use by %s: waiting up to %.0f s for a sign of life",
                        self._directory,
                        holder or "a run that left a damaged lease",
                        PATIENCE,
                    )
                    watched = content
                time.sleep(min(PERIOD / 10, PATIENCE / 10))
        with self._lock:
            self._storage = storage

    def confirm(self) -> None:
        """Makes sure that no other run took the lease at the same moment, and starts the beats.

        Raises:
            UserError: Another run has it.
        """
        if self._storage is None:  # Not the first process.
            return
        time.sleep(max(self._must_settle_until - time.monotonic(), 0.0))
        self.beat()
        if self.taken_by is not None:
            raise self._refusal(self.taken_by)
        self._thread = threading.Thread(target=self._beat_on, name="lease", daemon=True)
        self._thread.start()

    def beat(self) -> None:
        """Writes the lease again, unless somebody else has taken it over."""
        with self._lock:
            if self._storage is None or self.taken_by is not None:
                return
            content = self._storage.read()
            holder = None if content is None else Holder.from_bytes(content)
            if holder is not None and holder.token != self._me.token:
                self.taken_by = holder
                return
            self._me = dataclasses.replace(self._me, beat=self._me.beat + 1)
            if content is None:  # Somebody has removed it by hand.
                self._storage.create(self._me.to_bytes())
            else:
                # In a bucket this fails after a takeover, which the next beat then sees.
                self._storage.replace(self._me.to_bytes())

    def try_to_beat(self) -> None:
        """Beats, if the storage lets it; the next beat may succeed."""
        try:
            self.beat()
        except Exception as error:  # noqa: BLE001 - any client's.
            log.warning("the lease of %s was not renewed: %s", self._directory, error)

    def release(self) -> None:
        """Ends the beats, and removes the lease if it is still held; safe to call again."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        with self._lock:
            storage, self._storage = self._storage, None
        if storage is None:
            return
        try:
            content = storage.read()
            holder = None if content is None else Holder.from_bytes(content)
            if holder is not None and holder.token == self._me.token:
                storage.remove()
            if self._is_new and not is_remote(self._directory):
                with contextlib.suppress(OSError):  # It is not empty: the run was accepted.
                    os.rmdir(self._directory)
        except Exception as error:  # noqa: BLE001 - any client's; the lease ends by itself.
            log.warning("the lease of %s was not removed: %s", self._directory, error)

    def check(self) -> None:
        """Refuses to go on if another run has taken the lease over.

        Raises:
            UserError: It has.
        """
        if self.taken_by is not None:
            raise UserError(
                f"{self._directory} was taken over by another run ({self.taken_by}): this one has "
                "ended and writes nothing more"
            )

    def _may_take(
        self, holder: Holder | None, content: bytes, watched: bytes | None, until: float
    ) -> bool:
        """Returns whether an existing lease may be taken over now; False to go on watching it.

        Raises:
            UserError: Its holder is alive.
        """
        if self._take_over or time.monotonic() >= until and watched == content:
            return True
        if holder is None:
            return False
        if holder.token == self._me.token or holder.is_dead():
            return True
        here = _process_identity(holder.pid) == holder.process != ""
        if (here and holder.host == self._me.host) or watched not in (None, content):
            raise self._refusal(holder)
        return False

    def _refusal(self, holder: Holder) -> UserError:
        return UserError(
            f"{self._directory} is in use by another run ({holder}): stop it, or choose another "
            "model directory; --take_over stops it from here"
        )

    def _beat_on(self) -> None:
        while not self._ended.wait(PERIOD) and self.taken_by is None:
            self.try_to_beat()


class LeaseGuard(Callback):
    """Ends a run whose lease was taken over, before it writes anything more.

    Args:
        lease: The lease; held by the first process alone.
    """

    def __init__(self, lease: Lease) -> None:
        self._lease = lease

    def on_step(self, trainer: Trainer, info: StepInfo) -> None:
        """Asks whether the lease is still held, before a checkpoint by reading it."""
        if jax.process_index() != 0:
            return
        if info.step % trainer.run.checkpoint_every == 0 or trainer.is_stopping:
            self._lease.try_to_beat()
        self._lease.check()

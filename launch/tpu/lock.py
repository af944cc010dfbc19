"""Lets only one babysitter look after slices: a lock on this machine, a lease in the bucket.

The lock of the operating system goes with the process. The lease is an object that only one writer
can create or replace (`--if-generation-match`), and its holder replaces it again and again. Another
machine that sees it unchanged for its whole time takes it over: no clock is compared.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pathlib
import re
import socket
import tempfile
import threading
import uuid
from typing import Any

from gcloud import Gcloud, is_missing
from options import Options
from processes import Answer, Failure, System, say

OBJECT = "babysit.json"


def state_directory() -> pathlib.Path:
    """Returns the directory for what launch scripts keep on this machine."""
    base = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return pathlib.Path(base, "maestro_jax", "launch")


class LocalLock:
    """A lock between processes of this machine, freed by the operating system when one ends."""

    def __init__(self, options: Options) -> None:
        name = "-".join(x for x in (options.project, options.zone, options.name) if x)
        self.path = state_directory() / f"{name.replace('/', '_')}.lock"
        self._file: Any = None

    def take(self) -> str:
        """Takes the lock; returns who has it, empty if it is ours now."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("a+")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.seek(0)
            return self._file.read().strip() or "another process"
        self._file.truncate(0)
        self._file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        self._file.flush()
        return ""


def machine() -> str:
    """Returns an id of this machine and user, made up when it is first asked for."""
    path = state_directory() / "machine"
    with contextlib.suppress(FileNotFoundError):
        return path.read_text().strip()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{socket.gethostname()}-{uuid.uuid4().hex[:8]}\n")
    return path.read_text().strip()


class Lease:
    """The object in the model directory.

    Attributes:
        lost: Who has taken the lease over meanwhile; empty if nobody has.
        carried: What the last holder had counted, if it did not end properly.
    """

    def __init__(self, options: Options, gcloud: Gcloud, system: System) -> None:
        self.options = options
        self.gcloud = gcloud
        self.system = system
        self.url = f"{options.model_dir.rstrip('/')}/{OBJECT}" if options.model_dir else ""
        self.lost = ""
        self.carried: dict[str, float] = {}
        self.counts: dict[str, float] = {}
        self._content = {
            "name": options.name,
            "holder": f"process {os.getpid()} on {socket.gethostname()}",
            "machine": machine(),
            "token": uuid.uuid4().hex,
        }
        self._generation = "0"
        self._renewed = 0.0
        self._serial = 0
        self._lock = threading.Lock()
        self._ended = threading.Event()

    @property
    def period(self) -> float:
        """Seconds between renewals: a fifth of the time after which others may take over."""
        return self.options.poll * 2

    def take(self) -> None:
        """Takes the lease.

        Raises:
            Failure: Another babysitter has it, or the bucket does not answer.
        """
        if not self.url:
            return
        watched = ""
        watching_since = troubles = 0.0
        while True:
            answer = self._write()
            if answer.code == 0:
                return
            if not _refused(answer):
                troubles += 1
                if troubles == self.options.max_troubles:
                    raise Failure(f"cannot write {self.url}: {answer.reason}", 1)
                say(f"cannot write {self.url}: {answer.reason}: trying again")
                self.system.sleep(self.system.back_off(int(troubles), self.options.poll / 4, 300))
                continue
            generation, content = self._read()
            if not generation:
                self._generation = "0"
                self.system.sleep(self.options.poll / 12)
                continue
            if content.get("token") == self._content["token"]:
                self._generation = generation  # The answer to our own write was lost.
                return
            if content.get("machine") == self._content["machine"]:
                say(f"taking over from {content.get('holder')}, which is no more")
            elif generation != watched:
                if watched:
                    raise Failure(
                        f"{content.get('holder')} looks after the run in {self.options.model_dir}: "
                        "end it there first"
                    )
                watched, watching_since = generation, self.system.now()
                say(
                    f"{content.get('holder')} looked after this run: watching whether it still does"
                )
                self.system.sleep(self.period)
                continue
            elif self.system.now() < watching_since + 5 * self.period:
                self.system.sleep(self.period)
                continue
            else:
                say(f"taking over from {content.get('holder')}, which is silent")
            self.carried = content.get("counts") or {}
            self._generation = generation

    def keep(self) -> None:
        """Renews the lease in the background from now on, also during long calls."""
        if self.url:
            threading.Thread(target=self._keep, daemon=True).start()

    def _keep(self) -> None:
        while not self._ended.wait(self.period):
            self.renew()

    def renew(self) -> None:
        """Renews the lease if it is time to; sets `lost` if somebody else has it."""
        if not self.url or self.lost or self.system.now() < self._renewed + self.period * 0.9:
            return
        with self._lock, contextlib.suppress(Exception):
            if not _refused(self._write()):
                return
            generation, content = self._read()
            if content.get("token") == self._content["token"]:
                self._generation = generation
            elif content:
                self.lost = str(content.get("holder"))
            elif generation == "":
                self._generation = "0"  # Somebody removed the object.

    def release(self) -> None:
        """Removes the object."""
        self._ended.set()
        with self._lock:
            if self.url and not self.lost:
                self.gcloud.call(
                    "storage",
                    ["storage", "rm", self.url, f"--if-generation-match={self._generation}"],
                )

    def _write(self) -> Answer:
        self._serial += 1
        content = {**self._content, "serial": self._serial, "counts": self.counts}
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            json.dump(content, file)
            file.flush()
            match = f"--if-generation-match={self._generation}"
            answer = self.gcloud.call("storage", ["storage", "cp", file.name, self.url, match])
        if answer.code == 0:
            self._renewed = self.system.now()
            generation, written = self._read()
            if written.get("token") == self._content["token"]:
                self._generation = generation
        return answer

    def _read(self) -> tuple[str, dict[str, Any]]:
        """Returns generation and content; empty ones if there is no object."""
        described = self.gcloud.call(
            "storage",
            ["storage", "objects", "describe", self.url, "--format=value(generation)"],
            tries=3,
        )
        if described.code:
            if is_missing(described):
                return "", {}
            return self._generation, {}
        generation = described.output.strip()
        content = self.gcloud.call(
            "storage", ["storage", "cat", f"{self.url}#{generation}"], tries=3
        )
        try:
            return generation, json.loads(content.output)
        except json.JSONDecodeError:
            return generation, {}


def _refused(answer: Answer) -> bool:
    """Returns whether a write failed because the object is not the expected one."""
    return answer.code != 0 and bool(re.search("412|pre-?condition", answer.errors, re.IGNORECASE))

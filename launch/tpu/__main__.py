"""Runs maestro on Cloud TPU slices: `launch/tpu_run.sh` starts this file."""

from __future__ import annotations

import os
import shutil
import sys

import options as command_line
from babysit import Babysitter
from gcloud import Gcloud
from hosts import Hosts
from lock import Lease, LocalLock
from options import Options
from processes import Failure, Interrupted, System, complain, say, show
from slices import ACTIVE, GONE, MISSING, UNKNOWN, Slices

# Tries of a call, for verbs that end with it.
_TRIES = 4


class Launcher:
    """The verbs, a method each."""

    def __init__(self, options: Options, system: System) -> None:
        self.options = options
        self.gcloud = Gcloud(options, system)
        self.slices = Slices(options, self.gcloud, system)
        self.hosts = Hosts(options, self.gcloud, self.slices, system)
        self.system = system

    def create(self) -> None:
        """Requests the slices, unless they exist, and waits for them."""
        name = self.options.name
        if self.options.dry_run:
            self.slices.create()
            return
        state = self.slices.state(_TRIES)
        if state == GONE:
            raise Failure(f"{name} was preempted or has failed: delete it first")
        if state == UNKNOWN:
            if self.slices.refused:
                raise Failure(self.slices.refused)
            raise Failure(f"the state of {name} is not available", 1)
        if state == MISSING:
            if why := self.slices.create():
                left = self.slices.left(_TRIES)
                bill = f"; {self.slices.bill(left)}" if left else ""
                raise Failure(f"cannot create {name}: {why}{bill}", 1)
        else:
            say(f"{name} exists already")
        try:
            self.slices.wait()
        finally:
            say(f"{name} costs money as soon as it is allocated; {self.slices.delete_command()}")

    def wait(self) -> None:
        """Waits until the slices are ready."""
        if self.options.dry_run:
            self._describe()
        else:
            self.slices.wait()

    def setup(self) -> None:
        """Installs the code on all hosts."""
        self.hosts.check_code()
        self._succeed(self.hosts.setup(_TRIES))

    def check(self) -> None:
        """Joins all hosts and counts their devices."""
        self._succeed(self.hosts.check())

    def train(self) -> None:
        """Starts a command of maestro."""
        self._succeed(self.hosts.start(_TRIES))

    def eval(self) -> None:
        """Starts `maestro eval`."""
        self.train()

    def study(self) -> None:
        """Starts `maestro study`."""
        self.train()

    def run(self) -> None:
        """Starts any command of maestro."""
        self.train()

    def status(self) -> None:
        """Prints the state of slices and hosts, and what costs money."""
        if self.options.dry_run:
            self._describe()
            self.hosts.ask()
            return
        state = self.slices.state(_TRIES)
        show(f"{self.options.name} {state}")
        if state == ACTIVE:
            hosts = self.hosts.ask(_TRIES)
            for host in hosts:
                show(str(host) + (f": {host.error}" if host.error else ""))
            if not hosts:
                show("no host answers")
        if left := self.slices.left(_TRIES):
            show(self.slices.bill(left))

    def logs(self) -> int:
        """Prints or follows the logs of the hosts."""
        return self.hosts.logs()

    def stop(self) -> None:
        """Makes the run save and end."""
        self._succeed(self.hosts.stop(_TRIES))

    def delete(self) -> None:
        """Deletes the slices."""
        if not self.options.dry_run and (holder := LocalLock(self.options).take()):
            raise Failure(
                f"babysit ({holder}) would create {self.options.name} again: interrupt it, and it "
                "deletes the slices"
            )
        if left := self.slices.delete():
            raise Failure(self.slices.bill(left), 1)
        if not self.options.dry_run:
            say(f"nothing of {self.options.name} is left")

    def babysit(self) -> int:
        """Keeps a run alive."""
        self.hosts.check_code()
        if self.options.dry_run:
            self.slices.create()
            self.hosts.setup()
            self.hosts.start()
            if not self.options.keep:
                self.slices.delete()
            return 0
        # Held until this process ends.
        lock = LocalLock(self.options)
        if holder := lock.take():
            raise Failure(f"{holder} looks after {self.options.name} already")
        lease = Lease(self.options, self.gcloud, self.system)
        sitter = Babysitter(self.options, self.gcloud, self.slices, self.hosts, lease, self.system)
        return sitter.run()

    def _describe(self) -> None:
        if self.options.direct:
            self.slices.describe_nodes()
        else:
            self.slices.describe("queued-resources", self.options.name)

    def _succeed(self, why: str) -> None:
        if why:
            raise Failure(why, 2 if self.hosts.refused else 1)


def main(words: list[str]) -> int:
    """Runs a verb; returns its exit status."""
    if words[:1] in (["help"], ["-h"], ["--help"]) or "--help" in words[: _end_of_options(words)]:
        show(command_line.USAGE.rstrip())
        return 0
    system = System()
    try:
        options = command_line.parse(words)
        if not options.dry_run and shutil.which("gcloud") is None:
            raise Failure("gcloud is not installed: https://cloud.google.com/sdk/docs/install")
        system.catch_signals()
        return getattr(Launcher(options, system), options.verb)() or 0
    except Failure as failure:
        complain(str(failure))
        return failure.code
    except Interrupted as interrupted:
        return 128 + interrupted.number


def _end_of_options(words: list[str]) -> int:
    return words.index("--") if "--" in words else len(words)


if __name__ == "__main__":
    status = main(sys.argv[1:])
    # Streams may be closed, and threads may wait for calls that do not end.
    os._exit(status)

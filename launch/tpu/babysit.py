"""The loop that keeps a run alive, and what happens when it ends.

A run that is started again continues from its model directory, so this only has to keep the slices
and the processes alive, and to leave nothing behind that costs money.
"""

from __future__ import annotations

import traceback

from gcloud import Gcloud
from hosts import Host, Hosts
from lock import Lease
from options import Options
from processes import Failure, Interrupted, System, complain, say
from slices import ACTIVE, GONE, MISSING, UNKNOWN, Slices

# Looks at hosts that do not answer, with growing pauses, before they are replaced.
_SILENT_LOOKS = 4
# The longest pause after failures, in polls.
_LONGEST_PAUSE = 16


class Babysitter:
    """Looks after one run.

    Attributes:
        creations: How often slices were requested since the last new checkpoint.
        failures: How often the run failed since then.
        troubles: How often gcloud failed in a row.
        held: Seconds for which slices were held, without those held now.
        held_since: When slices were first seen ready; None if none are held.
    """

    def __init__(
        self,
        options: Options,
        gcloud: Gcloud,
        slices: Slices,
        hosts: Hosts,
        lease: Lease,
        system: System,
    ) -> None:
        self.options = options
        self.gcloud = gcloud
        self.slices = slices
        self.hosts = hosts
        self.lease = lease
        self.system = system
        self.creations = self.failures = self.troubles = 0
        self.total_creations = 0
        self.held = 0.0
        self.held_since: float | None = None
        self._fruitless = 0  # Creations since the run was last seen running.
        self._silent = 0
        self._installed = False
        self._known = False  # Whether slices exist, or may exist.
        self._seen_running = False
        self._started_at: float | None = None
        self._checkpoints = ""

    def run(self) -> int:
        """Looks after the run until it has ended or is given up, then deletes the slices.

        Returns:
            The exit status: 0 if the run is done or was stopped, and, without `--keep`, nothing is
            left that costs money; 2 if the run ended with an error of the user; 128 + the number
            of a signal; 1 otherwise.
        """
        try:
            self.lease.take()
            carried = self.lease.carried
            self.creations = int(carried.get("creations", 0))
            self.failures = int(carried.get("failures", 0))
            self.held = float(carried.get("held_seconds", 0.0))
        except Failure as error:
            # Another babysitter owns the slices.
            complain(str(error))
            return error.code
        except Interrupted as error:
            self.system.tolerated = len(self.system.signals) + 1000
            complain(f"interrupted by {error} before looking after the run")
            if left := self.slices.inventory():
                complain(self.slices.bill(left))
            return 128 + error.number
        self.lease.keep()
        try:
            ended, code = self._loop(), 0
        except _Taken as error:
            complain(f"{error}: leaving the slices to it")
            self.lease.release()
            return 1
        except Interrupted as error:
            ended, code = f"interrupted by {error}", 128 + error.number
        except Failure as error:
            ended, code = f"{error}: giving up", error.code
        except Exception as error:
            say(traceback.format_exc())
            ended, code = f"this script has failed ({error!r}); please report it", 1
        say(ended)
        return self._wind_down(ended, code)

    # ---- the loop

    def _loop(self) -> str:
        """Returns how the run ended."""
        while True:
            self._count()
            state = self._look()
            if state == MISSING:
                self._create()
            elif state == GONE:
                if why := self.slices.why_failed():
                    say(f"{self.options.name}: {why}")
                self._start_anew("deleting the rest of")
            elif state == UNKNOWN:
                if not self._known and self.slices.refused:
                    raise Failure(self.slices.refused)
                self._trouble(f"the state of {self.options.name} is not available")
            elif state == ACTIVE:
                if self.held_since is None:
                    self.held_since = self.system.now()
                if ended := self._look_after_run():
                    return ended
            else:
                self.troubles = 0
                self._pause(self.options.poll)

    def _look(self) -> str:
        """Returns the state of the slices, asked twice where it leads to their deletion."""
        state = self.slices.state()
        if state not in (MISSING, UNKNOWN):
            self._known = True
        if state in (MISSING, GONE):
            self._pause(self.options.poll / 12)
            again = self.slices.state()
            if again != state:
                say(f"{self.options.name} was {state} and is {again}: looking again")
                return again if again == ACTIVE else UNKNOWN
        return state

    def _create(self) -> None:
        options = self.options
        self._release_hold()
        self._progress()
        if self.creations >= options.max_creations:
            raise Failure(
                f"{options.name} was created {self.creations} times without a new checkpoint "
                "(--max_creations)",
                1,
            )
        if self._fruitless:
            pause = self._back_off(self._fruitless)
            say(f"creating {options.name} again in {pause:.0f} s")
            self._pause(pause)
        self._installed = False
        self.creations += 1
        self.total_creations += 1
        self._fruitless += 1
        self._known = True
        say(f"creating {options.name} ({self.creations} of at most {options.max_creations})")
        if why := self.slices.create():
            self._trouble(f"cannot create {options.name}: {why}")

    def _start_anew(self, what: str) -> None:
        say(f"{what} {self.options.name}")
        self._installed = False
        self._silent = 0
        if left := self.slices.delete():
            raise Failure(f"cannot delete {', '.join(map(str, left))}", 1)
        # A lost slice explains why the run failed; --max_creations bounds how often.
        self.troubles = self.failures = 0
        self._release_hold()

    def _look_after_run(self) -> str:
        """Checks the run on slices that are ready; returns how it ended, empty if it has not."""
        now = self.hosts.state()
        state = now.state
        first_look, self._known = self._started_at is None, True
        if now.hosts and (other := self._other_run(now.hosts)):
            if any(host.state == "running" for host in now.hosts):
                raise _Taken(f"another run is in progress on {self.options.name}: {other}")
            state = "ready"
        elif first_look and state in ("stopped", "interrupted", "failed"):
            # What an earlier babysitter left: starting again is what the user asks for.
            self.hosts.end()
            state = "ready"
        if state != "unreachable":
            self._silent = 0
        if state == "running":
            self.troubles = self._fruitless = 0
            self._installed = self._seen_running = True
            if self._started_at is None:
                say("the run is in progress: taking over")
                self._started_at = self.system.now()
            self._pause(self.options.poll)
        elif state in ("done", "stopped"):
            return f"the run is {state}"
        elif state == "unreachable":
            self._unreachable(f"the hosts of {self.options.name} do not answer")
        elif state == "failed":
            assert now.culprit
            self._failed(now.culprit)
        elif state == "interrupted":
            self._failure("the run was interrupted and has saved")
            self.hosts.end()
            self._start()
        elif state == "partial":
            self._trouble("the run was started on some hosts only")
            self.hosts.end()
        else:
            self._installed = self._installed and state != "absent"
            self._start()
        return ""

    def _other_run(self, hosts: tuple[Host, ...]) -> str:
        """Returns the id of a run on these hosts that is not ours; empty if there is none."""
        return next((host.run for host in hosts if host.run not in ("-", self.hosts.run_id)), "")

    def _unreachable(self, why: str) -> None:
        """Handles hosts of slices that are said to be ready but do not answer."""
        self._silent += 1
        # The queued resource may not have noticed a preemption yet, or gcloud is wrong about it.
        lost = [
            x for x in self.slices.describe_nodes() if x in ("PREEMPTED", "TERMINATED", MISSING)
        ]
        if (lost and self._silent > 1) or self._silent >= _SILENT_LOOKS:
            say(f"{why}: replacing them")
            self._start_anew("deleting")
        else:
            self._trouble(why)

    def _failed(self, culprit: Host) -> None:
        reason = f": {culprit.error}" if culprit.error else ""
        if culprit.detail == "killed":
            what = "the host was started again" if culprit.rebooted else "was killed"
        else:
            what = f"ended with {culprit.detail}"
        message = f"maestro {self.options.command} on {culprit.name}: {what}{reason}"
        if culprit.detail == "2":
            raise Failure(message, 2)
        self._failure(message)
        # Ends the hosts that still wait for the one that failed.
        self.hosts.end()
        self._start()

    def _start(self) -> None:
        options = self.options
        if not self._installed:
            say(f"installing {self.hosts.label}")
            if why := self.hosts.setup():
                self._cannot(f"setup failed: {why}")
                return
            self._installed = True
        say(f"starting maestro {options.command}")
        try:
            why = self.hosts.start()
        except Failure as error:
            why = str(error)
        if why:
            self._cannot(f"the run does not start: {why}")
            return
        self.troubles = 0
        self._started_at = self.system.now()
        self._pause(options.poll)

    def _cannot(self, why: str) -> None:
        """Handles hosts that answered a moment ago, and do not install or start the run."""
        self._installed = False
        if self.hosts.refused:
            self._failure(why)
        else:
            self._unreachable(why)

    # ---- limits

    def _trouble(self, why: str) -> None:
        """Handles a failure of gcloud."""
        self.troubles += 1
        if self.troubles >= self.options.max_troubles:
            raise Failure(f"{why} ({self.troubles} times in a row)", 1)
        pause = self._back_off(self.troubles)
        say(f"{why}: looking again in {pause:.0f} s")
        self._pause(pause)

    def _failure(self, why: str) -> None:
        """Handles a failure of the run."""
        self._progress()
        self.failures += 1
        if self.failures >= self.options.max_failures:
            raise Failure(
                f"{why} ({self.failures} times without a new checkpoint; launch/tpu_run.sh logs)", 1
            )
        pause = self._back_off(self.failures)
        say(f"{why}: starting it again in {pause:.0f} s")
        self._pause(pause)

    def _progress(self) -> None:
        """Begins to count anew if there is a new checkpoint.

        So a run that makes progress may fail any number of times, but one that always fails at the
        same step is given up. Other commands than train make progress by running for 30 polls.
        """
        options = self.options
        if options.command != "train":
            since = self._started_at
            progress = since is not None and self.system.now() > since + 30 * options.poll
        else:
            url = f"{options.model_dir.rstrip('/')}/checkpoints/"
            answer = self.gcloud.call("storage", ["storage", "ls", url], tries=3)
            progress = answer.code == 0 and answer.output != self._checkpoints
            if progress:
                self._checkpoints = answer.output
        if progress:
            self.creations = self.failures = 0

    def _back_off(self, attempt: int) -> float:
        poll = self.options.poll
        return self.system.back_off(attempt, poll, _LONGEST_PAUSE * poll)

    def _held_seconds(self) -> float:
        since = self.held_since
        return self.held + (0 if since is None else self.system.now() - since)

    def _release_hold(self) -> None:
        self.held, self.held_since = self._held_seconds(), None

    def _count(self) -> None:
        """Checks the lease and `--max_hours`."""
        self.lease.renew()
        if self.lease.lost:
            raise _Taken(f"{self.lease.lost} looks after this run now")
        held = self._held_seconds()
        self.lease.counts = {
            "creations": self.creations,
            "failures": self.failures,
            "held_seconds": round(held),
        }
        if self.options.max_hours and held >= self.options.max_hours * 3600:
            hours = f"{self.options.max_hours:g}"
            raise Failure(f"the slices were held for {hours} hours (--max_hours)", 1)

    def _pause(self, seconds: float) -> None:
        if self.options.max_hours and self.held_since is not None:
            left = self.options.max_hours * 3600 - self._held_seconds()
            seconds = min(seconds, max(left, 0))
        self.system.sleep(seconds)

    # ---- the end

    def _wind_down(self, ended: str, code: int) -> int:
        """Saves the run, deletes the slices, and says last what still costs money."""
        system, name = self.system, self.options.name
        # What happened so far is handled; one more signal ends a wait.
        system.tolerated = len(system.signals)
        left = []
        try:
            if self.options.keep or not self._known:
                left = self.slices.inventory()
            else:
                if code:
                    self._save()
                # A closed terminal or a shutdown may send two signals at once.
                system.tolerated = len(system.signals) + 1
                say(f"deleting {name}; interrupting this twice leaves it")
                left = self.slices.delete()
        except Interrupted:
            left = self.slices.resources()
        except Exception:
            say(traceback.format_exc())
            left = self.slices.resources()
        system.tolerated = len(system.signals) + 1000
        self.lease.release()
        bill = self.slices.bill(left) if left else f"nothing of {name} is left"
        if code:
            complain(ended)
        if left and not self.options.keep:
            complain(bill)
            return code or 1
        say(f"kept: {bill}" if left else bill)
        return code

    def _save(self) -> None:
        """Makes a run in progress save, which one more signal gives up."""
        try:
            if self._seen_running and self.hosts.state().state == "running":
                say("making the run save; interrupt again to delete the slices at once")
                if why := self.hosts.stop():
                    say(f"the run did not save: {why}")
        except Interrupted:
            say("not waiting for the run to save")
        except Exception:
            say(traceback.format_exc())


class _Taken(Exception):
    """Somebody else is in charge of the slices."""

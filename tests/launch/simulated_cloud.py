"""A cloud with troubles, in time that passes only when somebody waits.

It answers the calls of gcloud that launch/tpu makes, with slices that come, fail, are preempted or
are only said to be there, hosts that hang and restart, calls that fail, hang or are answered too
late, and a run that saves checkpoints. A seed decides all of it.
"""

from __future__ import annotations

import dataclasses
import pathlib
import random
import re
import sys
from collections.abc import Callable
from typing import Any

LAUNCH = pathlib.Path(__file__).resolve().parents[2] / "launch" / "tpu"
if str(LAUNCH) not in sys.path:
    sys.path.append(str(LAUNCH))

import processes  # noqa: E402

POLL = 60.0
MINUTE = 60.0
HOUR = 3600.0
RUN_HOURS = 6.0
CHECKPOINT_HOURS = 0.1
WORKERS = 2


@dataclasses.dataclass(frozen=True)
class World:
    """What may happen, as probabilities of a call, or as means in hours."""

    fails: float = 0.0  # a call fails
    hangs: float = 0.0  # a call gets no answer
    late: float = 0.0  # a creation is answered with an error and happens anyway
    not_found: float = 0.0  # describe does not find what is there
    silent: float = 0.0  # describe says nothing
    creation_fails: float = 0.0  # a queued resource becomes FAILED
    ghost: float = 0.0  # preempted slices are said to be there for hours
    delete_fails: float = 0.0
    delete_hours: float = 0.02  # how long a deletion takes
    wait_hours: float = 0.1  # until slices are ready
    preempted_after: float = 0.0
    rebooted_after: float = 0.0
    crashes_after: float = 0.0
    crash_code: int = 75
    ssh_hangs_for: float = 0.0  # hours, of every host, beginning at an hour of the first two
    no_delete: bool = False  # no deletion ever works
    refused: bool = False  # the project may not create slices
    user_error: bool = False  # the run ends with 2
    signals: tuple[float, ...] = ()  # hours at which babysit is interrupted
    killed_at: float = 0.0  # hour at which babysit gets SIGKILL
    keep: bool = False
    max_hours: float = 0.0
    direct: bool = False
    slices: int = 1

    @property
    def is_mild(self) -> bool:
        """Whether the run must get to its end."""
        fatal = self.refused or self.user_error or self.signals or self.max_hours or self.no_delete
        often = [self.preempted_after, self.crashes_after, self.rebooted_after]
        return (
            not fatal
            and all(hours == 0 or hours >= 2 for hours in often)
            and self.creation_fails <= (0 if self.direct else 0.5)
            and self.ssh_hangs_for < 1
            and self.fails < 0.05
        )

    def faults(self) -> str:
        """The fields that differ from the default, in short."""
        words = []
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value != field.default:
                text = ",".join(f"{x:.1f}" for x in value) if isinstance(value, tuple) else value
                text = f"{text:.2g}" if isinstance(text, float) else text
                words.append(field.name if value is True else f"{field.name}={text}")
        return " ".join(words)


class Killed(BaseException):
    """SIGKILL: nothing is handled."""


class Simulated(processes.System):
    """A clock that jumps, and gcloud answered by a `Cloud`."""

    def __init__(self, cloud: Cloud, seed: int) -> None:
        super().__init__()
        self.cloud = cloud
        self.random = random.Random(seed)
        self.to_come = [hour * HOUR for hour in sorted(cloud.world.signals)]
        self.killed_at = cloud.world.killed_at * HOUR
        self.start = cloud.now

    def now(self) -> float:
        return self.cloud.now

    def _advance(self, seconds: float) -> None:
        end = self.cloud.now + max(seconds, 0.001)
        due = [time for time in self.to_come if time <= end]
        if self.killed_at and end >= self.killed_at > self.start:
            self.cloud.advance(self.killed_at)
            raise Killed
        for time in due:
            self.to_come.remove(time)
            self.signals.append(15)
            if len(self.signals) > self.tolerated:
                self.cloud.advance(max(time, self.cloud.now))
                self.check_signals()
        self.cloud.advance(end)
        if self.cloud.now > 2000 * HOUR:
            raise AssertionError("it does not end")

    def at_once(self, call, items):  # type: ignore[no-untyped-def]
        return [call(item) for item in items]

    def sleep(self, seconds: float) -> None:
        self.check_signals()
        self._advance(seconds)

    def execute(
        self, words: list[str], limit: float | None, on_line: Callable[[str], None] | None = None
    ) -> processes.Answer:
        self.check_signals()
        if words[0] != "gcloud":
            return processes.Answer(0, "0" * 40 if "rev-parse" in words else "")
        assert limit is not None, words
        seconds, answer = self.cloud.call(words[1:])
        if seconds > limit:
            self._advance(limit)
            return processes.Answer(124, answer.output, f"no answer within {limit:g} seconds")
        self._advance(seconds)
        return answer


class Host:
    """A host of a TPU VM.

    Attributes:
        code: The exit status of the run; None while it runs.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.installed = self.rebooted = self.stopped = False
        self.run = "-"
        self.running = False
        self.code: int | str | None = None
        self.started_at = self.ended_at = 0.0

    def end(self, code: int | str, now: float) -> None:
        if self.running:
            self.running, self.code, self.ended_at = False, code, now

    def status(self) -> list[str]:
        state = "absent"
        if self.running:
            state = "running 4711"
        elif self.stopped:
            state = f"stopped {self.code}"
        elif self.code is not None:
            state = f"exited {self.code}"
        elif self.installed:
            state = "ready 0123"
        lines = [f"MAESTRO_HOST {self.name} {self.run} {state}{' rebooted' * self.rebooted}"]
        if state.startswith("exited") and self.code not in (0, 143):
            error = "error: x.gin: no such file" if self.code == 2 else "error: lost a host"
            time = 0 if self.code == "killed" else self.ended_at
            lines.append(f"MAESTRO_ERROR {self.name} {time} {error}")
        return lines


class Slice:
    """A TPU VM, or a queued resource with its TPU VMs.

    Attributes:
        gone_at: When it was preempted, in truth; None if it was not.
        deleted_at: When a deletion comes into effect.
    """

    def __init__(self, cloud: Cloud, group: str, name: str, nodes: list[str], at: float) -> None:
        world, chance = cloud.world, cloud.random
        self.group, self.name, self.nodes = group, name, nodes
        self.exists_at = at
        self.ready_at = at + chance.uniform(0.2, 2) * world.wait_hours * HOUR
        self.fails = chance.random() < world.creation_fails
        self.gone_at = float("inf")
        if world.preempted_after:
            self.gone_at = self.ready_at + chance.expovariate(1 / world.preempted_after) * HOUR
        self.known_at = self.gone_at + 2 * MINUTE
        if chance.random() < world.ghost:
            self.known_at = self.gone_at + 5 * HOUR
        self.deleted_at = float("inf")
        self.hosts = [Host(f"{node}-w-{i}") for node in nodes for i in range(WORKERS)]

    def exists(self, now: float) -> bool:
        return self.exists_at <= now < self.deleted_at

    def reachable(self, now: float) -> bool:
        return self.exists(now) and self.ready_at <= now < self.gone_at and not self.fails

    def state(self, now: float) -> str:
        queued = self.group == "queued-resources"
        if self.deleted_at < float("inf"):
            return "DELETING"
        if now < self.ready_at:
            return "WAITING_FOR_RESOURCES" if queued else "CREATING"
        if self.fails:
            return "FAILED" if queued else "PREEMPTED"
        if now >= self.known_at:
            return "SUSPENDED" if queued else "PREEMPTED"
        return "ACTIVE" if queued else "READY"


class Cloud:
    """The cloud, its buckets, and the truth about the run.

    Attributes:
        trained: Hours of training that are saved.
        created: How many slices were requested.
        calls: How often gcloud was called.
    """

    def __init__(self, world: World, seed: int) -> None:
        self.world = world
        self.random = random.Random(seed)
        self.now = 0.0
        self.slices: list[Slice] = []
        self.trained = 0.0
        self.unsaved = 0.0
        self.created = self.calls = self.checkpoints = 0
        self.objects: dict[str, tuple[int, str]] = {}
        self.generations = 0
        self.ssh_hangs_from = self.random.uniform(0.1, 2) * HOUR
        self.next_crash = self._later(world.crashes_after)
        self.next_reboot = self._later(world.rebooted_after)

    def _later(self, mean_hours: float) -> float:
        if not mean_hours:
            return float("inf")
        # Not so soon that there can be no checkpoint in between.
        return self.now + (0.3 + self.random.expovariate(1 / mean_hours)) * HOUR

    def allocated(self) -> list[str]:
        """The names of what still costs money, or will."""
        return [x.name for x in self.slices if x.exists(self.now) or self.now < x.exists_at < 1e18]

    # ---- what happens by itself

    def advance(self, end: float) -> None:
        """Lets time pass."""
        while self.now < end:
            self._step(min(end, self.now + MINUTE))

    def _step(self, end: float) -> None:
        seconds, self.now = end - self.now, end
        self.slices = [x for x in self.slices if self.now < x.deleted_at]
        hosts = [host for x in self.slices for host in x.hosts]
        for lost in [x for x in self.slices if not x.reachable(self.now)]:
            for host in lost.hosts:
                host.end("killed", self.now)
        if self.now >= self.next_reboot:
            self.next_reboot = self._later(self.world.rebooted_after)
            if hosts:
                host = self.random.choice(hosts)
                host.end("killed", self.now)
                host.rebooted = True
        running = [host for host in hosts if host.running]
        if self.now >= self.next_crash:
            self.next_crash = self._later(self.world.crashes_after)
            if running:
                self.random.choice(running).end(self.world.crash_code, self.now)
        if self.world.user_error:
            for host in running:
                host.end(2, self.now)
        if running and all(host.running for host in hosts):
            self.unsaved += seconds / HOUR
            if self.unsaved >= CHECKPOINT_HOURS or self.trained + self.unsaved >= RUN_HOURS:
                self._save()
            if self.trained >= RUN_HOURS:
                for host in hosts:
                    host.end(0, self.now)
        else:
            self.unsaved = 0.0
            failed = [host for host in hosts if host.code not in (None, 0, 143)]
            for host in running:
                # The watchdog of this host ends it.
                if any(other.ended_at > host.started_at for other in failed):
                    host.end(75, self.now + 30)

    def _save(self) -> None:
        self.trained += self.unsaved
        self.unsaved = 0.0
        self.checkpoints += 1

    # ---- gcloud

    def call(self, words: list[str]) -> tuple[float, processes.Answer]:
        """Answers a call of gcloud; returns the seconds that it takes, too."""
        self.calls += 1
        chance, world = self.random, self.world
        if chance.random() < world.hangs:
            return float("inf"), processes.Answer(1)
        if chance.random() < world.fails:
            return 5.0, self._error("UNAVAILABLE: the service is currently unavailable")
        if words[0] == "storage":
            return 2.0, self._storage(words[1:])
        group, verb, name = words[2:5]
        if verb == "create":
            return 10.0, self._create(group, name, words)
        if verb == "describe":
            return 2.0, self._describe(group, name)
        if verb == "delete":
            return self._delete(group, name)
        return self._reach(verb, words)

    @staticmethod
    def _error(text: str) -> processes.Answer:
        return processes.Answer(1, "", f"ERROR: (gcloud) {text}\n")

    def _find(self, group: str, name: str) -> Slice | None:
        for each in self.slices:
            if each.exists(self.now) and (each.group, each.name) == (group, name):
                return each
        return None

    def _create(self, group: str, name: str, words: list[str]) -> processes.Answer:
        if self._find(group, name):
            return self._error(f"ALREADY_EXISTS: {name}")
        if self.world.refused:
            return self._error("PERMISSION_DENIED: tpu.nodes.create")
        self.created += 1
        nodes = [name]
        for word in words:
            if found := re.match("--node-count=(.*)", word):
                nodes = [f"{name}-{i}" for i in range(int(found[1]))]
        late = self.random.random() < self.world.late
        at = self.now + (self.random.uniform(0, 3) * POLL if late else 0)
        self.slices.append(Slice(self, group, name, nodes, at))
        return self._error("INTERNAL: the answer was lost") if late else processes.Answer(0)

    def _describe(self, group: str, name: str) -> processes.Answer:
        owner = self._find(group, name)
        if group == "tpu-vm" and not owner:
            owner = next((x for x in self.slices if name in x.nodes and x.exists(self.now)), None)
            if owner and (self.now >= owner.gone_at or self.now < owner.ready_at or owner.fails):
                owner = None
        if not owner or self.random.random() < self.world.not_found:
            return self._error(f"NOT_FOUND: Resource '{name}' was not found")
        if self.random.random() < self.world.silent:
            return processes.Answer(0, "\n")
        state = owner.state(self.now)
        if group == "tpu-vm" and owner.group != group:
            state = "READY" if state == "ACTIVE" else "DELETING"
        return processes.Answer(0, state + "\n")

    def _delete(self, group: str, name: str) -> tuple[float, processes.Answer]:
        owner = self._find(group, name)
        if not owner:
            return 2.0, self._error(f"NOT_FOUND: Resource '{name}' was not found")
        if self.world.no_delete or self.random.random() < self.world.delete_fails:
            return 20.0, self._error("INTERNAL: cannot delete")
        if owner.deleted_at == float("inf"):
            owner.deleted_at = (
                self.now + self.random.uniform(0.1, 2) * self.world.delete_hours * HOUR
            )
            for host in owner.hosts:
                host.end("killed", self.now)
        return owner.deleted_at - self.now, processes.Answer(0)

    def _reach(self, verb: str, words: list[str]) -> tuple[float, processes.Answer]:
        node = next(word.rstrip(":") for word in words[4:] if not word.startswith(("-", "/")))
        owner = next((x for x in self.slices if node in x.nodes), None)
        if not owner or not owner.reachable(self.now):
            return 50.0, self._error(f"could not reach {node}")
        hosts = [host for host in owner.hosts if host.name.startswith(f"{node}-w-")]
        command = next((word for word in words if word.startswith("--command=")), "")
        since = self.now - self.ssh_hangs_from
        hanging = 0 <= since < self.world.ssh_hangs_for * HOUR
        # One host hangs, and with it the call; what others said is there.
        answering = hosts[:1] if hanging else hosts
        seconds = float("inf") if hanging else 10.0
        found = re.search(r"tpu_host\.sh (\w+)(?: \w+ (\w+))?", command.split(" status")[0])
        done: list[str] = []
        if verb == "scp":
            pass
        elif "tpu_host.sh status" in command:
            done = [line for host in answering for line in host.status()]
        elif found and found[1] == "setup":
            seconds = max(seconds, 200.0)
            for host in answering:
                host.installed = True
        elif found and found[1] == "start":
            for host in answering:
                if not host.installed:
                    return 10.0, processes.Answer(1, "", "error: maestro is not installed\n")
                if host.running:
                    assert host.run == found[2], "a second run was started"
                    continue
                host.run, host.running, host.code = found[2], True, None
                host.started_at = self.now
                host.stopped = host.rebooted = False
        elif found and found[1] in ("stop", "end"):
            whole = all(host.running for x in self.slices for host in x.hosts)
            if whole and found[1] == "stop":
                self._save()
            for host in answering:
                host.stopped = host.running and found[1] == "stop"
                host.end(143, self.now)
                if found[1] == "end":
                    host.code, host.stopped = None, False
        return seconds, processes.Answer(0, "".join(f"{line}\n" for line in done))

    def _storage(self, words: list[str]) -> processes.Answer:
        if words[0] == "ls":
            lines = "".join(f"{words[1]}{i}/\n" for i in range(self.checkpoints))
            return processes.Answer(0, lines) if lines else self._error("NOT_FOUND: no objects")
        match = next((x.partition("=")[2] for x in words if x.startswith("--if-gen")), None)
        url = next(x for x in words if x.startswith("gs://")).partition("#")[0]
        generation, content = self.objects.get(url, (0, ""))
        if match is not None and int(match) != generation:
            return self._error("HTTPError 412: a pre-condition did not hold")
        if words[0] == "cp":
            self.generations += 1
            self.objects[url] = (self.generations, pathlib.Path(words[1]).read_text())
            return processes.Answer(0)
        if not generation:
            return self._error(f"NOT_FOUND: {url} not found")
        if words[0] == "rm":
            del self.objects[url]
            return processes.Answer(0)
        return processes.Answer(0, content if words[0] == "cat" else f"{generation}\n")


def world(seed: int) -> World:
    """A world of a seed: the weather of all calls, and one or two kinds of trouble."""
    chance = random.Random(seed)
    weather = chance.choice([0.0, 0.03, 0.1])
    settings: dict[str, Any] = {
        "fails": weather,
        "hangs": weather / 3,
        "not_found": weather / 2,
        "silent": weather / 2,
        "direct": chance.random() < 0.3,
        "slices": chance.choice([1, 1, 2]),
    }
    troubles: list[dict[str, Any]] = [
        {"late": 0.5, "preempted_after": 4.0},
        {"creation_fails": 1.0},
        {"creation_fails": 0.5},
        {"preempted_after": 2.0},
        {"preempted_after": 3.0, "ghost": 0.7},
        {"preempted_after": 0.2},
        {"rebooted_after": 2.0},
        {"crashes_after": 2.0, "crash_code": chance.choice([75, 137, 1])},
        {"crashes_after": 0.05, "crash_code": 1},
        {"ssh_hangs_for": chance.choice([0.3, 3.0])},
        {"delete_fails": 0.7, "delete_hours": 0.3, "preempted_after": 3.0},
        {"no_delete": True},
        {"no_delete": True, "preempted_after": 2.0},
        {"refused": True},
        {"user_error": True},
        {"signals": (chance.uniform(0.05, 5),)},
        {"signals": (chance.uniform(0.05, 5),) * 2},
        {"signals": (chance.uniform(0.05, 5),) * 3},
        {"killed_at": chance.uniform(0.05, 5)},
        {"keep": True, "signals": (chance.uniform(0.5, 5),)},
        {"max_hours": chance.uniform(0.5, 5)},
    ]
    # Each kind of trouble comes first once in as many seeds.
    settings.update(troubles[seed % len(troubles)])
    if chance.random() < 0.4:
        settings = {**chance.choice(troubles), **settings}
    return World(**settings)

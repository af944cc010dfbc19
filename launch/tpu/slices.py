"""The slices of a run: their state, creation and deletion."""

from __future__ import annotations

import dataclasses

from gcloud import Gcloud, exists_already, is_missing, is_permanent
from options import Options
from processes import Failure, System, quoted, say

MISSING, WAITING, ACTIVE, GONE, UNKNOWN = "MISSING", "WAITING", "ACTIVE", "GONE", "UNKNOWN"
_LEAVING = ("SUSPENDING", "DELETING", "STOPPING")
_LOST = ("PREEMPTED", "TERMINATED", "SUSPENDED", "FAILED", "MISSING", "STOPPED", "HIDDEN")
_DELETE_TRIES = 20
# Looks in a row that must find nothing, since gcloud may be wrong about one.
_CLEAN_LOOKS = 3
# Polls after which a request whose answer was lost has become slices, or never will.
_LATE = 5


@dataclasses.dataclass(frozen=True)
class Resource:
    """A queued resource or a TPU VM, as gcloud names it.

    Attributes:
        group: queued-resources or tpu-vm.
        name: The name.
        state: As gcloud says; UNKNOWN if it does not say.
    """

    group: str
    name: str
    state: str = UNKNOWN

    def __str__(self) -> str:
        kind = "queued resource" if self.group == "queued-resources" else "TPU VM"
        return f"{kind} {self.name} ({self.state})"


class Slices:
    """The slices that the options name.

    Attributes:
        refused: Why gcloud does not describe them, if another try cannot mend it.
        unsure_until: Until this time, a request whose answer was lost may still become slices.
    """

    def __init__(self, options: Options, gcloud: Gcloud, system: System) -> None:
        self.options = options
        self.gcloud = gcloud
        self.system = system
        self.refused = ""
        self.unsure_until = 0.0

    def nodes(self) -> list[str]:
        """Returns the names of the TPU VMs, which a queued resource gives them, too."""
        name, count = self.options.name, self.options.slices
        return [name] if count == 1 else [f"{name}-{i}" for i in range(count)]

    def describe(self, group: str, name: str, tries: int = 1) -> str:
        """Returns the state that gcloud describes; MISSING, or UNKNOWN if it does not answer."""
        field = "state.state" if group == "queued-resources" else "state"
        answer = self.gcloud.tpus(
            "describe", [group, "describe", name, f"--format=value({field})"], tries=tries
        )
        if answer.code == 0:
            return answer.output.strip() or UNKNOWN
        if is_missing(answer):
            return MISSING
        say(f"describe {name}: {answer.reason}")
        self.refused = answer.reason if is_permanent(answer) else ""
        return UNKNOWN

    def describe_nodes(self) -> list[str]:
        """Returns the states of the TPU VMs."""
        return [self.describe("tpu-vm", name) for name in self.nodes()]

    def state(self, tries: int = 1) -> str:
        """Returns MISSING, WAITING, ACTIVE, GONE or UNKNOWN.

        GONE: preempted, failed or partly missing, so that the rest must be deleted.
        """
        if self.options.direct:
            states = sorted({self.describe("tpu-vm", name, tries) for name in self.nodes()})
        else:
            states = [self.describe("queued-resources", self.options.name, tries)]
        if states == [MISSING] or UNKNOWN in states:
            return states[0] if states == [MISSING] else UNKNOWN
        if states in ([ACTIVE], ["READY"]):
            return ACTIVE
        say(f"{self.options.name}: {' '.join(states)}")
        if any(state in _LEAVING for state in states):
            return WAITING
        if any(state in _LOST for state in states):
            return GONE
        # WAITING_FOR_RESOURCES (once ACCEPTED), CREATING, PROVISIONING, STARTING, REPAIRING ...
        return WAITING

    def why_failed(self) -> str:
        """Returns what the cloud says about a queued resource that failed; may be empty."""
        if self.options.direct:
            return ""
        answer = self.gcloud.tpus(
            "describe",
            [
                "queued-resources",
                "describe",
                self.options.name,
                "--format=value(state.failedData.error.message)",
            ],
        )
        return answer.output.strip() if answer.code == 0 else ""

    def create(self) -> str:
        """Requests the slices.

        Returns:
            Why it did not work; empty if it did, or if they exist.

        Raises:
            Failure: Another try would fail again.
        """
        options = self.options
        kind = [
            *(["--spot"] if options.spot else []),
            *(["--reserved"] if options.reserved else []),
        ]
        kind += options.create_args
        type_ = f"--accelerator-type={options.type}"
        if options.direct:
            calls = [
                ["tpu-vm", "create", node, type_, f"--version={options.runtime}", *kind]
                for node in self.nodes()
            ]
        else:
            nodes = (
                [f"--node-id={options.name}"]
                if options.slices == 1
                else [f"--node-count={options.slices}", f"--node-prefix={options.name}"]
            )
            runtime = f"--runtime-version={options.runtime}"
            calls = [["queued-resources", "create", options.name, *nodes, type_, runtime, *kind]]
        for words in calls:
            answer = self.gcloud.tpus("create", words)
            if is_permanent(answer):
                raise Failure(f"cannot create {options.name}: {answer.reason}")
            if answer.code and not exists_already(answer):
                self.unsure_until = self.system.now() + _LATE * options.poll
                return answer.reason
        return ""

    def resources(self) -> list[Resource]:
        """Returns what may cost money, in the order of deletion, without states."""
        nodes = [Resource("tpu-vm", name) for name in self.nodes()]
        return (
            nodes
            if self.options.direct
            else [Resource("queued-resources", self.options.name), *nodes]
        )

    def left(self, tries: int = 1) -> list[Resource]:
        """Returns what exists, or may exist because gcloud does not say."""
        described = [
            dataclasses.replace(each, state=self.describe(each.group, each.name, tries))
            for each in self.resources()
        ]
        return [each for each in described if each.state != MISSING]

    def inventory(self) -> list[Resource]:
        """Returns what exists by any of several looks, since gcloud may be wrong about one."""
        looks = []
        for _ in range(_CLEAN_LOOKS):
            looks.append(self.left())
            self.system.sleep(self.options.poll / 12)
        return _union(looks)

    def delete(self) -> list[Resource]:
        """Deletes the slices, again and again until several looks in a row find none.

        Returns:
            What may be left when the tries are used up.
        """
        if self.options.dry_run:
            for each in self.resources()[: self.options.slices if self.options.direct else 1]:
                self._delete(each)
            return []
        clean = attempt = 0
        seen: list[list[Resource]] = []
        while True:
            left = self.left()
            seen = [*seen[1 - _CLEAN_LOOKS :], left]
            clean = 0 if left else clean + 1
            if clean >= _CLEAN_LOOKS and self.system.now() >= self.unsure_until:
                return []
            if not left:
                self.system.sleep(self.options.poll / (12 if clean < _CLEAN_LOOKS else 2))
                continue
            attempt += 1
            if attempt > _DELETE_TRIES:
                return _union(seen)
            # With its queued resource, a TPU VM goes too.
            owners = [each for each in left if each.group == "queued-resources"]
            for each in owners or left:
                if each.state != "DELETING" or attempt % 4 == 1:
                    self._delete(each)
            pause = self.system.back_off(attempt, self.options.poll / 12, self.options.poll * 5)
            if attempt > 1:
                say(f"still there: {', '.join(map(str, left))}; looking again in {pause:.0f} s")
            self.system.sleep(pause)

    def _delete(self, resource: Resource) -> None:
        # With --force, the TPU VMs of a queued resource go too.
        force = ["--force"] if resource.group == "queued-resources" else []
        answer = self.gcloud.tpus("delete", [resource.group, "delete", resource.name, *force])
        if answer.code and not is_missing(answer):
            say(f"cannot delete {resource.name}: {answer.reason}")

    def delete_command(self) -> str:
        """Returns the command that deletes the slices."""
        options = self.options
        words = ["launch/tpu_run.sh", "delete", "--name", options.name, "--zone", options.zone]
        words += ["--project", options.project] if options.project else []
        words += ["--direct"] if options.direct else []
        words += ["--slices", str(options.slices)] if options.slices > 1 else []
        return quoted(words)

    def bill(self, left: list[Resource]) -> str:
        """Returns the sentence about what costs money."""
        waiting = ("ACCEPTED", "WAITING_FOR_RESOURCES", "SUSPENDED", "FAILED")
        names = ", ".join(map(str, left))
        if any(each.state == UNKNOWN for each in left):
            verb = "may still be allocated and cost money"
        elif all(each.group == "queued-resources" and each.state in waiting for each in left):
            verb = "exists, and costs money as soon as its slices are allocated"
        else:
            verb = "costs money"
        return f"{names}: {verb}; delete: {self.delete_command()}"

    def wait(self) -> None:
        """Waits until the slices are ready."""
        name, since = self.options.name, self.system.now()
        troubles = 0
        while True:
            state = self.state(tries=3)
            if state == ACTIVE:
                return
            if state == MISSING:
                raise Failure(f"there is no {name} in {self.options.zone}: create it first")
            if state == GONE:
                raise Failure(
                    f"{name} was preempted or has failed: delete it, then create it again", 1
                )
            troubles = troubles + 1 if state == UNKNOWN else 0
            if troubles == self.options.max_troubles:
                raise Failure(f"the state of {name} is not available", 1)
            minutes = (self.system.now() - since) / 60
            say(f"waiting for {name} since {minutes:.0f} minutes; interrupting keeps the request")
            self.system.sleep(self.options.poll)


def _union(looks: list[list[Resource]]) -> list[Resource]:
    """Returns what any of several looks found, with the last known state of each."""
    found: dict[tuple[str, str], Resource] = {}
    for each in [each for look in looks for each in look]:
        if each.state != UNKNOWN or (each.group, each.name) not in found:
            found[each.group, each.name] = each
    return list(found.values())

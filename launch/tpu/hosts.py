"""The hosts of the slices: installation, the run on them, and its log."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import heapq
import pathlib
import re
import threading

from gcloud import Gcloud
from options import Options
from processes import Answer, Failure, Interrupted, System, quoted, say, show
from slices import Slices

# A host without setup has no script. The shell of the host expands this.
_ASK = (
    "if [ -f tpu_host.sh ]; then bash tpu_host.sh status; "
    'else echo "MAESTRO_HOST $(hostname) - absent"; fi'
)


@dataclasses.dataclass(frozen=True)
class Host:
    """What a host says about the run.

    Attributes:
        name: Its hostname.
        run: The id of the run that was started last; "-" if none was.
        state: absent, ready, running, stopped or exited.
        detail: The process id, the exit status, "killed", or the label of what is installed.
        rebooted: Whether it was started again since the run was started.
        error: The first line of the run's log that says what went wrong; empty if it did not fail.
        failed_at: When the run ended there, in seconds since 1970; 0 if that is not known.
    """

    name: str
    run: str = "-"
    state: str = "absent"
    detail: str = ""
    rebooted: bool = False
    error: str = ""
    failed_at: float = 0.0

    def __str__(self) -> str:
        rebooted = " (rebooted)" if self.rebooted else ""
        return f"{self.name} {self.state} {self.detail}".strip() + rebooted

    @property
    def failed(self) -> bool:
        """Whether the run failed here: neither the end of the run nor of a run that saved."""
        return self.state == "exited" and self.detail not in ("0", "143")


@dataclasses.dataclass(frozen=True)
class RunState:
    """The state of the whole run.

    Attributes:
        state: unreachable, absent, partial (started on some hosts only), ready, running, done,
            stopped, interrupted or failed.
        hosts: Those that answered.
        culprit: The host that failed first, of a failed run.
    """

    state: str
    hosts: tuple[Host, ...] = ()
    culprit: Host | None = None


class Hosts:
    """The hosts of the slices that the options name.

    Attributes:
        label: What is installed: a commit or a spec.
        refused: Whether it was the script on a host that failed last, rather than the way there.
    """

    def __init__(self, options: Options, gcloud: Gcloud, slices: Slices, system: System) -> None:
        self.options = options
        self.gcloud = gcloud
        self.slices = slices
        self.system = system
        self.label = ""
        self.refused = False

    @property
    def run_id(self) -> str:
        """What tells this run from others: a digest of the command and its arguments."""
        words = "\0".join([self.options.command, *self.options.arguments])
        return hashlib.sha256(words.encode()).hexdigest()[:12]

    def _on_slices(
        self, kind: str, words: list[str], *, tries: int = 1, echo: bool = False, all_: bool = False
    ) -> list[Answer]:
        """Calls gcloud once per slice, in parallel, and fills in @SLICE@ and @NODE@.

        The slices of a queued resource are addressed one by one too: `queued-resources ssh
        --node=all` leaves out a slice that it cannot reach, and succeeds.
        """
        calls = []
        for i, node in enumerate(self.slices.nodes()):
            if all_ or self.options.node in ("all", str(i)):
                filled = [x.replace("@SLICE@", str(i)).replace("@NODE@", node) for x in words]
                calls.append(["tpu-vm", *filled, *self.options.ssh_args])

        def call(words: list[str]) -> Answer:
            return self.gcloud.tpus(kind, words, tries=tries, on_line=show if echo else None)

        if self.options.dry_run or len(calls) == 1:
            return [call(words) for words in calls]
        return self.system.at_once(call, calls)

    def _on_hosts(
        self, kind: str, command: str, *more: str, all_: bool = False, **how: int
    ) -> list[Answer]:
        worker = "all" if all_ else self.options.worker
        words = ["ssh", "@NODE@", f"--worker={worker}", f"--command={command}", *more]
        return self._on_slices(kind, words, all_=all_, **how)  # type: ignore[arg-type]

    # ---- installation

    def check_code(self) -> None:
        """Finds what to install, a commit or a spec, before anything costs money."""
        options = self.options
        if options.spec:
            self.label = options.spec
            return
        git = ["git", "-C", str(options.root)]
        commit = self.system.execute([*git, "rev-parse", "HEAD"], 60)
        if commit.code:
            raise Failure(
                f"{options.root} is no git checkout, so there is no commit to send: name a package "
                "with --spec"
            )
        self.label = commit.output.strip()
        changes = self.system.execute([*git, "status", "--porcelain", "--untracked-files=no"], 60)
        if changes.output.strip() and not options.allow_dirty:
            raise Failure(
                "some changes are not committed, and hosts get the commit: commit them, or use "
                "--allow_dirty"
            )

    def _failure(self, answers: list[Answer]) -> str:
        """Returns why one of several calls failed: what a host says, else what gcloud does."""
        failed = [answer for answer in answers if answer.code]
        said = [
            x.group(1) for answer in failed if (x := re.search("(?m)^error: (.*)$", answer.errors))
        ]
        self.refused = bool(said)
        return said[0] if said else failed[0].reason if failed else ""

    def _local(self, words: list[str]) -> None:
        if self.options.dry_run:
            show(quoted(words))
        elif (answer := self.system.execute(words, 300)).code:
            raise Failure(f"{quoted(words)}: {answer.reason}", 1)

    def setup(self, tries: int = 1) -> str:
        """Installs the code on all hosts; returns why that failed, empty if it did not."""
        options = self.options
        script = str(options.root / "launch" / "tpu_host.sh")
        words = ["--label", self.label]
        files = [script]
        if options.spec:
            words += ["--spec", options.spec]
        else:
            archive = options.root / "build" / "launch" / options.name / "maestro_code.tar.gz"
            files.append(str(archive))
            self._local(["mkdir", "-p", str(archive.parent)])
            git = ["git", "-C", str(options.root), "archive", "--format=tar.gz"]
            self._local([*git, f"--output={archive}", self.label])
        if options.data:
            words += ["--data", options.data, "--data_by", options.data_by]
        scp = ["scp", *files, "@NODE@:", "--worker=all"]
        if why := self._failure(self._on_slices("scp", scp, tries=tries, all_=True)):
            return why
        command = f"bash tpu_host.sh setup {quoted(words)}"
        return self._failure(
            self._on_hosts("ssh setup", command, tries=tries, echo=True, all_=True)
        )

    # ---- the run

    def _environment(self) -> list[str]:
        """Returns `--env` options for the script on the hosts."""
        options = self.options
        joint = options.worker == "all" and options.node == "all"
        variables = (
            # With a named platform, JAX fails instead of falling back to the CPU.
            ["MAESTRO_MULTIHOST=1", "JAX_PLATFORMS=tpu,cpu"]
            if joint
            # The TPU of one host waits for those of the others.
            else ["MAESTRO_MULTIHOST=0", "JAX_PLATFORMS=cpu"]
        )
        if options.cache_dir:
            variables.append(f"JAX_COMPILATION_CACHE_DIR={options.cache_dir}")
        if joint:
            variables += self._megascale()
        return [x for variable in [*variables, *options.variables] for x in ("--env", variable)]

    def _megascale(self) -> list[str]:
        """Returns what tells slices of each other.

        A queued resource does it through the metadata of the hosts. Slices that were created one by
        one are told by these variables of JAX and libtpu.
        """
        options = self.options
        if not (options.direct and options.slices > 1):
            return []
        first = self.slices.nodes()[0]
        field = "--format=value(networkEndpoints[0].ipAddress)"
        answer = self.gcloud.tpus("describe", ["tpu-vm", "describe", first, field], tries=3)
        address = "ADDRESS_OF_THE_FIRST_HOST" if options.dry_run else answer.output.strip()
        if not address:
            raise Failure(f"the address of {first} is not available: {answer.reason}", 1)
        return [
            f"MEGASCALE_COORDINATOR_ADDRESS={address}:8081",
            "MEGASCALE_PORT=8081",
            f"MEGASCALE_NUM_SLICES={options.slices}",
            "MEGASCALE_SLICE_ID=@SLICE@",
        ]

    def start(self, tries: int = 1) -> str:
        """Starts the command, unless it runs already; returns why that failed."""
        options = self.options
        words = [options.command, self.run_id, *self._environment(), "--", *options.arguments]
        command = f"bash tpu_host.sh start {quoted(words)}"
        return self._failure(self._on_hosts("ssh start", command, tries=tries, echo=True))

    def check(self) -> str:
        """Joins all hosts and counts their devices; returns why that failed."""
        command = f"bash tpu_host.sh check {quoted(self._environment())}"
        return self._failure(self._on_hosts("ssh check", command, echo=True))

    def stop(self, tries: int = 1) -> str:
        """Makes the run save and end; returns why that failed."""
        return self._failure(
            self._on_hosts("ssh stop", "bash tpu_host.sh stop", tries=tries, echo=True)
        )

    def end(self) -> None:
        """Ends a run whose other hosts have failed, which may hang."""
        self._on_hosts("ssh end", "bash tpu_host.sh end", echo=True)

    def ask(self, tries: int = 1) -> list[Host]:
        """Returns what the hosts say; those that do not answer are left out."""
        found: dict[str, Host] = {}
        for answer in self._on_hosts("ssh status", _ASK, tries=tries):
            for line in answer.output.splitlines():
                kind, _, rest = line.partition(" ")
                words = rest.split(" ")
                if kind == "MAESTRO_HOST" and len(words) >= 3:
                    rebooted = words[-1] == "rebooted"
                    detail = " ".join(words[3:-1] if rebooted else words[3:])
                    found[words[0]] = Host(words[0], words[1], words[2], detail, rebooted)
                elif kind == "MAESTRO_ERROR" and words[0] in found:
                    seconds, error = float(words[1]), " ".join(words[2:])
                    found[words[0]] = dataclasses.replace(
                        found[words[0]], failed_at=seconds, error=error
                    )
        return sorted(found.values(), key=lambda host: host.name)

    def state(self) -> RunState:
        """Returns the state of the whole run."""
        return whole_state(self.ask())

    # ---- its log

    def logs(self) -> int:
        """Prints the last lines of all hosts, ordered by time, or saves the whole logs."""
        options = self.options
        if options.output_dir:
            for i in range(options.slices):
                if options.node in ("all", str(i)):
                    self._local(
                        ["mkdir", "-p", str(pathlib.Path(options.output_dir, f"slice-{i}"))]
                    )
            directory = f"--output-directory={options.output_dir}/slice-@SLICE@"
            why = self._failure(
                self._on_hosts("ssh log", "bash tpu_host.sh log", directory, tries=3)
            )
            if why:
                raise Failure(why, 1)
            return 0
        command = f"bash tpu_host.sh logs {options.lines}"
        if not options.follow or options.dry_run:
            command += " --follow" if options.follow else ""
            answers = self._on_hosts("ssh log", command, tries=3)
            lines = [Line.parse(line) for answer in answers for line in answer.output.splitlines()]
            for line in sorted(lines, key=lambda line: line.time):
                show(str(line))
            if why := self._failure(answers):
                raise Failure(why, 1)
            return 0
        return self._follow(f"{command} --follow")

    def _follow(self, command: str) -> int:
        """Prints lines as they come, held back for a second so that hosts fall into line."""
        merged = Merged()
        threads = [
            threading.Thread(target=self._follow_slice, args=(node, command, merged), daemon=True)
            for i, node in enumerate(self.slices.nodes())
            if self.options.node in ("all", str(i))
        ]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            self.system.sleep(0.2)
            merged.flush(self.system.now() - 1)
        merged.flush(float("inf"))
        return 1 if merged.lost else 0

    def _follow_slice(self, node: str, command: str, merged: Merged) -> None:
        words = ["tpu-vm", "ssh", node, f"--worker={self.options.worker}", f"--command={command}"]
        with contextlib.suppress(Interrupted):
            self._follow_until_the_end(node, [*words, *self.options.ssh_args], merged)

    def _follow_until_the_end(self, node: str, words: list[str], merged: Merged) -> None:
        for attempt in range(1, self.options.max_troubles + 1):
            answer = self.gcloud.tpus(
                "follow",
                words,
                on_line=lambda line: merged.add(Line.parse(line), self.system.now()),
            )
            if answer.code == 0:  # The run has ended.
                return
            say(f"{node}: {answer.reason}: connecting again")
            self.system.sleep(
                self.system.back_off(attempt, self.options.poll / 12, self.options.poll)
            )
        merged.lost = True


def whole_state(hosts: list[Host]) -> RunState:
    """Returns the state of the run from those of its hosts."""
    found = tuple(hosts)
    failed = [host for host in hosts if host.failed]
    states = {host.state for host in hosts}
    if not hosts:
        return RunState("unreachable")
    if failed:
        # An error of the user fails on every restart. Without a time, a host went down, and what
        # others say is a consequence.
        final = [host for host in failed if host.detail == "2"]
        culprit = min(final or failed, key=lambda host: host.failed_at)
        return RunState("failed", found, culprit)
    if "running" in states:
        partial = states & {"absent", "ready"}
        return RunState("partial" if partial else "running", found)
    if "stopped" in states:
        return RunState("stopped", found)
    if "absent" in states:
        return RunState("absent", found)
    if any(host.detail == "143" for host in hosts if host.state == "exited"):
        return RunState("interrupted", found)
    return RunState("ready" if "ready" in states else "done", found)


@dataclasses.dataclass(frozen=True)
class Line:
    """A line of a host's log.

    Attributes:
        time: When it was written, as text that sorts; empty if it has no time.
        host: The hostname.
        text: What was written.
    """

    time: str
    host: str
    text: str

    @classmethod
    def parse(cls, line: str) -> Line:
        """Reads `host: 2026-01-02T03:04:05.678Z text`."""
        if found := re.match(r"(\S+): (\d{4}-\d\d-\d\dT[\d:.]+)Z (.*)", line):
            return cls(found[2], found[1], found[3])
        return cls("", "", line)

    def __str__(self) -> str:
        return f"{self.time[11:23]} {self.host}: {self.text}" if self.time else self.text


class Merged:
    """Lines of several hosts, given out in the order of their time.

    Attributes:
        lost: Whether a slice could not be reached any more.
    """

    def __init__(self) -> None:
        self.lost = False
        self._lock = threading.Lock()
        self._heap: list[tuple[str, int, float, Line]] = []
        self._count = 0
        self._last: dict[str, str] = {}

    def add(self, line: Line, now: float) -> None:
        """Takes a line, unless it was taken before the connection broke."""
        with self._lock:
            if line.time:
                if line.time <= self._last.get(line.host, ""):
                    return
                self._last[line.host] = line.time
            self._count += 1
            heapq.heappush(self._heap, (line.time, self._count, now, line))

    def flush(self, before: float) -> None:
        """Prints what came before a time."""
        with self._lock:
            while self._heap and self._heap[0][2] <= before:
                show(str(heapq.heappop(self._heap)[3]))

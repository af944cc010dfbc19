"""Calls of gcloud: each with a time limit, and again where another try can help."""

from __future__ import annotations

import re
from collections.abc import Callable

from options import Options
from processes import TIMED_OUT, Answer, System, quoted, say, show

# Seconds for each kind of call. `create` and `delete` wait for the cloud; on a host, `setup`
# installs packages, `stop` waits for a checkpoint, and `end` gives a run a minute.
LIMITS = {
    "describe": 60.0,
    "create": 1200.0,
    "delete": 1200.0,
    "scp": 600.0,
    "storage": 60.0,
    "ssh setup": 1800.0,
    "ssh check": 660.0,
    "ssh start": 180.0,
    "ssh status": 90.0,
    "ssh stop": 960.0,
    "ssh end": 180.0,
    "ssh log": 600.0,
}
# What another try cannot mend.
_PERMANENT = re.compile(
    r"INVALID_ARGUMENT|PERMISSION_DENIED|UNAUTHENTICATED|unrecognized arguments|must be specified"
    r"|do(?:es)? not have permission|not currently have an active account|gcloud auth login"
    r"|API has not been used",
    re.IGNORECASE,
)


def is_missing(answer: Answer) -> bool:
    """Returns whether gcloud says that there is no such resource."""
    missing = "NOT_FOUND|not found|matched no objects"
    return answer.code != 0 and bool(re.search(missing, answer.errors, re.IGNORECASE))


def exists_already(answer: Answer) -> bool:
    """Returns whether gcloud refused to create what is there."""
    return answer.code != 0 and bool(
        re.search("ALREADY_EXISTS|already exists", answer.errors, re.IGNORECASE)
    )


def is_permanent(answer: Answer) -> bool:
    """Returns whether a repetition would fail again."""
    return answer.code != 0 and bool(_PERMANENT.search(answer.errors))


class Gcloud:
    """Calls gcloud, or prints its commands in a dry run."""

    def __init__(self, options: Options, system: System) -> None:
        self.options = options
        self.system = system

    def limit(self, kind: str) -> float:
        """Returns the time limit of a kind of call, in seconds."""
        return min(LIMITS[kind], self.options.call_limit or LIMITS[kind])

    def call(
        self,
        kind: str,
        words: list[str],
        *,
        tries: int = 1,
        on_line: Callable[[str], None] | None = None,
    ) -> Answer:
        """Calls gcloud.

        Args:
            kind: A key of `LIMITS`, or "follow", which has no time limit.
            words: The arguments of gcloud.
            tries: How often to call it, with growing pauses, until it succeeds or says what
                another try cannot mend.
            on_line: Gets each line of its output when it comes.
        """
        words = ["gcloud", *words]
        if self.options.dry_run:
            show(quoted(words))
            return Answer(0)
        limit = None if kind == "follow" else self.limit(kind)
        for attempt in range(1, tries + 1):
            answer = self.system.execute(words, limit, on_line)
            final = answer.code == 0 or attempt == tries or is_permanent(answer)
            from_host = kind.startswith("ssh") and _from_host(answer)
            if final or is_missing(answer) or exists_already(answer) or from_host:
                break
            pause = self.system.back_off(attempt, self.options.poll / 12, self.options.poll)
            say(f"{kind}: {answer.reason}: again in {pause:.0f} s ({attempt} of {tries - 1})")
            self.system.sleep(pause)
        return answer

    def tpus(self, kind: str, words: list[str], **how: object) -> Answer:
        """Calls `gcloud compute tpus` with the zone and the project."""
        options = self.options
        where = [f"--zone={options.zone}"]
        if options.project:
            where.append(f"--project={options.project}")
        return self.call(kind, ["compute", "tpus", *words, *where, "--quiet"], **how)  # type: ignore[arg-type]


def _from_host(answer: Answer) -> bool:
    """Returns whether a command on a host failed, rather than gcloud or the connection."""
    by_gcloud = re.search(r"^ERROR: \(gcloud", answer.errors, re.MULTILINE)
    return not by_gcloud and answer.code not in (TIMED_OUT, 255)

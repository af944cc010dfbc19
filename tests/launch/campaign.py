"""Babysits runs in simulated clouds with troubles, and prints what became of them.

    python tests/launch/campaign.py --seeds 50

A row passes if the run is done and nothing is left that costs money; or it was given up or
interrupted, that is said, and nothing is left; or, where nothing can be deleted, the last line
names what is left and the command that deletes it.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import os
import pathlib
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE)] if str(HERE) not in sys.path else []

import simulated_cloud  # noqa: E402
from babysit import Babysitter  # noqa: E402
from gcloud import Gcloud  # noqa: E402
from hosts import Hosts  # noqa: E402
from lock import Lease  # noqa: E402
from options import parse  # noqa: E402
from slices import Slices  # noqa: E402


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a run.

    Attributes:
        code: The exit status of babysit.
        said: What it printed.
        trained: Hours of training in checkpoints.
        created: Creations of slices.
        left: Names of slices that still cost money.
        hours: Simulated time.
        wrong: What is not as promised; empty if all is.
    """

    seed: int
    world: simulated_cloud.World
    code: int
    said: str
    trained: float
    created: int
    left: tuple[str, ...]
    hours: float
    wrong: str

    @property
    def verdict(self) -> str:
        """How it ended, in a word or two."""
        if self.code == 0:
            return "done"
        return "interrupted" if self.code > 128 else "given up"


def babysit(cloud: simulated_cloud.Cloud, seed: int, directory: str) -> int:
    """Babysits a run; returns the exit status."""
    world = cloud.world
    words = ["babysit", "--name=pod", "--zone=z", "--type=v6e-16", f"--slices={world.slices}"]
    words += ["--direct"] * world.direct + ["--keep"] * world.keep
    words += [f"--max_hours={world.max_hours:.3f}"] * bool(world.max_hours)
    options = parse([*words, "--", "--model_dir", "gs://b/a"])
    system = simulated_cloud.Simulated(cloud, seed)
    gcloud = Gcloud(options, system)
    slices = Slices(options, gcloud, system)
    hosts = Hosts(options, gcloud, slices, system)
    hosts.check_code()
    lease = Lease(options, gcloud, system)
    # In simulated time nothing happens in the background.
    lease.keep = lambda: None  # type: ignore[method-assign]
    return Babysitter(options, gcloud, slices, hosts, lease, system).run()


def attempt(seed: int) -> Outcome:
    """Babysits the run of a seed; a babysitter that was killed is started again."""
    world = simulated_cloud.world(seed)
    cloud = simulated_cloud.Cloud(world, seed)
    said = io.StringIO()
    before = os.environ.get("XDG_STATE_HOME")
    with tempfile.TemporaryDirectory() as directory, contextlib.redirect_stderr(said):
        os.environ["XDG_STATE_HOME"] = directory
        try:
            code = babysit(cloud, seed, directory)
        except simulated_cloud.Killed:
            if seed % 2:  # on another machine
                pathlib.Path(directory, "maestro_jax", "launch", "machine").unlink()
            code = babysit(cloud, seed, directory)
        finally:
            os.environ.pop("XDG_STATE_HOME")
            if before is not None:
                os.environ["XDG_STATE_HOME"] = before
    # What was requested and not answered may come up to three polls later.
    cloud.advance(cloud.now + 10 * simulated_cloud.POLL)
    left = tuple(cloud.allocated())
    text = said.getvalue()
    wrong = judge(world, code, text.splitlines()[-1] if text else "", cloud, left)
    return Outcome(
        seed, world, code, text, cloud.trained, cloud.created, left, cloud.now / 3600, wrong
    )


def judge(
    world: simulated_cloud.World,
    code: int,
    last: str,
    cloud: simulated_cloud.Cloud,
    left: tuple[str, ...],
) -> str:
    """Returns what is not as promised."""
    done = cloud.trained >= simulated_cloud.RUN_HOURS - 1e-6
    if code == 0 and not done:
        return "success without the end of the run"
    if code == 0 and left and not world.keep:
        return "success, but slices are left"
    if left and not all(name in last for name in left):
        return f"the last line does not name {left}"
    if left and "launch/tpu_run.sh delete --name pod" not in last:
        return "the last line has no command to delete what is left"
    # Only who cannot delete, must not, or is told not to wait may leave anything.
    may_leave = world.no_delete or world.keep or len(world.signals) > 2
    if left and not may_leave:
        return "slices are left"
    if world.is_mild and code != 0:
        return "it could have been done"
    if world.user_error and not (code in (2, 1) or code > 128):
        return "an error of the user was not given up"
    return ""


def table(outcomes: list[Outcome]) -> str:
    """Returns a row for each outcome."""
    rows = [
        f"{'seed':>4}  {'outcome':<12} {'code':>4} {'hours':>6} {'created':>7}  {'left':<6} faults"
    ]
    for each in outcomes:
        left = ",".join(each.left) or "-"
        rows.append(
            f"{each.seed:>4}  {each.verdict:<12} {each.code:>4} {each.hours:>6.1f} "
            f"{each.created:>7}  {left:<12} {each.world.faults()}"
            + (f"  WRONG: {each.wrong}" if each.wrong else "")
        )
    return "\n".join(rows)


def main() -> int:
    """Prints the table; the exit status is 1 if something was not as promised."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=50, help="number of schedules")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--verbose", action="store_true", help="print what babysit says, too")
    arguments = parser.parse_args()
    start = time.monotonic()
    outcomes = [attempt(arguments.first + i) for i in range(arguments.seeds)]
    if arguments.verbose:
        for each in outcomes:
            print(f"--- {each.seed}\n{each.said}")
    print(table(outcomes))
    wrong = [each for each in outcomes if each.wrong]
    verdicts = [each.verdict for each in outcomes]
    counts = ", ".join(f"{verdicts.count(x)} {x}" for x in sorted(set(verdicts)))
    seconds = time.monotonic() - start
    print(f"{len(outcomes)} schedules: {counts}; {len(wrong)} not as promised; {seconds:.1f} s")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

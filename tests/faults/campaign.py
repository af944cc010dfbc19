"""Disturbs many small runs, checks that nothing is lost, and prints a table.

    python -m tests.faults.campaign --faults 200 --seed 0 --processes 1,2 --output build/faults

Each run meets several faults, one after another, and must then end with the arrays, the metrics and
the record of the undisturbed run. A run that is in `results.jsonl` of the output is not repeated,
so that the same command continues a campaign that was stopped.
"""

from __future__ import annotations

import argparse
import collections
import concurrent.futures
import dataclasses
import functools
import itertools
import json
import os
import pathlib
import random
import shutil
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from maestro_jax.progress import Progress
from tests.faults import control, kinds
from tests.faults.small_run import Failure, MiniVoxProgram, Program, SmallRun

FAULTS_PER_RUN = 8
TOY, MINIVOX = "toy", "minivox"
STEPS = {TOY: 160, MINIVOX: 64}
"""Steps of a run by its program, enough for its faults to find it at work."""
FAILED, END = "failed", "end of the run"
TOLERANCE = 1e-6
"""Relative difference of arrays and metrics that is allowed where the number of hosts changes."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """A run of the campaign.

    Attributes:
        index: Its number.
        program: `TOY`, or `MINIVOX` for `maestro train` on speech.
        processes: Number of processes.
        kinds: Names of the faults, in order.
    """

    index: int
    program: str
    processes: int
    kinds: tuple[str, ...]


def make_plans(
    faults: int, seed: int, processes: Sequence[int], names: Sequence[str], minivox: int = 0
) -> list[Plan]:
    """Draws a schedule, spread evenly over topologies, and over kinds by their weights.

    Args:
        faults: Number of faults.
        seed: Seed of the schedule.
        processes: Numbers of processes of a run.
        names: Kinds of faults to draw from.
        minivox: How many of the faults meet `maestro train`, in one process.
    """
    rng = random.Random(seed)
    plans: list[Plan] = []
    toy = faults - minivox
    shares = [
        (TOY, count, toy * (order + 1) // len(processes) - toy * order // len(processes))
        for order, count in enumerate(processes)
    ]
    for program, count, share in [*shares, (MINIVOX, 1, minivox)]:
        possible = [
            name
            for name in names
            if count in kinds.TOPOLOGIES[name]
            and (program == MINIVOX or name not in kinds.NEEDS_SHARDS)
        ]
        deck: list[str] = []
        due = {name: -rng.random() for name in possible}
        while len(deck) < share and possible:
            # The kind that is furthest behind its share is next; the order is shuffled below.
            name = min(possible, key=lambda n: (due[n] + 1) / kinds.WEIGHTS[n])
            due[name] += 1
            deck.append(name)
        rng.shuffle(deck)
        for first in range(0, len(deck), FAULTS_PER_RUN):
            drawn = deck[first : first + FAULTS_PER_RUN]
            # A run can end with one that changes it, and others of its kind find no place.
            last = [name for name in drawn if name in kinds.LAST]
            ordered = [name for name in drawn if name not in kinds.LAST]
            plans.append(Plan(len(plans), program, count, (*ordered, *last[:1])))
    return plans


def disturb(
    plan: Plan, make_run: Callable[[int], SmallRun], reference: SmallRun
) -> list[dict[str, Any]]:
    """Does a run with its faults, and another one with those that are left when one has failed.

    Args:
        plan: What is to be done.
        make_run: Makes the run, or the next one.
        reference: The undisturbed run.

    Returns:
        For each fault, and for the end of each run: kind, outcome, detail and seconds.
    """
    results: list[dict[str, Any]] = []
    left = list(plan.kinds)
    for number in itertools.count():
        run = make_run(number)
        try:
            results += _disturb(left, run, reference)
        finally:
            run.kill()
        if not left:
            return results


def _disturb(left: list[str], run: SmallRun, reference: SmallRun) -> list[dict[str, Any]]:
    """Does one run; takes from the list what has been injected."""
    results: list[dict[str, Any]] = []

    def note(kind: str, outcome: str, detail: str = "") -> bool:
        seconds = round(time.monotonic() - began, 1)
        results.append(
            {"kind": kind, "outcome": outcome, "detail": detail, "seconds": seconds}
            | {"directory": run.directory.name, "attempt": run.attempts}
        )
        return outcome != FAILED

    while left:
        began = time.monotonic()
        try:
            if not run.children:
                run.recover()
            outcome = kinds.KINDS[left[0]](run)
            note(left.pop(0), outcome)
        except kinds.RunEnded:
            if len(run.topologies) == 1 and not results:
                raise
            break
        except Failure as failure:
            note(left.pop(0), FAILED, str(failure))
            # What has gone wrong is kept as it is; the next fault meets another run.
            return results
    began = time.monotonic()
    try:
        run.finish()
        run.check_against(reference, TOLERANCE if len(run.topologies) > 1 else 0.0)
        note(END, kinds.RECOVERED)
    except Failure as failure:
        note(END, FAILED, str(failure))
    return results


def table(results: Sequence[dict[str, Any]]) -> str:
    """Formats the results by kind."""
    counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for result in results:
        counts[result["kind"]][result["outcome"]] += 1
    columns = (kinds.RECOVERED, kinds.STOPPED, FAILED)
    header = ("fault", "injected", *columns)
    rows = [
        (name, counts[name].total(), *(counts[name][column] for column in columns))
        for name in kinds.KINDS
        if name in counts
    ]
    totals = [sum(row[index] for row in rows) for index in range(1, len(header))]
    rows.append(("all faults", *totals))
    end = counts[END]
    rows.append(("runs, at their end", end.total(), *(end[column] for column in columns)))
    width = max(len(str(row[0])) for row in rows)
    lines = [f"{header[0]:<{width}}  " + "  ".join(header[1:])]
    for row in rows:
        cells = [f"{cell:>{len(name)}}" for cell, name in zip(row[1:], header[1:], strict=True)]
        lines.append(f"{row[0]:<{width}}  " + "  ".join(cells))
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the campaign; the exit status is 1 if anything failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--faults", type=int, default=200, help="number of faults; default: 200")
    parser.add_argument("--seed", type=int, default=0, help="seed of the schedule; default: 0")
    parser.add_argument(
        "--processes", default="1,2", help="numbers of processes of a run; default: 1,2"
    )
    parser.add_argument(
        "--kinds",
        help="names of faults separated by commas; default: all. 'killed,one of two "
        "killed' is what a power failure does",
    )
    parser.add_argument(
        "--minivox",
        type=int,
        default=0,
        help="how many of the faults meet `maestro train` on speech, not the toy; default: none",
    )
    parser.add_argument(
        "--steps",
        type=int,
        default=STEPS[TOY],
        help=f"steps of a run of the toy; default: {STEPS[TOY]}",
    )
    parser.add_argument(
        "--workers", type=int, default=1, help="number of runs at a time; default: 1"
    )
    parser.add_argument(
        "--output", type=pathlib.Path, required=True, help="directory for all of it"
    )
    arguments = parser.parse_args(argv)
    processes = [int(word) for word in arguments.processes.split(",")]
    names = list(kinds.KINDS) if arguments.kinds is None else arguments.kinds.split(",")
    if unknown := [name for name in names if name not in kinds.KINDS]:
        parser.error(f"no such kind: {unknown[0]}; there are: {', '.join(kinds.KINDS)}")

    output = arguments.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    shared = output / "shared"
    (shared / "xla").mkdir(parents=True, exist_ok=True)
    if control.build_library(shared) is None:
        names = [name for name in names if name not in kinds.NEEDS_LIBRARY]
        print("no C compiler (cc): faults of storage and of the clock are left out")
    minivox = min(arguments.minivox, arguments.faults)
    plans = make_plans(arguments.faults, arguments.seed, processes, names, minivox)

    path = output / "results.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    done = {entry["run"]: entry["results"] for entry in map(json.loads, lines)}
    programs = {
        TOY: Program(arguments.steps),
        MINIVOX: MiniVoxProgram(STEPS[MINIVOX], prepared=shared / "minivox"),
    }
    began = time.monotonic()

    @functools.cache
    def reference(name: str, count: int) -> SmallRun:
        """Does the undisturbed run, which also fills the compilation cache."""
        if name == MINIVOX:
            programs[name].prepare()
        directory = output / f"{name}{count}"
        shutil.rmtree(directory, ignore_errors=True)
        run = SmallRun(programs[name], count, directory, shared, random.Random(0))
        run.finish()
        return run

    def do(plan: Plan) -> None:
        rng = random.Random(f"{arguments.seed} {plan.index}")
        for old in output.glob(f"run{plan.index:03d}.*"):
            shutil.rmtree(old)

        def make_run(number: int) -> SmallRun:
            directory = output / f"run{plan.index:03d}.{number}"
            return SmallRun(programs[plan.program], plan.processes, directory, shared, rng)

        with locks[plan.program, plan.processes]:
            undisturbed = reference(plan.program, plan.processes)
        results = disturb(plan, make_run, undisturbed)
        with lock:
            done[plan.index] = results
            with path.open("a") as file:
                file.write(json.dumps({"run": plan.index, "results": results}) + "\n")
            progress.update(len(plan.kinds))
        broken = {each["directory"] for each in results if each["outcome"] == FAILED}
        for each in {each["directory"] for each in results} - broken:
            shutil.rmtree(output / each)

    lock = threading.Lock()
    left = [plan for plan in plans if plan.index not in done]
    locks = {(plan.program, plan.processes): threading.Lock() for plan in plans}
    total = sum(len(plan.kinds) for plan in left)
    with (
        Progress(total=total, label="faults", unit="fault") as progress,
        concurrent.futures.ThreadPoolExecutor(arguments.workers) as pool,
    ):
        try:
            list(pool.map(do, left))
        except KeyboardInterrupt:
            print("interrupted: the same command continues it", file=sys.stderr, flush=True)
            os._exit(130)  # Its processes end with it.
    results = [result for plan in plans for result in done[plan.index]]
    print(table(results))
    failed = [result for result in results if result["outcome"] == FAILED]
    for each in failed:
        print(f"{each['directory']}, attempt {each['attempt']}: {each['kind']}: {each['detail']}")
    print(f"{time.monotonic() - began:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

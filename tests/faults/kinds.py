"""The kinds of faults: each disturbs a run, sees how it takes that, and brings it back to work.

A function returns RECOVERED where the run goes on by itself or after the restart that a supervisor
makes, and STOPPED where it has said in one line what a user must do, and the user has done that. It
raises `Failure` for everything else, and `RunEnded` where the run had ended before.
"""

from __future__ import annotations

import errno
import pathlib
import shutil
import signal
import time
from collections.abc import Callable, Sequence

from tests.faults.small_run import EXIT_LIMIT, START_LIMIT, Failure, SmallRun, patience

RECOVERED, STOPPED = "recovered", "stopped in one line"
Kind = Callable[[SmallRun], str]
KINDS: dict[str, Kind] = {}
"""All kinds by name."""
TOPOLOGIES: dict[str, tuple[int, ...]] = {}
"""Numbers of processes in which a kind is possible."""
WEIGHTS: dict[str, float] = {}
"""How often a kind is drawn; less than 1 for those that take half a minute."""
NEEDS_LIBRARY: set[str] = set()
"""Kinds that need a C compiler."""
NEEDS_SHARDS: set[str] = set()
"""Kinds that need prepared data."""
LAST: set[str] = set()
"""Kinds after which nothing of the run is as before: they are drawn as its last one."""
LOST_HOST_LIMIT = 45.0
"""Seconds in which the others end after one is lost: 30 until they notice, and time to leave."""


class RunEnded(Exception):
    """The run had come to its end before the fault."""


def kind(
    name: str,
    processes: tuple[int, ...] = (1, 2),
    *,
    weight: float = 1.0,
    library: bool = False,
    shards: bool = False,
    last: bool = False,
) -> Callable[[Kind], Kind]:
    """Registers a kind of fault."""

    def register(function: Kind) -> Kind:
        KINDS[name], TOPOLOGIES[name], WEIGHTS[name] = function, processes, weight
        if library:
            NEEDS_LIBRARY.add(name)
        if shards:
            NEEDS_SHARDS.add(name)
        if last:
            LAST.add(name)
        return function

    return register


def wait_for_moment(run: SmallRun) -> None:
    """Waits for a random moment: some steps later, in a third of the cases within a saving."""
    if not run.advance(run.rng.randint(1, 6)):
        raise RunEnded
    if run.rng.random() < 1 / 3 and not run.until(run.is_saving, START_LIMIT):
        raise RunEnded
    time.sleep(run.rng.random() * 0.1)
    if run.has_ended:
        raise RunEnded


def _after_exit(run: SmallRun, codes: Sequence[int]) -> str:
    """Restarts after an exit as its statuses demand, once what was wrong is healed."""
    run.recover()
    return STOPPED if 2 in codes else RECOVERED


# -------------------------------------------------------------------------------- processes


@kind("killed", weight=2)
def killed(run: SmallRun) -> str:
    """SIGKILL to all processes, as when the power fails."""
    wait_for_moment(run)
    run.kill()
    run.recover()
    return RECOVERED


@kind("killed while starting")
def killed_while_starting(run: SmallRun) -> str:
    """SIGKILL once more before the first step of the restart."""
    wait_for_moment(run)
    run.kill()
    run.start()
    time.sleep(run.rng.random() * 4)
    run.kill()
    run.recover()
    return RECOVERED


@kind("one of two killed", (2,), weight=2)
def one_killed(run: SmallRun) -> str:
    """SIGKILL to one of two processes; the other one must end by itself, and say why."""
    wait_for_moment(run)
    lost = run.rng.randrange(2)
    run.children[lost].kill()
    codes = run.wait_for_exit(LOST_HOST_LIMIT)
    _check_survivor(run, codes, lost)
    run.recover()
    return RECOVERED


def _check_survivor(run: SmallRun, codes: Sequence[int], lost: int) -> None:
    other = 1 - lost
    if codes[other] not in (75, 143):
        raise Failure(f"the other process exits with {codes[other]}")
    errors = [x for x in run.log_text(other).splitlines() if x.startswith("error: ")]
    if not any(f"process {lost}" in line or f"host {lost}" in line for line in errors):
        raise Failure(f"the other process does not name process {lost}: {errors}")


@kind("one of two frozen", (2,), weight=0.4)
def one_frozen(run: SmallRun) -> str:
    """SIGSTOP to one of two processes for ever: a host that answers no more."""
    wait_for_moment(run)
    lost = run.rng.randrange(2)
    run.children[lost].send_signal(signal.SIGSTOP)
    other = run.children[1 - lost]
    try:
        other.wait(patience(LOST_HOST_LIMIT))
    except Exception:
        run.kill()
        raise Failure(f"still waits for a frozen process after {LOST_HOST_LIMIT:.0f} s") from None
    run.children[lost].kill()
    _check_survivor(run, run.wait_for_exit(), lost)
    run.recover()
    return RECOVERED


@kind("fewer hosts", (2,), last=True)
def fewer_hosts(run: SmallRun) -> str:
    """Both processes die, and one alone goes on."""
    wait_for_moment(run)
    run.kill()
    run.processes = 1
    run.recover()
    return RECOVERED


@kind("asked to stop (SIGTERM)", weight=2)
def terminated(run: SmallRun) -> str:
    """SIGTERM to all processes, or to one of two."""
    return _asked_to_stop(run, signal.SIGTERM)


@kind("interrupted (SIGINT)", weight=2)
def interrupted(run: SmallRun) -> str:
    """SIGINT to all processes, or to one of two."""
    return _asked_to_stop(run, signal.SIGINT)


def _asked_to_stop(run: SmallRun, number: int) -> str:
    wait_for_moment(run)
    step = run.step
    for child in run.rng.choice([run.children, [run.rng.choice(run.children)]]):
        child.send_signal(number)
    codes = run.wait_for_exit()
    if set(codes) == {0}:
        raise RunEnded
    if not set(codes) <= {130, 143}:
        raise Failure(f"exits with {codes} after {signal.Signals(number).name}")
    # `step` counts batches, of which one is ahead of the step that is being done.
    if not run.steps() or run.steps()[-1] < step - 1:
        raise Failure(f"asked to stop at step {step}, it kept {run.steps()[-1:]}")
    run.recover()
    return RECOVERED


@kind("paused (SIGSTOP)")
def paused(run: SmallRun) -> str:
    """SIGSTOP to one process for some seconds."""
    wait_for_moment(run)
    child = run.rng.choice(run.children)
    child.send_signal(signal.SIGSTOP)
    time.sleep(0.5 + 3 * run.rng.random())
    child.send_signal(signal.SIGCONT)
    if run.recover() != "nothing":
        raise Failure("a short pause has stopped it")
    return RECOVERED


@kind("second run on the directory")
def second_run(run: SmallRun) -> str:
    """The same command a second time; it must be refused, and the first one go on."""
    wait_for_moment(run)
    pace, run.control.pace = run.control.pace, 0.3
    code, words = run.second_run()
    errors = [line for line in words.splitlines() if line.startswith("error: ")]
    run.control.pace = pace
    if code not in (2, 75) or len(errors) != 1 or "Traceback" in words:
        raise Failure(f"the second run exits with {code}: {' '.join(words.split())[-200:]}")
    if run.recover() != "nothing":
        raise Failure("the first run has been stopped by the second one")
    return RECOVERED


@kind("clock jumps", library=True)
def clock_jumps(run: SmallRun) -> str:
    """The wall clock jumps by up to a day, forward or back."""
    wait_for_moment(run)
    run.control.clock += run.rng.choice([-1, 1]) * round(10 ** (1 + 4 * run.rng.random()))
    if run.recover() != "nothing":
        raise Failure("it has been stopped by the clock")
    if run.rng.random() < 0.5:
        run.kill()
        run.recover()
    return RECOVERED


# ---------------------------------------------------------------------------------- storage


def _bad_storage(run: SmallRun, area: str, *, seconds: float, **faults: int) -> str:
    wait_for_moment(run)
    for name, value in faults.items():
        setattr(run.control.area(area), name, value)
    # Some savings fall into the fault, and many steps are left for those that follow.
    pace, run.control.pace = run.control.pace, 0.2
    run.rest(seconds)
    run.control.pace = pace
    run.control.heal()
    run.rest(patience(1.5))  # It may be about to end.
    if run.has_ended:
        return _after_exit(run, run.wait_for_exit())
    run.recover()
    return RECOVERED


@kind("disk full", weight=2, library=True)
def disk_full(run: SmallRun) -> str:
    """The disk of the model directory takes no more bytes, for some seconds."""
    return _bad_storage(run, "model", seconds=1 + 4 * run.rng.random(), write_error=errno.ENOSPC)


@kind("model directory read-only", library=True)
def read_only(run: SmallRun) -> str:
    """The model directory is mounted read-only for some seconds."""
    return _bad_storage(run, "model", seconds=1 + 4 * run.rng.random(), write_error=errno.EROFS)


@kind("writing fails (EIO)", library=True)
def writing_fails(run: SmallRun) -> str:
    """Whatever writes into the model directory fails, for some seconds."""
    return _bad_storage(run, "model", seconds=1 + 4 * run.rng.random(), write_error=errno.EIO)


@kind("storage slow", library=True)
def storage_slow(run: SmallRun) -> str:
    """Every call takes up to 50 ms longer, for some seconds."""
    delay = run.rng.randint(5, 50)
    return _bad_storage(run, "model", seconds=1 + 3 * run.rng.random(), delay_ms=delay)


@kind("storage stands still", library=True)
def storage_stuck(run: SmallRun) -> str:
    """Whatever writes waits, for some seconds."""
    return _bad_storage(run, "model", seconds=1 + 3 * run.rng.random(), stall_writes=1)


@kind("no writing at a start", library=True)
def no_writing_at_start(run: SmallRun) -> str:
    """A restart with the disk full or read-only; it must stop in one line, or wait."""
    wait_for_moment(run)
    run.kill()
    run.control.area("model").write_error = run.rng.choice(
        [errno.ENOSPC, errno.EROFS, errno.EACCES]
    )
    run.start()
    run.rest(6.0)
    run.control.heal()
    run.rest(patience(1.5))
    if run.has_ended:
        return _after_exit(run, run.wait_for_exit())
    run.recover()
    return RECOVERED


@kind("reading fails at a start", library=True)
def reading_fails(run: SmallRun) -> str:
    """A restart that cannot read the model directory; checkpoints must not be given up for that."""
    wait_for_moment(run)
    run.kill()
    before = run.steps()
    run.control.area("model").read_error = errno.EIO
    run.start()
    run.rest(6.0)
    run.control.heal()
    run.rest(patience(1.5))
    codes = []
    if run.has_ended:
        codes = run.wait_for_exit()
    if before and max(run.steps(), default=-1) < before[-1]:
        raise Failure(f"the checkpoint {before[-1]} is gone after a failure to read")
    return _after_exit(run, codes)


@kind("compilation cache full", library=True)
def cache_full(run: SmallRun) -> str:
    """A restart whose compilation cache cannot be written, or not be read."""
    wait_for_moment(run)
    run.kill()
    name, error = run.rng.choice(
        [("write_error", errno.ENOSPC), ("write_error", errno.EROFS), ("read_error", errno.EIO)]
    )
    setattr(run.control.area("cache"), name, error)
    run.recover()
    run.control.heal()
    return RECOVERED


# ------------------------------------------------------------------------------------ input


@kind("input stands still", library=True)
def input_stuck(run: SmallRun) -> str:
    """Reading data waits for some seconds."""
    return _bad_storage(run, "data", seconds=1 + 3 * run.rng.random(), stall_reads=1)


@kind("asked to stop while the input stands still", library=True)
def stopped_without_input(run: SmallRun) -> str:
    """SIGTERM while no batch comes: what was done is saved, although the step never comes."""
    wait_for_moment(run)
    run.control.area("data").stall_reads = 1
    time.sleep(1.0)
    step = run.step
    for child in run.children:
        child.send_signal(signal.SIGTERM)
    try:
        codes = run.wait_for_exit(EXIT_LIMIT / 2)
    finally:
        run.control.heal()
    if set(codes) - {143, 75}:
        raise Failure(f"exits with {codes}")
    if not run.steps() or run.steps()[-1] < step - 1:
        raise Failure(f"asked to stop at step {step}, it kept {run.steps()[-1:]}")
    run.recover()
    return RECOVERED


@kind("damaged shard", shards=True, weight=3)
def damaged_shard(run: SmallRun) -> str:
    """A file of data is damaged: it is named in one line, and put back by the user."""
    wait_for_moment(run)
    run.kill()
    (path, *_) = run.program.shards(run.data_dir)
    whole = path.read_bytes()
    path.write_bytes(_damaged(whole, run.rng.choice(["cut", "zeroed"]), run.rng.random()))
    run.start()
    run.rest(START_LIMIT)
    path.write_bytes(whole)
    codes = run.wait_for_exit()
    words = run.log_text()
    if not set(codes) & {2, 75} or path.name not in words:
        raise Failure(f"exits with {codes}, and does not name {path.name}")
    return _after_exit(run, codes)


# ------------------------------------------------------------------------------------ files

DAMAGES = ("missing", "empty", "cut", "zeroed", "flipped")


def _damaged(content: bytes, how: str, where: float) -> bytes:
    place = int(where * len(content))
    if how == "cut":
        return content[:place]
    if how == "zeroed":
        return content[:place] + bytes(len(content) - place)
    if how == "flipped":
        return content[:place] + bytes([content[place] ^ 16]) + content[place + 1 :]
    return b""


def damage(path: pathlib.Path, how: str, where: float) -> None:
    """Damages a file.

    Args:
        path: The file.
        how: One of `DAMAGES`.
        where: Where the damage is or begins, as a part of the size.
    """
    if how == "missing":
        path.unlink()
    else:
        path.write_bytes(_damaged(path.read_bytes(), how, where))


@kind("newest checkpoint damaged", weight=4)
def checkpoint_damaged(run: SmallRun) -> str:
    """A file of the newest checkpoint is damaged while nothing runs."""
    wait_for_moment(run)
    run.kill()
    steps = run.steps()
    if len(steps) < 2:
        run.recover()
        if not run.until(lambda: len(run.steps()) >= 2, START_LIMIT):
            raise RunEnded
        run.kill()
        steps = run.steps()
    newest = run.model_dir / "checkpoints" / str(steps[-1])
    markers = ("commit_success.txt", "_CHECKPOINT_METADATA")
    files = sorted(p for p in newest.rglob("*") if p.is_file() and p.name not in markers)
    path = run.rng.choice([path for path in files if path.stat().st_size])
    how = run.rng.choice(DAMAGES)
    damage(path, how, run.rng.random())
    name = str(path.relative_to(newest))
    run.start()
    if not run.until(lambda: run.step >= 0, START_LIMIT):
        codes = run.wait_for_exit()
        raise Failure(f"{name} {how}: exits with {codes}: {run.log_text()[-200:]!r}")
    words = " ".join(run.log_text(index) for index in range(len(run.children)))
    if "damaged" in words and str(newest) not in words:
        raise Failure(f"{name} {how}: the damaged checkpoint is not named")
    run.recover()
    return RECOVERED


@kind("whole checkpoint lost")
def checkpoint_lost(run: SmallRun) -> str:
    """The state, the record, or all of the newest checkpoint is gone."""
    wait_for_moment(run)
    run.kill()
    steps = run.steps()
    if len(steps) < 2:
        run.recover()
        return RECOVERED
    newest = run.model_dir / "checkpoints" / str(steps[-1])
    shutil.rmtree(newest / run.rng.choice([".", "state", "data"]))
    run.recover()
    return RECOVERED


@kind("metrics torn")
def metrics_torn(run: SmallRun) -> str:
    """Half a line at the end of metrics.jsonl, as a crash leaves it."""
    wait_for_moment(run)
    run.kill()
    path = run.model_dir / "metrics.jsonl"
    if path.exists():
        with path.open("ab") as file:
            file.write(b'{"step": 1000, "loss": 2.5, "grad_no'[: run.rng.randint(1, 34)])
    run.recover()
    return RECOVERED


@kind("small file torn", weight=2)
def small_file_torn(run: SmallRun) -> str:
    """Another file of the model directory is damaged while nothing runs."""
    wait_for_moment(run)
    run.kill()
    files = sorted(
        path
        for path in run.model_dir.iterdir()
        if path.is_file() and path.name != "metrics.jsonl" and path.stat().st_size
    )
    if not files:
        run.recover()
        return RECOVERED
    path, how = run.rng.choice(files), run.rng.choice(["empty", "cut", "zeroed"])
    whole = path.read_bytes()
    damage(path, how, run.rng.random())
    run.start()
    if not run.until(lambda: run.step > 0, START_LIMIT):
        codes = run.wait_for_exit()
        if set(codes) != {2}:
            raise Failure(f"{path.name} {how}: exits with {codes}")
        if path.name not in run.log_text():
            raise Failure(f"{path.name} {how}: the line does not name it")
        path.write_bytes(whole)
        run.recover()
        return STOPPED
    run.recover()
    return RECOVERED

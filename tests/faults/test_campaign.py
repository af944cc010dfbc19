"""A small campaign of faults, and that its checks notice what they are for."""

from __future__ import annotations

import pathlib
import random
import subprocess
import sys

import numpy as np
import pytest

from maestro_jax.training.lease import LEASE_FILE
from tests.faults import control, kinds
from tests.faults.campaign import TOY, make_plans
from tests.faults.small_run import (
    Failure,
    Program,
    SmallRun,
    check_words,
    compare_arrays,
    compare_metrics,
    compare_records,
    metrics_of,
)

ROOT = pathlib.Path(__file__).parents[2]


def _campaign(output: pathlib.Path, *options: str) -> str:
    command = [sys.executable, "-m", "tests.faults.campaign", "--output", output, *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_run_survives_some_faults(tmp_path):
    names = ["killed", "interrupted (SIGINT)"]
    if control.build_library(tmp_path):
        names.append("clock jumps")
    options = ["--processes", "1", "--faults", str(len(names) + 1), "--kinds", ",".join(names)]
    options += ["--steps", "60"]
    out = _campaign(tmp_path / "out", *options)
    rows = {line[:27].strip(): line[27:].split() for line in out.splitlines()}
    assert rows["all faults"][0] == str(len(names) + 1) and rows["runs, at their end"][-1] == "0"
    # What is done is not done again.
    assert _campaign(tmp_path / "out", *options).splitlines()[:-1] == out.splitlines()[:-1]


@pytest.mark.slow
@pytest.mark.multiprocess
def test_runs_of_one_and_two_processes_survive_faults(tmp_path):
    _campaign(tmp_path, "--processes", "1,2", "--faults", "60", "--seed", "7")


@pytest.mark.slow
@pytest.mark.multiprocess
def test_two_processes_wait_for_a_lease_together(tmp_path):
    """The first one watches a lease for 45 s, longer than a collective of the CPU waits."""
    program = Program(steps=60)
    program.prepare()
    run = SmallRun(program, 2, tmp_path / "run", tmp_path / "shared", random.Random(0))
    (tmp_path / "shared").mkdir()
    run.start()
    assert run.advance(3)
    run.kill()
    (run.model_dir / LEASE_FILE).write_bytes(b"")
    run.start()
    assert run.until(lambda: run.step > 0, 120.0), run.log_text(1)
    assert "a run that left a damaged lease: waiting up to" in run.log_text(0)
    run.kill()


def test_a_schedule_is_even_and_a_function_of_its_seed():
    plans = make_plans(200, 3, (1, 2), list(kinds.KINDS))
    assert plans == make_plans(200, 3, (1, 2), list(kinds.KINDS))
    assert plans != make_plans(200, 4, (1, 2), list(kinds.KINDS))
    for plan in plans:
        for name in plan.kinds:
            assert plan.processes in kinds.TOPOLOGIES[name]
        assert not set(plan.kinds[:-1]) & kinds.LAST
    drawn = {name for plan in plans for name in plan.kinds}
    assert drawn == kinds.KINDS.keys() - kinds.NEEDS_SHARDS
    real = [
        plan for plan in make_plans(40, 3, (1, 2), list(kinds.KINDS), 30) if plan.program != TOY
    ]
    assert sum(len(plan.kinds) for plan in real) == 30
    assert kinds.NEEDS_SHARDS <= {name for plan in real for name in plan.kinds}


def test_the_checks_of_words():
    check_words(75, "step 1/9\nerror: process 1 is lost", "process 0")
    check_words(143, "stopping", "process 0")
    for code, words in (
        (75, "step 1/9"),
        (75, "error: one\nerror: two"),
        (1, "error: one"),
        (2, "Traceback (most recent call last):\nValueError: x\nerror: x"),
        (0, "E1127 14:02:03.123 coordination.cc:1] lost"),
    ):
        with pytest.raises(Failure):
            check_words(code, words, "process 0")


def test_the_checks_of_metrics(tmp_path):
    lines = [{"step": step, "loss": 1.5, "seconds_left": 1.0} for step in (2, 4, 6)]
    compare_metrics([{**line, "seconds_left": 7.0} for line in lines], lines, 0.0)
    compare_metrics([{**line, "loss": 1.5 + 1e-8} for line in lines], lines, 1e-6)
    for wrong in (
        [lines[0], lines[2]],
        [lines[0], lines[1], lines[1], lines[2]],
        [lines[1], lines[0], lines[2]],
        [{**line, "loss": 1.5 + 1e-8} for line in lines],
        [{"step": line["step"]} for line in lines],
    ):
        with pytest.raises(Failure):
            compare_metrics(wrong, lines, 0.0)
    (tmp_path / "metrics.jsonl").write_text('{"step": 2}\n{"st')
    with pytest.raises(Failure, match="torn"):
        metrics_of(tmp_path)


def test_the_checks_of_states():
    state = {"a": np.ones(3, np.float32), "b": np.zeros((), np.int32)}
    other = {**state, "a": np.nextafter(state["a"], np.float32(2))}
    compare_arrays(state, state, 0.0)
    compare_arrays(other, state, 1e-6)
    for wrong in (other, {"a": state["a"]}, {**state, "a": state["a"].astype(np.float64)}):
        with pytest.raises(Failure):
            compare_arrays(wrong, state, 0.0)
    nan = {**state, "a": np.full(3, np.nan, np.float32)}
    with pytest.raises(Failure):
        compare_arrays(nan, state, 1e-6)
    record = {"step": 4, "elapsed_seconds": 3.0, "callbacks": {"guard": {"skipped": 1}}}
    compare_records({**record, "elapsed_seconds": 9.0}, record, 0.0)
    with pytest.raises(Failure, match="record/callbacks/guard/skipped is 0"):
        compare_records({**record, "callbacks": {"guard": {"skipped": 0}}}, record, 0.0)
    losses = {"losses": [1.5, 2.5]}
    compare_records({"losses": [1.5, 2.5 + 1e-8]}, losses, 1e-6)
    for wrong, tolerance in (([1.5, 2.5 + 1e-8], 0.0), ([1.5, 2.6], 1e-6), ([1.5], 1e-6)):
        with pytest.raises(Failure):
            compare_records({"losses": wrong}, losses, tolerance)

"""A study: its grid, its processes, and a page whose numbers are those of the hypotheses."""

from __future__ import annotations

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jiwer
import numpy as np
import pytest
import scipy.stats

from maestro_jax.errors import RestartableError, UserError
from maestro_jax.evaluation.comparison import compare
from maestro_jax.evaluation.predictions import Prediction, write_predictions
from maestro_jax.experiments import study as study_module
from maestro_jax.experiments import study_runner
from maestro_jax.experiments.study import (
    Method,
    Study,
    changed_parts,
    check_macros,
    check_study,
    discard,
    load_study,
)
from maestro_jax.experiments.study_plan import plan_text, run_flops
from maestro_jax.experiments.study_runner import parse_shard, run_cells, time_left
from maestro_jax.experiments.study_summary import (
    confidence_band,
    holm,
    seeds_p_value,
    summarise,
)
from maestro_jax.experiments.study_tuning import choose, write_chosen
from maestro_jax.gin_utils.gin_source import config_root
from maestro_jax.reports.study_page import write_study_page

ROOT = pathlib.Path(__file__).resolve().parents[2]
STUDIES = sorted(path.name for path in (config_root() / "runs").glob("study*.gin"))


def make(**changes: Any) -> Study:
    values: dict[str, Any] = {
        "name": "Two methods",
        "methods": (
            Method(name="MAESTRO", pretrain_bindings={"STEPS": 300}),
            Method(name="scratch", pretrain=None, finetune_bindings={"LEARNING_RATE": 0.25}),
        ),
        "baseline": "scratch",
        "amounts": {"24 utterances": {"PAIRED_TASKS": ("a", "b")}, "all": {}},
        "seeds": (0, 1),
        "pretrain": ("runs/study/pretrain.gin",),
        "finetune": ("runs/study/finetune.gin",),
    }
    return Study(**{**values, **changes})


def test_the_grid_has_every_cell_once_and_shards_share_it_out() -> None:
    study = make()
    names = [cell.name for cell in study.cells()]
    assert names[:4] == [
        "maestro-24_utterances-0",
        "scratch-24_utterances-0",
        "maestro-all-0",
        "scratch-all-0",
    ]
    assert len(set(names)) == len(names) == 2 * 2 * 2
    shards = [[cell.name for cell in study.select(shard=(i, 3))] for i in range(3)]
    assert sorted(sum(shards, [])) == sorted(names)
    assert [cell.name for cell in study.select(["scratch-all-1"])] == ["scratch-all-1"]
    with pytest.raises(UserError, match=r"no cell 'scratch-al-1'\. Did you mean 'scratch-all-1'"):
        study.select(["scratch-al-1"])


def test_patterns_choose_cells_in_the_order_of_the_grid() -> None:
    study = make()
    chosen = [cell.name for cell in study.select(patterns=["scratch-*", "maestro-all-[01]"])]
    assert chosen == [
        *("scratch-24_utterances-0", "maestro-all-0", "scratch-all-0"),
        *("scratch-24_utterances-1", "maestro-all-1", "scratch-all-1"),
    ]
    shards = [study.select(patterns=["*-1"], shard=(i, 2)) for i in range(2)]
    assert [len(shard) for shard in shards] == [2, 2]
    with pytest.raises(
        UserError, match=r"no cell of .* matches 'mastro-\*'; the first is maestro-"
    ):
        study.select(patterns=["scratch-*", "mastro-*"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"baseline": "scrach"}, "baseline is 'scrach'.*Did you mean 'scratch'"),
        ({"methods": ()}, "methods of 'Two methods' is empty"),
        ({"seeds": (0, 1, 0)}, "seeds of 'Two methods' has 0 twice"),
        # Their directories would be one.
        ({"methods": (Method(name="a b"), Method(name="A_b"))}, "a_b twice"),
    ],
)
def test_wrong_grids_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make(**{"baseline": "", **changes})


def test_settings_reach_the_stages_that_read_them() -> None:
    study = make(bindings={"FEATURES": 64, "TEXT_START_STEP": 7})
    maestro, scratch = study.cells()[2:4]
    pretraining = maestro.build(study, "pretrain")
    tuning = maestro.build(study, "finetune", "/models/pretrained")
    assert (pretraining.steps, pretraining.seed) == (300, 0)
    assert pretraining.model.shared_encoder.stack.features == 64
    # Fine-tuning has no text to begin.
    assert "text" not in pretraining.objective.active_streams(6)
    assert "text" in pretraining.objective.active_streams(7)
    assert tuning.init_from == "/models/pretrained"
    assert scratch.stages == ("finetune",)
    from_scratch = scratch.build(study, "finetune")
    assert from_scratch.init_from is None
    assert from_scratch.optimizer.learning_rate == 0.25 != tuning.optimizer.learning_rate
    # Training from scratch reads none of it, and need not.
    check_macros(study)
    for changes in ({"bindings": {"PAIRED_TASK": ()}}, {"amounts": {"all": {"PAIRED_TASK": ()}}}):
        with pytest.raises(UserError, match=r"reads the macro 'PAIRED_TASK'\..*'PAIRED_TASKS'"):
            check_macros(make(**changes))


def test_what_has_changed_is_told_by_part(tmp_path: pathlib.Path) -> None:
    """What was made with other settings, and what follows from it, is made again; no more."""
    study = make(amounts={"all": {}}, seeds=(0,))
    cell, scratch = study.cells()
    digests = cell.digests(study)
    assert list(digests) == ["pretrain", "finetune", "evaluation"]
    assert list(scratch.digests(study)) == ["finetune", "evaluation"]
    directory = tmp_path / "cells" / cell.name
    for part in digests:
        (directory / part).mkdir(parents=True)
    (directory / "settings.json").write_text(json.dumps(digests))
    (directory / "result.json").write_text("{}")
    assert check_study(study, study.cells(), tmp_path) == {}

    tested = make(amounts={"all": {}}, seeds=(0,), conditions=("telephone",))
    assert check_study(tested, tested.cells(), tmp_path) == {cell.name: ("evaluation",)}
    tuned = make(
        amounts={"all": {}},
        seeds=(0,),
        methods=(
            Method(
                name="MAESTRO", pretrain_bindings={"STEPS": 300}, finetune_bindings={"STEPS": 90}
            ),
            make().methods[1],
        ),
    )
    again = ("finetune", "evaluation")
    assert changed_parts(tuned, tuned.cells()[0], tmp_path) == again
    with pytest.raises(
        UserError, match=r"1 of 2 cells .* \(maestro-all-0: finetune\): .*--retrain"
    ):
        check_study(tuned, tuned.cells(), tmp_path)
    assert check_study(tuned, tuned.cells(), tmp_path, retrain=True) == {cell.name: again}
    larger = make(amounts={"all": {}}, seeds=(0,), bindings={"FEATURES": 64})
    assert changed_parts(larger, larger.cells()[0], tmp_path) == ("pretrain", *again)

    discard(tmp_path, cell, again)
    left = {path.name for path in directory.iterdir()}
    assert left == {"pretrain", "settings.json"}
    assert changed_parts(tuned, tuned.cells()[0], tmp_path) == ()
    # Done by an earlier version, which did not write settings down.
    (directory / "settings.json").unlink()
    (directory / "result.json").write_text("{}")
    assert changed_parts(study, cell, tmp_path) == tuple(digests)


def trials(*rates: float, stage: str = "pretrain") -> dict[str, dict[str, dict[str, float]]]:
    return {f"{rate:g}": {stage: {"LEARNING_RATE": rate}} for rate in rates}


def test_every_method_has_as_many_trials() -> None:
    scratch = Method(name="scratch", pretrain=None, trials=trials(0.1, 0.2, stage="finetune"))
    maestro = Method(name="MAESTRO", pretrain_bindings={"STEPS": 300, "LEARNING_RATE": 9.0})
    given: dict[str, Any] = {"methods": (maestro, scratch), "trials": trials(1e-3, 3e-3)}
    study = make(**given, chosen={"MAESTRO": "0.003", "scratch": "0.1"})
    cells = {cell.method.name: cell for cell in study.cells()[:2]}
    assert cells["MAESTRO"].build(study, "pretrain").optimizer.learning_rate == 3e-3
    assert cells["MAESTRO"].build(study, "pretrain").steps == 300
    assert cells["scratch"].build(study, "finetune").optimizer.learning_rate == 0.1

    tuning = study.tuning()
    names = [cell.name for cell in tuning.cells()]
    # The smallest amount of paired speech, and a seed of which no result is reported.
    assert names == [
        f"{name}-24_utterances-100"
        for name in ("maestro_0.001", "maestro_0.003", "scratch_0.1", "scratch_0.2")
    ]
    assert tuning.splits == ("validation",)
    rates = [cell.build(tuning, cell.stages[0]).optimizer.learning_rate for cell in tuning.cells()]
    assert rates == [1e-3, 3e-3, 0.1, 0.2]

    fewer = Method(name="scratch", pretrain=None, trials=trials(0.1, stage="finetune"))
    for changes, message in (
        ({"methods": (maestro, fewer)}, "as many for each method; now MAESTRO 2, scratch 1"),
        ({"chosen": {"MAESTRO": "0.03"}}, "Study.chosen of MAESTRO is '0.03'; the trials are"),
        ({"chosen": {"MAESTRA": "0.003"}}, "has the method 'MAESTRA'.*Did you mean 'MAESTRO'"),
        ({"seeds": (99, 100)}, "tuning_seed is 100, a seed whose results are reported"),
        ({"trials": trials(1.0, 2.0, stage="pre")}, "has the stage 'pre'; the stages are"),
        ({"splits": ("dev",)}, "splits is .*'dev'"),
    ):
        with pytest.raises(UserError, match=message):
            make(**{**given, "chosen": {}, **changes})
    with pytest.raises(UserError, match=r"no trial of MAESTRO: .*maestro study --tune"):
        study_without = make(**given)
        study_without.cells()[0].build(study_without, "pretrain")
    with pytest.raises(UserError, match=r"has no Study\.trials"):
        make().tuning()


def test_trials_are_chosen_by_their_validation_scores(tmp_path: pathlib.Path) -> None:
    given: dict[str, Any] = {
        "methods": (
            Method(name="MAESTRO"),
            Method(name="scratch", pretrain=None, trials=trials(0.1, 0.2, stage="finetune")),
        ),
        "amounts": {"all": {}},
        "trials": trials(1e-3, 3e-3),
    }
    study = make(**given)
    errors = dict(zip((c.name for c in study.tuning().cells()), (0.5, 0.2, 0.1, 0.6), strict=True))
    rng = np.random.default_rng(0)
    for cell in study.tuning().cells()[1:]:
        finish(cell, tmp_path, rng, errors[cell.name], conditions=(("validation", ""),))
    with pytest.raises(UserError, match=r"1 of 4 trials are not done.* maestro_0\.001-all-100"):
        write_chosen(study, tmp_path)
    [first, *_] = study.tuning().cells()
    finish(first, tmp_path, rng, errors[first.name], conditions=(("validation", ""),))
    summary = summarise(study.tuning(), tmp_path, [])
    assert choose(study, summary) == {"MAESTRO": "0.003", "scratch": "0.1"}
    path = write_chosen(study, tmp_path)
    (tmp_path / "study.gin").write_text(
        "from __gin__ import dynamic_registration\n"
        "from maestro_jax.experiments import study\n"
        "study.Study.name = 'from gin'\n"
        "study.Study.methods = (@a/study.Method(), @b/study.Method())\n"
        "a/study.Method.name = 'MAESTRO'\nb/study.Method.name = 'scratch'\n"
        "study.Study.trials = {'0.001': {}, '0.003': {}, '0.1': {}}\n"
        "study.Study.pretrain = ()\nstudy.Study.finetune = ()\n"
    )
    loaded = load_study([str(tmp_path / "study.gin"), str(path)])
    assert loaded.chosen == {"MAESTRO": "0.003", "scratch": "0.1"}
    assert loaded.chosen_by == "WER % of numbers.validation, seed 100"


@pytest.mark.extended
def test_methods_of_the_default_study_have_the_same_chances() -> None:
    study = load_study(["runs/study.gin"])
    tuning = study.tuning()
    for cell in tuning.cells():
        run = cell.build(tuning, "finetune")
        assert run.steps == 5 * run.validation.every
    heard = {
        cell.method.name: cell.build(study, "pretrain").streams["speech"].mixture.tasks
        for cell in study.cells()[:10]
        if cell.method.pretrain is not None
    }
    assert len(heard) == 9
    for tasks in heard.values():
        # What others hear with its transcript, methods without text hear as well.
        assert tasks == heard["MAESTRO"]
        assert "minivox_study_paired_sl:first24:audio" in tasks


@pytest.mark.slow
def test_methods_without_text_have_its_flops() -> None:
    """Within a tenth, however a trial divides them between the stages."""
    tuning = load_study(["runs/study.gin"]).tuning()
    flops = {
        cell.method.name: sum(run_flops(cell.build(tuning, stage)) for stage in cell.stages)
        for cell in tuning.cells()
        if cell.method.name.startswith(("MAESTRO: ", "w2v-BERT: ", "scratch: "))
        and cell.method.name.endswith("1e-3")
    }
    assert len(flops) == 5
    assert max(flops.values()) < 1.1 * min(flops.values()), flops


@pytest.mark.extended
def test_translation_begins_with_text() -> None:
    study = load_study(["runs/study_covost2.gin"])
    objective = study.cells()[0].build(study, "pretrain").objective
    assert set(objective.active_streams(99)) == {"speech", "paired"}
    assert set(objective.active_streams(100)) == {"speech", "paired", "text", "mt", "st"}


@pytest.mark.extended
def test_ablations_differ_in_one_part() -> None:
    study = load_study(["runs/study_ablations.gin"])
    objectives = {
        cell.method.name: cell.build(study, "pretrain").objective
        for cell in study.cells()[: len(study.methods)]
    }
    for objective in objectives.values():
        assert objective.augment_paired_start_step == 100
    without_durations = {
        name for name, objective in objectives.items() if objective.duration_weight == 0.0
    }
    assert without_durations == {"fixed repetition", "random repetition"}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name == "study.gin" else pytest.mark.extended)
        for name in STUDIES
    ],
)
def test_shipped_studies_are_whole(name: str) -> None:
    """Each method with each amount builds; seeds differ in their seed alone."""
    study = load_study([f"runs/{name}"])
    assert study.baseline
    check_macros(study)
    for cell in study.cells():
        if cell.seed == study.seeds[0]:
            for stage in cell.stages:
                assert cell.build(study, stage).seed == cell.seed


@pytest.mark.extended
def test_a_dry_run_says_what_is_to_come() -> None:
    study = make(methods=make().methods[1:], amounts={"all": {}}, flops_per_second=1e9)
    text = plan_text(study, study.cells(), None)
    assert "scratch-all-1" in text
    assert "paired 12 x 2.2 s x 56" in text
    assert "estimated time, one cell after the other" in text


# --------------------------------------------------------------------------------- processes


WRITE = """
import json, os, pathlib, sys
directory = pathlib.Path(sys.argv[1])
(directory / "starts").open("a").write("x")
(directory / "result.json").write_text(json.dumps({"seconds": 60.0}))
"""


def command(scripts: Mapping[str, str], output: pathlib.Path):
    def of_cell(cell: study_module.Cell) -> Sequence[str]:
        directory = output / "cells" / cell.name
        directory.mkdir(parents=True, exist_ok=True)
        return [sys.executable, "-c", scripts.get(cell.name, WRITE), str(directory)]

    return of_cell


def run(
    study: Study, output: pathlib.Path, scripts: Mapping[str, str], *, jobs: int = 1
) -> list[str]:
    failed = run_cells(
        study,
        study.cells(),
        output,
        command(scripts, output),
        environment=dict(os.environ),
        jobs=jobs,
    )
    return [cell.name for cell in failed]


def test_cells_that_are_done_are_not_done_again(tmp_path: pathlib.Path, capsys) -> None:
    study = make(amounts={"all": {}})
    crash = "import os; print('error: no such file', flush=True); os._exit(2)"
    killed = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    scripts = {"scratch-all-0": crash, "maestro-all-1": killed}
    assert run(study, tmp_path, scripts) == ["scratch-all-0", "maestro-all-1"]
    printed = capsys.readouterr().out
    assert "exit status 2: no such file" in printed
    assert "ended by SIGKILL" in printed
    assert "[4/4] scratch-all-1: begins, about 0:01:00 left" in printed
    failures = {cell.name: study_module.read_failure(tmp_path, cell) for cell in study.cells()}
    assert failures["scratch-all-0"]["status"] == 2
    assert run(study, tmp_path, {}) == []
    starts = {path.parent.name: path.read_text() for path in tmp_path.rglob("starts")}
    assert starts == {cell.name: "x" for cell in study.cells()}


CORES = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()


TWO_CORES = pytest.mark.skipif(
    len(CORES) < 2, reason="needs two cores that processes can be bound to"
)


@TWO_CORES
def test_cells_run_at_the_same_time_on_cores_of_their_own(tmp_path: pathlib.Path) -> None:
    together = """
import os, pathlib, sys, time
directory = pathlib.Path(sys.argv[1])
time.sleep(0.1)  # The parent sets the cores once the process is there.
(directory / "cores").write_text(" ".join(map(str, os.sched_getaffinity(0))))
end = time.monotonic() + 30
while len(list(directory.parent.glob("*/cores"))) < 2:
    assert time.monotonic() < end
    time.sleep(0.01)
"""
    study = make(amounts={"all": {}}, seeds=(0,))
    scripts = {cell.name: together + WRITE for cell in study.cells()}
    assert run(study, tmp_path, scripts, jobs=2) == []
    first, second = ({*path.read_text().split()} for path in tmp_path.rglob("cores"))
    assert first and second and not first & second
    assert first | second == {str(core) for core in CORES}


@pytest.mark.skipif(not CORES, reason="this system binds no process to cores")
def test_jobs_that_there_are_no_cores_for_are_refused() -> None:
    cores = len(CORES)
    with pytest.raises(UserError, match=f"--jobs {cores + 1}: this process has {cores} cores"):
        study_runner.shares_of_cores(cores + 1)
    with pytest.raises(UserError, match="--jobs 0"):
        study_runner.shares_of_cores(0)
    assert study_runner.shares_of_cores(1) == [frozenset()]


def test_an_error_of_the_study_itself_stops_its_cells(tmp_path: pathlib.Path) -> None:
    def broken(cell: study_module.Cell) -> Sequence[str]:
        raise UserError(f"no command for {cell.name}")

    study = make(amounts={"all": {}})
    with pytest.raises(UserError, match="no command for maestro-all-0"):
        run_cells(study, study.cells(), tmp_path, broken, environment={})
    assert not list(tmp_path.rglob("log.txt"))


def test_what_may_pass_is_tried_again(tmp_path: pathlib.Path, monkeypatch) -> None:
    monkeypatch.setattr(study_runner, "_PAUSE_SECONDS", 0.0)
    study = make(amounts={"all": {}}, seeds=(0,))
    once = "import os, pathlib, sys\np = pathlib.Path(sys.argv[1], 'before')\n"
    once += "if not p.exists():\n    p.touch(); os._exit(75)\n" + WRITE
    assert run(study, tmp_path, {"scratch-all-0": once}) == []
    with pytest.raises(RestartableError, match="scratch-all-1 failed"):
        run(make(amounts={"all": {}}), tmp_path, {"scratch-all-1": "import os; os._exit(75)"})


@pytest.mark.extended
@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=TWO_CORES)])
def test_a_signal_reaches_the_cells_and_ends_the_study(tmp_path: pathlib.Path, jobs: int) -> None:
    wait = """
import pathlib, signal, sys, time

def stop(*_):
    pathlib.Path(sys.argv[1], "saved").touch()
    sys.exit(143)

signal.signal(signal.SIGTERM, stop)
pathlib.Path(sys.argv[1], "began").touch()
time.sleep(60)
"""
    program = f"""
import pathlib, sys
sys.path.insert(0, {str(ROOT)!r})
from tests.experiments import test_study as t
output = pathlib.Path({str(tmp_path)!r})
study = t.make(amounts={{"all": {{}}}})
t.run(study, output, {{cell.name: {wait!r} for cell in study.cells()}}, jobs={jobs})
"""
    process = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT)
    names = ["maestro-all-0", "scratch-all-0", "maestro-all-1", "scratch-all-1"]
    running, later = names[:jobs], names[jobs:]
    wait_for(lambda: all((tmp_path / "cells" / name / "began").exists() for name in running))
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 143
    assert all((tmp_path / "cells" / name / "saved").exists() for name in running)
    assert not any((tmp_path / "cells" / name).exists() for name in later)


@pytest.mark.extended
def test_a_cell_ends_when_its_study_is_killed() -> None:
    child = (
        "import os, time\n"
        "from maestro_jax.experiments.study_runner import end_with_parent\n"
        "end_with_parent(os.getppid())\nprint('began', flush=True)\ntime.sleep(60)"
    )
    parent = (
        "import subprocess, sys, time\n"
        f"p = subprocess.Popen([sys.executable, '-c', {child!r}])\n"
        "print(p.pid, flush=True)\ntime.sleep(60)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert process.stdout is not None
    number = int(process.stdout.readline())
    assert process.stdout.readline() == "began\n"
    process.kill()
    wait_for(lambda: not pathlib.Path(f"/proc/{number}").exists())
    process.wait()


def test_a_cell_waits_for_the_process_that_has_it(tmp_path: pathlib.Path) -> None:
    [cell, *_] = make().cells()
    ended = []

    def second() -> None:
        with study_runner.alone(cell, tmp_path):
            ended.append("second")

    thread = threading.Thread(target=second)
    with study_runner.alone(cell, tmp_path):
        thread.start()
        time.sleep(0.1)
        ended.append("first")
    thread.join(10)
    assert ended == ["first", "second"]


def wait_for(condition, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_the_time_left_is_that_of_the_same_method(tmp_path: pathlib.Path) -> None:
    study = make(amounts={"all": {}})
    cells = study.cells()
    assert time_left(cells, study, tmp_path) is None
    assert time_left(cells, study, None, {cell.name: 5.0 for cell in cells}) == 20.0
    for cell, seconds in zip(cells[:2], (100.0, 10.0), strict=True):
        path = tmp_path / "cells" / cell.name / "result.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"seconds": seconds}))
    assert time_left(cells, study, tmp_path) == 110.0


@pytest.mark.parametrize("text", ["3", "4/4", "-1/4", "a/b", "1/"])
def test_shards_are_numbered_from_0(text: str) -> None:
    assert parse_shard("3/4") == (3, 4)
    with pytest.raises(UserError, match="write I/N"):
        parse_shard(text)


# ----------------------------------------------------------------------------------- the page


WORDS = ("eins", "zwei", "drei", "vier", "f\u00fcnf")


def predictions(rng: np.random.Generator, error: float, languages=("de", "sl")) -> list[Prediction]:
    found = []
    for language in languages:
        for index in range(25):
            reference = [WORDS[(index + i) % 5] for i in range(1 + index % 4)]
            hypothesis = ["x" if rng.random() < error else word for word in reference]
            found.append(
                Prediction(
                    id=f"{index}",
                    language=language,
                    reference=" ".join(reference),
                    hypothesis=" ".join(hypothesis),
                )
            )
    return found


def finish(
    cell: study_module.Cell,
    output: pathlib.Path,
    rng: np.random.Generator,
    error: float,
    conditions=(("validation", ""), ("test", ""), ("test", "noise_10db")),
) -> None:
    """Writes what a cell leaves that is done, with about this word error rate."""
    directory = output / "cells" / cell.name
    evaluations = []
    for split, condition in conditions:
        file = f"evaluation/{condition or 'clean'}/{split}.hypotheses.jsonl"
        write_predictions(predictions(rng, error), directory / file)
        evaluations.append(
            {
                "split": split,
                "test_set": f"numbers.{split}",
                "kind": "asr",
                "condition": condition,
                "hypotheses": file,
            }
        )
    (directory / "finetune").mkdir()
    lines = [
        {"step": step, "validation/wer": 100 * error + 10 * cell.seed, "loss": 1.0}
        for step in (10, 20)
    ]
    (directory / "finetune" / "metrics.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in lines)
    )
    result = {
        "minutes": {"de": 60.0, "sl": 1.0 if cell.amount != "all" else 16.0},
        "evaluations": evaluations,
        "stages": {stage: {"steps": 20, "seconds": 90.0, "flops": 1e12} for stage in cell.stages},
        "seconds": 200.0 + 100.0 * cell.seed,
        "memory": {"host_gib": 1.5, "device_gib": None},
        "devices": {"kind": "cpu", "count": 1},
        "date": "2026-01-02T03:04:05+00:00",
        "git": {"commit": "abc", "changed": False},
    }
    (directory / "result.json").write_text(json.dumps(result))


@pytest.fixture
def finished(tmp_path: pathlib.Path) -> tuple[Study, pathlib.Path]:
    """A study whose cells are done but for one that failed and one that was not run."""
    study = make()
    rng = np.random.default_rng(0)
    for cell in study.cells()[:-2]:
        error = 0.5 if cell.method.name == "scratch" else 0.1 if cell.amount == "all" else 0.3
        finish(cell, tmp_path, rng, error)
    study_runner.write_failure(tmp_path, study.cells()[-2], -9)
    return study, tmp_path


def test_numbers_are_those_of_the_stored_hypotheses(finished) -> None:
    study, output = finished
    summary = summarise(study, output, ["maestro", "study"])
    assert [(t["split"], t["condition"]) for t in summary["tables"]] == [
        ("test", ""),
        ("test", "noise_10db"),
        ("validation", ""),
    ]
    table = summary["tables"][0]
    [row] = [r for r in table["rows"] if (r["method"], r["amount"]) == ("MAESTRO", "24 utterances")]
    found = {}
    for seed in (0, 1):
        path = output / "cells" / f"maestro-24_utterances-{seed}" / "evaluation/clean"
        lines = [json.loads(x) for x in (path / "test.hypotheses.jsonl").read_text().splitlines()]
        rates = []
        for language in ("de", "sl"):
            own = [line for line in lines if line["language"] == language]
            rates.append(
                100 * jiwer.wer([x["reference"] for x in own], [x["hypothesis"] for x in own])
            )
        found[seed] = rates
    scores = row["scores"]
    for index, name in enumerate(("de", "sl")):
        values = [found[seed][index] for seed in (0, 1)]
        assert scores[name]["wer"]["mean"] == pytest.approx(np.mean(values))
        assert scores[name]["wer"]["sd"] == pytest.approx(np.std(values, ddof=1))
        # 12.706: the 97.5th percentile of Student's t with one degree of freedom.
        half = 12.7062 * scipy.stats.sem(values)
        ends = [np.mean(values) - half, np.mean(values) + half]
        assert scores[name]["wer"]["interval"] == pytest.approx(ends, rel=1e-5)
    means = [np.mean(found[seed]) for seed in (0, 1)]
    assert scores["average"]["wer"]["by_seed"] == pytest.approx({"0": means[0], "1": means[1]})
    assert row["comparison"]["average"]["score"] == pytest.approx(np.mean(means))
    assert row["minutes"] == {"de": 60.0, "sl": 1.0}


def test_significance_is_that_of_a_comparison_of_the_joined_seeds(finished) -> None:
    """Where every utterance has one seed, blocks are utterances; with two, texts are joined."""
    study, output = finished
    rows = summarise(study, output, [])["tables"][0]["rows"]
    by_name = {(row["method"], row["amount"]): row for row in rows}
    ours, theirs = (
        [study_module_predictions(output, f"{name}-24_utterances-{seed}") for seed in (0, 1)]
        for name in ("maestro", "scratch")
    )
    # Errors of words that are right or replaced add up when the texts of both seeds are joined.
    plain = compare(joined(*ours), joined(*theirs))
    found = by_name["MAESTRO", "24 utterances"]["comparison"]
    assert found["seeds"] == [0, 1]
    for name in ("score", "baseline_score", "difference", "ratio"):
        assert found["average"][name] == pytest.approx(getattr(plain.average, name))
    for name in ("difference_interval", "ratio_interval"):
        assert found["average"][name] == pytest.approx(getattr(plain.average, name))
    for name in ("bootstrap_p_value", "randomisation_p_value"):
        assert found["average"][name] == getattr(plain.average, name)
    assert by_name["scratch", "all"]["comparison"] is None


def test_p_values_are_corrected_for_the_rows(finished) -> None:
    # By hand: 0.005 x 4, 0.01 x 3, 0.03 x 2; the last is not below the one before it.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []
    study, output = finished
    rows = summarise(study, output, [])["tables"][0]["rows"]
    compared = [row["comparison"] for row in rows if row["comparison"] is not None]
    assert len(compared) == 2
    for found in compared:
        average = found["average"]
        largest = max(average["bootstrap_p_value"], average["randomisation_p_value"])
        # All are certain: the smaller p counts twice, the larger at least as much.
        assert found["adjusted_p_value"] >= largest
        assert found["significant"] is (found["adjusted_p_value"] < 0.05)
    assert max(found["adjusted_p_value"] for found in compared) == pytest.approx(
        2 * min(found["average"]["bootstrap_p_value"] for found in compared)
    )


def test_seeds_are_compared_by_welchs_test() -> None:
    ours, theirs = np.array([10.0, 12.0, 11.0]), np.array([15.0, 13.0, 17.0])
    errors = ours.var(ddof=1) / 3, theirs.var(ddof=1) / 3
    freedom = sum(errors) ** 2 / sum(error**2 / 2 for error in errors)
    t = (ours.mean() - theirs.mean()) / np.sqrt(sum(errors))
    expected = 2 * scipy.stats.t.sf(abs(t), freedom)
    assert seeds_p_value(list(ours), list(theirs)) == pytest.approx(expected)
    assert seeds_p_value([10.0], [15.0, 13.0]) is None
    assert seeds_p_value([10.0, None], [15.0, 13.0]) is None
    assert seeds_p_value([10.0, 10.0], [15.0, 15.0]) is None


def study_module_predictions(output: pathlib.Path, cell: str) -> list[Prediction]:
    from maestro_jax.evaluation.predictions import read_predictions

    return read_predictions(output / "cells" / cell / "evaluation/clean/test.hypotheses.jsonl")


def joined(first: list[Prediction], second: list[Prediction]) -> list[Prediction]:
    import dataclasses

    return [
        dataclasses.replace(
            a,
            reference=f"{a.reference} {b.reference}",
            hypothesis=f"{a.hypothesis} {b.hypothesis}",
        )
        for a, b in zip(first, second, strict=True)
    ]


def test_bands_are_those_of_students_t() -> None:
    values = np.array([[1.0, 5.0], [2.0, 5.0], [6.0, 8.0]])
    mean, low, high = confidence_band(values)
    for point in range(2):
        interval = scipy.stats.ttest_1samp(values[:, point], 0.0).confidence_interval(0.95)
        assert (low[point], high[point]) == pytest.approx((interval.low, interval.high))
    assert mean.tolist() == [3.0, 6.0]
    assert np.isnan(confidence_band(values[:1])[1]).all()


@pytest.mark.extended
def test_the_page_names_every_cell_that_is_lacking(finished) -> None:
    study, output = finished
    page = write_study_page(summarise(study, output, ["maestro", "study", "--x"]), output)
    text = (output / "study.md").read_text()
    assert "6 of 8 cells are done." in text
    assert "Failed: maestro-all-1: ended by SIGKILL" in text
    assert "Not done: scratch-all-1." in text
    assert "Fewer seeds than 2: MAESTRO (all): 1, scratch (all): 1." in text
    # The seed that is lacking keeps its place.
    [row, *_] = [line for line in text.splitlines() if line.startswith("| MAESTRO | all")]
    assert re.search(r"\| +[0-9.]+ - \|", row)
    assert "`maestro study --x`" in text
    assert "abc" in text
    content = page.read_text()
    for name in ("MAESTRO", "scratch"):
        assert name in content
    assert content.count("data:image/png;base64,") == 3
    for figure in ("scores", "amounts", "curves"):
        assert (output / f"{figure}.png").read_bytes().startswith(b"\x89PNG")
    summary = json.loads((output / "study.json").read_text())
    costs = {(cost["method"], cost["amount"]): cost for cost in summary["costs"]}
    assert costs["MAESTRO", "24 utterances"]["hours"] == pytest.approx(250 / 3600)
    assert costs["MAESTRO", "24 utterances"]["flops"] == 2e12
    [curve] = [
        c for c in summary["curves"] if (c["method"], c["amount"]) == ("MAESTRO", "24 utterances")
    ]
    assert curve["mean"] == [35.0, 35.0]

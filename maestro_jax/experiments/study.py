"""A study: methods x amounts of paired speech x seeds, each trained, fine-tuned and evaluated.

A gin file describes the grid. A cell of it (a method, an amount, a seed) is pretrained and
fine-tuned by the same gin files as all others, over which the method lays its own; it is evaluated
on the validation set and, once at its end, on the test set. Each cell has a directory,
`cells/METHOD-AMOUNT-SEED`, and is done when `result.json` is in it: a study that was interrupted
continues with the cell that it was at, from its last checkpoint.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import re
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath

from maestro_jax import provenance
from maestro_jax.audio.conditions import find_conditions
from maestro_jax.errors import UserError, near_misses
from maestro_jax.evaluation.evaluate import Evaluation
from maestro_jax.evaluation.paired_minutes import minutes_of_paired_speech
from maestro_jax.evaluation.robustness import SUBDIRECTORY as ROBUSTNESS
from maestro_jax.evaluation.robustness import evaluate_robustness
from maestro_jax.evaluation.run_evaluation import (
    evaluate_test_sets,
    loaded_model,
    test_sets_of_run,
)
from maestro_jax.files import as_path, write_atomically
from maestro_jax.gin_utils import gin_config, run_record
from maestro_jax.inference.search_config import SearchConfig
from maestro_jax.reports.html_report import train_with_report
from maestro_jax.reports.run_log import Curve, read_curves
from maestro_jax.training.run import TrainRun

CELLS, RESULT, FAILURE, LOG = "cells", "result.json", "failure.json", "log.txt"
STAGES = ("pretrain", "finetune")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """One method of a study: what it lays over the runs that all methods share.

    Attributes:
        name: Its name in tables.
        pretrain: Gin files that are read after those of the study's pretraining, the objective
            among them; None for a method without pretraining.
        finetune: Gin files that are read after those of the study's fine-tuning.
        pretrain_bindings: Values by macro or parameter, in pretraining. A text that begins with
            ``@`` or ``%`` is a reference of gin.
        finetune_bindings: The same in fine-tuning.
    """

    name: str
    pretrain: tuple[str, ...] | None = ()
    finetune: tuple[str, ...] = ()
    pretrain_bindings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    finetune_bindings: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
    """A grid of runs and how they are evaluated.

    Attributes:
        name: Title of the study.
        methods: The methods, in the order of the tables.
        baseline: Name of the method that the others are compared with; empty for none.
        amounts: Amounts of paired speech: values of macros by the name of the amount. Each macro is
            set in the stages that read it. The smallest amount comes first.
        seeds: Seeds, of both stages.
        pretrain: Gin files of pretraining, without an objective.
        finetune: Gin files of fine-tuning; `INIT_FROM` is set to the pretrained model.
        bindings: Values of macros in the stages that read them.
        tasks: Tasks or mixtures to evaluate; those of fine-tuning by default.
        search: Search of the evaluation.
        conditions: Conditions of `maestro_jax.audio.conditions` to evaluate on the test set as
            well.
        metric: Metric of the main score; by default the one that each language is reported by.
        minivox: Config of MiniVox that is prepared first; None for data of one's own.
        flops_per_second: Model FLOPs per second that the machine reaches, to estimate the time of a
            grid before its cells are done.
        overhead_seconds: What a cell takes besides its training steps, for the same: starts,
            compilation as shared by its seeds, validation, evaluation.
    """

    name: str
    methods: tuple[Method, ...]
    pretrain: tuple[str, ...]
    finetune: tuple[str, ...]
    baseline: str = ""
    amounts: Mapping[str, Mapping[str, Any]] = dataclasses.field(
        default_factory=lambda: {"all": {}}
    )
    seeds: tuple[int, ...] = (0, 1, 2)
    bindings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    tasks: tuple[str, ...] = ()
    search: SearchConfig = SearchConfig()
    conditions: tuple[str, ...] = ()
    metric: str | None = None
    minivox: str | None = None
    flops_per_second: float | None = None
    overhead_seconds: float = 0.0

    def __post_init__(self) -> None:
        """Checks the grid, and makes tuples of gin's lists."""
        for name in ("methods", "seeds", "pretrain", "finetune", "tasks", "conditions"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        names = [method.name for method in self.methods]
        for what, members in (
            ("methods", [_slug(name) for name in names]),
            ("amounts", [_slug(name) for name in self.amounts]),
            ("seeds", [str(seed) for seed in self.seeds]),
        ):
            repeated = {one for one in members if members.count(one) > 1}
            if not members or repeated:
                raise UserError(
                    f"Study.{what} of {self.name!r} "
                    + (f"has {', '.join(sorted(repeated))} twice" if repeated else "is empty")
                )
        if self.baseline and self.baseline not in names:
            raise UserError(
                f"Study.baseline is {self.baseline!r}; the methods are {', '.join(names)}."
                f"{near_misses(self.baseline, names)}"
            )
        find_conditions(self.conditions)

    def cells(self) -> list[Cell]:
        """Returns all cells: one seed of the whole grid after the other."""
        return [
            Cell(method=method, amount=amount, seed=seed)
            for seed in self.seeds
            for amount in self.amounts
            for method in self.methods
        ]

    def select(self, names: Sequence[str] = (), shard: tuple[int, int] | None = None) -> list[Cell]:
        """Returns a part of the cells.

        Args:
            names: Names of cells; all by default.
            shard: Number of the shard, from 0, and how many there are: each has every so-manieth
                cell.

        Raises:
            UserError: There is no cell of a name.
        """
        cells = self.cells()
        known = {cell.name: cell for cell in cells}
        for name in names:
            if name not in known:
                remedy = near_misses(name, known) or f" The first is {cells[0].name}."
                raise UserError(f"the study {self.name!r} has no cell {name!r}.{remedy}")
        chosen = [known[name] for name in names] or cells
        return chosen if shard is None else chosen[shard[0] :: shard[1]]


@dataclasses.dataclass(frozen=True)
class Cell:
    """A method with an amount of paired speech and a seed."""

    method: Method
    amount: str
    seed: int

    @property
    def name(self) -> str:
        """Name of the cell and of its directory."""
        return f"{_slug(self.method.name)}-{_slug(self.amount)}-{self.seed}"

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages that it has."""
        return STAGES if self.method.pretrain is not None else STAGES[1:]

    def build(self, study: Study, stage: str, init_from: str | None = None) -> TrainRun:
        """Builds the run of a stage; gin's configuration is then that of the run.

        Args:
            study: The study.
            stage: One of `STAGES`.
            init_from: Model directory that fine-tuning begins from.

        Raises:
            UserError: A file, a macro or a value of it is wrong.
        """
        files, bindings = self.configuration(study, stage)
        if stage == "finetune":
            bindings["INIT_FROM"] = repr(init_from)
        try:
            return gin_config.parse_and_build(files, bindings)
        except UserError as error:
            raise UserError(f"{self.name}, {stage}: {error}") from error

    def configuration(self, study: Study, stage: str) -> tuple[list[str], dict[str, str]]:
        """Returns gin files and bindings of a stage, in the order in which they are read."""
        method = self.method
        own = method.pretrain if stage == "pretrain" else method.finetune
        files = [*getattr(study, stage), *(own or ())]
        read = gin_config.macros(files)
        shared = {**study.bindings, **study.amounts[self.amount], "SEED": self.seed}
        values = {name: value for name, value in shared.items() if name in read}
        values |= getattr(method, f"{stage}_bindings")
        return files, {name: _gin_text(value) for name, value in values.items()}

    def digest(self, study: Study) -> str:
        """Returns a hash of the configuration of all stages."""
        texts = []
        for stage in self.stages:
            self.build(study, stage)
            texts.append(gin_config.config_text())
        evaluated = (study.tasks, study.conditions, dataclasses.asdict(study.search))
        return provenance.digest("\n".join([*texts, json.dumps(evaluated, default=str)]))


def load_study(gin_files: Sequence[str], bindings: Mapping[str, str] | None = None) -> Study:
    """Builds the study that gin files describe.

    Args:
        gin_files: As of `gin_config.parse`.
        bindings: As there.

    Raises:
        UserError: The files describe no study, or one with an error.
    """
    gin_config.parse(gin_files, bindings)
    return gin_config.build(
        Study, "these gin files describe no study: give --gin_file runs/study.gin, or another"
    )


def check_macros(study: Study) -> None:
    """Refuses macros of the study or of an amount that no stage of any method reads."""
    read: set[str] = set()
    for method in study.methods:
        cell = Cell(method=method, amount=next(iter(study.amounts)), seed=study.seeds[0])
        for stage in cell.stages:
            read |= gin_config.macros(cell.configuration(study, stage)[0])
    for owner, macros in (("bindings", study.bindings), *study.amounts.items()):
        for name in macros:
            if name not in read:
                raise UserError(
                    f"{study.name}, {owner}: no gin file of any method reads the macro {name!r}."
                    f"{near_misses(name, read)}"
                )


def check_study(study: Study, cells: Sequence[Cell], output: epath.PathLike) -> dict[str, str]:
    """Builds the runs of all cells, so that none is refused after hours.

    Args:
        study: The study.
        cells: The cells to check.
        output: Directory of the study.

    Returns:
        The hash of the configuration of each cell, by name.

    Raises:
        UserError: A run is wrong, or a cell was done with another configuration.
    """
    digests = {}
    check_macros(study)
    for cell in cells:
        digests[cell.name] = cell.digest(study)
        result = read_result(output, cell)
        if result is not None and result["digest"] != digests[cell.name]:
            raise UserError(
                f"{cell_directory(output, cell)} was trained with other settings than the gin "
                "files have now: give another --output_dir, or remove it to train it again"
            )
    return digests


def cell_directory(output: epath.PathLike, cell: Cell) -> epath.Path:
    """Returns the directory of a cell."""
    return as_path(output) / CELLS / cell.name


def read_result(output: epath.PathLike, cell: Cell) -> dict[str, Any] | None:
    """Returns what `run_cell` wrote; None for a cell that is not done."""
    return _read_json(cell_directory(output, cell) / RESULT)


def read_failure(output: epath.PathLike, cell: Cell) -> dict[str, Any] | None:
    """Returns how a cell failed at its last try; None if it did not."""
    return _read_json(cell_directory(output, cell) / FAILURE)


def run_cell(
    study: Study, cell: Cell, output: epath.PathLike, data_dir: str | Path | None = None
) -> None:
    """Trains, fine-tunes and evaluates a cell in this process, or goes on with it.

    Every process of several calls this. Nothing is done for a cell that is done.

    Args:
        study: The study.
        cell: One of its cells.
        output: Directory of the study.
        data_dir: Root of the prepared data.

    Raises:
        UserError: The runs do not fit the data or the directory.
    """
    if read_result(output, cell) is not None:
        return
    directory = cell_directory(output, cell)
    digest = cell.digest(study)
    runs: dict[str, TrainRun] = {}
    init_from: str | None = None
    for stage in cell.stages:
        run = cell.build(study, stage, init_from)
        record = run_record.RunRecord(gin_config.record_texts(), provenance.command_line())
        model_dir = str(directory / stage)
        # A stage that is done ends at once, and one that is not goes on from its checkpoint.
        train_with_report(run, model_dir=model_dir, data_dir=data_dir, callbacks=[record])
        runs[stage], init_from = run, model_dir
    run = runs["finetune"]
    began = time.monotonic()
    evaluations = _evaluate(study, run, directory, data_dir)
    evaluation_seconds = time.monotonic() - began
    stages = {stage: _cost(directory / stage, runs[stage]) for stage in cell.stages}
    if jax.process_index():
        return
    kind = "st" if "st" in run.used_streams and "paired" not in run.used_streams else "asr"
    result = {
        "method": cell.method.name,
        "amount": cell.amount,
        "seed": cell.seed,
        "digest": digest,
        "minutes": minutes_of_paired_speech([*runs.values()], kind, data_dir),
        "evaluations": evaluations,
        "stages": stages,
        "evaluation_seconds": evaluation_seconds,
        "seconds": evaluation_seconds + sum(each["seconds"] for each in stages.values()),
        "memory": _peak_memory([directory / stage for stage in cell.stages]),
        "devices": {"kind": jax.devices()[0].device_kind, "count": jax.device_count()},
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        **provenance.versions(provenance.command_line()),
    }
    write_atomically(directory / RESULT, (json.dumps(result, indent=2) + "\n").encode())
    (directory / FAILURE).unlink(missing_ok=True)


def _evaluate(
    study: Study, run: TrainRun, directory: epath.Path, data_dir: str | Path | None
) -> list[dict[str, Any]]:
    """Evaluates the best checkpoint of fine-tuning; returns the scores of each test set."""
    model_dir = directory / "finetune"
    test_sets = {
        split: test_sets_of_run(run, study.tasks, split, data_dir=data_dir)
        for split in ("validation", "test")
    }
    found: list[tuple[str, str, Evaluation]] = []
    with loaded_model(
        run,
        model_dir=str(model_dir),
        data_dir=data_dir,
        step="best" if run.validation.every else None,
        search=study.search,
        output_dir=str(directory / "evaluation"),
    ) as model:
        for split, sets in test_sets.items():
            scores = evaluate_test_sets(
                sets,
                model.transcriber,
                directory=model.directory,
                data_dir=data_dir,
                origin=model.origin,
                processes=model.processes,
            )
            if scores.failure is not None:
                raise scores.failure
            found += [(split, "", evaluation) for evaluation in scores.evaluations]
        if study.conditions:
            conditions = find_conditions(study.conditions)
            _, tables = evaluate_robustness(test_sets["test"], model, conditions, data_dir=data_dir)
            evaluated = {table.name: table.comparisons for table in tables}
            found += [
                ("test", name, evaluation)
                for split, _, evaluation in found
                if split == "test"
                for name in evaluated.get(evaluation.name, {})
            ]
    records = []
    for split, condition, evaluation in found:
        folder = f"evaluation/{ROBUSTNESS}/{condition}" if condition else "evaluation"
        records.append(
            {
                "split": split,
                "test_set": evaluation.name,
                "kind": evaluation.kind,
                "condition": condition,
                "hypotheses": f"{folder}/{evaluation.name}.hypotheses.jsonl",
            }
        )
    return records


def _cost(model_dir: epath.Path, run: TrainRun) -> dict[str, Any]:
    """Returns steps, seconds over all starts and FLOPs of a stage, as it logged them."""
    curves = read_curves(model_dir)
    seconds = float(curves["elapsed_seconds"][1][-1])
    return {"steps": run.steps, "seconds": seconds, "flops": _flops(curves, run.steps)}


def _flops(curves: Mapping[str, Curve], steps: int) -> float | None:
    """Sums up the model FLOPs of a run from those per second and the steps per second."""
    rate, speed = curves.get("model_tflops_per_second"), curves.get("steps_per_second")
    if rate is None or speed is None:
        return None
    per_second = dict(zip(speed[0].tolist(), speed[1].tolist(), strict=True))
    ends = [step for step in rate[0].tolist() if per_second.get(step)]
    per_step = [
        value * 1e12 * jax.device_count() / per_second[step]
        for step, value in zip(*map(np.ndarray.tolist, rate), strict=True)
        if per_second.get(step)
    ]
    # A log point stands for the steps since the one before; the first ones may not be timed.
    counts = np.diff([0, *ends])
    return float(np.dot(counts, per_step) + (steps - ends[-1]) * per_step[-1]) if ends else None


def _peak_memory(model_dirs: Sequence[epath.Path]) -> dict[str, float | None]:
    """Returns the largest memory of this process and of its first device, in GiB."""
    unit = 1 if sys.platform == "darwin" else 1024
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
    # A process that went on with a cell need not have trained its largest stage.
    for path in model_dirs:
        host = max(host, *read_curves(path).get("host_memory_gib", ((), (0.0,)))[1])
    statistics = jax.local_devices()[0].memory_stats() or {}
    device = statistics.get("peak_bytes_in_use")
    return {"host_gib": float(host), "device_gib": None if device is None else device / 2**30}


def _read_json(path: epath.Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def _slug(text: object) -> str:
    """Makes a part of a directory's name of a title: `no matching` becomes `no_matching`."""
    return re.sub(r"[^a-z0-9.]+", "_", str(text).lower()).strip("_")


def _gin_text(value: Any) -> str:
    """Writes a value as gin does; references stay."""
    if isinstance(value, str) and value[:1] in "@%":
        return value
    return repr(value)

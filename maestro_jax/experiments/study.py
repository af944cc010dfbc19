"""A study: methods x amounts of paired speech x seeds, each trained, fine-tuned and evaluated.

A gin file describes the grid. A cell of it (a method, an amount, a seed) is pretrained and
fine-tuned by the same gin files as all others, over which the method lays its own; it is evaluated
on the validation set and, once at its end, on the test set. Each cell has a directory,
`cells/METHOD-AMOUNT-SEED`, and is done when `result.json` is in it: a study that was interrupted
continues with the cell that it was at, from its last checkpoint.

Peak rates and the like are chosen by trials, as many for each method: `Study.tuning` is the study
of all trials, which is judged by the validation set alone.
"""

from __future__ import annotations

import dataclasses
import datetime
import fnmatch
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
SETTINGS, EVALUATION = "settings.json", "evaluation"
TUNING, CHOSEN = "tuning", "chosen.gin"
STAGES = ("pretrain", "finetune")
SPLITS = ("validation", "test")

Trials = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""Values by macro or parameter, by stage, by the name of the trial."""


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
        trials: Trials in place of those of the study, as many.
    """

    name: str
    pretrain: tuple[str, ...] | None = ()
    finetune: tuple[str, ...] = ()
    pretrain_bindings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    finetune_bindings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    trials: Trials | None = None


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
        trials: Values that are tried for each method, over its own, such as
            ``{"fast": {"pretrain": {"LEARNING_RATE": 3e-3}}}``.
        chosen: The trial that each method's cells have, by method.
        chosen_by: How they were chosen, for the page; `maestro study --tune` sets both.
        tuning_seed: Seed of all trials; not one of `seeds`, whose results are reported.
        tasks: Tasks or mixtures to evaluate; those of fine-tuning by default.
        splits: What is evaluated: validation, test, or both.
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
    trials: Trials = dataclasses.field(default_factory=dict)
    chosen: Mapping[str, str] = dataclasses.field(default_factory=dict)
    chosen_by: str = ""
    tuning_seed: int = 100
    tasks: tuple[str, ...] = ()
    splits: tuple[str, ...] = SPLITS
    search: SearchConfig = SearchConfig()
    conditions: tuple[str, ...] = ()
    metric: str | None = None
    minivox: str | None = None
    flops_per_second: float | None = None
    overhead_seconds: float = 0.0

    def __post_init__(self) -> None:
        """Checks the grid, and makes tuples of gin's lists."""
        sequences = ("methods", "seeds", "pretrain", "finetune", "tasks", "splits", "conditions")
        for name in sequences:
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
        if not self.splits or set(self.splits) - set(SPLITS):
            raise UserError(f"Study.splits is {self.splits}; name one or more of {SPLITS}.")
        if self.conditions and "test" not in self.splits:
            raise UserError("Study.conditions are evaluated on the test set: add it to splits.")
        self._check_trials()

    def _check_trials(self) -> None:
        """Refuses methods with more trials than others, and choices that there are not."""
        trials = {method.name: self.trials_of(method) for method in self.methods}
        counts = {name: len(each) for name, each in trials.items()}
        if len(set(counts.values())) > 1:
            listed = ", ".join(f"{name} {count}" for name, count in counts.items())
            raise UserError(f"Study.trials of {self.name!r}: as many for each method; now {listed}")
        if self.trials and self.tuning_seed in self.seeds:
            raise UserError(
                f"Study.tuning_seed is {self.tuning_seed}, a seed whose results are reported; "
                "choose another"
            )
        for name, each in trials.items():
            for trial, stages in each.items():
                if unknown := set(stages) - set(STAGES):
                    raise UserError(
                        f"Study.trials of {self.name!r}: {trial!r} of {name} has the stage "
                        f"{sorted(unknown)[0]!r}; the stages are {', '.join(STAGES)}"
                    )
        for name, trial in self.chosen.items():
            if name not in trials:
                known = list(trials)
                raise UserError(
                    f"Study.chosen has the method {name!r}; the methods are {', '.join(known)}."
                    f"{near_misses(name, known)}"
                )
            if trial not in trials[name]:
                raise UserError(
                    f"Study.chosen of {name} is {trial!r}; the trials are "
                    f"{', '.join(map(repr, trials[name])) or 'none'}."
                )

    def trials_of(self, method: Method) -> Trials:
        """Returns the trials of a method."""
        return self.trials if method.trials is None else method.trials

    def trial_of(self, method: Method) -> Mapping[str, Mapping[str, Any]]:
        """Returns the values of the chosen trial of a method by stage; none without trials.

        Raises:
            UserError: None is chosen.
        """
        trials = self.trials_of(method)
        if not trials:
            return {}
        if method.name not in self.chosen:
            raise UserError(
                f"Study.chosen of {self.name!r} has no trial of {method.name}: choose one of "
                f"{', '.join(map(repr, trials))}, or run `maestro study --tune` and add the gin "
                "file that it writes"
            )
        return trials[self.chosen[method.name]]

    def tuning(self) -> Study:
        """Returns the study of all trials: with one seed, and evaluated on the validation set.

        Trials have the smallest amount of paired speech.

        Raises:
            UserError: There are no trials.
        """
        if not any(self.trials_of(method) for method in self.methods):
            raise UserError(f"the study {self.name!r} has no Study.trials to choose from")
        methods: list[Method] = []
        chosen: dict[str, str] = {}
        for method in self.methods:
            for trial, values in self.trials_of(method).items():
                name = f"{method.name}: {trial}"
                methods.append(dataclasses.replace(method, name=name, trials={trial: values}))
                chosen[name] = trial
        amount = next(iter(self.amounts))
        return dataclasses.replace(
            self,
            name=f"{self.name}: trials",
            methods=tuple(methods),
            baseline="",
            amounts={amount: self.amounts[amount]},
            seeds=(self.tuning_seed,),
            tuning_seed=-1,
            trials={},
            chosen=chosen,
            chosen_by="",
            splits=("validation",),
            conditions=(),
        )

    def cells(self) -> list[Cell]:
        """Returns all cells: one seed of the whole grid after the other."""
        return [
            Cell(method=method, amount=amount, seed=seed)
            for seed in self.seeds
            for amount in self.amounts
            for method in self.methods
        ]

    def select(
        self,
        names: Sequence[str] = (),
        shard: tuple[int, int] | None = None,
        patterns: Sequence[str] = (),
    ) -> list[Cell]:
        """Returns a part of the cells, in the order of the grid.

        Args:
            names: Names of cells; all by default.
            shard: Number of the shard, from 0, and how many there are: each has every so-manieth
                cell.
            patterns: Shell patterns, one of which a name has to match; all by default.

        Raises:
            UserError: There is no cell of a name, or none matches a pattern.
        """
        cells = self.cells()
        known = {cell.name: cell for cell in cells}
        for name in names:
            if name not in known:
                remedy = near_misses(name, known) or f" The first is {cells[0].name}."
                raise UserError(f"the study {self.name!r} has no cell {name!r}.{remedy}")
        for pattern in patterns:
            if not any(fnmatch.fnmatchcase(name, pattern) for name in known):
                raise UserError(
                    f"no cell of the study {self.name!r} matches {pattern!r}; the first is "
                    f"{cells[0].name}"
                )
        chosen = [known[name] for name in names] or [
            cell
            for cell in cells
            if not patterns or any(fnmatch.fnmatchcase(cell.name, each) for each in patterns)
        ]
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
        values |= study.trial_of(method).get(stage, {})
        return files, {name: _gin_text(value) for name, value in values.items()}

    def digests(self, study: Study) -> dict[str, str]:
        """Returns a hash of the settings of each part: the stages, and the evaluation.

        A part depends on those before it, whose settings are in its hash.
        """
        texts = []
        digests = {}
        for stage in self.stages:
            self.build(study, stage)
            texts.append(gin_config.config_text())
            digests[stage] = provenance.digest("\n".join(texts))
        evaluated = (study.tasks, study.splits, study.conditions, dataclasses.asdict(study.search))
        texts.append(json.dumps(evaluated, default=str))
        digests[EVALUATION] = provenance.digest("\n".join(texts))
        return digests


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


def check_study(
    study: Study, cells: Sequence[Cell], output: epath.PathLike, *, retrain: bool = False
) -> dict[str, tuple[str, ...]]:
    """Builds the runs of all cells, so that none is refused after hours.

    Args:
        study: The study.
        cells: The cells to check.
        output: Directory of the study.
        retrain: Whether what was trained with other settings may be trained again.

    Returns:
        The parts of each cell that were made with other settings, by its name, those after them
        included; `discard` removes them.

    Raises:
        UserError: A run is wrong; or a stage was trained with other settings, and `retrain` is
            False.
    """
    check_macros(study)
    changed = {cell.name: changed_parts(study, cell, output) for cell in cells}
    changed = {name: parts for name, parts in changed.items() if parts}
    trained = {name: parts[0] for name, parts in changed.items() if parts[0] != EVALUATION}
    if trained and not retrain:
        first = next(iter(trained))
        raise UserError(
            f"{len(trained)} of {len(cells)} cells in {output} were trained with other settings "
            f"than the gin files have now ({first}: {trained[first]}"
            f"{', ...' if len(trained) > 1 else ''}): add --retrain to train again what has "
            "changed, or give another --output_dir"
        )
    return changed


def changed_parts(study: Study, cell: Cell, output: epath.PathLike) -> tuple[str, ...]:
    """Returns the parts of a cell that were begun with other settings than they have now."""
    begun = _read_json(cell_directory(output, cell) / SETTINGS) or {}
    now = cell.digests(study)
    if not begun and read_result(output, cell) is not None:
        return tuple(now)
    # Pretraining that a method no longer has shows in the hash of its fine-tuning.
    return tuple(part for part in now if begun.get(part, now[part]) != now[part])


def discard(output: epath.PathLike, cell: Cell, parts: Sequence[str]) -> None:
    """Removes parts of a cell, and its result, so that it is not done."""
    directory = cell_directory(output, cell)
    (directory / RESULT).unlink(missing_ok=True)
    settings = _read_json(directory / SETTINGS) or {}
    for part in parts:
        if (directory / part).exists():
            (directory / part).rmtree()
        settings.pop(part, None)
    _write_json(directory / SETTINGS, settings)


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
    digests = cell.digests(study)
    runs: dict[str, TrainRun] = {}
    init_from: str | None = None
    for stage in cell.stages:
        run = cell.build(study, stage, init_from)
        record = run_record.RunRecord(gin_config.record_texts(), provenance.command_line())
        model_dir = str(directory / stage)
        _begin(directory, stage, digests)
        # A stage that is done ends at once, and one that is not goes on from its checkpoint.
        train_with_report(run, model_dir=model_dir, data_dir=data_dir, callbacks=[record])
        runs[stage], init_from = run, model_dir
    run = runs["finetune"]
    _begin(directory, EVALUATION, digests)
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
    _write_json(directory / RESULT, result)
    (directory / FAILURE).unlink(missing_ok=True)


def _evaluate(
    study: Study, run: TrainRun, directory: epath.Path, data_dir: str | Path | None
) -> list[dict[str, Any]]:
    """Evaluates the best checkpoint of fine-tuning; returns the scores of each test set."""
    model_dir = directory / "finetune"
    test_sets = {
        split: test_sets_of_run(run, study.tasks, split, data_dir=data_dir)
        for split in study.splits
    }
    found: list[tuple[str, str, Evaluation]] = []
    with loaded_model(
        run,
        model_dir=str(model_dir),
        data_dir=data_dir,
        step="best" if run.validation.every else None,
        search=study.search,
        output_dir=str(directory / EVALUATION),
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
        folder = f"{EVALUATION}/{ROBUSTNESS}/{condition}" if condition else EVALUATION
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


def _begin(directory: epath.Path, part: str, digests: Mapping[str, str]) -> None:
    """Writes down with which settings a part of a cell is begun, before it leaves anything."""
    if jax.process_index() == 0:
        directory.mkdir(parents=True, exist_ok=True)
        settings = _read_json(directory / SETTINGS) or {}
        _write_json(directory / SETTINGS, settings | {part: digests[part]})


def _write_json(path: epath.Path, content: Mapping[str, Any]) -> None:
    write_atomically(path, (json.dumps(content, indent=2) + "\n").encode())


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

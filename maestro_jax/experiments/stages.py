"""Experiments on MiniVox: training runs in sequence, each initialised from an earlier one.

Every stage leaves its result in the output directory. When an experiment is started again, finished
stages are skipped, and one that was interrupted is continued.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping
from pathlib import Path

from maestro_jax.data.data_dir import local_data_root
from maestro_jax.files import local_directory
from maestro_jax.gin_utils import gin_config, run_record
from maestro_jax.provenance import command_line
from maestro_jax.reports.html_report import train_with_report
from maestro_jax.training.run import TrainRun


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """One training run.

    Attributes:
        name: Name of the stage, unique in its recipe.
        file: Gin file of the run.
        directory: Model directory, within the output directory.
        doing: Line that is printed when the stage begins.
        init_from: Stage from whose model it is initialised; None for a run from scratch.
        bindings: Macros of the files that this stage overrides.
        further_files: Gin files that are read after the first.
    """

    name: str
    file: str
    directory: str
    doing: str
    init_from: str | None = None
    bindings: Mapping[str, str] = dataclasses.field(default_factory=dict)
    further_files: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """The stages of an experiment, its MiniVox configuration, and what they override.

    Attributes:
        stages: Stages in the order in which they run.
        config: Configuration of MiniVox.
        data_gin: Gin file of the data, read after those of the runs; None for their own.
        bindings: Macros overridden in every run that reads them.
        steps: Training steps by stage, where they differ from those of its file.
        further_configs: Further configurations of MiniVox that are prepared.
    """

    stages: tuple[Stage, ...]
    config: str = "small"
    data_gin: str | None = None
    bindings: Mapping[str, str] = dataclasses.field(default_factory=dict)
    steps: Mapping[str, int] = dataclasses.field(default_factory=dict)
    further_configs: tuple[str, ...] = ()

    def stage(self, name: str) -> Stage:
        """Returns the stage of that name."""
        return next(stage for stage in self.stages if stage.name == name)


class Experiment:
    """Carries out a recipe, and announces each of its parts on standard output.

    Args:
        recipe: What to train.
        output_dir: Directory of models, tables and figures.
        data_dir: Root of the prepared data; by default `data` in the output directory.
        further_parts: Number of parts that follow training.

    Attributes:
        recipe: What to train.
        output: Directory of models, tables and figures.
        data: Root of the prepared data.
        runs: The run of each stage that has been trained, by name.
        directories: Their model directories.
    """

    def __init__(
        self,
        recipe: Recipe,
        output_dir: str | Path,
        data_dir: str | Path | None = None,
        *,
        further_parts: int = 0,
    ) -> None:
        self.recipe = recipe
        self.output = local_directory(output_dir, "output directory").absolute()
        self.data = local_data_root(data_dir) if data_dir else self.output / "data"
        self.runs: dict[str, TrainRun] = {}
        self.directories: dict[str, Path] = {}
        self._parts = 1 + len(recipe.stages) + further_parts
        self._begun = 0
        self._start = time.monotonic()

    def announce(self, doing: str) -> None:
        """Prints that the next part begins, and the number of parts."""
        self._begun += 1
        print(f"\n[{self._begun}/{self._parts}] {doing}", flush=True)

    def train(self) -> None:
        """Synthesises MiniVox, and trains all stages."""
        from maestro_jax.minivox import dataset

        self.output.mkdir(parents=True, exist_ok=True)
        self.announce("synthesising MiniVox: sentences, voices, rooms and noise")
        for config in (self.recipe.config, *self.recipe.further_configs):
            dataset.prepare(config, self.data)
        for stage in self.recipe.stages:
            self.announce(stage.doing)
            self.train_stage(stage)

    def train_stage(self, stage: Stage) -> None:
        """Trains one stage, or continues it, and records its configuration.

        Args:
            stage: A stage of the recipe; the one that it is initialised from has been trained.
        """
        recipe = self.recipe
        files = [stage.file, *stage.further_files]
        if recipe.data_gin is not None:
            files.append(recipe.data_gin)
        macros = gin_config.macros(files)
        bindings = {macro: value for macro, value in recipe.bindings.items() if macro in macros}
        bindings |= stage.bindings
        if stage.name in recipe.steps:
            bindings["STEPS"] = str(recipe.steps[stage.name])
        if stage.init_from is not None:
            source = self.output / recipe.stage(stage.init_from).directory
            bindings["INIT_FROM"] = repr(str(source))
        elif "INIT_FROM" in macros:
            bindings["INIT_FROM"] = "None"
        run = gin_config.parse_and_build(files, bindings)
        model_dir = self.output / stage.directory
        record = run_record.RunRecord(gin_config.record_texts(), command_line())
        train_with_report(run, model_dir=model_dir, data_dir=self.data, callbacks=[record])
        self.runs[stage.name], self.directories[stage.name] = run, model_dir

    def training_minutes(self) -> dict[str, float]:
        """Returns the minutes that each stage has trained, by name; see `training_minutes`."""
        return {name: training_minutes(path) for name, path in self.directories.items()}

    def finish(self) -> None:
        """Prints how long the experiment took."""
        print(f"\nDone in {(time.monotonic() - self._start) / 60:.1f} minutes.")


def training_minutes(model_dir: Path) -> float:
    """Returns the minutes that a run has trained, over all its starts, with compilation.

    Args:
        model_dir: Model directory of a run that has reached a log point.
    """
    last = (model_dir / "metrics.jsonl").read_text().splitlines()[-1]
    return float(json.loads(last)["elapsed_seconds"]) / 60.0

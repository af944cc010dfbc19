"""Training runs in sequence, each initialised from an earlier one and continued if interrupted."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

from maestro_jax.experiments.reported import train_with_report
from maestro_jax.gin_utils import gin_config, run_record
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
        bindings: Macros of the file that this stage overrides.
    """

    name: str
    file: str
    directory: str
    doing: str
    init_from: str | None = None
    bindings: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """The stages of an experiment, its MiniVox configuration, and what they override.

    Attributes:
        stages: Stages in the order in which they run.
        config: Configuration of MiniVox.
        data_gin: Gin file of the data, read after those of the runs; None for their own.
        bindings: Macros overridden in every run that reads them.
        steps: Training steps by stage, where they differ from those of its file.
    """

    stages: tuple[Stage, ...]
    config: str = "small"
    data_gin: str | None = None
    bindings: Mapping[str, str] = dataclasses.field(default_factory=dict)
    steps: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def stage(self, name: str) -> Stage:
        """Returns the stage of that name."""
        return next(stage for stage in self.stages if stage.name == name)

    def train(self, name: str, output: Path, data: Path) -> tuple[TrainRun, Path]:
        """Trains one stage, or continues it, and records its configuration.

        Args:
            name: Name of the stage; the stage that it is initialised from must have run.
            output: Directory of all stages.
            data: Root of the prepared data.

        Returns:
            The run and its model directory.
        """
        stage = self.stage(name)
        files = [stage.file]
        if self.data_gin is not None:
            files.append(self.data_gin)
        macros = gin_config.macros(files)
        bindings = {macro: value for macro, value in self.bindings.items() if macro in macros}
        bindings |= stage.bindings
        if name in self.steps:
            bindings["STEPS"] = str(self.steps[name])
        if stage.init_from is not None:
            bindings["INIT_FROM"] = repr(str(output / self.stage(stage.init_from).directory))
        elif "INIT_FROM" in macros:
            bindings["INIT_FROM"] = "None"
        run = gin_config.parse_and_build(files, bindings)
        texts = {
            "config.gin": gin_config.config_text(),
            "operative_config.gin": gin_config.operative_config_text(),
        }
        model_dir = output / stage.directory
        run_record.write(model_dir, texts, run_record.command_line())
        train_with_report(run, model_dir=model_dir, data_dir=data)
        return run, model_dir


def training_minutes(model_dir: Path) -> float:
    """Returns the minutes that a run has trained, over all its starts, with compilation.

    Args:
        model_dir: Model directory of a run that has reached a log point.
    """
    last = (model_dir / "metrics.jsonl").read_text().splitlines()[-1]
    return float(json.loads(last)["elapsed_seconds"]) / 60.0


class Announcer:
    """Prints which part of an experiment begins, and the number of parts.

    Attributes:
        parts: Number of parts.
    """

    def __init__(self, parts: int) -> None:
        self.parts = parts
        self._begun = 0

    def __call__(self, doing: str) -> None:
        """Prints that the next part begins."""
        self._begun += 1
        print(f"\n[{self._begun}/{self.parts}] {doing}", flush=True)

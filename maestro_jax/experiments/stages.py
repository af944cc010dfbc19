"""Training runs one after the other, each beginning from an earlier one, continued if interrupted.

What `maestro demo` runs is a list of such stages; what it makes of their models is another matter.
"""

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
        name: By which the stages of a recipe are told apart.
        file: The gin file of the run.
        directory: Where its model goes, within the output directory.
        doing: What is said when it begins.
        init_from: The stage whose model it begins with; None for a run from scratch.
        bindings: Macros of the file that this stage changes.
    """

    name: str
    file: str
    directory: str
    doing: str
    init_from: str | None = None
    bindings: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """Which MiniVox is trained on, by which stages, and for how long.

    Attributes:
        stages: In the order in which they run.
        config: Which MiniVox.
        data_gin: A data file read after those of the runs; None for their own.
        bindings: Macros changed in every run that reads them.
        steps: Training steps by stage, where they differ from its file's.
    """

    stages: tuple[Stage, ...]
    config: str = "small"
    data_gin: str | None = None
    bindings: Mapping[str, str] = dataclasses.field(default_factory=dict)
    steps: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def stage(self, name: str) -> Stage:
        """The stage of that name."""
        return next(stage for stage in self.stages if stage.name == name)

    def train(self, name: str, output: Path, data: Path) -> tuple[TrainRun, Path]:
        """Train one stage, or go on training it, with a record of its configuration.

        Args:
            name: Of the stage; the one that it begins with must have run.
            output: The directory of all stages.
            data: The root of the prepared data.

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
    """How long a run has trained, over all its starts, compilation included.

    Args:
        model_dir: Of a run that has reached a log point.
    """
    last = (model_dir / "metrics.jsonl").read_text().splitlines()[-1]
    return float(json.loads(last)["elapsed_seconds"]) / 60.0


class Announcer:
    """Says which part of a command begins, and how many there are.

    Attributes:
        parts: How many there will be.
    """

    def __init__(self, parts: int) -> None:
        self.parts = parts
        self._begun = 0

    def __call__(self, doing: str) -> None:
        """Announce the next part."""
        self._begun += 1
        print(f"\n[{self._begun}/{self.parts}] {doing}", flush=True)

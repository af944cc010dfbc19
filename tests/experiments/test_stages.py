"""A recipe's stages: which configuration reaches training, and from which model it begins."""

from __future__ import annotations

import json
import types
from pathlib import Path

import jax
import pytest

from maestro_jax.experiments import demo, low_resource, stages
from maestro_jax.experiments.stages import Experiment, Recipe, Stage, training_minutes


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """What `train` was asked for, instead of training."""
    calls: list[tuple] = []

    def train(run: object, *, model_dir: Path, data_dir: Path, callbacks: list) -> None:
        calls.append((run, model_dir, data_dir))
        for callback in callbacks:
            callback.on_start(types.SimpleNamespace(model_dir=model_dir))

    monkeypatch.setattr(stages, "train_with_report", train)
    return calls


def test_stages_begin_where_they_say(trained: list[tuple], tmp_path: Path) -> None:
    recipe = Recipe(
        stages=(
            Stage(name="a", file="runs/low_resource_pretrain.gin", directory="one", doing=""),
            Stage(
                name="b",
                file="runs/low_resource_finetune.gin",
                directory="two",
                doing="",
                init_from="a",
                bindings={"LEARNING_RATE": "0.25"},
            ),
            Stage(name="c", file="runs/low_resource_finetune.gin", directory="three", doing=""),
        ),
        bindings={"FEATURES": "16", "TEXT_START_STEP": "700"},
        steps={"b": 111},
    )
    experiment = Experiment(recipe, tmp_path)
    for stage in recipe.stages:
        experiment.train_stage(stage)
    [(first, one, data), (second, two, _), (third, three, _)] = trained
    assert (one, two, three) == (tmp_path / "one", tmp_path / "two", tmp_path / "three")
    assert data == tmp_path / "data"
    assert (first.init_from, second.init_from, third.init_from) == (None, str(one), None)
    # A binding reaches the runs that read it; TEXT_START_STEP means nothing to fine-tuning.
    assert {run.model.shared_encoder.stack.features for run in (first, second, third)} == {16}
    assert "text" not in first.objective.active_streams(699)
    assert "text" in first.objective.active_streams(700)
    assert second.optimizer.learning_rate == 0.25 != third.optimizer.learning_rate
    assert second.steps == 111 == second.optimizer.decay_steps
    assert "INIT_FROM" in (two / "config.gin").read_text()


@pytest.mark.parametrize("recipe", [demo.RECIPE, low_resource.RECIPE])
def test_shipped_recipes_are_whole(recipe: Recipe) -> None:
    names = [stage.name for stage in recipe.stages]
    assert len({stage.directory for stage in recipe.stages}) == len(names) == len(set(names))
    for index, stage in enumerate(recipe.stages):
        # Nothing begins from what comes later.
        assert stage.init_from is None or stage.init_from in names[:index]


def test_both_contenders_are_the_same_model_on_the_same_utterances(
    trained: list[tuple], tmp_path: Path
) -> None:
    experiment = Experiment(low_resource.RECIPE, tmp_path)
    for name in low_resource.MODELS:
        experiment.train_stage(low_resource.RECIPE.stage(name))
    tuned, scratch = (call[0] for call in trained)
    assert tuned.streams == scratch.streams
    shapes = [
        jax.tree.map(lambda leaf: leaf.shape, run.abstract_state().params)
        for run in (tuned, scratch)
    ]
    assert shapes[0] == shapes[1]
    assert {config.mixture for config in tuned.streams.values()} == {
        "minivox_low_resource_paired_sl"
    }


def test_minutes_come_from_the_last_log_point(tmp_path: Path) -> None:
    lines = [{"step": 1, "elapsed_seconds": 60.0}, {"step": 2, "elapsed_seconds": 150.0}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert training_minutes(tmp_path) == 2.5


def test_announcements_are_numbered(
    trained: list[tuple], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys
) -> None:
    from maestro_jax.minivox import dataset

    prepared: list[tuple] = []
    monkeypatch.setattr(dataset, "prepare", lambda *arguments: prepared.append(arguments))
    stage = Stage(
        name="a", file="runs/low_resource_pretrain.gin", directory="one", doing="training"
    )
    recipe = Recipe(stages=(stage,), config="low_resource")
    experiment = Experiment(recipe, tmp_path, tmp_path / "corpora", further_parts=1)
    experiment.train()
    experiment.announce("testing")
    assert prepared == [("low_resource", tmp_path / "corpora")]
    assert [call[2] for call in trained] == [tmp_path / "corpora"]
    lines = [line for line in capsys.readouterr().out.splitlines() if line]
    assert [line[:5] for line in lines] == ["[1/3]", "[2/3]", "[3/3]"]
    assert lines[1:] == ["[2/3] training", "[3/3] testing"]

"""Gin files of earlier versions are read under the present names."""

from __future__ import annotations

import importlib
import importlib.util
import pathlib

import pytest

from maestro_jax.errors import UserError
from maestro_jax.gin_utils import gin_config
from maestro_jax.gin_utils.renames import MOVED_MACROS, MOVED_MODULES, with_present_names


@pytest.mark.parametrize("earlier", sorted(MOVED_MODULES))
def test_an_import_of_a_moved_module_finds_its_classes(earlier: str, tmp_path) -> None:
    package, _, name = earlier.rpartition(".")
    statement = with_present_names(f"from {package} import {name}\n")
    importlib.import_module(MOVED_MODULES[earlier])
    namespace: dict = {}
    exec(statement, namespace)
    assert namespace[name].__name__ == MOVED_MODULES[earlier]
    # No file has the earlier name; scripts find some of them all the same (`earlier_names`).
    spec = importlib.util.find_spec(earlier)
    assert spec is None or not spec.has_location


def test_what_has_not_moved_stays() -> None:
    text = (
        "from maestro_jax.modules import maestro as model\n"
        "import maestro_jax.training.run as data  # from maestro_jax.data import streams\n"
        "include 'runs/pretrain.gin'\n"
    )
    assert with_present_names(text) == text


def test_a_run_of_an_earlier_version_is_built(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "config.gin"
    file.write_text(
        """
from __gin__ import dynamic_registration

from maestro_jax.data import streams as batches_of
from maestro_jax.data import augmentation
from maestro_jax.modules import conformer

include "runs/pretrain.gin"
include "models/tiny.gin"
include "objectives/maestro.gin"
include "data/minivox_small.gin"

paired/batches_of.StreamConfig.augmentation = @augmentation.AudioAugmentation()
augmentation.AudioAugmentation.speeds = (0.9, 1.1)
conformer.ConformerStack.kernel_size = 5
STEPS = 3
"""
    )
    run = gin_config.parse_and_build([str(file)])
    assert run.streams["paired"].augmentation.speeds == (0.9, 1.1)
    assert run.model.shared_encoder.stack.kernel_size == 5


def test_earlier_macros_parameters_and_metrics_of_files_are_read(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "config.gin"
    file.write_text(
        """
from __gin__ import dynamic_registration

from maestro_jax.modules import quantizer
from maestro_jax.modules import random_projection
from maestro_jax.objectives import curriculum
from maestro_jax.objectives import maestro as maestro_objective
from maestro_jax.objectives import text_side

include "runs/pretrain.gin"
include "models/tiny.gin"
include "objectives/maestro_gated.gin"
include "data/minivox_small.gin"

PAIRED_FROM = 7
TEXT_FRAMES = 90
LONGEST_HOLD = 11
maestro_objective.MaestroPretraining.text_frames = %TEXT_FRAMES
maestro_objective.MaestroPretraining.augment_paired_from = %PAIRED_FROM
text_side.Matching.form = "cosine"
quantizer.GumbelQuantizer.codes = 64
random_projection.RandomProjectionQuantizer.codes = 32
speech/curriculum.Phase.begins = 0
zero/curriculum.Gate.metric = "paired/zero_duration_share"
STEPS = 3
"""
    )
    objective = gin_config.parse_and_build([str(file)]).objective
    assert (objective.max_text_frames, objective.augment_paired_start_step) == (90, 7)
    assert objective.matching.form == "cosine"
    paired, text = objective.curriculum.phases[1:3]
    assert (paired.start_step, text.max_hold_steps) == (7, 11)
    assert text.gates[1].metric == "paired/zero_duration_fraction"


@pytest.mark.parametrize("earlier", sorted(MOVED_MACROS))
def test_an_earlier_macro_of_the_command_line_is_refused_with_its_present_name(earlier) -> None:
    files = ["runs/pretrain.gin", "models/tiny.gin", "objectives/maestro_gated.gin"]
    with pytest.raises(UserError, match=f"{earlier} is now called {MOVED_MACROS[earlier]}"):
        gin_config.parse([*files, "data/minivox_small.gin"], {earlier: "1", "STEPS": "3"})

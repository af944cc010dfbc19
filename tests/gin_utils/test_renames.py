"""Gin files of earlier versions are read under the present names."""

from __future__ import annotations

import importlib
import pathlib

import pytest

from maestro_jax.gin_utils import gin_config
from maestro_jax.gin_utils.renames import MOVED_MODULES, with_present_names


@pytest.mark.parametrize("earlier", sorted(MOVED_MODULES))
def test_an_import_of_a_moved_module_finds_its_classes(earlier: str, tmp_path) -> None:
    package, _, name = earlier.rpartition(".")
    statement = with_present_names(f"from {package} import {name}\n")
    importlib.import_module(MOVED_MODULES[earlier])
    namespace: dict = {}
    exec(statement, namespace)
    assert namespace[name].__name__ == MOVED_MODULES[earlier]
    with pytest.raises(ImportError):
        importlib.import_module(earlier)


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

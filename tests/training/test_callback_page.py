"""The files of docs/how_to/callback.md, as a user writes them outside the repository."""

from __future__ import annotations

import math
import pathlib
import re

import pytest
from narrow_model import NARROW

from maestro_jax.gin_utils import gin_config
from maestro_jax.training.callbacks import Callback
from maestro_jax.training.trainer import train

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "how_to" / "callback.md"
FILES = ("runs/finetune.gin", "models/tiny.gin", "objectives/speech_recognition.gin")


class Constant(Callback):
    """Logs the same value again and again."""

    def log_values(self, trainer, window):
        return {"constant": 1.0}


def block(language, contains):
    found = re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    [text] = [text for text in found if contains in text]
    return text


@pytest.fixture(scope="module")
def run_of_page(tmp_path_factory):
    """A run whose gin file names the callback of the page, and a tracker."""
    directory = tmp_path_factory.mktemp("page")
    (directory / "early_stop.py").write_text(block("python", "class EarlyStop"))
    gin = block("gin", "EarlyStop") + block("gin", "WandbTracker")
    (directory / "early_stop.gin").write_text(gin)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(directory))
        # Gin knows a class by its module and name: the module is imported once.
        return gin_config.parse_and_build(
            [*FILES, "data/minivox_tiny.gin", str(directory / "early_stop.gin")],
            NARROW
            | {"STEPS": "9", "INIT_FROM": "None", "ENCODER_WARMUP": "1", "DECODER_WARMUP": "1"},
            ["early_stop"],
        )


def test_gin_adds_the_callback_and_the_tracker(run_of_page):
    [callback] = run_of_page.callbacks
    assert (type(callback).__name__, callback.patience, callback.best) == ("EarlyStop", 2, math.inf)
    assert [type(tracker).__name__ for tracker in run_of_page.trackers] == ["WandbTracker"]
    # Fine-tuning validates without being told, pretraining does not.
    assert run_of_page.validation.every == 1000 and run_of_page.validation.examples == 256


def test_the_callback_stops_a_run_whose_metric_has_stopped_falling(toy, run_of_page, tmp_path):
    [callback] = run_of_page.callbacks
    callback.metric = "constant"
    run = toy.run(log_every=1, checkpoint_every=100, callbacks=[callback, Constant()])
    assert int(train(run, tmp_path / "model", batches=toy.batches).step) == 4
    # The first value is the best; the log points of the steps 2 and 3 are no better, and that of
    # step 3 is written while step 4 is under way.
    assert [p.name for p in (tmp_path / "model" / "checkpoints").iterdir()] == ["4"]

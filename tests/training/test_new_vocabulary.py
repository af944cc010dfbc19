"""A run whose vocabulary is not that of the checkpoint it begins with."""

from __future__ import annotations

import logging

import jax
import pytest
from etils import epath

from maestro_jax.errors import UserError
from maestro_jax.text.vocabularies import train_sentencepiece
from maestro_jax.training.checkpoints import Checkpoints
from maestro_jax.training.model_vocabulary import check_vocabulary
from maestro_jax.training.parameter_trees import unbox
from maestro_jax.training.state import create_state, initial_params


@pytest.fixture(scope="module")
def vocabularies(tmp_path_factory):
    """Two of the same size."""
    directory = tmp_path_factory.mktemp("vocabularies")
    first = train_sentencepiece(["ab ba cab"], directory / "a.model", 8, "char")
    second = train_sentencepiece(["xy yx zyx"], directory / "b.model", 8, "char")
    assert first.vocab_size == second.vocab_size and first != second
    return first, second


@pytest.fixture(scope="module")
def pretrained(toy, vocabularies, tmp_path_factory):
    """A model directory with a checkpoint of the toy, whose `table` depends on the vocabulary."""
    run = toy.run()
    directory = tmp_path_factory.mktemp("pretrained")
    params = unbox(
        jax.jit(lambda: initial_params(run.model, run.objective, run.batch_shapes(), 0))()
    )
    checkpoints = Checkpoints(directory)
    checkpoints.save(create_state(params, run.optimizer), {"step": 7})
    checkpoints.close()
    vocabularies[0].save(directory)
    return directory


@pytest.fixture
def model_dir(tmp_path):
    return epath.Path(tmp_path)


@pytest.mark.parametrize("settings", [{}, {"init_exclude": ("out/.*",)}])
def test_taking_over_what_depends_on_it_is_refused(
    toy, vocabularies, pretrained, model_dir, settings
):
    run = toy.run(init_from=str(pretrained), **settings)
    with pytest.raises(UserError, match=r"table .*finetune_new_vocabulary\.gin") as error:
        check_vocabulary(run, vocabularies[1], model_dir)
    assert "\n" not in str(error.value)
    assert str(pretrained / "vocabulary.model") in str(error.value)


@pytest.mark.parametrize(
    "settings", [{"init_exclude": ("table",)}, {"init_include": ("up/.*",)}, {"vocab_size": 17}]
)
def test_leaving_it_behind_or_another_size_is_fine(
    toy, vocabularies, pretrained, model_dir, caplog, settings
):
    settings = dict(settings)
    if size := settings.pop("vocab_size", None):
        settings["model"] = toy.run().model.clone(vocab_size=size)
    run = toy.run(init_from=str(pretrained), **settings)
    with caplog.at_level(logging.INFO):
        check_vocabulary(run, vocabularies[1], model_dir)
    assert "another vocabulary" in caplog.text


def test_the_same_vocabulary_is_no_news(toy, vocabularies, pretrained, model_dir, caplog):
    with caplog.at_level(logging.INFO):
        check_vocabulary(toy.run(init_from=str(pretrained)), vocabularies[0], model_dir)
    assert "another vocabulary" not in caplog.text

"""A run whose vocabulary is not that of the checkpoint it begins with."""

from __future__ import annotations

import logging
import types

import pytest
from etils import epath

from maestro_jax.data.vocabularies import train_sentencepiece
from maestro_jax.errors import UserError
from maestro_jax.training.inputs import keep_vocabulary


@pytest.fixture
def vocabularies(tmp_path):
    """Two of the same size, and a model directory with the first."""
    first = train_sentencepiece(["ab ba cab"], tmp_path / "a" / "v.model", 8, "char")
    second = train_sentencepiece(["xy yx zyx"], tmp_path / "b" / "v.model", 8, "char")
    assert first.vocab_size == second.vocab_size and first != second
    pretrained = tmp_path / "pretrained"
    for part in ("state", "data"):
        (pretrained / "checkpoints" / "7" / part).mkdir(parents=True)
    first.save(pretrained)
    return first, second, pretrained


def run(pretrained, **settings):
    model = types.SimpleNamespace(vocab_size=8)
    settings = {"init_include": (".*",), "init_exclude": (), **settings}
    return types.SimpleNamespace(model=model, init_from=str(pretrained), **settings)


def directory(tmp_path):
    (tmp_path / "model").mkdir()
    return epath.Path(tmp_path / "model")


def test_taking_everything_over_is_refused(vocabularies, tmp_path):
    _, second, pretrained = vocabularies
    with pytest.raises(UserError, match=r"finetune_new_vocabulary\.gin") as error:
        keep_vocabulary(run(pretrained), second, directory(tmp_path))
    assert "\n" not in str(error.value)
    assert str(pretrained / "vocabulary.model") in str(error.value)


@pytest.mark.parametrize(
    "settings", [{"init_exclude": ("decoder/.*",)}, {"init_include": ("speech_encoder/.*",)}]
)
def test_leaving_something_out_is_a_decision(vocabularies, tmp_path, caplog, settings):
    _, second, pretrained = vocabularies
    with caplog.at_level(logging.INFO):
        keep_vocabulary(run(pretrained, **settings), second, directory(tmp_path))
    assert "another vocabulary" in caplog.text
    assert (tmp_path / "model" / "vocabulary.model").read_bytes() == second.model_bytes


def test_the_same_vocabulary_is_no_news(vocabularies, tmp_path, caplog):
    first, _, pretrained = vocabularies
    with caplog.at_level(logging.INFO):
        keep_vocabulary(run(pretrained), first, directory(tmp_path))
    assert "another vocabulary" not in caplog.text

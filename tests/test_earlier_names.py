"""Scripts that were written for earlier checkouts."""

from __future__ import annotations

import importlib
import pathlib
import sys

import pytest

from maestro_jax import earlier_names


@pytest.mark.parametrize("name", earlier_names.MODULES)
def test_a_moved_module_is_found_and_says_so(name) -> None:
    sys.modules.pop(name, None)
    with pytest.warns(DeprecationWarning, match=f"{name} is now {earlier_names.MODULES[name]}"):
        module = importlib.import_module(name)
    present = importlib.import_module(earlier_names.MODULES[name])
    public = {key for key in vars(present) if not key.startswith("_")}
    assert public and all(getattr(module, key) is getattr(present, key) for key in public)


def test_a_present_module_is_never_shadowed() -> None:
    package = pathlib.Path(earlier_names.__file__).parents[1]
    for name in earlier_names.MODULES:
        assert not (package / f"{name.replace('.', '/')}.py").exists()


def test_scores_have_their_earlier_form(tmp_path) -> None:
    with pytest.warns(DeprecationWarning):
        sys.modules.pop("maestro_jax.evaluation.scores", None)
        from maestro_jax.evaluation.scores import translation_scores, word_scores
    from maestro_jax.text.vocabularies import ByteVocabulary

    assert word_scores(["eins zwei"], ["eins drei"], "de").wer == 50.0
    text = ["the water of the sea"]
    assert translation_scores(text, text).bleu == pytest.approx(100)
    from maestro_jax.data.vocabularies import TokenVocabulary

    ByteVocabulary().save(tmp_path)
    assert TokenVocabulary.load(tmp_path) == ByteVocabulary()


def test_an_unknown_module_is_unknown() -> None:
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("maestro_jax.evaluation.nothing")

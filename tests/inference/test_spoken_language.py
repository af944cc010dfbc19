"""Who must say which language is spoken; no model is run."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from maestro_jax.errors import UserError
from maestro_jax.gin_utils import gin_config
from maestro_jax.inference.transcriber import spoken_language
from maestro_jax.text.languages import LANGUAGES, LanguageTable


def model(name: str):
    files = ["runs/pretrain.gin", f"models/{name}.gin", "objectives/maestro.gin"]
    return gin_config.parse_and_build([*files, "data/minivox_tiny.gin"], {"STEPS": "1"}).model


def test_a_universal_model_wants_to_be_told() -> None:
    universal = model("tiny_universal")
    found = spoken_language(universal, 3, "de-AT", LanguageTable())["language"]
    np.testing.assert_array_equal(found, [LANGUAGES.index("de")] * 3)
    with pytest.raises(UserError, match="--language") as error:
        spoken_language(universal, 3, None, LanguageTable())
    assert "\n" not in str(error.value)
    # An embedding alone is enough to ask for it, and so are adapters.
    encoder = dataclasses.replace(universal.speech_encoder, source_languages=0)
    shared = dataclasses.replace(universal.shared_encoder, source_languages=0)
    adapted = dataclasses.replace(universal, speech_encoder=encoder, shared_encoder=shared)
    assert adapted.needs_language


def test_other_models_need_not_be_told() -> None:
    plain = model("tiny")
    assert (
        spoken_language(plain, 3, None, LanguageTable())
        == spoken_language(plain, 3, "de", LanguageTable())
        == {}
    )
    with pytest.raises(UserError, match="unknown language 'xx'"):
        spoken_language(plain, 3, "xx", LanguageTable())

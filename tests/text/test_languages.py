"""Languages and their ids."""

import pytest

from maestro_jax.errors import UserError
from maestro_jax.text.languages import LANGUAGES, language_id


def test_ids_are_places_and_never_move():
    assert LANGUAGES[:6] == ("en", "de", "fr", "es", "pl", "sl")
    assert len(set(LANGUAGES)) == len(LANGUAGES)
    assert [language_id(code) for code in LANGUAGES] == list(range(len(LANGUAGES)))


def test_benchmark_languages_are_known():
    covost = "fr de es ca it ru zh pt fa et mn nl tr ar sv lv sl ta ja id cy".split()
    voxpopuli = "en de fr es pl it ro hu cs nl fi hr sk sl et lt".split()
    for code in (*covost, *voxpopuli):
        assert code in LANGUAGES, code


def test_regions_are_ignored():
    assert language_id("sv-SE") == LANGUAGES.index("sv")
    assert language_id("zh_CN") == LANGUAGES.index("zh")


def test_unknown_language():
    with pytest.raises(UserError, match="unknown language 'klingon'"):
        language_id("klingon")

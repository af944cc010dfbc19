"""Language codes, and the table of a run."""

import pytest

from maestro_jax.errors import UserError
from maestro_jax.text.languages import (
    LANGUAGES,
    LanguageTable,
    base_language,
    is_language,
    load_languages,
    normalize_language,
)

# The ids that checkpoints of versions without a file of languages have, as those wrote them.
EARLIER = (
    "en de fr es pl sl it nl ro hu cs hr sk fi et lt bg da el lv mt pt sv ar ca cy fa id ja mn ru"
    " ta tr zh yue as bn ps tl vi ht sw lo ku zu tpi ceb kk te gn ig am jv luo ka"
).split()


def test_a_table_begins_with_the_ids_of_earlier_checkpoints(tmp_path) -> None:
    assert list(LANGUAGES) == EARLIER
    assert load_languages(tmp_path) == LanguageTable()
    table = LanguageTable().extended(["ml", "quz", "de-CH"])
    assert [table.index(code) for code in EARLIER] == list(range(55))
    assert [table.index(code) for code in ("ml", "quz", "de-CH")] == [55, 56, 57]
    assert table.starts_with(LanguageTable()) and not LanguageTable().starts_with(table)


def test_benchmark_languages_are_listed() -> None:
    covost = "fr de es ca it ru zh pt fa et mn nl tr ar sv lv sl ta ja id cy".split()
    voxpopuli = "en de fr es pl it ro hu cs nl fi hr sk sl et lt".split()
    assert {*covost, *voxpopuli} <= set(LANGUAGES)


@pytest.mark.parametrize(
    ("written", "canonical"),
    [
        # By RFC 5646, sections 2.1.1 (case) and 4.5 (canonical form), and IANA's registry.
        ("de-ch", "de-CH"),
        ("zh_cn", "zh-CN"),
        ("SR-LATN", "sr-Latn"),
        ("iw", "he"),
        ("eng", "en"),
        ("mal", "ml"),
        ("quz", "quz"),
        ("sl-rozaj", "sl-rozaj"),
        # Its id is older than the alias that the registry of CLDR has for it, fil.
        ("tl", "tl"),
        ("tl-PH", "tl-PH"),
    ],
)
def test_canonical_codes(written, canonical) -> None:
    assert normalize_language(written) == canonical
    assert is_language(written)


def test_listed_codes_are_canonical() -> None:
    assert [normalize_language(code) for code in LANGUAGES] == list(LANGUAGES)


@pytest.mark.parametrize("written", ["klingon", "xyz", "", "de en", "e", "de-"])
def test_codes_that_are_none(written) -> None:
    assert not is_language(written)
    with pytest.raises(UserError, match="unknown language .*; write a BCP 47 tag"):
        normalize_language(written)


def test_a_dialect_has_the_id_of_its_language_unless_it_has_its_own() -> None:
    table = LanguageTable().extended(["de_ch", "sr-Latn", "deu"])
    assert table.codes[55:] == ("de-CH", "sr-Latn")
    assert table.index("sv-SE") == LANGUAGES.index("sv")
    assert table.index("zh_CN") == LANGUAGES.index("zh")
    assert table.index("de-AT") == LANGUAGES.index("de")
    assert table.index("de_CH") == 55
    assert "sr" not in table
    with pytest.raises(UserError, match="does not know the language 'sr'; it knows en de"):
        table.index("sr")
    with pytest.raises(UserError, match="unknown language 'xyz'"):
        table.index("xyz")


def test_a_table_is_read_as_it_was_saved(tmp_path) -> None:
    table = LanguageTable(("qu", "de-CH"))
    table.save(tmp_path)
    assert (tmp_path / "languages.txt").read_text() == "qu\nde-CH\n"
    assert load_languages(tmp_path) == table
    (tmp_path / "languages.txt").write_text("qu\nqu\n")
    with pytest.raises(UserError, match=r"languages.txt: the languages qu are listed twice"):
        load_languages(tmp_path)
    (tmp_path / "languages.txt").write_text("que\n")
    with pytest.raises(UserError, match="'que' as 'qu'"):
        load_languages(tmp_path)


def test_base_languages() -> None:
    assert {base_language(code) for code in ("sv-SE", "sv_SE", " SV ", "sv-Latn-SE")} == {"sv"}

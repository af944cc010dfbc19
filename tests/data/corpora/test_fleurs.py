"""FLEURS in its published layout, to records and batches."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from layouts_fleurs import GERMAN, lay_out
from spoken import issues_of, prepared, read_examples, records, say

from maestro_jax.cli.main import main
from maestro_jax.data.corpora.corpus import find_corpus
from maestro_jax.errors import UserError
from maestro_jax.text.languages import LANGUAGES


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = tmp_path_factory.mktemp("fleurs")
    lay_out(source)
    return source


def test_languages(source: Path, caplog: pytest.LogCaptureFixture) -> None:
    corpus = find_corpus("fleurs")
    with caplog.at_level(logging.WARNING):
        assert corpus.configs(source) == ["zh", "de", "xh"]
    assert not caplog.text
    assert corpus.configs(source, ["cmn_hans_cn"]) == ["zh"]
    assert corpus.configs(source / "de_de") == ["de"]
    with pytest.raises(UserError, match="unknown language 'xhosa'"):
        corpus.configs(source, ["xhosa"])
    with pytest.raises(UserError, match="'sl' is not among the languages"):
        corpus.configs(source, ["sl"])


def test_recordings(source: Path, tmp_path: Path) -> None:
    result = prepared(find_corpus("fleurs"), source, "de", tmp_path)
    train, validation, test = result.splits
    assert (train.listed, train.utterances, train.published) == (8, 4, 2987)
    assert train.issues == {
        "missing audio": 1,
        "unreadable audio": 1,
        "duplicate id": 1,
        "empty text": 1,
        "bad row": 1,
    }
    assert (validation.utterances, test.utterances) == (1, 1)
    assert ("duplicate id", "train", "1003-1003000077") in issues_of(result)

    found = records(result, "train")
    # Two readings of a sentence are two utterances.
    assert [entry["id"] for entry in found] == [
        "1003-1003000077",
        "1003-1003000177",
        "1004-1004000277",
        "1005-1005000377",
    ]
    for entry, (_, raw, text) in zip(found, GERMAN["train"], strict=True):
        assert (entry["raw_text"], entry["text"], entry["language"]) == (raw, text, "de")
        np.testing.assert_allclose(entry["audio"] / 32768, say(raw, "de"), atol=2 / 32768)


def test_archives_are_to_be_unpacked(source: Path, tmp_path: Path) -> None:
    corpus = find_corpus("fleurs")
    language = tmp_path / "de_de"
    language.mkdir()
    (language / "train.tsv").symlink_to(source / "de_de" / "train.tsv")
    (language / "audio").mkdir()
    (language / "audio" / "train.tar.gz").touch()
    with pytest.raises(UserError, match=r"no directory .*audio/train; unpack train\.tar\.gz there"):
        prepared(corpus, tmp_path, "de", tmp_path / "data")
    (language / "audio" / "train").mkdir()
    with pytest.raises(UserError, match=r"no table .*dev\.tsv; unpack all of de_de"):
        prepared(corpus, tmp_path, "de", tmp_path / "data")


# In thousands, all splits together, as the viewer of the data set on the Hugging Face hub has them.
ROWS = {
    "am": 3.90, "ar": 2.83, "as": 4.21, "bg": 4.03, "bn": 4.33, "ca": 3.64, "ceb": 4.03,
    "cs": 3.84, "cy": 4.90, "da": 3.79, "de": 4.21, "el": 4.14, "en": 3.64, "es": 4.11,
    "et": 3.78, "fa": 4.34, "fi": 4.04, "fr": 4.16, "hr": 4.75, "hu": 4.41, "id": 3.62,
    "ig": 4.22, "it": 4.29, "ja": 3.21, "jv": 4.07, "ka": 2.88, "kk": 4.43, "lo": 2.41,
    "lt": 4.34, "luo": 2.74, "lv": 3.32, "mn": 4.43, "mt": 4.23, "nl": 3.45, "tl": 3.27,
    "zh": 4.60,
}  # fmt: skip


# FLEURS does not have these languages of ours; of Kurdish it has Sorani alone.
MISSING = {"ht", "gn", "tpi", "ku"}


def test_published_sizes() -> None:
    published = find_corpus("fleurs").published
    for language, thousands in ROWS.items():
        sizes = [size.utterances for size in published(Path(), language).values()]
        assert len(sizes) == 3 and abs(sum(sizes) - 1000 * thousands) <= 5, language
    assert all(published(Path(), language) for language in set(LANGUAGES) - MISSING)
    assert not published(Path(), "xx")


def test_command_and_stream(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["prepare", "fleurs", "--source_dir", str(source), "--data_dir", str(tmp_path)]
    assert main([*command, "--languages", "de,zh", "--workers", "1"]) == 0
    table = capsys.readouterr().out
    assert "fleurs/de" in table and "1 missing audio" in table
    summary = json.loads((tmp_path / "fleurs/zh/1.0.0/summary.json").read_text())
    assert [split["utterances"] for split in summary["splits"]] == [1, 1, 1]

    texts = [text for _, _, text in GERMAN["train"]]
    examples = read_examples(tmp_path, "fleurs_paired_de", "paired", 4)
    assert [example["text"] for example in examples] == sorted(texts)
    spoken = {text: say(raw, "de") for _, raw, text in GERMAN["train"]}
    for example in examples:
        assert example["language"] == "de"
        expected = spoken[str(example["text"])]
        np.testing.assert_allclose(example["audio"] / 32768, expected, atol=2 / 32768)

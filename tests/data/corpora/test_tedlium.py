"""TED-LIUM 3 in its published layout, to records and batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from layouts_tedlium import TALK, lay_out
from spoken import issues_of, prepared, read_examples, records

from maestro_jax.cli.main import main
from maestro_jax.data.corpora.corpus import find_corpus
from maestro_jax.data.corpora.tedlium import words
from maestro_jax.errors import UserError

TEXTS = ["it's a good day", "they're here and don't", "just cause", "read it"]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[np.ndarray]]]:
    source = tmp_path_factory.mktemp("tedlium")
    return source, lay_out(source)


@pytest.mark.parametrize("said,expected", [(written, said) for said, written in TALK])
def test_endings_are_joined_and_marks_removed(said: str, expected: str) -> None:
    assert words(said) == expected


def test_segments(source: tuple[Path, dict[str, list[np.ndarray]]], tmp_path: Path) -> None:
    root, segments = source
    result = prepared(find_corpus("tedlium"), root, "en", tmp_path)
    train, validation, test = result.splits
    assert (train.listed, train.utterances) == (7, 4)
    assert train.issues == {
        "set aside": 2,
        "bad value": 2,
        "bad row": 1,
        "partly transcribed": 1,
        "missing audio": 1,
        "unreadable audio": 1,
        "outside of audio": 1,
    }
    for split, published in ((validation, 507), (test, 1155)):
        assert (split.listed, split.utterances, split.published) == (4, 4, published)
        assert split.issues == {"set aside": 2, "partly transcribed": 1}
        assert f"{published - 4} fewer in the tables than published" in split.explanation()
    assert train.published_hours == 452
    assert ("set aside", "train", "AlGore_2009-00000000-00001000") in issues_of(result)

    for split, talk in (
        ("train", "AlGore_2009"),
        ("validation", "DanBarber_2010"),
        ("test", "AimeeMullins_2009P"),
    ):
        found = records(result, split)
        assert [entry["text"] for entry in found] == TEXTS
        assert [entry["raw_text"] for entry in found] == [written for _, written in TALK]
        assert {entry["speaker"] for entry in found} == {talk}
        for entry, samples in zip(found, segments[talk], strict=True):
            np.testing.assert_allclose(entry["audio"] / 32768, samples, atol=2 / 32768)


def test_a_part_that_is_not_there(
    source: tuple[Path, dict[str, list[np.ndarray]]], tmp_path: Path
) -> None:
    corpus = find_corpus("tedlium")
    with pytest.raises(UserError, match="no languages"):
        corpus.configs(tmp_path)
    (tmp_path / "train").symlink_to(source[0] / "legacy" / "train")
    assert corpus.configs(tmp_path) == ["en"]
    with pytest.raises(UserError, match=r"dev/stm has no transcripts"):
        prepared(corpus, tmp_path, "en", tmp_path / "data")


def test_command_and_stream(
    source: tuple[Path, dict[str, list[np.ndarray]]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = ["prepare", "tedlium", "--source_dir", str(source[0]), "--data_dir", str(tmp_path)]
    assert main([*command, "--workers", "1"]) == 0
    table = capsys.readouterr().out
    assert "tedlium/en" in table and "2 set aside" in table and "452" in table
    examples = read_examples(tmp_path, "tedlium_paired_en", "paired", 4)
    assert [example["text"] for example in examples] == sorted(TEXTS)

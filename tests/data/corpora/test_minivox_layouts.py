"""The same utterances through the official layouts and through Parquet become the same records."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from minivox_layouts import covost2, covost2_parquet, voxpopuli, voxpopuli_parquet
from minivox_layouts import spoken as made
from spoken import prepared, records

from maestro_jax.data.corpora.corpus import find_corpus

pytest.importorskip("espeakng_loader")


def alike(one: np.ndarray, other: np.ndarray) -> float:
    """The correlation of two recordings of the same length."""
    size = min(len(one), len(other))
    return float(np.corrcoef(one[:size], other[:size])[0, 1])


@pytest.fixture(scope="module")
def said() -> dict[tuple[str, str], Any]:
    return {("de", "test"): made("de", "test", 5), ("sl", "test"): made("sl", "test", 3)}


def test_voxpopuli(tmp_path: Path, said: dict[tuple[str, str], Any]) -> None:
    voxpopuli(tmp_path / "official", said, raw=["sl"])
    voxpopuli_parquet(tmp_path / "parquet", said)
    for language in ("de", "sl"):
        corpus = find_corpus("voxpopuli")
        official, parquet = (
            records(prepared(corpus, tmp_path / kind, language, tmp_path / f"{kind}_data"), "test")
            for kind in ("official", "parquet")
        )
        assert len(official) == len(parquet) == len(said[language, "test"])
        for expected, one, other in zip(said[language, "test"], official, parquet, strict=True):
            # A WAV file loses nothing.
            np.testing.assert_array_equal(other["audio"], expected.audio)
            assert alike(one["audio"], expected.audio) > 0.97
            for record in (one, other):
                assert record["text"] == expected.text
                assert record["raw_text"] == expected.raw_text
                assert record["language"] == language


def test_covost2(tmp_path: Path, said: dict[tuple[str, str], Any]) -> None:
    covost2(tmp_path / "official", said)
    covost2_parquet(tmp_path / "parquet", said)
    for language in ("de", "sl"):
        corpus, config = find_corpus("covost2"), f"{language}_en"
        official, parquet = (
            records(prepared(corpus, tmp_path / kind, config, tmp_path / f"{kind}_data"), "test")
            for kind in ("official", "parquet")
        )
        assert len(official) == len(parquet) == len(said[language, "test"])
        for expected, one, other in zip(said[language, "test"], official, parquet, strict=True):
            # The same MP3 file.
            np.testing.assert_array_equal(one["audio"], other["audio"])
            assert alike(one["audio"], expected.audio) > 0.9
            for name in ("id", "text", "raw_text", "translation", "language"):
                assert one[name] == other[name]
            assert one["translation"] == expected.translation
            assert one["raw_text"] == expected.raw_text

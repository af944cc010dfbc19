"""Libri-Light: books cut into utterances, and the ten hours with transcripts."""

from __future__ import annotations

from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from layouts_librispeech import LIMITED, PIECES, RATE, book, lay_out_libri_light
from spoken import issues_of, prepared, read_examples, records, say, sizes

from maestro_jax.cli import main as cli
from maestro_jax.data.corpora.corpus import find_corpus
from maestro_jax.data.corpora.libri_light import group_speech
from maestro_jax.errors import UserError

SHELF = "100/sea_fairies_0812_librivox_64kb_mp3"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = tmp_path_factory.mktemp("light")
    lay_out_libri_light(source)
    return source


def samples(spans: list[list[float]], seconds: float) -> np.ndarray:
    whole = book(seconds)
    return np.concatenate([whole[round(a * RATE) : round(b * RATE)] for a, b in spans])


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        ([], []),
        ([(0, 10), (11, 21)], [((0, 10), (11, 21))]),
        ([(0, 10), (11, 31), (32, 33)], [((0, 10), (11, 31)), ((32, 33),)]),
        ([(0, 29), (30, 32)], [((0, 29),), ((30, 32),)]),
        ([(5, 80)], [((5, 30),), ((30, 55),), ((55, 80),)]),
        ([(0, 1), (2, 32), (33, 34)], [((0, 1),), ((2, 32),), ((33, 34),)]),
    ],
)
def test_group_speech(
    pieces: list[tuple[float, float]], expected: list[tuple[object, ...]]
) -> None:
    assert group_speech(pieces, 30.0) == expected


@hypothesis.given(
    st.lists(st.tuples(st.floats(0, 5), st.floats(0.01, 100)), max_size=30), st.floats(1, 40)
)
def test_cutting_loses_nothing(gaps: list[tuple[float, float]], longest: float) -> None:
    pieces, at = [], 0.0
    for silence, length in gaps:
        pieces.append((at + silence, at + silence + length))
        at = pieces[-1][1]
    utterances = group_speech(pieces, longest)
    lengths = [sum(end - begin for begin, end in spans) for spans in utterances]
    assert all(length <= longest + 1e-3 for length in lengths)
    assert sum(lengths) == pytest.approx(sum(length for _, length in gaps), abs=1e-6)
    spans = [span for utterance in utterances for span in utterance]
    assert spans == sorted(spans)
    # Every span lies within a piece.
    assert all(any(a - 1e-6 <= b and e <= z + 1e-6 for a, z in pieces) for b, e in spans)


def test_books(source: Path, tmp_path: Path) -> None:
    corpus = find_corpus("libri_light")
    assert corpus.configs(source) == corpus.configs(source, ["en"])
    assert corpus.configs(source) == ["small", "medium", "limited"]
    assert corpus.configs(source, ["medium"]) == ["medium"]
    with pytest.raises(UserError, match="'large' is not among the parts of Libri-Light"):
        corpus.configs(source, ["large"])
    with pytest.raises(UserError, match="there are no parts of Libri-Light"):
        corpus.configs(tmp_path)

    result = prepared(corpus, source, "small", tmp_path)
    [train] = result.splits
    found = {entry["id"]: entry for entry in records(result, "train")}
    first, second = f"{SHELF}/01_baum_sea_fairies_64kb", f"{SHELF}/02_baum_sea_fairies_64kb"
    assert list(found) == [
        f"{first}/0000",
        f"{first}/0001",
        f"{second}/0000",
        f"{SHELF}/04_strange/0000",
    ]
    expected = {
        f"{first}/0000": samples(PIECES[:2], 42.0),
        f"{first}/0001": samples(PIECES[2:], 42.0),
        # The file ends within the second piece and before the third one.
        f"{second}/0000": samples([[0.0, 1.0], [1.5, 3.0]], 3.0),
        f"{SHELF}/04_strange/0000": samples([[0.0, 0.5], [0.75, 1.0]], 1.5),
    }
    for name, audio in expected.items():
        np.testing.assert_allclose(found[name]["audio"] / 32768.0, audio, atol=2 / 32768)
        assert found[name]["speaker"] == "100" and found[name]["text"] == ""
    assert train.hours == pytest.approx(sum(map(len, expected.values())) / RATE / 3600)
    assert train.issues == {
        "bad value": 4,
        "no counterpart": 1,
        "empty audio": 1,
        "bad row": 1,
        "missing audio": 1,
        "cut short": 1,
    }
    lines = issues_of(result)
    for number in (1, 2, 3):
        assert ("bad value", "train", f"{SHELF}/04_strange#{number}") in lines
    assert ("bad value", "train", f"{SHELF}/05_undescribed") in lines
    assert ("no counterpart", "train", f"{SHELF}/07_alone") in lines
    assert ("missing audio", "train", f"{SHELF}/08_gone/0000") in lines

    prepared(corpus, source, "medium", tmp_path)
    assert sizes(tmp_path, "libri_light_speech_small") == {"train": 4}
    drawn = read_examples(tmp_path, "libri_light_speech_6k", "speech", 10)
    lengths = {len(example["audio"]) for example in drawn}
    # The batch is twice the mixture: everything is in it.
    assert lengths == {len(audio) for audio in expected.values()} | {2 * RATE}


def test_the_ten_hours(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--source_dir", str(source), "--data_dir", str(tmp_path), "--workers", "1"]
    assert cli.main(["prepare", "libri_light", *arguments, "--languages", "limited"]) == 0
    table = capsys.readouterr().out
    assert all(split in table for split in ("train_10min_0", "train_10min_5", "train_9h"))
    assert "train_10min_3" not in table

    subsets = {
        "10min": ["1h/0"],
        "9h": ["9h"],
    }
    for subset, places in subsets.items():
        texts = [
            words.lower()
            for place, spoken in LIMITED.items()
            for words in spoken.values()
            if place.startswith(tuple(places))
        ]
        task = f"libri_light_paired_limited_{subset}"
        assert sizes(tmp_path, task) == {"train": len(texts)}
        found = read_examples(tmp_path, task, "paired", len(texts))
        assert sorted(example["text"] for example in found) == sorted(texts)
        for example in found:
            said = say(example["text"])
            np.testing.assert_allclose(example["audio"] / 32768.0, said, atol=2 / 32768)
    # Three of the six folds are not there.
    with pytest.raises(UserError, match="no split 'train_10min_2'.*--languages limited"):
        sizes(tmp_path, "libri_light_paired_limited_10h")

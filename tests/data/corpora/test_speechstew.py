"""The corpora of SpeechStew that come as one's own manifests."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from spoken import prepared, records, speak_to
from streamed import epoch, make_vocabulary

from maestro_jax.cli.main import main
from maestro_jax.data.corpora.corpus import find_corpus

CORPORA = {
    "ami": "test_distant",
    "broadcast_news": "",
    "switchboard_fisher": "test_callhome",
    "wsj": "",
}


@pytest.mark.parametrize("name,more", CORPORA.items())
def test_names_splits_and_recipes(
    name: str, more: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = find_corpus(name)
    assert corpus.name == name
    assert corpus.splits == tuple(split for split in ("train", "validation", "test", more) if split)
    command = ["prepare", name, "--source_dir", str(tmp_path), "--data_dir", str(tmp_path / "data")]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "there is no manifest in" in error
    assert "write a line for each" in error


def test_a_second_test_set(tmp_path: Path) -> None:
    source = tmp_path / "ami"
    for split in ("train", "test", "test_distant"):
        speak_to(source / "audio" / f"{split}.flac", split)
        line = {"audio": f"audio/{split}.flac", "text": split, "language": "en"}
        (source / f"{split}.jsonl").write_text(json.dumps(line) + "\n")
    result = prepared(find_corpus("ami"), source, "en", tmp_path)
    assert [split.split for split in result.splits] == ["train", "test", "test_distant"]
    assert records(result, "test_distant")[0]["raw_text"] == "test_distant"
    make_vocabulary(tmp_path, ["train test"])
    assert [example["text"] for example in epoch(tmp_path, "ami_paired_en", "paired", 1)] == [
        "train"
    ]
    # A manifest of a split that a corpus does not have is not one of its own.
    assert find_corpus("wsj").splits == ("train", "validation", "test")

"""mC4 as it is published, and other files of text, to records and batches."""

from __future__ import annotations

import gzip
import logging
from pathlib import Path

import pytest
from layouts_text import lay_out_files, lay_out_mc4
from spoken import prepared, problems, records
from streamed import epoch, make_vocabulary

from maestro_jax.cli.main import main
from maestro_jax.data.corpora.corpus import find_corpus
from maestro_jax.data.corpora.issues import IssueLog
from maestro_jax.data.corpora.text_files import split_of
from maestro_jax.errors import UserError

MC4 = [
    "guten morgen",
    "es ist zb",
    "acht uhr",
    "die sonne scheint endlich",
    "ein satz",
    "noch einer",
    "drei",
]


@pytest.mark.parametrize(
    "name,split",
    [
        ("c4-de.tfrecord-00000-of-02048.json.gz", "train"),
        ("c4-de-validation.tfrecord-00000-of-00002.json.gz", "validation"),
        ("newstest2014.de-en.de", "test"),
        ("tst2013.de-en.de", "test"),
        ("latest.txt", "train"),
        ("device.txt", "train"),
    ],
)
def test_splits(name: str, split: str) -> None:
    assert split_of(name) == split


def test_mc4(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = tmp_path / "c4"
    lay_out_mc4(source)
    corpus = find_corpus("text_files")
    with caplog.at_level(logging.WARNING):
        assert corpus.configs(source) == ["de"] == corpus.configs(source / "multilingual")
    assert "xh" in caplog.text
    result = prepared(corpus, source, "de", tmp_path)
    train, validation = result.splits
    assert (train.listed, train.utterances, train.hours) == (8, 7, 0.0)
    assert train.issues == {"empty text": 2, "bad row": 1, "bad value": 1}
    place = "multilingual/c4-de.tfrecord-00000-of-00002.json.gz"
    assert ("empty text", "train", f"{place}:5:1") in problems(result)
    found = records(result, "train")
    assert [entry["text"] for entry in found] == MC4
    assert [entry["id"] for entry in found[:4]] == [f"{place}:1:{n}" for n in range(1, 5)]
    assert found[3]["raw_text"] == "Die Sonne scheint -- endlich."
    assert found[4]["raw_text"] == "Ein Satz. ***"
    assert not any(len(entry["audio"]) for entry in found)
    assert [entry["text"] for entry in records(result, "validation")] == ["vier"]


def test_files_are_read_line_by_line(tmp_path: Path) -> None:
    path = tmp_path / "de" / "a.txt.gz"
    path.parent.mkdir()
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.write("Eins. Zwei.\n" * 30_000)
    # Cut off in the middle: what is before it can be read, if nothing waits for the whole.
    path.write_bytes(path.read_bytes()[:-8])
    corpus = find_corpus("text_files")
    utterances = corpus.utterances(tmp_path, "de", IssueLog())
    assert [next(utterances).text for _ in range(3)] == ["eins", "zwei", "eins"]
    with pytest.raises(UserError, match=r"a\.txt\.gz cannot be read to its end"):
        list(utterances)


def test_command_and_streams(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "texts"
    lay_out_files(source)
    command = ["prepare", "text_files", "--source_dir", str(source), "--data_dir", str(tmp_path)]
    assert main([*command, "--workers", "1", "--name", "web"]) == 0
    assert "web/zh" in capsys.readouterr().out
    make_vocabulary(tmp_path, ["eins zwei drei vier acht", "今天很好 明天呢"])

    from maestro_jax.tasks.text_tasks import add_texts

    german, chinese = add_texts("web", ["de", "zh"])
    assert (german, chinese) == ("web_text_de", "web_text_zh")
    examples = epoch(tmp_path, german, "text", 5)
    assert [example["text"] for example in examples] == ["acht", "drei", "eins", "vier", "zwei"]
    examples = epoch(tmp_path, chinese, "text", 2)
    assert [example["text"] for example in examples] == ["今天很好", "明天呢"]
    # The same tasks are there under the name of the corpus, once it is prepared under that.
    (tmp_path / "web").rename(tmp_path / "text_files")
    assert len(epoch(tmp_path, "text_files_text_zh", "text", 2)) == 2

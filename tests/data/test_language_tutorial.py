"""The page on languages: its files, and its commands as they stand there."""

from __future__ import annotations

import json
import pathlib
import re
import shlex
import sys

import pytest

from maestro_jax.cli.main import main

PAGE = pathlib.Path(__file__).resolve().parents[2] / "docs" / "how_to" / "languages.md"
TEXT = PAGE.read_text(encoding="utf-8")
BLOCKS = dict(re.findall(r"^```(\w+)\n(.*?)^```$", TEXT, re.M | re.S))
COMMANDS = [shlex.split(line)[1:] for line in re.findall(r"^    (maestro .*)", TEXT, re.M)]


@pytest.fixture
def directory(tmp_path, monkeypatch):
    """A directory with the files of the page, in which commands start."""
    (tmp_path / "village").mkdir()
    (tmp_path / "village" / "train.jsonl").write_text(BLOCKS["json"], encoding="utf-8")
    (tmp_path / "village_tasks.py").write_text(BLOCKS["python"], encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("MAESTRO_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setattr("maestro_jax.cli.environment.prepare_process", lambda **_: None)
    yield tmp_path
    import seqio

    sys.modules.pop("village_tasks", None)
    for registry in (seqio.MixtureRegistry, seqio.TaskRegistry):
        for name in [name for name in registry.names() if name.startswith("village_")]:
            registry.remove(name)


@pytest.mark.extended
def test_the_page(directory, capsys) -> None:
    from maestro_jax.batches import StreamConfig
    from maestro_jax.data.loader import StreamLoader
    from maestro_jax.text.vocabularies import BYTE_MODEL

    everything, two, tasks = COMMANDS
    assert main([*everything, "--workers", "1"]) == 0
    made = directory / "data" / "village"
    assert {path.name for path in made.iterdir()} == {"de", "qu", "quz"}
    assert main([*two, "--workers", "1"]) == 0
    assert {path.name for path in made.iterdir()} == {"de", "qu", "quz", "de_ch"}

    (directory / "data" / "vocabularies").mkdir()
    (directory / "data" / "vocabularies" / "multilingual.model").write_bytes(BYTE_MODEL)
    capsys.readouterr()
    assert main([*tasks, "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["village_text"]["languages"] == ["de-CH", "quz"]
    assert rows["village_text"]["examples"] == {"train": 2}

    streams = {"text": StreamConfig(mixture="village_text", batch_size=4, text_tokens=40)}
    with StreamLoader(streams, seed=1) as loader:
        batch = next(loader)["text"]
    found = {
        (bytes(tokens[:length] - 3).decode(), int(language))
        for tokens, length, language in zip(
            batch["text"].astype("uint8"), batch["text_length"], batch["language"], strict=True
        )
    }
    assert found == {("grüezi mitenand", 55), ("allillanchu", 56)}

"""The page on data: its example runs, and what it says is there is there."""

from __future__ import annotations

import json
import pathlib
import re
import shlex
import sys

import numpy as np
import pytest

from maestro_jax.cli.main import main
from maestro_jax.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "how_to" / "data.md").read_text(encoding="utf-8")


def blocks(kind: str, text: str = PAGE) -> list[str]:
    """The code blocks of a kind."""
    return re.findall(rf"^```{kind}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def commands(text: str) -> list[list[str]]:
    """The calls of `maestro` in a block, as words."""
    joined = text.replace("\\\n", " ")
    return [shlex.split(line, comments=True) for line in joined.splitlines() if line.strip()]


def test_the_example_of_a_corpus_of_ones_own(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sys.path.append(str(ROOT / "tests" / "data" / "corpora"))
    from spoken import record, say

    from maestro_jax.gin_utils import gin_config

    own = PAGE.split("## A corpus of your own")[1]
    [lines] = blocks("json", own)
    [tasks] = blocks("python", own)
    prepare, vocabulary = (commands(block) for block in blocks("bash", own))
    [gin] = blocks("gin", own)
    assert len([line for line in tasks.splitlines() if line.strip()]) <= 20

    source = tmp_path / "interviews"
    spoken = {}
    for line in lines.splitlines():
        utterance = json.loads(line)
        samples = say(utterance["text"], utterance["language"])
        spoken[utterance["text"]] = samples
        before = np.zeros(int(16000 * utterance.get("offset", 0)))
        after = np.zeros(24000) if "offset" in utterance else np.zeros(0)
        record(source / utterance["audio"], np.concatenate([before, samples, after]))
    (source / "train.jsonl").write_text(lines, encoding="utf-8")
    monkeypatch.setenv("MAESTRO_DATA_DIR", str(tmp_path / "data"))
    [words] = prepare
    place = words.index("--source_dir") + 1
    assert main([*words[1:place], str(source), *words[place + 1 :]]) == 0
    assert "interviews/sl" in capsys.readouterr().out
    # As on the page: a file of the present directory, which --import finds.
    (tmp_path / "interviews_tasks.py").write_text(tasks, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    [words] = vocabulary
    assert main(words[1:]) == 0
    size = capsys.readouterr().out.split("VOCAB_SIZE=")[1].split()[0]

    path = tmp_path / "interviews.gin"
    path.write_text(gin, encoding="utf-8")
    files = ["runs/pretrain.gin", "models/tiny.gin", "objectives/maestro.gin", str(path)]
    bindings = {"STEPS": "10", "VOCAB_SIZE": size}
    run = gin_config.parse_and_build(files, bindings)

    from maestro_jax.data.loader import StreamLoader
    from maestro_jax.data.task_registry import check_prepared, get_task_or_mixture
    from maestro_jax.text.vocabularies import load_vocabulary

    with StreamLoader(run.streams, seed=0) as loader:
        batch = next(iter(loader))
    model = load_vocabulary(tmp_path / "data" / "vocabularies" / "multilingual.model")
    assert model.vocab_size == int(size)
    said = {"guten morgen anna": "Guten Morgen, Anna!", "danke": "Danke.", "dobro jutro": ""}
    found = set()
    for tokens, length, audio, samples in zip(
        *(batch["paired"][name] for name in ("text", "text_length", "audio", "audio_length")),
        strict=True,
    ):
        text = model.decode(tokens[:length])
        found.add(text)
        if text == "guten morgen anna":
            expected = spoken[said[text]]
            np.testing.assert_allclose(audio[:samples] / 32768.0, expected, atol=2 / 32768)
    assert found == set(said)
    with pytest.raises(UserError, match="1 of the 3 tasks.*paired_sl; run `maestro prepare vox"):
        check_prepared(get_task_or_mixture("interviews_and_parliament"))


def test_the_example_of_phonemes() -> None:
    from maestro_jax.data.task_registry import get_task_or_mixture, register_shipped_tasks

    register_shipped_tasks()
    [tasks, _] = blocks("python")
    exec(compile(tasks, "phoneme_tasks.py", "exec"), {})
    for stream in ("text", "paired"):
        task = get_task_or_mixture(f"voxpopuli_{stream}_de_phonemes")
        assert task.output_features["text"].vocabulary.file == "vocabularies/phonemes.model"
        # They read the same data as the tasks of letters.
        assert repr(task.source).startswith(
            repr(get_task_or_mixture(f"voxpopuli_{stream}_de").source).split(",")[0]
        )


def test_every_corpus_and_command_of_the_page_is_understood() -> None:
    from maestro_jax.cli.commands.prepare import MADE
    from maestro_jax.cli.main import _parse
    from maestro_jax.data.corpora.corpus import corpus_names

    named = set()
    for words in [words for block in blocks("bash") for words in commands(block)]:
        assert words[0] == "maestro", words
        command, arguments = _parse(words[1:])
        if command == "prepare":
            named.add(arguments.corpus)
    assert named == {*corpus_names(), *MADE}


def test_every_mixture_over_several_corpora_is_on_the_page() -> None:
    from maestro_jax.data.task_registry import register_shipped_tasks

    register_shipped_tasks()
    import seqio

    shipped = {name for name in seqio.MixtureRegistry.names() if name.startswith("maestro_")}
    named = set(re.findall(r"`(maestro_\w+)`", PAGE)) - {"maestro_jax"}
    assert {name.removesuffix("_upsampled") for name in shipped} == named


def test_the_page_describes_every_kind_of_issue() -> None:
    from maestro_jax.data.corpora.issues import ISSUE_KINDS

    for kind, description in ISSUE_KINDS.items():
        assert f"| `{kind}` | {description} |" in PAGE, kind

"""The tutorial on tasks: its files, and its commands as they stand there."""

from __future__ import annotations

import collections
import json
import pathlib
import re
import shlex
import sys
import types

import numpy as np
import pytest
import soundfile
from answering import Answering
from etils import epath
from narrow_model import NARROW

from maestro_jax.cli.main import main
from maestro_jax.errors import UserError
from maestro_jax.text.languages import LANGUAGES

TUTORIAL = pathlib.Path(__file__).resolve().parents[2] / "docs" / "how_to" / "task.md"
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", TUTORIAL.read_text(), re.M | re.S)
COMMANDS = [
    shlex.split(line)[1:] for line in re.findall(r"^    (maestro .*)", TUTORIAL.read_text(), re.M)
]
QUICK = [f"--gin.{name}={value}" for name, value in NARROW.items()]


def command(*words: str) -> list[str]:
    """The command of the tutorial that has some words."""
    [found] = [command for command in COMMANDS if set(words) <= set(command)]
    return found


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A directory with the files of the tutorial."""
    root = tmp_path_factory.mktemp("tutorial")
    (root / "my_lab").mkdir()
    names = ("my_lab/tasks.py", "calls.gin", "mostly_german.gin")
    for name, (language, content) in zip(names, BLOCKS, strict=True):
        assert language == ("python" if name.endswith(".py") else "gin")
        (root / name).write_text(content)
    return root


def forget() -> None:
    """Undoes what importing the module has done."""
    import seqio

    for name in ("my_lab", "my_lab.tasks"):
        sys.modules.pop(name, None)
    for registry in (seqio.MixtureRegistry, seqio.TaskRegistry):
        for name in ("calls", "mostly_german", "calls_de", "calls_en"):
            if name in registry.names():
                registry.remove(name)


@pytest.fixture(autouse=True)
def here(directory, monkeypatch) -> None:
    """Starts commands there, in a process that has never heard of its module."""
    monkeypatch.chdir(directory)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("MAESTRO_DATA_DIR", str(directory / "data"))
    monkeypatch.setattr("maestro_jax.cli.environment.prepare_process", lambda **_: None)
    monkeypatch.setattr("maestro_jax.cli.environment.enable_compilation_cache", lambda: None)
    forget()
    yield
    forget()


def test_tasks_are_listed(capsys) -> None:
    assert main([*command("tasks"), "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert set(rows) == {"calls", "calls_de", "calls_en"}
    assert rows["calls"]["stream"] == "paired" and rows["calls"]["ready"]
    assert rows["calls"]["examples"] == {"train": 128, "test": 16}


def test_a_vocabulary_is_trained_on_them(directory, capsys) -> None:
    assert main([*command("vocabulary"), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["languages"]
    assert {row["language"]: row["sentences"] for row in rows} == {"de": 64, "en": 64}
    assert (directory / "data" / "vocabularies" / "calls.model").is_file()
    # As the page tells a task to read it.
    from maestro_jax.data.stream_tasks import PreparedVocabulary

    [line] = re.findall(r"^    (PreparedVocabulary\(.*)", TUTORIAL.read_text(), re.M)
    vocabulary = eval(line, {"PreparedVocabulary": PreparedVocabulary})
    assert vocabulary.decode(vocabulary.encode("zwei eins")) == "zwei eins"


def test_buckets_need_random_access(capsys) -> None:
    assert main(["buckets", "calls", "--import", "my_lab.tasks"]) == 2
    assert "has no random access, so it can have no buckets" in capsys.readouterr().err


@pytest.mark.extended
def test_a_dry_run_knows_them(capsys) -> None:
    assert main(command("train", "--dry_run") + QUICK) == 0
    assert "calls" in capsys.readouterr().out


def train_command() -> list[str]:
    train = list(command("train", "--model_dir"))
    train[train.index("--gin.STEPS=300")] = "--gin.STEPS=2"
    return [*train, *QUICK, "--gin.ENCODER_WARMUP=1", "--gin.DECODER_WARMUP=1"]


class Operator(Answering):
    """Reads the digits from the tones, and takes the last German one for another."""

    language_tokens = None

    def __init__(self) -> None:
        super().__init__(lambda *_: "", samples=16_000)

    def search(self, features, target=None):
        tasks = sys.modules["my_lab.tasks"]
        tones = np.stack([tasks.dial(digit) for digit in range(10)]).astype(float)
        texts = []
        for audio, language in zip(features["audio"], features["language"], strict=True):
            calls = np.pad(audio, (0, 4 * 3200))[: 4 * 3200].reshape(4, 3200).astype(float)
            digits = (calls @ tones.T).argmax(axis=-1)
            code = LANGUAGES[language]
            digits[-1] += code == "de"
            texts.append(" ".join(tasks.DIGITS[code].split()[digit % 10] for digit in digits))
        return texts


def test_a_model_without_room_for_the_languages_is_refused(capsys) -> None:
    assert main([*command("train", "--dry_run"), *QUICK, "--gin.LANGUAGES=54"]) == 2
    assert "the run has 55 languages, but the model has room for 54" in capsys.readouterr().err


def test_a_run_remembers_the_module(directory, capsys, monkeypatch) -> None:
    from maestro_jax.inference.transcriber import Transcriber

    trained = []

    def train(run, *, model_dir, callbacks, **_):
        trained.append(run)
        for callback in callbacks:
            callback.on_start(types.SimpleNamespace(model_dir=model_dir))

    monkeypatch.setattr("maestro_jax.reports.html_report.train_with_report", train)
    assert main(train_command()) == 0
    assert [run.steps for run in trained] == [2]
    assert "import my_lab.tasks" in (directory / "calls_model" / "config.gin").read_text()
    forget()
    capsys.readouterr()
    step = epath.Path(directory / "calls_model" / "checkpoints" / "2")
    monkeypatch.setattr("maestro_jax.evaluation.run_evaluation.find_checkpoint", lambda _: step)
    monkeypatch.setattr(Transcriber, "from_checkpoint", lambda *_, **__: Operator())
    assert main([*command("eval"), "--json"]) == 0
    reports = json.loads(capsys.readouterr().out)
    scores = {row["language"]: row for report in reports for row in report["rows"]}
    assert {language: row["utterances"] for language, row in scores.items()} == {"de": 8, "en": 8}
    metrics = {k: v for report in reports for k, v in report["task_metrics"].items()}
    assert metrics == {"calls_de": {"right numbers": 0.0}, "calls_en": {"right numbers": 100.0}}
    assert (scores["de"]["wer"], scores["en"]["wer"]) == (25.0, 0.0)


@pytest.mark.slow
def test_a_model_is_trained_and_transcribes(directory, capsys) -> None:
    train = train_command()
    train[train.index("calls_model")] = "real_model"
    assert main(train) == 0
    languages = (directory / "real_model" / "languages.txt").read_text().split()
    assert tuple(languages) == LANGUAGES
    assert main(["eval", "--model_dir", "real_model"]) == 0
    assert "right numbers" in capsys.readouterr().out
    soundfile.write(directory / "one.wav", np.zeros(16_000, np.int16), 16_000)
    assert main(["transcribe", "real_model", "one.wav"]) == 0


def test_a_mixture_of_a_gin_file_is_read_at_its_rates(directory, capsys) -> None:
    from maestro_jax.data.loader import StreamLoader
    from maestro_jax.gin_utils import gin_config

    train = command("train", "--dry_run")
    train[train.index("calls.gin")] = "mostly_german.gin"
    assert main([*train, *QUICK]) == 0
    assert "mostly_german" in capsys.readouterr().out
    files = ["runs/finetune.gin", "models/tiny.gin", "objectives/speech_recognition.gin"]
    run = gin_config.parse_and_build(
        [*files, "mostly_german.gin"], {"STEPS": "99", "INIT_FROM": "None"}, ["my_lab.tasks"]
    )
    counts: collections.Counter[str] = collections.Counter()
    with StreamLoader(run.streams, seed=0) as loader:
        for _ in range(25):
            counts.update(LANGUAGES[code] for code in next(loader)["paired"]["language"])
    # 9 to 1; tasks take turns within each batch as near to it as they can.
    assert counts.total() == 200 and 176 <= counts["de"] <= 184
    assert str(run.streams["paired"].mixture) == "mostly_german"


def test_another_mixture_of_that_name_is_refused() -> None:
    from maestro_jax.batches import Mixture
    from maestro_jax.data.task_registry import get_task_or_mixture
    from maestro_jax.gin_utils.user_modules import import_user_modules

    import_user_modules(["my_lab.tasks"])
    mixture = Mixture(name="mostly_german", tasks=["calls_de", "calls_en"])
    assert get_task_or_mixture(mixture) is get_task_or_mixture(mixture)
    with pytest.raises(UserError, match="the name of another mixture"):
        get_task_or_mixture(Mixture(name="calls", tasks=["calls_de"]))
    with pytest.raises(UserError, match=r"unknown task .*'calls_d'.*calls_de"):
        get_task_or_mixture(Mixture(name="other", tasks={"calls_d": 1.0}))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"tasks": {}}, "Mixture.tasks of 'it' is {}; give rates"),
        ({"tasks": "calls"}, "give rates by task"),
        ({"tasks": {"calls": 0.0}}, "the rate of 'calls' .* must be a number above 0"),
        ({"tasks": {"calls": 1.0}, "temperature": 3.0}, "temperature and maximum are for a list"),
        ({"tasks": ["calls"], "temperature": 0.0}, "temperature of 'it' is 0.0"),
        ({"tasks": ["calls"], "name": "a b"}, "Mixture.name is 'a b'"),
    ],
)
def test_mixtures_that_are_none(values, message) -> None:
    from maestro_jax.batches import Mixture

    with pytest.raises(UserError, match=message):
        Mixture(**{"name": "it", **values})


@pytest.mark.parametrize(
    ("module", "content", "message"),
    [
        ("my_lab.task", None, "package my_lab has no module 'task'. Did you mean 'tasks'?"),
        ("my_labs.tasks", None, "there is no module 'my_labs'; install it"),
        ("broken", "import seqio\nseqio.nothing", "broken.py:2: AttributeError"),
        ("needs", "import nothing_such", "needs.py:1: ModuleNotFoundError"),
        ("syntax", "a = = 1", "syntax.py:1: invalid syntax"),
        ("a-b", None, "write a module as Python imports it"),
    ],
)
def test_modules_that_cannot_be_imported(directory, module, content, message, capsys) -> None:
    if content:
        (directory / f"{module}.py").write_text(content)
    assert main(["tasks", "--import", module]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: --import {module}: ") and message in error
    assert error.count("\n") == 1

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import types

import pytest

from maestro_jax.cli import main as cli
from maestro_jax.errors import RestartableError
from maestro_jax.tables import table

PYTHON = [sys.executable, "-m", "maestro_jax.cli.main"]


def test_help_lists_every_command_without_loading_what_takes_seconds() -> None:
    process = subprocess.run([*PYTHON, "--help"], capture_output=True, text=True, check=True)
    assert all(f"  {name} " in process.stdout for name in cli.COMMANDS)
    heavy = (
        "import sys, maestro_jax.cli.main; print({'jax', 'gin', 'tensorflow'} & set(sys.modules))"
    )
    loaded = subprocess.run([sys.executable, "-c", heavy], capture_output=True, text=True)
    assert loaded.stdout.strip() == "set()"


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_each_command_has_help_with_an_example(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([command, "--help"]) == 0
    text = capsys.readouterr().out
    help_, example = cli.COMMANDS[command]
    assert help_[1:] in " ".join(text.split())
    assert example in text
    assert example.startswith(f"maestro {command}")


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_each_example_is_understood(command: str) -> None:
    _, example = cli.COMMANDS[command]
    name, arguments = cli._parse(shlex.split(example)[1:])
    assert name == command
    if command == "train":
        assert arguments.bindings == {"STEPS": "1000"}


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("maestro_jax 0.")


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ([], "maestro needs a command"),
        (["trian"], "no command 'trian'. Did you mean 'train'"),
        (["xyzzy"], "The commands are: demo, "),
        (["--frobnicate"], "no option --frobnicate"),
        (["train"], "--gin_file runs/pretrain.gin"),
        (["train", "--gin_file", "runs/pretrain.gin"], "--model_dir DIR, or --dry_run"),
        (["train", "--modle_dir=x"], "no option --modle_dir. Did you mean '--model_dir'"),
        (["train", "--LEARNING_RATE=1e-3"], "written --gin.LEARNING_RATE=1e-3. See maestro train"),
        (["train", "--TrainRun.seed=1"], "written --gin.TrainRun.seed=1."),
        (["train", "--gin_file", "nowhere.gin", "--dry_run"], "no gin file 'nowhere.gin'"),
        (["train", "--steps", "0"], "'0' is not a whole number above 0"),
        (["train", "--steps", "many"], "'many' is not a whole number above 0"),
        (["train", "--seed", "-1"], "--seed"),
        (["train", "--gin.STEPS"], "--gin.NAME=VALUE"),
        (["train", "--gin.=3"], "--gin.NAME=VALUE"),
        (["train", "stray"], "unrecognized arguments: stray"),
        (["tasks", "--gin.STEPS=3"], "maestro tasks reads no gin files"),
        (["eval"], "--model_dir DIR"),
        (["eval", "--model_dir", "nowhere"], "no model directory nowhere"),
        (["transcribe"], "required: CHECKPOINT, FILE"),
        (["transcribe", "nowhere", "nothing.wav"], "nothing.wav"),
        (["align"], "required: CHECKPOINT, FILE, TEXT"),
        (["align", "nowhere", "nothing.wav", "hello"], "nothing.wav does not exist"),
        (["align", "nowhere", "nothing.wav", " "], "the text is empty"),
        (["prepare"], "required: CORPUS"),
        (["prepare", "minvox"], "Did you mean 'minivox'"),
        (["prepare", "minivox", "--config", "smal"], "Did you mean 'small'"),
        (["prepare", "minivox", "--config", "zzz"], "It has: small, low_resource, study, "),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    argv: list[str],
    expected: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: pathlib.Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(argv) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert expected in error
    assert not list(tmp_path.iterdir())


def command_that(monkeypatch: pytest.MonkeyPatch, run) -> None:
    """Makes `maestro tasks` run a function."""
    module = importlib.import_module("maestro_jax.cli.commands.tasks")
    monkeypatch.setattr(module, "run", run)


def test_an_interrupt_says_how_to_continue(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(arguments) -> None:
        raise KeyboardInterrupt

    command_that(monkeypatch, interrupt)
    assert cli.main(["tasks"]) == 130
    assert capsys.readouterr().err == "\ninterrupted\n"
    monkeypatch.setattr(
        importlib.import_module("maestro_jax.cli.commands.prepare"), "run", interrupt
    )
    assert cli.main(["prepare", "minivox"]) == 130
    assert "the same command continues it" in capsys.readouterr().err


def test_other_errors_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(arguments) -> None:
        raise RuntimeError("a bug")

    command_that(monkeypatch, fail)
    with pytest.raises(RuntimeError, match="a bug"):
        cli.main(["tasks"])


def test_a_reader_that_goes_away_is_no_error() -> None:
    program = (
        "import importlib, sys\n"
        "from maestro_jax.cli import main\n"
        "module = importlib.import_module('maestro_jax.cli.commands.tasks')\n"
        "module.run = lambda arguments: print('x' * 1_000_000)\n"
        "sys.exit(main.main(['tasks']))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.read(1)
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 128 + signal.SIGPIPE


def test_train_dry_run_counts_and_writes_nothing(
    run_file: str, capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path
) -> None:
    model_dir = tmp_path / "model"
    argv = ["train", "--gin_file", run_file, "--model_dir", str(model_dir), "--dry_run"]
    assert cli.main([*argv, "--steps", "9", "--seed", "4"]) == 0
    text = capsys.readouterr().out
    # One macro sets the run's length and the schedule's.
    assert "STEPS = 9" in text and "SEED = 4" in text
    assert "minivox_small_paired" in text and "9 steps" in text
    assert "loss/transducer" in text
    assert [line.split() for line in text.splitlines() if line.startswith("from step")] == [
        ["from", "step", "steps", "stream", "batch", "losses", "x", "weights"]
    ]
    assert not model_dir.exists()


def test_train_refuses_an_unknown_task_before_anything_is_written(
    run_file: str, capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path
) -> None:
    model_dir = tmp_path / "model"
    argv = ["train", "--gin_file", run_file, "--model_dir", str(model_dir), "--gin.STEPS=1"]
    assert cli.main([*argv, "--gin.MIXTURE=minivox_smal_paired"]) == 2
    assert "Did you mean 'minivox_small_paired'" in capsys.readouterr().err
    assert not model_dir.exists()


def test_train_calls_the_loop_which_writes_the_record(
    run_file: str, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    from maestro_jax.reports import html_report

    calls = []

    def train(run, *, callbacks, **rest):
        calls.append((run, rest))
        # Nothing is written before the start is accepted.
        assert len(calls) > 1 or not os.path.exists(model_dir)
        for callback in callbacks:
            callback.on_start(types.SimpleNamespace(model_dir=model_dir))

    monkeypatch.setattr(html_report, "train_with_report", train)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "cache"))
    model_dir = str(tmp_path / "model")
    argv = ["train", "--gin_file", run_file, "--model_dir", model_dir, "--gin.STEPS=3"]
    for _ in range(2):
        assert cli.main([*argv, "--data_dir", "somewhere"]) == 0
    (run, rest), _ = calls
    assert run.steps == 3 and rest == {
        "model_dir": model_dir,
        "data_dir": "somewhere",
        "allow_changes": False,
        "take_over": False,
    }
    assert sorted(os.listdir(model_dir)) == ["config.gin", "operative_config.gin", "versions.json"]
    assert cli.main([*argv, "--steps", "4"]) == 0
    assert calls[-1][0].steps == 4
    assert "config.gin.1" in os.listdir(model_dir)


@dataclasses.dataclass
class FakeTask:
    name: str
    examples: int
    missing: tuple[str, ...] = ()


def test_tasks_prints_a_table_or_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks = [FakeTask("corpus_asr_de", 12, ("prepare",)), FakeTask("corpus_st_de", 3)]
    module = types.ModuleType("maestro_jax.data.task_registry")
    module.list_tasks = lambda data_dir: tasks
    monkeypatch.setitem(sys.modules, module.__name__, module)
    assert cli.main(["tasks", "--json"]) == 0
    [first, _] = json.loads(capsys.readouterr().out)
    assert first == {"name": "corpus_asr_de", "examples": 12, "missing": ["prepare"]}
    assert cli.main(["tasks"]) == 0
    assert "prepare" not in capsys.readouterr().out
    assert cli.main(["tasks", "_asr_"]) == 0
    assert capsys.readouterr().out.endswith("\n\nTo make all of them ready, run:\n  prepare\n")
    assert cli.main(["tasks", "_st_"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["name", "examples"] and lines[2].split() == ["corpus_st_de", "3"]
    assert cli.main(["tasks", "corpsu"]) == 2
    assert "has 'corpsu' in its name. Did you mean 'corpus'" in capsys.readouterr().err
    assert cli.main(["tasks", "nothing", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


def test_tables_align() -> None:
    rows = [
        {"name": "a", "n": 1, "x": 0.5, "ok": True, "of": ("de", "en"), "by": {"p": 2}},
        {"name": "long", "n": 1000, "x": None, "ok": False, "of": (), "by": {}},
    ]
    assert table(rows).splitlines() == [
        "name     n    x  ok   of     by",
        "----  ----  ---  ---  -----  ---",
        "a        1  0.5  yes  de,en  p=2",
        "long  1000       no",
    ]


@pytest.mark.parametrize(
    "command",
    [["vocabulary", "mine"], ["eval", "--model_dir", "model"]],
    ids=["vocabulary", "eval"],
)
def test_several_tasks_stand_between_commas_or_alone(command: list[str]) -> None:
    _, arguments = cli._parse([*command, "--task", "a,b", "--task", "c, d,"])
    assert arguments.task == ["a", "b", "c", "d"]
    assert cli._parse(command)[1].task == []


def test_error_that_a_restart_mends_is_one_line_and_status_75(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(arguments) -> None:
        raise RestartableError("the disk of /models\nis full")

    command_that(monkeypatch, fail)
    assert cli.main(["tasks"]) == 75
    assert capsys.readouterr().err == "error: the disk of /models is full\n"

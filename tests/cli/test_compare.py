"""`maestro compare` over files, result directories and model directories."""

from __future__ import annotations

import json
import pathlib

import pytest

import maestro_jax.cli.main as cli
from maestro_jax.evaluation.predictions import Prediction, write_predictions

NAME = "toy.test"


def write(directory: pathlib.Path, hypotheses: list[str], name: str = NAME) -> pathlib.Path:
    """Writes one sentence in two languages into a result directory."""
    write_predictions(
        [
            Prediction(id=f"u{i}", language=language, reference="ena dva", hypothesis=hypothesis)
            for language in ("de", "sl")
            for i, hypothesis in enumerate(hypotheses)
        ],
        directory / f"{name}.hypotheses.jsonl",
    )
    return directory


@pytest.fixture
def runs(tmp_path: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
    first, second = tmp_path / "first", tmp_path / "second"
    write(first / "evaluation" / "100-ema-greedy", ["ena", "ena dva"])
    write(second / "evaluation" / "100-ema-greedy", ["ena dva", "ena dva"])
    return first, second


def test_model_directories(runs, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["compare", *map(str, runs)]) == 0
    lines = capsys.readouterr().out.splitlines()
    [de] = [line.split() for line in lines if line.startswith("de")]
    assert de[1:3] == ["2", "25.00"] and "-25.00" in de
    assert any(line.startswith("average of 2") for line in lines)
    assert cli.main(["compare", *map(str, runs), "--json", "--metric", "wer,cer"]) == 0
    wer, cer = json.loads(capsys.readouterr().out)
    assert wer["test_set"] == NAME
    assert wer["average"]["difference"] == -25.0 and wer["average"]["baseline_score"] == 25.0
    # "ena" lacks a space and three letters of the two times seven characters.
    assert cer["rows"][1]["baseline_score"] == pytest.approx(100 * 4 / 14)


def test_files_of_any_name_and_earlier_names(runs, capsys: pytest.CaptureFixture[str]) -> None:
    files = [next(run.rglob("*.jsonl")) for run in runs]
    renamed = files[1].rename(files[1].with_name("other.predictions.jsonl"))
    assert cli.main(["compare", str(files[0]), str(renamed), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["test_set"] == NAME
    # Directories are of what their names say.
    assert cli.main(["compare", str(runs[0]), str(runs[1])]) == 2
    assert "different test sets" in capsys.readouterr().err


def test_several_results_are_told_apart(runs, capsys: pytest.CaptureFixture[str]) -> None:
    write(runs[0] / "evaluation" / "200-ema-greedy", ["", ""])
    write(runs[1] / "evaluation" / "200-ema-greedy", ["", ""])
    for run in runs:
        write(run / "evaluation" / "200-ema-greedy", ["ena dva"], "other.test")
    command = ["compare", *map(str, runs), "--json"]
    assert cli.main(command) == 2
    error = capsys.readouterr().err
    assert "2 results (100-ema-greedy, 200-ema-greedy)" in error and "--step" in error
    assert cli.main([*command, "--step", "100"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["average"]["baseline_score"] == 25.0
    assert cli.main([*command, "--step", "latest"]) == 0
    assert [each["test_set"] for each in json.loads(capsys.readouterr().out)] == [
        "other.test",
        NAME,
    ]
    assert cli.main([*command, "--step", "200", "--name", "other.test"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 1
    assert cli.main([*command, "--step", "200", "--name", "othr.test"]) == 2
    assert "Did you mean 'other.test'" in capsys.readouterr().err
    assert cli.main([*command, "--step", "300"]) == 2
    assert "no results of step 300; it has 100, 200" in capsys.readouterr().err


def test_results_of_an_earlier_version(runs, capsys: pytest.CaptureFixture[str]) -> None:
    for run in runs:
        for folder in (run / "evaluation", run / "evaluation" / "language_model"):
            write(folder, [""]).joinpath(f"{NAME}.hypotheses.jsonl").rename(
                folder / f"{NAME}.predictions.jsonl"
            )
    assert cli.main(["compare", *map(str, runs), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["average"]["baseline_score"] == 25.0


def test_what_is_not_there(runs, tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["compare", str(runs[0])]) == 2
    assert "takes two runs, not 1" in capsys.readouterr().err
    assert cli.main(["compare", str(runs[0]), str(tmp_path / "none")]) == 2
    assert "none does not exist" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert cli.main(["compare", str(runs[0]), str(tmp_path / "empty")]) == 2
    assert "evaluate first" in capsys.readouterr().err
    write(tmp_path / "shorter", ["ena dva"])
    assert cli.main(["compare", str(runs[0]), str(tmp_path / "shorter")]) == 2
    assert "lacks 2 of 4 utterances (de 'u1', ...)" in capsys.readouterr().err

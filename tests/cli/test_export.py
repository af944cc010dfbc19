"""`maestro export`: files of other tools and the page of errors, from a result directory."""

from __future__ import annotations

import pathlib

import pytest

import maestro_jax.cli.main as cli
from maestro_jax.evaluation.predictions import Prediction, write_predictions

NAME = "toy.test"


@pytest.fixture
def result(tmp_path: pathlib.Path) -> pathlib.Path:
    directory = tmp_path / "run" / "evaluation" / "100-ema-greedy"
    write_predictions(
        [Prediction(id="u1", language="de", reference="Eins, zwei.", hypothesis="eins drei")],
        directory / f"{NAME}.hypotheses.jsonl",
    )
    return directory


def test_files_beside_the_hypotheses(result, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["export", str(result.parents[1]), "--formats", "trn,openasr,html"]) == 0
    names = [pathlib.Path(line).name for line in capsys.readouterr().out.splitlines()]
    assert names == [
        f"{NAME}.hyp.trn",
        f"{NAME}.ref.trn",
        "MODEL_maestro_jax-run-100-ema-greedy_DATASET_toy_de_test.jsonl",
        f"{NAME}.html",
    ]
    assert all((result / name).exists() for name in names)
    assert (result / f"{NAME}.ref.trn").read_text() == "eins zwei (de-u1)\n"
    assert '["zwei","drei"]' in (result / f"{NAME}.html").read_text()


def test_another_directory(result, tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["export", str(result), "--output_dir", str(tmp_path / "out"), "--formats"]
    assert cli.main([*command, "txt"]) == 0
    assert (tmp_path / "out" / f"{NAME}.hyp.txt").read_text() == "eins drei\n"
    assert not (result / f"{NAME}.hyp.txt").exists()
    for formats, message in (("trm", "Did you mean 'trn'"), ("ctm", "ctm needs the times")):
        assert cli.main([*command, formats]) == 2
        assert message in capsys.readouterr().err
    assert cli.main(["export", str(result)]) == 2
    assert "export needs --formats, of txt, trn" in capsys.readouterr().err
    assert cli.main([*command, "html", "--worst_audio", "1"]) == 2
    assert "does not say of which task" in capsys.readouterr().err

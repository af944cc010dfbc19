"""`maestro tune`, and what other commands make of its file."""

from __future__ import annotations

import dataclasses
import json
import pathlib

import pytest

from maestro_jax.cli import main as cli
from maestro_jax.evaluation import tuning
from maestro_jax.evaluation.run_evaluation import RunScores
from maestro_jax.evaluation.tuning import Trial, Tuning
from maestro_jax.gin_utils import gin_config, run_record
from maestro_jax.inference.search_config import SearchConfig


def test_the_best_becomes_the_default(
    run_file: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "xla"))
    gin_config.parse([run_file], {"STEPS": "1"})
    model = tmp_path / "model"
    run_record.write(model, {"config.gin": gin_config.config_text()}, ["maestro"])
    phrases = tmp_path / "names.txt"
    phrases.write_text("Anna\n")
    start = SearchConfig(phrases=phrases)
    best = dataclasses.replace(start, beam_size=8, phrases_weight=1.25, blank_penalty=-0.4)

    def tuned(run, **options):
        assert options["search"] == SearchConfig(beam_size=2) and options["split"] == "dev"
        trials = tuple(
            Trial(search=search, score=score, seconds=1.0)
            for search, score in [(start, 20.0), (best, 15.5)]
        )
        for trial in trials:
            options["seen"](trial)
        return Tuning(
            names=("phrases_weight", "blank_penalty", "beam_size"),
            metric="error_rate",
            trials=trials,
            best=trials[1],
            data=("toy.dev",),
        )

    monkeypatch.setattr(tuning, "tune_run", tuned)
    command = ["tune", str(model), "--split", "dev", "--beam_size", "2"]
    assert cli.main(command) == 0
    output = capsys.readouterr().out
    assert "best" in output and "20.000 -> 15.500" in output
    assert "toy.dev" in (model / "search.gin").read_text()

    told = {}

    def evaluate_run(run, **options):
        told.update(options)
        return RunScores(())

    monkeypatch.setattr("maestro_jax.evaluation.run_evaluation.evaluate_run", evaluate_run)
    evaluate = ["eval", "--model_dir", str(model)]
    assert cli.main(evaluate) == 0
    assert told["search"] == dataclasses.replace(best, phrases=str(phrases))
    assert "search.gin" in capsys.readouterr().err
    assert cli.main([*evaluate, "--beam_size", "4"]) == 0
    assert told["search"].beam_size == 4 and told["search"].blank_penalty == -0.4
    assert cli.main([*evaluate, "--untuned"]) == 0
    assert told["search"] == SearchConfig()
    assert cli.main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["trials"][1]["error_rate"] == 15.5

"""The gain from pretraining for a language with 24 transcribed utterances.

MAESTRO is pretrained on transcribed speech of two other languages, on untranscribed speech of all
three, on the 24 utterances and on Slovene text. It is then fine-tuned on the 24 utterances; so is
the same model from scratch. Both are tested on voices and sentences that neither has trained on,
with the same searches.
"""

from __future__ import annotations

import json
from pathlib import Path

from maestro_jax.evaluation.comparison import PairedComparison, compare
from maestro_jax.evaluation.evaluate import Evaluation
from maestro_jax.evaluation.predictions import read_predictions
from maestro_jax.evaluation.run_evaluation import evaluate_run
from maestro_jax.experiments.stages import Experiment, Recipe, Stage
from maestro_jax.files import write_atomically
from maestro_jax.inference.search_config import SearchConfig
from maestro_jax.reports.html_report import draw_curves, draw_probe
from maestro_jax.tables import table

RECIPE = Recipe(
    config="low_resource",
    stages=(
        Stage(
            name="pretrain",
            file="runs/low_resource_pretrain.gin",
            directory="pretrained",
            doing="pretraining with MAESTRO on untranscribed, transcribed and unspoken examples",
        ),
        Stage(
            name="finetune",
            file="runs/low_resource_finetune.gin",
            directory="fine_tuned",
            doing="fine-tuning it on the transcribed utterances of the low-resource language",
            init_from="pretrain",
        ),
        Stage(
            name="scratch",
            file="runs/low_resource_scratch.gin",
            directory="from_scratch",
            doing="training the same model on them from scratch",
        ),
    ),
)
"""The stages of the experiment."""

MODELS = {"finetune": "pretrained and fine-tuned", "scratch": "from scratch"}
SEARCHES = {"greedy": SearchConfig(), "beam of 8": SearchConfig(beam_size=8)}
"""Searches without an external language model."""


def run_low_resource(
    output_dir: str | Path, data_dir: str | Path | None = None, *, recipe: Recipe | None = None
) -> None:
    """Builds MiniVox, pretrains, fine-tunes, trains from scratch, and compares on the test set.

    The comparison is printed, and written to `low_resource.json` in the output directory.

    Args:
        output_dir: Directory of models, tables and figures.
        data_dir: Root of the prepared data; by default `data` in the output directory.
        recipe: Another corpus or other lengths than those of the experiment.
    """
    experiment = Experiment(recipe or RECIPE, output_dir, data_dir, further_parts=1)
    experiment.train()
    runs, directories = experiment.runs, experiment.directories
    for directory in directories.values():
        draw_curves(directory)

    experiment.announce("testing both on speakers and sentences that were not trained on")
    figures = draw_probe(directories["pretrain"])
    rows: list[dict[str, object]] = []
    comparisons: dict[str, PairedComparison] = {}
    for how, search in SEARCHES.items():
        evaluations: dict[str, Evaluation] = {}
        predictions = []
        for name in MODELS:
            kept = directories[name] / "evaluation" / how.replace(" ", "_")
            report = evaluate_run(
                runs[name],
                model_dir=directories[name],
                data_dir=experiment.data,
                search=search,
                output_dir=kept,
            )
            [evaluations[name]] = report.evaluations
            predictions.append(
                read_predictions(kept / f"{evaluations[name].name}.hypotheses.jsonl")
            )
        comparisons[how] = compare(*predictions).average
        rows += [_row(MODELS[name], how, evaluations[name]) for name in MODELS]

    [test_set] = {evaluation.name for evaluation in evaluations.values()}
    minutes = experiment.training_minutes()
    record = {
        "test_set": test_set,
        "steps": {name: run.steps for name, run in runs.items()},
        "minutes": minutes,
        "searches": {how: comparison.as_dict() for how, comparison in comparisons.items()},
    }
    content = json.dumps(record, indent=2) + "\n"
    write_atomically(experiment.output / "low_resource.json", content.encode())

    print(f"\n{test_set}, {comparisons['greedy'].utterances} utterances\n")
    print(table(rows))
    print()
    for how, comparison in comparisons.items():
        interval = _interval(comparison.ratio_interval)
        print(f"Ratio of the word error rates, {how}: {comparison.ratio:.2f}{interval}")
    print("Intervals: 95%, bootstrap by utterance; for the ratio both models on the same draws.\n")
    spent = [
        {"stage": name, "steps": runs[name].steps, "minutes": round(minutes[name], 1)}
        for name in runs
    ]
    print(table(spent))
    print("\nFigures of the pretrained model:")
    for path in figures:
        print(f"  {path}")
    print(f"Report of pretraining: {directories['pretrain'] / 'report.html'}")
    experiment.finish()


def _row(model: str, search: str, evaluation: Evaluation) -> dict[str, object]:
    """Returns a row of the table of word error rates."""
    scores = evaluation.rows[0].scores
    return {
        "model": model,
        "search": search,
        "WER %": round(scores["wer"].value, 1),
        "95% interval": _interval(scores["wer"].interval, digits=1).strip(" ()"),
        "CER %": round(scores["cer"].value, 1),
    }


def _interval(interval: tuple[float, float] | None, digits: int = 2) -> str:
    if interval is None:
        return ""
    return f" ({interval[0]:.{digits}f} to {interval[1]:.{digits}f})"

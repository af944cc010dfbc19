"""Adaptation to a new domain by its text: aligned masked LM, synthesised speech, or both.

A recogniser is trained on German about everything but dates, and learns to match text with speech
on the same domain. It is then adapted to dates, of which it has text alone: by the aligned masked
LM, by synthesised speech of the text, and by both, each with replay of the old transcribed speech.
A fourth run has the replay alone, for as many steps. All are tested on both domains, on voices and
sentences that none has trained on.
"""

from __future__ import annotations

import json
from pathlib import Path

from maestro_jax.evaluation.comparison import PairedComparison, compare
from maestro_jax.evaluation.predictions import Prediction, read_predictions
from maestro_jax.evaluation.run_evaluation import evaluate_run
from maestro_jax.experiments.stages import Experiment, Recipe, Stage
from maestro_jax.files import write_atomically
from maestro_jax.inference.search_config import SearchConfig
from maestro_jax.tables import table

_DATA = ("models/tiny.gin", "data/minivox_adaptation.gin")
# The demo's, for so small a model: `runs/adapt_text.gin` is written for larger ones.
_SMALL = {
    "DROPOUT": "0.0",
    "AUGMENT": "False",
    "EMA_DECAY": "0.98",
    "EVAL_EVERY": "0",
    "LOG_EVERY": "50",
    "CHECKPOINT_EVERY": "100",
    "WARMUP_STEPS": "50",
}
_ADAPTATION = _SMALL | {"LEARNING_RATE": "5e-4"}


def _adaptation(name: str, file: str, doing: str, **bindings: str) -> Stage:
    return Stage(
        name=name,
        file=file,
        further_files=_DATA,
        directory=name,
        doing=doing,
        init_from="base",
        bindings=_ADAPTATION | bindings,
    )


RECIPE = Recipe(
    config="everyday",
    further_configs=("calendar",),
    stages=(
        Stage(
            name="recogniser",
            file="runs/demo_finetune_asr.gin",
            further_files=("data/minivox_adaptation.gin",),
            directory="recogniser",
            doing="training a recogniser on transcribed speech of the old domain",
            bindings={"EVAL_EVERY": "0"},
        ),
        Stage(
            name="base",
            file="runs/adapt_text.gin",
            further_files=_DATA,
            directory="base",
            doing="matching text with speech on the old domain, with MAESTRO",
            init_from="recogniser",
            bindings=_SMALL
            | {
                "LEARNING_RATE": "8e-4",
                "TEXT_MIXTURE": "'minivox_everyday_text'",
                "TEXT_START_STEP": "100",
            },
        ),
        _adaptation(
            "replay",
            "runs/adapt_text.gin",
            "training on with the old transcribed speech alone",
            TEXT_WEIGHT="0.0",
        ),
        _adaptation("text", "runs/adapt_text.gin", "adapting by text: aligned masked LM"),
        _adaptation(
            "synthesis", "runs/adapt_synthesis.gin", "adapting by synthesised speech of the text"
        ),
        _adaptation("both", "runs/adapt_both.gin", "adapting by both"),
    ),
    steps={
        "recogniser": 1500,
        "base": 400,
        "replay": 200,
        "text": 200,
        "synthesis": 200,
        "both": 200,
    },
)
"""The stages of the experiment."""

MODELS = {
    "base": "before",
    "replay": "old speech alone",
    "text": "text",
    "synthesis": "synthesised speech",
    "both": "both",
}
"""The rows of the table; each is compared with the first."""
DOMAINS = {"everyday": "old domain", "calendar": "new domain"}


def run_adaptation(
    output_dir: str | Path, data_dir: str | Path | None = None, *, recipe: Recipe | None = None
) -> None:
    """Builds MiniVox in two domains, trains, adapts in four ways, and compares on both test sets.

    The comparison is printed, and written to `adaptation.json` in the output directory.

    Args:
        output_dir: Directory of models and tables.
        data_dir: Root of the prepared data; by default `data` in the output directory.
        recipe: Other corpora or other lengths than those of the experiment.
    """
    recipe = recipe or RECIPE
    experiment = Experiment(recipe, output_dir, data_dir, further_parts=1)
    experiment.train()
    experiment.announce("testing all on both domains")
    configs = (recipe.config, *recipe.further_configs)
    tasks = {
        domain: f"minivox_{config}_paired_de"
        for domain, config in zip(DOMAINS, configs, strict=True)
    }
    predictions = {
        (name, domain): _predictions(experiment, name, task)
        for name in MODELS
        for domain, task in tasks.items()
    }
    comparisons = {
        (name, domain): compare(found, predictions["base", domain]).average
        for (name, domain), found in predictions.items()
    }
    minutes = experiment.training_minutes()
    record = {
        "steps": {name: run.steps for name, run in experiment.runs.items()},
        "minutes": minutes,
        "models": {
            name: {domain: comparisons[name, domain].as_dict() for domain in DOMAINS}
            for name in MODELS
        },
    }
    content = json.dumps(record, indent=2) + "\n"
    write_atomically(experiment.output / "adaptation.json", content.encode())

    print(f"\n{comparisons['base', 'calendar'].utterances} utterances of each domain\n")
    print(table([_row(name, comparisons) for name in MODELS]))
    print("\nWER %, greedy, with 95% intervals; the ratio to the WER before, on the same draws.\n")
    spent = [
        {"stage": name, "steps": run.steps, "minutes": round(minutes[name], 1)}
        for name, run in experiment.runs.items()
    ]
    print(table(spent))
    experiment.finish()


def _predictions(experiment: Experiment, name: str, task: str) -> list[Prediction]:
    """Returns what a model writes for the test set of a task, which is decoded once."""
    kept = experiment.directories[name] / "evaluation" / task
    report = evaluate_run(
        experiment.runs[name],
        model_dir=experiment.directories[name],
        data_dir=experiment.data,
        tasks=(task,),
        search=SearchConfig(),
        output_dir=kept,
    )
    [evaluation] = report.evaluations
    return read_predictions(kept / f"{evaluation.name}.hypotheses.jsonl")


def _row(name: str, comparisons: dict[tuple[str, str], PairedComparison]) -> dict[str, object]:
    """Returns a row of the table of word error rates."""
    row: dict[str, object] = {"adapted by": MODELS[name]}
    for domain, title in DOMAINS.items():
        found = comparisons[name, domain]
        row[title] = f"{found.score:.1f}{_interval(found.interval, 1)}"
        ratio = f"{found.ratio:.2f}{_interval(found.ratio_interval, 2)}"
        row[f"{title}, ratio"] = "" if name == "base" else ratio
    return row


def _interval(interval: tuple[float, float] | None, digits: int) -> str:
    if interval is None:
        return ""
    return f" ({interval[0]:.{digits}f} to {interval[1]:.{digits}f})"

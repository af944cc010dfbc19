"""What w2v-BERT and BEST-RQ learn from an hour of untranscribed speech, in minutes.

Each is trained alone on MiniVox. On voices and sentences that neither has heard it is then asked
how often it knows the code of what is hidden, how many codes it uses, and how well the phonemes of
espeak-ng, whose times are known, a linear classifier reads from its frozen encoder: beside the
same encoder with random weights, and beside log-mel features.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from maestro_jax.evaluation.self_supervision import (
    SelfSupervision,
    best_layer,
    evaluate_self_supervision,
)
from maestro_jax.experiments.stages import Experiment, Recipe, Stage
from maestro_jax.files import write_atomically
from maestro_jax.tables import table
from maestro_jax.training import parameter_trees
from maestro_jax.training.partial_restore import restore_params
from maestro_jax.training.run import TrainRun
from maestro_jax.training.saved_checkpoints import Which, find_checkpoint
from maestro_jax.training.state import initial_params, sharded_state

RECIPE = Recipe(
    stages=(
        Stage(
            name="w2v-BERT",
            file="runs/minivox_w2v_bert.gin",
            directory="w2v_bert",
            doing="training w2v-BERT on untranscribed speech",
        ),
        Stage(
            name="BEST-RQ",
            file="runs/minivox_bestrq.gin",
            directory="bestrq",
            doing="training BEST-RQ on the same",
        ),
    ),
)
"""What the experiment trains on, and for how long."""

PROBED = {"train": 100, "validation": 40, "test": 40}
"""Utterances of each language that probes are fitted to, chosen by and judged by, by part of the
corpus."""
RANDOM, TRAINED = "random weights", "trained"


def run_self_supervised(
    output_dir: str | Path,
    data_dir: str | Path | None = None,
    *,
    recipe: Recipe | None = None,
    probed: Mapping[str, int] | None = None,
) -> None:
    """Builds MiniVox, trains on its untranscribed speech, and judges what has been learned.

    The table is printed, and kept in `self_supervised.json` in the output directory.

    Args:
        output_dir: Directory of the models and the table.
        data_dir: Root of the prepared data; by default `data` in the output directory.
        recipe: Another corpus or other lengths than those of the experiment.
        probed: Another number of utterances than `PROBED`.
    """
    recipe = recipe or RECIPE
    experiment = Experiment(recipe, output_dir, data_dir, further_parts=1)
    experiment.train()

    experiment.announce("judging them by voices and sentences that they have not heard")
    from maestro_jax.minivox.corpus import make_example
    from maestro_jax.minivox.dataset import Minivox

    [corpus] = [c.corpus for c in Minivox.BUILDER_CONFIGS if c.name == recipe.config]
    parts = [
        [
            make_example(corpus, f"paired_{language}_{part}", index)
            for language in corpus.languages
            for index in range(count)
        ]
        for part, count in {**PROBED, **(probed or {})}.items()
    ]
    found = {
        name: {
            RANDOM: evaluate_self_supervision(run, _random(run), *parts),
            TRAINED: evaluate_self_supervision(
                run, _trained(run, experiment.directories[name]), *parts
            ),
        }
        for name, run in experiment.runs.items()
    }
    minutes = experiment.training_minutes()
    record = {
        "steps": {name: run.steps for name, run in experiment.runs.items()},
        "minutes": minutes,
        "found": {
            name: {weights: dataclasses.asdict(each) for weights, each in by_weights.items()}
            for name, by_weights in found.items()
        },
    }
    content = json.dumps(record, indent=2) + "\n"
    write_atomically(experiment.output / "self_supervised.json", content.encode())

    print("\nThe objectives, on masked speech of unheard voices, in percent\n")
    print(table([_objective(name, w, e) for name, each in found.items() for w, e in each.items()]))
    print(
        "\nFrames whose phoneme a linear probe names, in percent; validation chose the best block\n"
    )
    print(table([_probes(name, w, e) for name, each in found.items() for w, e in each.items()]))
    some = found[recipe.stages[0].name][TRAINED].probes["log-mel"]
    print(f"\n{some.frames:,} frames, {some.phonemes} phonemes; the commonest: {some.majority:.1%}")
    for name, run in experiment.runs.items():
        print(f"{name}: {run.steps} steps, {minutes[name]:.1f} minutes with compilation")
    experiment.finish()


def _random(run: TrainRun) -> Any:
    """The parameters that the run begins with."""

    def init() -> Any:
        return initial_params(run.model, run.objective, run.batch_shapes(), run.seed)

    return jax.jit(lambda: parameter_trees.unbox(init()))()


def _trained(run: TrainRun, directory: Path) -> Any:
    """The averaged parameters of its last checkpoint."""
    abstract = sharded_state(run, run.partitioning.mesh()).abstract.params
    which: Which = "params" if run.ema_decay is None else "ema"
    return restore_params(find_checkpoint(directory), which, abstract_params=abstract)


def _objective(name: str, weights: str, found: SelfSupervision) -> dict[str, object]:
    """A line of the table of accuracies and codes."""
    metrics = {key: round(100 * value, 1) for key, value in found.metrics.items()}
    return {
        "objective": name,
        "weights": weights,
        "contrastive": metrics.get("contrastive_accuracy"),
        "by chance": metrics.get("contrastive_chance"),
        "masked prediction": metrics["masked_accuracy"],
        "commonest code": metrics["masked_chance"],
        "codes in use": metrics["code_usage"],
        "code perplexity": round(found.metrics["code_perplexity"], 1),
    }


def _probes(name: str, weights: str, found: SelfSupervision) -> dict[str, object]:
    """A line of the table of probes."""
    shares = {layer: round(100 * accuracy.share, 1) for layer, accuracy in found.probes.items()}
    best = best_layer(found.probes)
    return {"objective": name, "weights": weights, **shares, "best": f"{best}: {shares[best]}"}

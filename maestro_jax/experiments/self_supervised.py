"""What w2v-BERT and BEST-RQ learn from an hour of untranscribed speech, in minutes.

Each is trained alone on MiniVox. On voices and sentences that neither has heard it is then asked
how often it knows the code of what is hidden, how many codes it uses, and how well the phonemes of
espeak-ng, whose times are known, a linear classifier reads from its frozen encoder: beside the
same encoder with random weights, and beside log-mel features.

Every stage leaves its result in the output directory and is skipped, or continued where it stood,
when the command is started again.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from maestro_jax.evaluation.phoneme_probe import best_layer
from maestro_jax.evaluation.self_supervision import SelfSupervision, evaluate_self_supervision
from maestro_jax.experiments.stages import Announcer, Recipe, Stage, training_minutes
from maestro_jax.tables import table
from maestro_jax.training import parameter_trees
from maestro_jax.training.checkpoints import Which, find_checkpoint, restore_params
from maestro_jax.training.run import TrainRun
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
) -> dict[str, Any]:
    """Build MiniVox, train on its untranscribed speech, and judge what has been learned.

    The table is printed, and kept in `self_supervised.json` in the output directory.

    Args:
        output_dir: Models and the table go here.
        data_dir: The root of the prepared data; by default `data` in the output directory.
        recipe: Another corpus or other lengths than the experiment's.
        probed: Another number of utterances than `PROBED`.

    Returns:
        What stands in `self_supervised.json`.
    """
    began = time.monotonic()
    recipe = recipe or RECIPE
    output = Path(output_dir).expanduser().absolute()
    data = Path(data_dir) if data_dir else output / "data"
    output.mkdir(parents=True, exist_ok=True)
    announce = Announcer(len(recipe.stages) + 2)

    announce("speaking MiniVox: sentences, voices, rooms and noise")
    from maestro_jax.minivox import dataset
    from maestro_jax.minivox.corpus import make_example

    dataset.prepare(recipe.config, data)

    runs, directories = {}, {}
    for stage in recipe.stages:
        announce(stage.doing)
        runs[stage.name], directories[stage.name] = recipe.train(stage.name, output, data)

    announce("judging them by voices and sentences that they have not heard")
    [corpus] = [c.corpus for c in dataset.Minivox.BUILDER_CONFIGS if c.name == recipe.config]
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
            TRAINED: evaluate_self_supervision(run, _trained(run, directories[name]), *parts),
        }
        for name, run in runs.items()
    }
    minutes = {name: training_minutes(directory) for name, directory in directories.items()}
    record: dict[str, Any] = {
        "steps": {name: run.steps for name, run in runs.items()},
        "minutes": minutes,
        "found": {
            name: {weights: dataclasses.asdict(each) for weights, each in by_weights.items()}
            for name, by_weights in found.items()
        },
    }
    (output / "self_supervised.json").write_text(json.dumps(record, indent=2) + "\n")

    print("\nThe objectives, on masked speech of unheard voices, in percent\n")
    print(table([_objective(name, w, e) for name, each in found.items() for w, e in each.items()]))
    print(
        "\nFrames whose phoneme a linear probe names, in percent; validation chose the best block\n"
    )
    print(table([_probes(name, w, e) for name, each in found.items() for w, e in each.items()]))
    some = found[recipe.stages[0].name][TRAINED].probes["log-mel"]
    print(f"\n{some.frames:,} frames, {some.phonemes} phonemes; the commonest: {some.majority:.1%}")
    for name, run in runs.items():
        print(f"{name}: {run.steps} steps, {minutes[name]:.1f} minutes with compilation")
    print(f"\nDone in {(time.monotonic() - began) / 60:.1f} minutes.")
    return record


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

"""`maestro tune`: finds the best weights of a search on validation data."""

from __future__ import annotations

import argparse
import json
import logging
from typing import TYPE_CHECKING

from maestro_jax.cli import environment, options

if TYPE_CHECKING:
    from maestro_jax.evaluation.tuning import Trial

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.add_argument("model_dir", metavar="MODEL_DIR", help="model directory of a run")
    options.add_gin(parser)
    options.add_task(parser)
    parser.add_argument(
        "--split",
        default="validation",
        help="split to tune on, which must not be a test; default: %(default)s",
    )
    options.add_weights(parser)
    parser.add_argument(
        "--tune",
        action="extend",
        type=options.names,
        default=[],
        metavar="NAME,NAME",
        help="values to tune: lm_weight, ilm_weight, phrases_weight, length_bonus, blank_penalty, "
        "length_alpha, beam_size; default: all that have an effect",
    )
    parser.add_argument(
        "--metric",
        metavar="NAME",
        help="metric of the average over languages; default: the error rate, or BLEU",
    )
    parser.add_argument(
        "--trials",
        type=options.positive,
        default=40,
        metavar="N",
        help="the most searches to try; default: %(default)s",
    )
    parser.add_argument(
        "--utterances",
        type=options.positive,
        default=2000,
        metavar="N",
        help="the most utterances of each validation set, spread over it; default: %(default)s",
    )
    options.add_search(parser)
    options.add_data_dir(parser)
    options.add_json(parser)


def run(arguments: argparse.Namespace) -> None:
    """Runs the command."""
    environment.prepare_process()
    from maestro_jax.gin_utils import gin_config

    train_run = gin_config.load_run(arguments.model_dir, arguments.bindings, arguments.gin_file)
    from maestro_jax.data.tensorflow_import import import_tensorflow

    import_tensorflow()
    environment.enable_compilation_cache()
    search = options.search_config(arguments)
    from maestro_jax.evaluation.tuning import tune_run, write_search
    from maestro_jax.progress import Progress
    from maestro_jax.tables import table

    with Progress(arguments.trials, "tuning, at most", unit="trial") as progress:

        def seen(trial: Trial) -> None:
            progress.update(1)
            progress.set_postfix_str(f"{trial.score:.3f}", refresh=False)

        tuning = tune_run(
            train_run,
            model_dir=arguments.model_dir,
            data_dir=arguments.data_dir,
            tasks=arguments.task,
            split=arguments.split,
            step=arguments.step,
            weights=arguments.weights,
            search=search,
            names=arguments.tune,
            metric=arguments.metric,
            trials=arguments.trials,
            utterances=arguments.utterances,
            seen=seen,
        )
    path = write_search(tuning, arguments.model_dir)
    if arguments.json:
        print(json.dumps({"trials": tuning.rows(), "search": str(path)}, indent=2))
        return
    print(table(tuning.rows()))
    print(
        f"\n{tuning.metric} {tuning.trials[0].score:.3f} -> {tuning.best.score:.3f}. "
        f"`maestro eval` and `maestro transcribe` search as {path} says, unless --untuned or other "
        "options are given."
    )

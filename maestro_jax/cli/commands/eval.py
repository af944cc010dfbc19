"""`maestro eval`: scores a trained model on its tasks."""

from __future__ import annotations

import argparse
import json

from maestro_jax.cli import environment, options
from maestro_jax.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.add_argument("--model_dir", metavar="DIR", help="model directory of a run")
    options.add_gin(parser)
    parser.add_argument(
        "--task",
        action="extend",
        type=options.names,
        default=[],
        metavar="NAME,NAME",
        help="tasks or mixtures (see `maestro tasks`); repeatable; default: those of the run",
    )
    parser.add_argument("--split", default="test", help="split to score; default: %(default)s")
    parser.add_argument(
        "--step",
        type=options.checkpoint_step,
        metavar="STEP",
        help="step of the checkpoint, or best for the one with the best validation metric; "
        "default: the latest",
    )
    parser.add_argument(
        "--weights",
        choices=("ema", "params"),
        default="ema",
        help="ema for the averaged weights, params for those of the step; default: %(default)s",
    )
    options.add_search(parser)
    options.add_data_dir(parser)
    parser.add_argument(
        "--output_dir",
        metavar="DIR",
        help="directory of the results; default: evaluation/STEP-WEIGHTS-SEARCH in the model "
        "directory",
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="decode again what an earlier evaluation of the same model has decoded",
    )
    options.add_json(parser)


def run(arguments: argparse.Namespace) -> None:
    """Runs the command, on each of several processes."""
    if not arguments.model_dir:
        raise UserError("eval needs --model_dir DIR, the model directory of a run")
    environment.prepare_process()
    from maestro_jax.gin_utils import gin_config

    train_run = gin_config.load_run(arguments.model_dir, arguments.bindings, arguments.gin_file)
    from maestro_jax.data.tensorflow_import import import_tensorflow

    import_tensorflow()
    environment.enable_compilation_cache()
    from maestro_jax.training import distributed

    distributed.initialize()
    search = options.search_config(arguments)
    from maestro_jax.evaluation.run_evaluation import evaluate_run

    scores = evaluate_run(
        train_run,
        model_dir=arguments.model_dir,
        data_dir=arguments.data_dir,
        tasks=arguments.task,
        split=arguments.split,
        step=arguments.step,
        weights=arguments.weights,
        search=search,
        output_dir=arguments.output_dir,
        overwrite=arguments.overwrite,
    )
    if distributed.process_index():
        return
    if arguments.json:
        print(json.dumps(scores.as_dict(), indent=2, ensure_ascii=False))
    else:
        print(scores.text())

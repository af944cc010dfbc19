"""`maestro eval`: scores a trained model on its tasks."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from typing import TYPE_CHECKING, Any

from maestro_jax.cli import environment, options
from maestro_jax.errors import UserError

if TYPE_CHECKING:
    from maestro_jax.evaluation.robustness import RobustnessTable
    from maestro_jax.evaluation.run_evaluation import RunScores
    from maestro_jax.inference.search_config import SearchConfig
    from maestro_jax.training.run import TrainRun


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.add_argument("--model_dir", metavar="DIR", help="model directory of a run")
    options.add_gin(parser)
    options.add_task(parser)
    parser.add_argument(
        "--suite",
        metavar="NAME",
        help="test sets that papers report together, in place of --task: voxpopuli, covost2, "
        "speechstew, fleurs or common_voice",
    )
    parser.add_argument(
        "--languages",
        action="extend",
        type=options.names,
        default=[],
        metavar="L,L",
        help="part of the suite, as de,fr, or ami_ihm,callhome of speechstew; default: all",
    )
    parser.add_argument(
        "--glm",
        metavar="FILE",
        help="rules of NIST for Switchboard and CallHome (global mapping file); default: a short "
        "list of contractions",
    )
    parser.add_argument("--split", default="test", help="split to score; default: %(default)s")
    options.add_weights(parser)
    options.add_search(parser)
    options.add_untuned(parser)
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
    parser.add_argument(
        "--formats",
        action="extend",
        type=options.names,
        default=[],
        metavar="NAME,NAME",
        help="write the hypotheses in further formats: txt, trn, stm, ctm, openasr (see `maestro "
        "export`)",
    )
    parser.add_argument(
        "--robustness",
        action="extend",
        type=options.names,
        default=[],
        metavar="NAME,NAME",
        help="also evaluate under conditions: all, or of noise, babble, room, speed, telephone, "
        "code_switched, synthetic, noise_10db, ...",
    )
    parser.add_argument(
        "--robustness_seed",
        type=options.not_negative,
        default=0,
        metavar="N",
        help="seed of the conditions; default: %(default)s",
    )
    parser.add_argument(
        "--follow",
        nargs="?",
        const="",
        metavar="DIR",
        help="evaluate each checkpoint that training writes into the model directory as it "
        "appears, until the last; the curve is evaluation/curve.png in it",
    )
    parser.add_argument(
        "--follow_timeout",
        type=options.positive_number,
        default=math.inf,
        metavar="SECONDS",
        help="with --follow, end after as long without a new checkpoint; default: never",
    )
    options.add_json(parser)


def run(arguments: argparse.Namespace) -> None:
    """Runs the command, on each of several processes."""
    arguments.model_dir = arguments.model_dir or arguments.follow
    if not arguments.model_dir:
        raise UserError("eval needs --model_dir DIR, the model directory of a run")
    if arguments.suite and arguments.task:
        raise UserError("give --suite or --task, not both")
    if not arguments.suite and (arguments.languages or arguments.glm):
        raise UserError(
            "--languages and --glm are for suites: give --suite voxpopuli, say, or name the tasks "
            "of the languages with --task"
        )
    environment.prepare_process()
    environment.compile_alone()
    from maestro_jax.gin_utils import gin_config

    gin_files = [*options.tuned_search(arguments.model_dir, arguments), *arguments.gin_file]
    train_run = gin_config.load_run(arguments.model_dir, arguments.bindings, gin_files)
    from maestro_jax.data.tensorflow_import import import_tensorflow

    import_tensorflow()
    environment.enable_compilation_cache()
    from maestro_jax.training import distributed

    distributed.initialize()
    with distributed.ending_together():
        _evaluate(train_run, arguments)


def _evaluate(train_run: TrainRun, arguments: argparse.Namespace) -> None:
    import jax

    search = options.search_config(arguments)
    from maestro_jax.evaluation.hypothesis_formats import check_formats
    from maestro_jax.evaluation.run_evaluation import evaluate_run

    check_formats(arguments.formats)
    if arguments.follow is not None:
        _follow(train_run, search, arguments)
        return
    robustness: list[RobustnessTable] = []
    if arguments.robustness:
        scores, robustness = _evaluate_robustness(train_run, search, arguments)
    else:
        scores = evaluate_run(
            train_run,
            model_dir=arguments.model_dir,
            data_dir=arguments.data_dir,
            tasks=arguments.task,
            **_suite(arguments),
            split=arguments.split,
            step=arguments.step,
            weights=arguments.weights,
            search=search,
            output_dir=arguments.output_dir,
            overwrite=arguments.overwrite,
        )
    if jax.process_index():
        return
    if arguments.json:
        content: object = scores.as_dict()
        if arguments.robustness:
            tables = [table.as_dict() for table in robustness]
            content = {"scores": content, "robustness": tables}
        print(json.dumps(content, indent=2, ensure_ascii=False))
    else:
        print(scores.text())
        for table in robustness:
            print(table.text())
    if scores.failure is not None:
        raise scores.failure
    _write_formats(scores, arguments.formats, arguments.model_dir)


def _suite(arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns the options of suites."""
    return {name: getattr(arguments, name) for name in ("suite", "languages", "glm")}


def _follow(train_run: TrainRun, search: SearchConfig, arguments: argparse.Namespace) -> None:
    """Evaluates the checkpoints of a run that is being trained."""
    import jax

    from maestro_jax.evaluation.following import CURVE_FILE, follow
    from maestro_jax.evaluation.results import SUBDIRECTORY, search_name
    from maestro_jax.evaluation.run_evaluation import evaluate_run, test_sets_of_run
    from maestro_jax.files import as_path
    from maestro_jax.inference.transcriber import Transcriber
    from maestro_jax.reports.figures import plot_followed
    from maestro_jax.tables import table

    for option in ("step", "robustness", "output_dir", "formats"):
        if getattr(arguments, option):
            raise UserError(f"--follow evaluates every checkpoint as it is: leave --{option} out")
    test_sets = test_sets_of_run(
        train_run,
        arguments.task,
        arguments.split,
        data_dir=arguments.data_dir,
        **_suite(arguments),
    )
    weights = arguments.weights if train_run.ema_decay is not None else "params"
    transcriber: Transcriber | None = None

    def evaluate(step: int) -> RunScores:
        scores = evaluate_step(step)
        if scores.failure is not None:
            raise scores.failure
        return scores

    def evaluate_step(step: int) -> RunScores:
        nonlocal transcriber
        directory = str(as_path(arguments.model_dir) / "checkpoints" / str(step))
        if transcriber is None:
            transcriber = Transcriber.from_checkpoint(
                directory, train_run, which=arguments.weights, search=search
            )
        else:
            # The programs stay compiled.
            transcriber.restore(directory, arguments.weights)
        return evaluate_run(
            train_run,
            model_dir=arguments.model_dir,
            data_dir=arguments.data_dir,
            tasks=arguments.task,
            split=arguments.split,
            **_suite(arguments),
            step=step,
            weights=arguments.weights,
            transcriber=transcriber,
            search=search,
            overwrite=arguments.overwrite,
        )

    scores = follow(
        arguments.model_dir,
        evaluate,
        last_step=train_run.steps,
        search=f"{weights}-{search_name(search)}",
        test_sets=[one.title for one in test_sets],
        draw=plot_followed,
        timeout=arguments.follow_timeout,
    )
    if jax.process_index():
        return
    if arguments.json:
        print(json.dumps([dataclasses.asdict(one) for one in scores], indent=2, ensure_ascii=False))
    elif scores:
        rows = [
            {
                "step": one.step,
                "test set": one.test_set,
                "metric": one.metric,
                "average": None if one.average is None else round(one.average, 2),
                "utterances": one.utterances,
            }
            for one in scores
        ]
        print(table(rows))
        print(f"\nThe curve is {as_path(arguments.model_dir) / SUBDIRECTORY / CURVE_FILE}.")


def _evaluate_robustness(
    train_run: TrainRun, search: SearchConfig, arguments: argparse.Namespace
) -> tuple[RunScores, list[RobustnessTable]]:
    """Evaluates on clean speech and under the conditions of `--robustness`."""
    from maestro_jax.audio.conditions import find_conditions
    from maestro_jax.evaluation.robustness import evaluate_robustness
    from maestro_jax.evaluation.run_evaluation import loaded_model, test_sets_of_run

    conditions = find_conditions(arguments.robustness)
    test_sets = test_sets_of_run(
        train_run,
        arguments.task,
        arguments.split,
        **_suite(arguments),
        data_dir=arguments.data_dir,
    )
    with loaded_model(
        train_run,
        model_dir=arguments.model_dir,
        data_dir=arguments.data_dir,
        step=arguments.step,
        weights=arguments.weights,
        search=search,
        output_dir=arguments.output_dir,
    ) as model:
        return evaluate_robustness(
            test_sets,
            model,
            conditions,
            seed=arguments.robustness_seed,
            data_dir=arguments.data_dir,
            overwrite=arguments.overwrite,
        )


def _write_formats(scores: RunScores, formats: list[str], model_dir: str) -> None:
    """Writes the hypotheses beside the tables in other formats."""
    from maestro_jax.evaluation.hypothesis_formats import write_formats
    from maestro_jax.evaluation.predictions import read_predictions
    from maestro_jax.files import as_path

    for evaluation in scores.evaluations if formats else ():
        assert scores.directory is not None
        decoding = evaluation.decoding
        write_formats(
            scores.directory,
            evaluation.name,
            read_predictions(scores.directory / f"{evaluation.name}.hypotheses.jsonl"),
            formats,
            model=as_path(model_dir).name,
            decoding_seconds=None if decoding is None else decoding.decode_seconds,
        )

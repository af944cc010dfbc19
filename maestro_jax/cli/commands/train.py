"""`maestro train`: trains the run that gin files describe."""

from __future__ import annotations

import argparse
import importlib.util
from typing import TYPE_CHECKING

from maestro_jax.cli import environment, options
from maestro_jax.errors import UserError

if TYPE_CHECKING:
    from maestro_jax.training.run import TrainRun


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    options.add_gin(parser)
    parser.add_argument(
        "--model_dir",
        metavar="DIR",
        help="directory for checkpoints, metrics and the configuration",
    )
    options.add_data_dir(parser)
    parser.add_argument(
        "--steps",
        type=options.positive,
        help="step at which training ends; default: STEPS of the gin files",
    )
    parser.add_argument(
        "--seed", type=options.not_negative, help="random seed; default: SEED of the gin files"
    )
    parser.add_argument(
        "--elastic",
        action="store_true",
        help="fit mesh and microbatches to the devices that there are, so that the run continues "
        "on fewer hosts or devices with the same batches",
    )
    parser.add_argument(
        "--allow_changes",
        action="store_true",
        help="go on with a run although what is changed changes its result: learning rate, "
        "optimizer, batches, seed, ...",
    )
    parser.add_argument(
        "--take_over",
        action="store_true",
        help="train in a model directory that another run may be using, which then stops",
    )
    parser.add_argument(
        "--dry_run",
        action="store_true",
        help="check the gin files and all shapes, print the configuration and the sizes of the "
        "run, and exit",
    )


def run(arguments: argparse.Namespace) -> None:
    """Runs the command."""
    if not arguments.gin_file:
        raise UserError(
            "train needs a run: give --gin_file runs/pretrain.gin, or a gin file of your own"
        )
    if not arguments.model_dir and not arguments.dry_run:
        raise UserError("train needs --model_dir DIR, or --dry_run")
    environment.prepare_process()
    from maestro_jax.gin_utils import gin_config, run_record
    from maestro_jax.provenance import command_line

    # A file that has a macro for it may use its value elsewhere too: a schedule needs STEPS.
    macros = gin_config.macros(arguments.gin_file)
    bindings = dict(arguments.bindings)
    for macro in ("STEPS", "SEED"):
        value = getattr(arguments, macro.lower())
        if value is not None:
            bindings[macro if macro in macros else f"TrainRun.{macro.lower()}"] = str(value)
    if arguments.elastic:
        bindings["TrainRun.elastic"] = "True"
    train_run = gin_config.parse_and_build(arguments.gin_file, bindings, arguments.imports)
    _check_tasks(train_run, arguments.model_dir)
    if arguments.dry_run:
        from maestro_jax.cli.run_summary import summary

        print(gin_config.operative_config_text())
        print(summary(train_run))
        return
    record = run_record.RunRecord(gin_config.record_texts(), command_line())
    from maestro_jax.reports.html_report import train_with_report
    from maestro_jax.training import distributed, goodput

    environment.enable_compilation_cache()
    distributed.initialize()
    goodput.count_from_process_start()
    with distributed.ending_together():
        train_with_report(
            train_run,
            model_dir=arguments.model_dir,
            data_dir=arguments.data_dir,
            callbacks=[record],
            allow_changes=arguments.allow_changes,
            take_over=arguments.take_over,
        )


def _check_tasks(run: TrainRun, model_dir: str | None) -> None:
    """Refuses unknown tasks and too many languages before any device is touched."""
    if importlib.util.find_spec("tensorflow") is None:
        return  # Training on synthetic batches needs none.
    from maestro_jax.data.tensorflow_import import import_tensorflow

    import_tensorflow()
    from maestro_jax.data.task_registry import get_task_or_mixture
    from maestro_jax.training.run_languages import run_languages

    for stream in run.streams.values():
        get_task_or_mixture(stream.mixture)
    run_languages(run, model_dir)

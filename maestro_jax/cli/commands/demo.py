"""`maestro demo`: runs whole experiments on a small synthetic corpus."""

from __future__ import annotations

import argparse

from maestro_jax.cli import environment

EXPERIMENTS = ("whole_loop", "low_resource", "self_supervised", "adaptation")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.add_argument(
        "--experiment",
        choices=EXPERIMENTS,
        default=EXPERIMENTS[0],
        help="whole_loop: pretraining, recognition, translation; low_resource: the gain from "
        "pretraining for a language with 24 transcribed utterances; self_supervised: w2v-BERT and "
        "BEST-RQ on untranscribed speech; adaptation: a new domain, of which there is text alone "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--output_dir",
        metavar="DIR",
        help="directory of models and results; default: demo_output, or EXPERIMENT_output",
    )
    parser.add_argument(
        "--data_dir",
        metavar="DIR",
        help="root of the prepared data; default: `data` in the output directory",
    )


def run(arguments: argparse.Namespace) -> None:
    """Runs the command."""
    environment.prepare_process(tensorflow=True)
    environment.enable_compilation_cache()
    if arguments.experiment == "low_resource":
        from maestro_jax.experiments.low_resource import run_low_resource

        run_low_resource(arguments.output_dir or "low_resource_output", arguments.data_dir)
        return
    if arguments.experiment == "self_supervised":
        from maestro_jax.experiments.self_supervised import run_self_supervised

        run_self_supervised(arguments.output_dir or "self_supervised_output", arguments.data_dir)
        return
    if arguments.experiment == "adaptation":
        from maestro_jax.experiments.adaptation import run_adaptation

        run_adaptation(arguments.output_dir or "adaptation_output", arguments.data_dir)
        return
    from maestro_jax.experiments.demo import run_demo

    run_demo(arguments.output_dir or "demo_output", arguments.data_dir)

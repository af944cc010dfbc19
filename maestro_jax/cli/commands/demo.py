"""`maestro demo`: the whole way on a small spoken corpus that the command makes itself."""

from __future__ import annotations

import argparse

from maestro_jax.cli import environment


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.add_argument(
        "--output_dir", default="demo_output", metavar="DIR", help="default: %(default)s"
    )
    parser.add_argument(
        "--data_dir",
        metavar="DIR",
        help="where the corpus is made; by default `data` in the output directory",
    )


def run(arguments: argparse.Namespace) -> None:
    """Runs the command."""
    environment.prepare_process()
    from maestro_jax.data.tensorflow_import import import_tensorflow

    import_tensorflow()
    environment.enable_compilation_cache()
    from maestro_jax.cli.demo import run_demo

    run_demo(output_dir=arguments.output_dir, data_dir=arguments.data_dir)

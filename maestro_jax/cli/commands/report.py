"""`maestro report`: writes the report of a training run again."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.add_argument("model_dir", metavar="MODEL_DIR", help="of a run, finished or under way")


def run(arguments: argparse.Namespace) -> None:
    """Runs the command."""
    from maestro_jax.reports.html_report import write_report

    path, _ = write_report(arguments.model_dir)
    print(path)

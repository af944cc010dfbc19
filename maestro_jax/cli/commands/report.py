"""`maestro report`: writes the HTML report of a run."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.add_argument("model_dir", metavar="MODEL_DIR", help="model directory of a run")


def run(arguments: argparse.Namespace) -> None:
    """Runs the command."""
    from maestro_jax.reports.html_report import write_report

    path, _ = write_report(arguments.model_dir)
    print(path)

"""`maestro quickstart`: from a directory of recordings to a recogniser and a translator."""

from __future__ import annotations

import argparse
from pathlib import Path

from maestro_jax.cli import environment, options


def _budget(text: str) -> float:
    from maestro_jax.experiments.quickstart.budget import parse_budget

    try:
        return parse_budget(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.add_argument(
        "directory",
        metavar="DIR",
        help="directory with a manifest (train.jsonl, or any other), Kaldi's wav.scp and text, "
        "cuts.jsonl.gz of lhotse, or audio files beside .txt files; recordings in DIR/speech and "
        "texts in DIR/text are used as unpaired data",
    )
    parser.add_argument(
        "--budget",
        type=_budget,
        metavar="TIME",
        help="time for everything, such as 30m or 2h; default: 1h",
    )
    parser.add_argument(
        "--output_dir",
        metavar="OUT",
        help="directory of everything that is made; the same command continues in it; default: "
        "quickstart_output, in it the name of DIR",
    )
    parser.add_argument(
        "--language",
        metavar="CODE",
        default="",
        help="language of what names none, such as ml; default: guessed by the letters",
    )
    parser.add_argument(
        "--target_language",
        metavar="CODE",
        default="",
        help="language of translations that name none; default: en",
    )
    parser.add_argument(
        "--explain",
        action="store_true",
        help="print every choice with its rule and the figures that it came from",
    )
    parser.add_argument(
        "--plan_only",
        action="store_true",
        help="stop when the data are prepared and the gin files are written",
    )
    parser.add_argument(
        "--workers",
        type=options.positive,
        metavar="N",
        help="number of processes that read audio; default: one per core",
    )


def run(arguments: argparse.Namespace) -> None:
    """Runs the command."""
    environment.prepare_process(tensorflow=True)
    environment.enable_compilation_cache()
    from maestro_jax.experiments.quickstart.run import DEFAULT_BUDGET, Request, run_quickstart

    source = Path(arguments.directory)
    run_quickstart(
        Request(
            source=source,
            output=Path(arguments.output_dir or Path("quickstart_output") / source.resolve().name),
            budget=arguments.budget or DEFAULT_BUDGET,
            language=arguments.language,
            target_language=arguments.target_language,
            explain=arguments.explain,
            plan_only=arguments.plan_only,
            workers=arguments.workers,
        )
    )

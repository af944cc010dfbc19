"""`maestro vocabulary`: trains the pieces that texts are cut into, on the texts of tasks."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from typing import TYPE_CHECKING

from maestro_jax.cli import environment, options
from maestro_jax.tables import table

if TYPE_CHECKING:
    from maestro_jax.data.vocabulary_training import LanguageRow


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.add_argument("name", metavar="NAME", help="what the vocabulary is called")
    parser.add_argument(
        "--task",
        action="extend",
        type=options.names,
        default=[],
        metavar="TASK,TASK",
        help="a task or mixture whose training texts and translations it is trained on; "
        "repeatable; all prepared ones that read this vocabulary if there is none",
    )
    parser.add_argument(
        "--kind",
        default="unigram",
        choices=("unigram", "bpe", "char", "byte"),
        help="of pieces: of SentencePiece, single letters, or UTF-8 bytes",
    )
    parser.add_argument(
        "--size", type=options.positive, default=4096, metavar="N", help="pieces; 4096"
    )
    parser.add_argument(
        "--temperature",
        type=_temperature,
        default=3.0,
        metavar="T",
        help="1 draws languages by their size, more draws small ones more often, inf draws all "
        "equally; 3",
    )
    parser.add_argument(
        "--sentences",
        type=options.positive,
        default=1_000_000,
        metavar="N",
        help="at most so many are read, evenly spread over the texts, and held in memory; 1000000",
    )
    parser.add_argument(
        "--coverage",
        type=float,
        default=1.0,
        metavar="SHARE",
        help="of the letters that must be pieces, 0.98 to 1; below 1 leaves rare letters out; 1",
    )
    parser.add_argument(
        "--byte_fallback",
        action="store_true",
        help="write letters that are no pieces as UTF-8 bytes, which are 256 further pieces",
    )
    parser.add_argument("--overwrite", action="store_true", help="make again what is there")
    options.add_data_dir(parser)
    options.add_json(parser)


def run(arguments: argparse.Namespace) -> None:
    """Runs the command."""
    environment.prepare_process()
    from maestro_jax.data.tensorflow_import import import_tensorflow

    import_tensorflow()
    from maestro_jax.data.vocabulary_training import VocabularyRequest, train_vocabulary

    request = VocabularyRequest(
        tasks=tuple(arguments.task),
        kind=arguments.kind,
        size=arguments.size,
        temperature=arguments.temperature,
        sentences=arguments.sentences,
        coverage=arguments.coverage,
        byte_fallback=arguments.byte_fallback,
    )
    trained = train_vocabulary(
        arguments.name, request, data_dir=arguments.data_dir, overwrite=arguments.overwrite
    )
    if arguments.json:
        print(json.dumps(dataclasses.asdict(trained) | {"path": str(trained.path)}, indent=2))
        return
    if trained.languages:
        print(table([_shown(row) for row in trained.languages]), end="\n\n")
    made = "has" if trained.fresh else "was there already (--overwrite makes it again), with"
    print(f"{trained.path} {made} {trained.size} pieces: --gin.VOCAB_SIZE={trained.size}")
    if trained.size < arguments.size and arguments.kind in ("unigram", "bpe"):
        print(f"The texts have too little variety for {arguments.size} pieces.")


def _shown(row: LanguageRow) -> dict[str, object]:
    """The numbers of a language; what is wrong with it has been said in words."""
    columns = dataclasses.asdict(row)
    for name in ("lost", "examples"):
        del columns[name]
    return columns


def _temperature(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not value > 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value

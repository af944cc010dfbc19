"""`maestro vocabulary`: trains a vocabulary on the texts of tasks."""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import TYPE_CHECKING

from maestro_jax.cli import environment, options
from maestro_jax.tables import table

if TYPE_CHECKING:
    from maestro_jax.data.vocabulary_training import LanguageRow


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.add_argument("name", metavar="NAME", help="name of the vocabulary")
    parser.add_argument(
        "--task",
        action="extend",
        type=options.names,
        default=[],
        metavar="TASK,TASK",
        help="tasks or mixtures whose training texts and translations are read; repeatable; "
        "default: all prepared ones that use this vocabulary",
    )
    parser.add_argument(
        "--kind",
        default="unigram",
        choices=("unigram", "bpe", "char", "byte"),
        help="kind of pieces: those of SentencePiece (unigram, bpe), letters, or UTF-8 bytes; "
        "default: %(default)s",
    )
    parser.add_argument(
        "--size",
        type=options.positive,
        default=4096,
        metavar="N",
        help="number of pieces; default: 4096",
    )
    parser.add_argument(
        "--temperature",
        type=options.positive_number,
        default=3.0,
        metavar="T",
        help="sampling temperature over languages: 1 samples by size, inf uniformly; default: 3",
    )
    parser.add_argument(
        "--sentences",
        type=options.positive,
        default=1_000_000,
        metavar="N",
        help="number of sentences to sample, evenly spread over the texts and held in memory; "
        "default: 1000000",
    )
    parser.add_argument(
        "--coverage",
        type=float,
        default=1.0,
        metavar="FRACTION",
        help="fraction of the letters that pieces must cover, 0.98 to 1; default: 1",
    )
    parser.add_argument(
        "--byte_fallback",
        action="store_true",
        help="write letters without a piece as UTF-8 bytes, which add 256 pieces",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace a vocabulary of that name"
    )
    options.add_data_dir(parser)
    options.add_json(parser)


def run(arguments: argparse.Namespace) -> None:
    """Runs the command."""
    environment.prepare_process(tensorflow=True)
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
    """Returns the numbers of a language; warnings about it have been logged."""
    columns = dataclasses.asdict(row)
    for name in ("lost", "examples"):
        del columns[name]
    return columns

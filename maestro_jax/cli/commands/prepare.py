"""`maestro prepare`: makes a corpus, so that its tasks can be used."""

from __future__ import annotations

import argparse

from maestro_jax.cli import environment, options
from maestro_jax.errors import UserError, near_misses

# Corpus: the configurations that can be made; the first is the default.
CORPORA = {"minivox": ("small", "low_resource", "full", "tiny")}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.add_argument("corpus", metavar="CORPUS", help="one of: " + ", ".join(CORPORA))
    configs = "; ".join(f"{corpus}: {', '.join(names)}" for corpus, names in CORPORA.items())
    parser.add_argument("--config", help=f"which size of it ({configs}); the first by default")
    options.add_data_dir(parser)


def run(arguments: argparse.Namespace) -> None:
    """Runs the command."""
    corpus = arguments.corpus
    if corpus not in CORPORA:
        remedy = near_misses(corpus, CORPORA) or f" The corpora are: {', '.join(CORPORA)}."
        raise UserError(f"there is no corpus {corpus!r} to prepare.{remedy}")
    config = arguments.config or CORPORA[corpus][0]
    if config not in CORPORA[corpus]:
        remedy = near_misses(config, CORPORA[corpus]) or f" It has: {', '.join(CORPORA[corpus])}."
        raise UserError(f"{corpus} has no configuration {config!r}.{remedy}")
    environment.prepare_process()
    from maestro_jax.data.data_dir import data_root
    from maestro_jax.data.tensorflow_import import import_tensorflow

    import_tensorflow()
    from maestro_jax.tasks import minivox

    minivox.prepare(config, data_root(arguments.data_dir))

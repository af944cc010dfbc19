"""`maestro language_model`: estimates an n-gram model over pieces, for `--lm_arpa`."""

from __future__ import annotations

import argparse

from maestro_jax.cli import environment, options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.add_argument(
        "vocabulary", metavar="MODEL_DIR", help="model directory, or .model file of a vocabulary"
    )
    parser.add_argument("text", metavar="FILE", help="text with one sentence per line (.gz too)")
    parser.add_argument(
        "--output",
        required=True,
        metavar="FILE",
        help="ARPA file to write, compressed if its name ends in .gz",
    )
    parser.add_argument(
        "--order",
        type=options.positive,
        default=4,
        metavar="N",
        help="order of the model; default: 4",
    )
    parser.add_argument(
        "--prune",
        type=options.cut_offs,
        default=(),
        metavar="N,N,...",
        help="leave out n-grams with this count or less, one number per length from 1, the last "
        "for all longer ones: 0,0,1 keeps bigrams and drops longer n-grams that occur once",
    )


def run(arguments: argparse.Namespace) -> None:
    """Runs the command."""
    environment.prepare_process()
    from maestro_jax.files import check_output

    output = check_output(arguments.output)
    from maestro_jax.inference.language_models import text_model, write_model
    from maestro_jax.text.vocabularies import load_vocabulary

    vocabulary = load_vocabulary(arguments.vocabulary)
    model = text_model(arguments.text, vocabulary, order=arguments.order, prune=arguments.prune)
    write_model(model, output, vocabulary)
    counts = ", ".join(f"{count} of {n}" for n, count in enumerate(model.counts, start=1))
    print(f"{output} has n-grams: {counts}. Use it: --beam_size 8 --lm_arpa {output}")

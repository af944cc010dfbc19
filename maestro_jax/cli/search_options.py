"""The options of commands that search for transcripts."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from maestro_jax.cli import options
from maestro_jax.errors import UserError, near_misses

if TYPE_CHECKING:
    from maestro_jax.evaluation.search_config import SearchConfig


def add_search(parser: argparse.ArgumentParser) -> None:
    """Adds `--decoder`, `--beam_size` and the options of a language model."""
    parser.add_argument(
        "--decoder",
        metavar="NAME",
        help="transducer, ctc or attention; by default what the model was trained with",
    )
    parser.add_argument(
        "--beam_size",
        type=options.positive,
        default=1,
        metavar="N",
        help="hypotheses that the search keeps; 1, the default, is the greedy search",
    )
    parser.add_argument(
        "--lm_text",
        metavar="FILE",
        help="text, one sentence a line, of which an n-gram model is made that helps the search",
    )
    parser.add_argument(
        "--lm_arpa",
        metavar="FILE",
        help="an n-gram model in the ARPA format (.gz too): over the pieces of the vocabulary it "
        "helps the search, over words it ranks what a beam has found",
    )
    parser.add_argument(
        "--lm_order",
        type=options.positive,
        metavar="N",
        help="tokens of the longest n-gram of the model of --lm_text; 4 by default",
    )
    parser.add_argument(
        "--lm_prune",
        type=options.cut_offs,
        metavar="N,N,...",
        help="n-grams that --lm_text has so often or less are left out, for each length from 1, "
        "the last number for all longer ones: 0,0,1 keeps pairs and drops what is longer and "
        "seen once; 0 by default",
    )
    parser.add_argument(
        "--lm_weight",
        type=float,
        metavar="W",
        help="how much the language model counts; 0.3 by default",
    )
    parser.add_argument(
        "--length_bonus",
        type=float,
        default=0.0,
        metavar="NATS",
        help="added for each token, against the shortness that a language model likes",
    )
    parser.add_argument(
        "--length_alpha",
        type=float,
        default=0.6,
        metavar="A",
        help="with an attention decoder: scores are divided by ((5 + tokens) / 6) ** A; "
        "default: %(default)s",
    )


def search_config(arguments: argparse.Namespace) -> SearchConfig:
    """The options as the transcriber takes them.

    Raises:
        UserError: A weight without a text, or a negative one.
    """
    import math
    import pathlib

    from maestro_jax.decoding.speech import DECODERS
    from maestro_jax.evaluation.search_config import SearchConfig

    weight = arguments.lm_weight
    files = {"--lm_text": arguments.lm_text, "--lm_arpa": arguments.lm_arpa}
    given = {option: file for option, file in files.items() if file is not None}
    if len(given) > 1:
        raise UserError("--lm_text and --lm_arpa are two language models: give one of them")
    if weight is not None and not given:
        raise UserError(
            "--lm_weight weighs the model of --lm_text FILE or --lm_arpa FILE: name the file"
        )
    made = {"lm_order": arguments.lm_order, "lm_prune": arguments.lm_prune}
    made = {name: value for name, value in made.items() if value is not None}
    if made and arguments.lm_text is None:
        raise UserError(f"--{min(made)} is for the model that --lm_text FILE makes: name the file")
    if weight is not None and not 0 <= weight < math.inf:
        raise UserError(f"--lm_weight must not be negative, and is {weight}")
    if not math.isfinite(arguments.length_bonus):
        raise UserError(f"--length_bonus must be a number, and is {arguments.length_bonus}")
    for option, file in given.items():
        if not pathlib.Path(file).is_file():
            raise UserError(f"there is no file {file} for {option}")
    if not 0 <= arguments.length_alpha < math.inf:
        raise UserError(f"--length_alpha must not be negative, and is {arguments.length_alpha}")
    if arguments.decoder is not None and arguments.decoder not in DECODERS:
        raise UserError(
            f"unknown --decoder {arguments.decoder!r}; choose one of {', '.join(DECODERS)}."
            f"{near_misses(arguments.decoder, DECODERS)}"
        )
    chosen = made | ({} if weight is None else {"lm_weight": weight})
    return SearchConfig(
        beam_size=arguments.beam_size,
        lm_text=arguments.lm_text,
        lm_arpa=arguments.lm_arpa,
        length_bonus=arguments.length_bonus,
        decoder=arguments.decoder,
        length_alpha=arguments.length_alpha,
        **chosen,
    )

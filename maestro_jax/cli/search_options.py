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
        "--lm_weight",
        type=float,
        metavar="W",
        help="how much the model of --lm_text counts; 0.3 by default",
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
    if weight is not None and arguments.lm_text is None:
        raise UserError("--lm_weight weighs the model of --lm_text FILE: name the file")
    if weight is not None and not 0 <= weight < math.inf:
        raise UserError(f"--lm_weight must not be negative, and is {weight}")
    if not math.isfinite(arguments.length_bonus):
        raise UserError(f"--length_bonus must be a number, and is {arguments.length_bonus}")
    if arguments.lm_text is not None and not pathlib.Path(arguments.lm_text).is_file():
        raise UserError(f"there is no text file {arguments.lm_text} for --lm_text")
    if not 0 <= arguments.length_alpha < math.inf:
        raise UserError(f"--length_alpha must not be negative, and is {arguments.length_alpha}")
    if arguments.decoder is not None and arguments.decoder not in DECODERS:
        raise UserError(
            f"unknown --decoder {arguments.decoder!r}; choose one of {', '.join(DECODERS)}."
            f"{near_misses(arguments.decoder, DECODERS)}"
        )
    chosen = {} if weight is None else {"lm_weight": weight}
    return SearchConfig(
        beam_size=arguments.beam_size,
        lm_text=arguments.lm_text,
        length_bonus=arguments.length_bonus,
        decoder=arguments.decoder,
        length_alpha=arguments.length_alpha,
        **chosen,
    )

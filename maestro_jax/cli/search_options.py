"""The options of commands that search for transcripts."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from maestro_jax.cli import options
from maestro_jax.errors import UserError

if TYPE_CHECKING:
    from maestro_jax.evaluation.transcriber import SearchConfig


def add_search(parser: argparse.ArgumentParser) -> None:
    """Adds `--beam_size` and the options of a language model."""
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


def search_config(arguments: argparse.Namespace) -> SearchConfig:
    """The options as the transcriber takes them.

    Raises:
        UserError: A weight without a text, or a negative one.
    """
    import math
    import pathlib

    from maestro_jax.evaluation.transcriber import SearchConfig

    weight = arguments.lm_weight
    if weight is not None and arguments.lm_text is None:
        raise UserError("--lm_weight weighs the model of --lm_text FILE: name the file")
    if weight is not None and not 0 <= weight < math.inf:
        raise UserError(f"--lm_weight must not be negative, and is {weight}")
    if not math.isfinite(arguments.length_bonus):
        raise UserError(f"--length_bonus must be a number, and is {arguments.length_bonus}")
    if arguments.lm_text is not None and not pathlib.Path(arguments.lm_text).is_file():
        raise UserError(f"there is no text file {arguments.lm_text} for --lm_text")
    chosen = {} if weight is None else {"lm_weight": weight}
    return SearchConfig(
        beam_size=arguments.beam_size,
        lm_text=arguments.lm_text,
        length_bonus=arguments.length_bonus,
        **chosen,
    )

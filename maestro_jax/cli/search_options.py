"""The options of commands that search for transcripts."""

from __future__ import annotations

import argparse
import dataclasses
from typing import TYPE_CHECKING

from maestro_jax.cli import options
from maestro_jax.errors import UserError, near_misses

if TYPE_CHECKING:
    from maestro_jax.inference.search_config import SearchConfig


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
        metavar="NATS",
        help="added for each token, against the shortness that a language model likes",
    )
    parser.add_argument(
        "--ilm_weight",
        type=float,
        metavar="W",
        help="how much the internal language model of a transducer counts, which is subtracted; "
        "0 by default",
    )
    parser.add_argument(
        "--ilm_encoder",
        metavar="NAME",
        help="what the internal language model has in the encoder's place: zero, the default, or "
        "the mean of the utterance",
    )
    parser.add_argument(
        "--length_alpha",
        type=float,
        metavar="A",
        help="with an attention decoder: scores are divided by ((5 + tokens) / 6) ** A; "
        "0.6 by default",
    )


def search_config(arguments: argparse.Namespace) -> SearchConfig:
    """The options as the transcriber takes them, over the values that gin files give.

    Gin files must have been parsed: `SearchConfig.ilm_weight = 0.2` in one of them, or in the
    `config.gin` of the model, is a default of these options.

    Raises:
        UserError: An option without the one that it belongs to, or a value out of its range.
    """
    import math
    import pathlib

    from maestro_jax.decoding.fusion import INTERNAL_ENCODERS
    from maestro_jax.decoding.speech import DECODERS
    from maestro_jax.gin_utils import gin_config
    from maestro_jax.inference.search_config import SearchConfig

    names = [field.name for field in dataclasses.fields(SearchConfig)]
    chosen = {name: getattr(arguments, name) for name in names}
    chosen = {name: value for name, value in chosen.items() if value is not None}
    if len({"lm_text", "lm_arpa"} & chosen.keys()) > 1:
        raise UserError("--lm_text and --lm_arpa are two language models: give one of them")
    config = gin_config.configured(SearchConfig)(**chosen)
    files = {"--lm_text": config.lm_text, "--lm_arpa": config.lm_arpa}
    given = {option: file for option, file in files.items() if file is not None}
    if "lm_weight" in chosen and not given:
        raise UserError(
            "--lm_weight weighs the model of --lm_text FILE or --lm_arpa FILE: name the file"
        )
    made = {"lm_order", "lm_prune"} & chosen.keys()
    if made and config.lm_text is None:
        raise UserError(f"--{min(made)} is for the model that --lm_text FILE makes: name the file")
    for name in ("lm_weight", "length_alpha", "ilm_weight"):
        value = getattr(config, name)
        if not 0 <= value < math.inf:
            raise UserError(f"--{name} must not be negative, and is {value}")
    if not math.isfinite(config.length_bonus):
        raise UserError(f"--length_bonus must be a number, and is {config.length_bonus}")
    for option, file in given.items():
        if not pathlib.Path(file).is_file():
            raise UserError(f"there is no file {file} for {option}")
    for name, choices in (("decoder", DECODERS), ("ilm_encoder", INTERNAL_ENCODERS)):
        value = getattr(config, name)
        if value is not None and value not in choices:
            raise UserError(
                f"unknown --{name} {value!r}; choose one of {', '.join(choices)}."
                f"{near_misses(value, choices)}"
            )
    return config

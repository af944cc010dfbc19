"""Command-line options that several commands share."""

from __future__ import annotations

import argparse
import dataclasses
import logging
from typing import TYPE_CHECKING, Any

from maestro_jax.errors import UserError

if TYPE_CHECKING:
    from maestro_jax.inference.search_config import SearchConfig

log = logging.getLogger(__name__)


def split_bindings(argv: list[str]) -> tuple[list[str], dict[str, str]]:
    """Takes `--gin.NAME=VALUE` out of a command line.

    Args:
        argv: The arguments.

    Returns:
        The other arguments, and name to value in the order given; the last value of a name wins.

    Raises:
        UserError: For a binding without a name or without a value.
    """
    others, bindings = [], {}
    for word in argv:
        if not word.startswith("--gin."):
            others.append(word)
            continue
        name, equals, value = word.removeprefix("--gin.").partition("=")
        if not name or not equals:
            raise UserError(f"{word}: a gin binding is written --gin.NAME=VALUE")
        bindings[name] = value
    return others, bindings


def add_gin(parser: argparse.ArgumentParser) -> None:
    """Adds `--gin_file`, and the help of `--gin.NAME=VALUE`."""
    parser.add_argument(
        "--gin_file",
        action="append",
        default=[],
        metavar="FILE",
        help="a gin file, or the name of a shipped one (runs/pretrain.gin); repeatable, and the "
        "last binding of a name wins",
    )
    parser.add_argument_group(
        "gin bindings",
        "--gin.NAME=VALUE sets a macro (--gin.STEPS=100) or a parameter (--gin.TrainRun.seed=1)",
    )


def add_import(parser: argparse.ArgumentParser) -> None:
    """Adds `--import`."""
    parser.add_argument(
        "--import",
        dest="imports",
        action="append",
        default=[],
        metavar="MODULE",
        help="import a Python module of your own first, such as my_lab.tasks, for the tasks and "
        "mixtures that it registers with seqio, and let gin files import it; repeatable; the "
        "current directory is searched too",
    )


class _NoOption(argparse.Action):
    """Refuses an option that other commands have, and tells how it is written here."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Raises a `UserError`."""
        raise UserError(
            f"{parser.prog} takes the model's directory without {option_string}, before the "
            f"recording: {parser.prog} {values} FILE (see {parser.prog} --help)"
        )


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """Adds the argument CHECKPOINT, and refuses `--model_dir` in its place."""
    parser.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        help="a model directory (its newest checkpoint), DIR/best for the best checkpoint, or one "
        "checkpoint in it",
    )
    for option in ("--model_dir", "--checkpoint"):
        parser.add_argument(
            option, action=_NoOption, nargs="?", const="CHECKPOINT", help=argparse.SUPPRESS
        )


def add_data_dir(parser: argparse.ArgumentParser) -> None:
    """Adds `--data_dir`."""
    parser.add_argument(
        "--data_dir",
        metavar="DIR",
        help="root of the prepared corpora; default: $MAESTRO_DATA_DIR, else ~/maestro_data",
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    """Adds `--json`."""
    parser.add_argument("--json", action="store_true", help="print JSON")


def add_task(parser: argparse.ArgumentParser) -> None:
    """Adds `--task`."""
    parser.add_argument(
        "--task",
        action="extend",
        type=names,
        default=[],
        metavar="NAME,NAME",
        help="tasks or mixtures (see `maestro tasks`); repeatable; default: those of the run",
    )


def add_weights(parser: argparse.ArgumentParser) -> None:
    """Adds `--step` and `--weights`, which choose what to load of a model directory."""
    parser.add_argument(
        "--step",
        type=checkpoint_step,
        metavar="STEP",
        help="step of the checkpoint, or best for the one with the best validation metric; "
        "default: the latest",
    )
    parser.add_argument(
        "--weights",
        choices=("ema", "params"),
        default="ema",
        help="ema for the averaged weights, params for those of the step; default: %(default)s",
    )


def add_result_step(parser: argparse.ArgumentParser) -> None:
    """Adds `--step` of commands that read results of evaluations."""
    parser.add_argument(
        "--step",
        type=checkpoint_step,
        metavar="STEP",
        help="step of the results, where a model directory has those of several, or latest",
    )


def positive(text: str) -> int:
    """Parses a whole number above 0."""
    value = int(text) if text.isdecimal() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return value


def positive_number(text: str) -> float:
    """Parses a number above 0, infinity included."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not value > 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def not_negative(text: str) -> int:
    """Parses a whole number, 0 included."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number, 0 or above")
    return int(text)


def checkpoint_step(text: str) -> int | str:
    """Parses a step of a checkpoint: a whole number, ``best`` or ``latest``."""
    if text in ("best", "latest"):
        return text
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a step; give a number, best or latest")
    return int(text)


def names(text: str) -> list[str]:
    """Parses names separated by commas; for the action `extend`."""
    return [name.strip() for name in text.split(",") if name.strip()]


def cut_offs(text: str) -> tuple[int, ...]:
    """Parses whole numbers separated by commas."""
    numbers = text.split(",")
    if not all(number.isdecimal() for number in numbers):
        raise argparse.ArgumentTypeError(f"{text!r} is not whole numbers such as 0,0,1")
    return tuple(int(number) for number in numbers)


def add_search(parser: argparse.ArgumentParser) -> None:
    """Adds `--decoder`, `--beam_size` and what else the search takes into account."""
    parser.add_argument(
        "--decoder",
        metavar="NAME",
        help="transducer, ctc or attention; default: the one that the model was trained with",
    )
    parser.add_argument(
        "--beam_size",
        type=positive,
        metavar="N",
        help="beam size; default: 1, which is greedy search",
    )
    parser.add_argument(
        "--lm_text",
        metavar="FILE",
        help="text file with one sentence per line, from which an n-gram language model is "
        "estimated for shallow fusion",
    )
    parser.add_argument(
        "--lm_arpa",
        metavar="FILE",
        help="n-gram language model in the ARPA format (.gz too): over pieces of the vocabulary "
        "for shallow fusion, over words for rescoring the hypotheses of a beam",
    )
    parser.add_argument(
        "--lm_order",
        type=positive,
        metavar="N",
        help="order of the n-gram model of --lm_text; default: 4",
    )
    parser.add_argument(
        "--lm_prune",
        type=cut_offs,
        metavar="N,N,...",
        help="leave out n-grams of --lm_text with this count or less, one number per length from "
        "1, the last for all longer ones: 0,0,1 keeps bigrams and drops longer n-grams that occur "
        "once; default: 0",
    )
    parser.add_argument(
        "--lm_weight",
        type=float,
        metavar="W",
        help="weight of the language model; default: 0.3",
    )
    parser.add_argument(
        "--length_bonus",
        type=float,
        metavar="NATS",
        help="bonus per token, against the bias of a language model to short hypotheses",
    )
    parser.add_argument(
        "--ilm_weight",
        type=float,
        metavar="W",
        help="weight of the internal language model of a transducer, which is subtracted; "
        "default: 0",
    )
    parser.add_argument(
        "--ilm_encoder",
        metavar="NAME",
        help="encoder output of the internal language model: zero, the default, or the mean of the "
        "utterance",
    )
    parser.add_argument(
        "--length_alpha",
        type=float,
        metavar="A",
        help="length normalisation of an attention decoder: scores are divided by "
        "((5 + tokens) / 6) ** A; default: 0.6",
    )
    parser.add_argument(
        "--phrases",
        metavar="FILE",
        help="names and terms to listen for, one per line, optionally with a tab and a weight",
    )
    parser.add_argument(
        "--phrases_weight",
        type=float,
        metavar="NATS",
        help="bonus per token of a phrase of --phrases; default: 0.5",
    )
    parser.add_argument(
        "--blank_penalty",
        type=float,
        metavar="NATS",
        help="subtracted from the logit of the blank of a transducer or CTC, against words that "
        "are left out; default: 0",
    )
    parser.add_argument(
        "--language_mask",
        action="store_const",
        const=True,
        help="leave out tokens that the language of the text to write never has, where the test "
        "set names the language",
    )


def add_untuned(parser: argparse.ArgumentParser) -> None:
    """Adds `--untuned`."""
    parser.add_argument(
        "--untuned",
        action="store_true",
        help="ignore the search.gin that `maestro tune` wrote into the model directory",
    )


def tuned_search(model_dir: str, arguments: argparse.Namespace) -> list[str]:
    """Returns the gin file that `maestro tune` wrote into a model directory, if it is to be used.

    Says so: it changes what is decoded.
    """
    from maestro_jax.files import as_path
    from maestro_jax.inference.search_config import SEARCH_FILE

    path = as_path(model_dir) / SEARCH_FILE
    if arguments.untuned or not path.exists():
        return []
    values = [
        line.rpartition("SearchConfig.")[2].replace(" = ", " ")
        for line in path.read_text().splitlines()
        if " = " in line
    ]
    log.info("%s: %s (--untuned ignores it)", path, ", ".join(values))
    return [str(path)]


def search_config(arguments: argparse.Namespace) -> SearchConfig:
    """Returns the configuration of the search: the options, over the values of gin files.

    Gin files must have been parsed: `SearchConfig.ilm_weight = 0.2` in one of them, or in the
    `config.gin` of the model, is a default of these options.

    Raises:
        UserError: An option needs another one that is absent, or a value is out of its range.
    """
    from maestro_jax.gin_utils import gin_config
    from maestro_jax.inference.search_config import SearchConfig

    given = {
        field.name: value
        for field in dataclasses.fields(SearchConfig)
        if (value := getattr(arguments, field.name)) is not None
    }
    if {"lm_text", "lm_arpa"} & given.keys():
        # Another language model takes the place of the one of a gin file.
        given = {"lm_text": None, "lm_arpa": None} | given
    config = gin_config.configured(SearchConfig)(**given)
    if "lm_weight" in given and config.lm_text is None and config.lm_arpa is None:
        raise UserError("--lm_weight needs a language model: give --lm_text FILE or --lm_arpa FILE")
    if "phrases_weight" in given and config.phrases is None:
        raise UserError("--phrases_weight needs --phrases FILE")
    estimated = {"lm_order", "lm_prune"} & given.keys()
    if estimated and config.lm_text is None:
        raise UserError(f"--{min(estimated)} needs --lm_text FILE, from which a model is estimated")
    config.check()
    return config

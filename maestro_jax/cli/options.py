"""Options that several commands share."""

from __future__ import annotations

import argparse
from typing import Any

from maestro_jax.errors import UserError


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
        "last binding wins",
    )
    parser.add_argument_group(
        "gin bindings",
        "--gin.NAME=VALUE sets a macro (--gin.STEPS=100) or a parameter (--gin.TrainRun.seed=1)",
    )


class _NoOption(argparse.Action):
    """Refuses an option that other commands have, and says how it is written here."""

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
        "checkpoint", metavar="CHECKPOINT", help="a model directory, or one checkpoint in it"
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
        help="where corpora lie; by default $MAESTRO_DATA_DIR, else ~/maestro_data",
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    """Adds `--json`."""
    parser.add_argument("--json", action="store_true", help="print JSON")


def positive(text: str) -> int:
    """An argument that is a whole number above 0."""
    value = int(text) if text.isdecimal() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return value


def not_negative(text: str) -> int:
    """An argument that is a whole number, 0 included."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number, 0 or above")
    return int(text)


def names(text: str) -> list[str]:
    """An argument that is one name or several between commas; for the action `extend`."""
    return [name.strip() for name in text.split(",") if name.strip()]


def cut_offs(text: str) -> tuple[int, ...]:
    """An argument that is whole numbers with commas between them."""
    numbers = text.split(",")
    if not all(number.isdecimal() for number in numbers):
        raise argparse.ArgumentTypeError(f"{text!r} is not whole numbers such as 0,0,1")
    return tuple(int(number) for number in numbers)

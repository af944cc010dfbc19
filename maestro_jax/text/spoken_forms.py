"""Written text as it is spoken: the rules by which VoxPopuli made its language models' text.

What is said in parentheses goes, and numbers are spelled out, so that unspoken text looks like the
transcripts beside which it is trained on. Everything else is `normalize`, the rules of the
transcripts themselves.

Source: VoxPopuli (Wang et al., 2021), `get_lm_data.py`, in the order of its rules. It differs in
four places: a number in a language that num2words does not have is an error, where the original
says it in English; `3rd` is an ordinal like `2nd`; a parenthesis that is never closed is removed
alone, where the original repeats text; and `twenty-one` becomes two words, as dashes do elsewhere.
"""

from __future__ import annotations

import functools
import importlib
import re
from collections.abc import Callable
from typing import Any

from maestro_jax.errors import UserError, near_misses
from maestro_jax.text.normalizers import base_language, normalize

_INNERMOST = re.compile(r"\([^()\[\]]*\)|\[[^()\[\]]*\]")
# Numbers with what stands between their digits: 12.000.000, 18.30, 10:45, 3,5.
_NUMBER = re.compile(r"\d+(?:[.,:]\d+)*")
_ORDINAL = re.compile(r"(\d+)(?:st|nd|rd|th)\b")
_GROUPED = re.compile(r"\d{1,3}(?:[.,]\d{3})+")
_DASHES = str.maketrans(dict.fromkeys("-/\u2013\u00b7", " "))
_TOO_LONG = 40  # Digits; nobody says them as one number.


def spoken_text(text: str, language: str) -> str:
    """Writes a sentence as it would be read out, normalised as transcripts are.

    Args:
        text: As it is printed.
        language: ISO 639-1 code, with or without a region.

    Returns:
        Lower-case words without punctuation or digits; see `normalize`.

    Raises:
        UserError: It has a number and num2words is not installed or does not have the language.

    Example:
        >>> spoken_text("In 2019 (see annex) it rose by 3,5% on the 2nd day.", "en")
        'in two thousand and nineteen it rose by three five on the second day'
    """
    text = without_parentheses(text)
    # Before the numbers, so that a dash is no minus: "2010-2014" are two years.
    text = text.translate(_DASHES)
    return normalize(spelled_out(text, language), language)


def without_parentheses(text: str) -> str:
    """Removes what stands in round or square brackets, nested ones included."""
    count = 1
    while count:
        text, count = _INNERMOST.subn(" ", text)
    return text


def spelled_out(text: str, language: str) -> str:
    """Writes numbers in words, without regard to their grammar.

    Groups of three digits are one number (`12.000`, `1,000`); other numbers with points, commas or
    colons inside are said one after the other (`18.4.2009`, `10:45`, `3,5`). Letters around a
    number stay words of their own: `h1n1` is `h one n one`.

    Args:
        text: Any text.
        language: ISO 639-1 code, with or without a region.

    Raises:
        UserError: See `spoken_text`.
    """
    if not any(character.isdecimal() for character in text):
        return text
    say = _speller(base_language(language))
    if base_language(language) == "en":
        text = _ORDINAL.sub(lambda match: f" {say(match[1], 'ordinal')} ", text)
    return _NUMBER.sub(lambda match: f" {_say_number(match[0], say)} ", text)


def _say_number(number: str, say: Callable[[str, str], str]) -> str:
    if _GROUPED.fullmatch(number):
        return say(re.sub("[.,]", "", number), "cardinal")
    return " ".join(say(part, "cardinal") for part in re.split("[.,:]", number))


@functools.cache
def _speller(language: str) -> Callable[[str, str], str]:
    """Returns a function from digits and `cardinal` or `ordinal` to words."""
    try:
        num2words: Any = importlib.import_module("num2words")
    except ImportError:
        raise UserError(
            "spelling numbers out needs num2words; pip install maestro_jax[minivox]"
        ) from None
    if language not in num2words.CONVERTER_CLASSES:
        raise UserError(
            f"num2words spells no numbers in {language!r}; normalise texts of this language "
            "without spelling numbers out."
        )

    @functools.lru_cache(maxsize=1 << 14)
    def say(digits: str, form: str) -> str:
        if len(digits) <= _TOO_LONG:
            try:
                words = num2words.num2words(int(digits), lang=language, to=form)
                return str(words).replace(",", " ")
            except (OverflowError, NotImplementedError):
                pass  # Larger than the language's largest word: digit by digit.
        return " ".join(num2words.num2words(int(digit), lang=language) for digit in digits)

    return say


RULES: dict[str, Callable[[str, str], str]] = {
    "transcript": normalize,
    "spoken": spoken_text,
}
"""How texts may be normalised: as transcripts are scored, or with numbers spelled out besides."""


def find_rules(name: str) -> Callable[[str, str], str]:
    """Returns the function of a name, from a text and its language to the normalised text.

    Raises:
        UserError: There are none.
    """
    if name not in RULES:
        raise UserError(
            f"texts are normalised as {' or '.join(map(repr, RULES))}, not {name!r}."
            f"{near_misses(name, RULES)}"
        )
    return RULES[name]

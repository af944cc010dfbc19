"""Normalises text by VoxPopuli's rules: as it is scored, and as it is spoken.

`normalize` makes text as it is scored, so that word error rates stand beside published ones.
VoxPopuli (Wang et al., 2021) publishes lower-case, unpunctuated transcripts and scores them as
they are. Applied to such a transcript, `normalize` changes nothing; applied to a transcript with
case and punctuation (Common Voice, CoVoST-2), it makes one that VoxPopuli could have published,
except that digits stay digits: how a number is spoken is the recogniser's business, and a
normaliser that guesses it would score the guess.

`spoken_text` makes text as it is spoken, by the rules by which VoxPopuli made its language models'
text: what is said in parentheses goes, and numbers are spelled out, so that unspoken text looks
like the transcripts beside which it is trained on. Source: `get_lm_data.py` of VoxPopuli, in the
order of its rules. It differs in four places: a number in a language that num2words does not have
is an error, where the original says it in English; `3rd` is an ordinal like `2nd`; a parenthesis
that is never closed is removed alone, where the original repeats text; and `twenty-one` becomes two
words, as dashes do elsewhere.
"""

from __future__ import annotations

import functools
import importlib
import re
import unicodedata
from collections.abc import Callable
from typing import Any

import regex

from maestro_jax.errors import UserError, near_misses
from maestro_jax.text.characters import SPELLED_JOINERS, standard_forms, without_invisible
from maestro_jax.text.languages import base_language

# Read as the apostrophe inside a word: the right single quotation mark, the modifier letter, the
# full-width form. The left single quotation mark is punctuation, as in VoxPopuli. The lines that
# stretch a word in Arabic and in N'Ko are no letters of it.
_APOSTROPHES_AND_STRETCHES = str.maketrans(
    dict.fromkeys("\u2019\u02bc\uff07", "'") | dict.fromkeys("\u0640\u07fa", "")
)

# Turkish and Azeri pair I with dotless i; every other language pairs I with i.
_DOTLESS_I = str.maketrans({"I": "\u0131", "\u0130": "i"})
_DOTLESS_I_LANGUAGES = frozenset({"tr", "az"})

# The middle dot is a letter's mark in Catalan ("col·lecció") and a separator elsewhere.
_CATALAN_DOT = re.compile(r"(?<=l)\u00b7(?=l)")
_CATALAN_PLACEHOLDER = "\ue000"

# Accents, vowel signs and joiners belong to the letter or digit before them, and go with what goes.
_MARKS = rf"[\p{{M}}{SPELLED_JOINERS}]"
_NOT_SPOKEN = regex.compile(
    rf"""
    (?P<gap> [\p{{Pd}}\p{{Z}}\s\x1c-\x1f/\u00b7]{_MARKS}* )
    # The raised letter of the French ordinals "XXᵉ", which VoxPopuli removes, and the "i" of
    # information, the only picture that Unicode counts as a letter.
    | [[\p{{P}}\p{{S}}\u1d49\u2139]--']{_MARKS}*
    | \p{{Me}}
    | (?<=^|'){_MARKS}+
    """,
    regex.VERBOSE | regex.V1,
)


_MARK = regex.compile(_MARKS)


def _spoken(text: str) -> str:
    return _NOT_SPOKEN.sub(lambda match: " " if match["gap"] else "", text)


_spoken_character = functools.cache(_spoken)


def normalize(text: str, language: str) -> str:
    """Normalises a transcript as it is scored.

    Lower case; punctuation, symbols and what is invisible (`without_invisible`) removed;
    apostrophes kept inside words; dashes, ``/`` and ``·`` read as spaces; white space collapsed;
    letters in their standard form (`standard_forms`), Unicode NFC. Words in parentheses stay: they
    were spoken. The function is idempotent.

    Args:
        text: A reference or a hypothesis.
        language: ISO 639-1 code, with or without a region. It matters for Turkish and Azeri
            (dotless i) and Catalan (``l·l``); any other code takes the common rules.

    Returns:
        Words separated by single spaces; the empty string when nothing is left.

    Source: VoxPopuli, ``get_lm_data.py`` (its rules for punctuation and apostrophes), without
    the spelling-out of digits and the removal of parenthesised text.
    """
    language = base_language(language)
    text = without_invisible(text.translate(_APOSTROPHES_AND_STRETCHES))
    text = standard_forms(text)
    if language in _DOTLESS_I_LANGUAGES:
        text = text.translate(_DOTLESS_I)
    # Outside Turkish, lower case turns a dotted capital I into i and a combining dot.
    text = text.lower().replace("i\u0307", "i")
    if language == "ca":
        text = _CATALAN_DOT.sub(_CATALAN_PLACEHOLDER, text)
    # Most texts have no marks, so that each of their characters stands for itself.
    text = _spoken(text) if _MARK.search(text) else "".join(map(_spoken_character, text))
    text = text.replace(_CATALAN_PLACEHOLDER, "\u00b7")
    text = re.sub("'+", "'", text)
    words = (word.strip("'") for word in text.split())
    return unicodedata.normalize("NFC", " ".join(word for word in words if word))


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
            f"unknown text rules {name!r}; choose {' or '.join(map(repr, RULES))}."
            f"{near_misses(name, RULES)}"
        )
    return RULES[name]

"""Sentences in all languages: as they are spoken, printed and normalised."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

from maestro_jax.errors import UserError, near_misses
from maestro_jax.minivox.english import English
from maestro_jax.minivox.french import French
from maestro_jax.minivox.german import German
from maestro_jax.minivox.grammar import Grammar
from maestro_jax.minivox.meanings import Meaning
from maestro_jax.minivox.polish import Polish
from maestro_jax.minivox.slovene import Slovene
from maestro_jax.minivox.spanish import Spanish
from maestro_jax.text.normalizers import normalize

_GRAMMARS: dict[str, type[Grammar]] = {
    grammar.language: grammar for grammar in (English, German, French, Spanish, Polish, Slovene)
}
SPEAKABLE: tuple[str, ...] = tuple(_GRAMMARS)
"""Codes of the languages that have a grammar."""


@dataclasses.dataclass(frozen=True)
class Sentence:
    """A sentence in one language.

    Attributes:
        text: Normalised: lower case, spelled out, with no punctuation except apostrophes.
        raw_text: As printed: with capitals, punctuation and digits.
        spoken: Input of the synthesiser: spelled out, with capitals and punctuation.
    """

    text: str
    raw_text: str
    spoken: str


def say(meanings: Meaning | Sequence[Meaning], language: str) -> Sentence:
    """Words one or several meanings in a language.

    Raises:
        UserError: There is no grammar for the language.
    """
    if isinstance(meanings, Meaning):
        meanings = (meanings,)
    grammar = _grammar(language)
    slots = [grammar.render(meaning) for meaning in meanings]
    spoken = " ".join(_capitalised(slot.spoken) for slot in slots)
    written = " ".join(_capitalised(slot.written) for slot in slots)
    return Sentence(normalize(spoken, language), written, spoken)


@functools.cache
def _grammar(language: str) -> Grammar:
    try:
        return _GRAMMARS[language]()
    except KeyError:
        raise UserError(
            f"no sentences can be made in {language!r}; languages: {' '.join(SPEAKABLE)}."
            f"{near_misses(language, SPEAKABLE)}"
        ) from None


def _capitalised(text: str) -> str:
    return text[:1].upper() + text[1:]

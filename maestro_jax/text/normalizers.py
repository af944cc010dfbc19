"""Text as it is scored: VoxPopuli's rules, so that word error rates stand beside published ones.

VoxPopuli (Wang et al., 2021) publishes lower-case, unpunctuated transcripts and scores them as
they are. Applied to such a transcript, `normalize` changes nothing; applied to a transcript with
case and punctuation (Common Voice, CoVoST-2), it makes one that VoxPopuli could have published,
except that digits stay digits: how a number is spoken is the recogniser's business, and a
normaliser that guesses it would score the guess.
"""

from __future__ import annotations

import functools
import re
import unicodedata

import regex

from maestro_jax.text.invisible_characters import SPELLED_JOINERS, without_invisible
from maestro_jax.text.languages import base_language
from maestro_jax.text.letter_forms import standard_forms

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

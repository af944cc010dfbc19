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

# Read as the apostrophe inside a word: the right single quotation mark, the modifier letter, the
# full-width form. The left single quotation mark is punctuation, as in VoxPopuli.
_APOSTROPHES = str.maketrans(dict.fromkeys("\u2019\u02bc\uff07", "'"))

# Turkish and Azeri pair I with dotless i; every other language pairs I with i.
_DOTLESS_I = str.maketrans({"I": "\u0131", "\u0130": "i"})
_DOTLESS_I_LANGUAGES = frozenset({"tr", "az"})

# The middle dot is a letter's mark in Catalan ("col·lecció") and a separator elsewhere.
_CATALAN_DOT = re.compile(r"(?<=l)\u00b7(?=l)")
_CATALAN_PLACEHOLDER = "\ue000"

# Invisible, and never spoken. The zero-width joiners are spelling in Persian and stay.
_INVISIBLE = frozenset("\u00ad\u200b\u200e\u200f\u2060\ufeff")

# The superscript of the French ordinals "XXᵉ", which VoxPopuli removes.
_REMOVED_LETTERS = frozenset("\u1d49")


@functools.cache
def _replacement(character: str) -> str:
    """What scoring sees in place of one character."""
    if character in "'\u200c\u200d" or character == _CATALAN_PLACEHOLDER:
        return character
    if character in _INVISIBLE or character in _REMOVED_LETTERS:
        return ""
    category = unicodedata.category(character)
    if category == "Pd" or character in "/\u00b7" or character.isspace():
        return " "
    if category[0] in "PS":
        return ""
    return character


def base_language(language: str) -> str:
    """The language of a code with or without a region: ``sv-SE`` and ``sv_SE`` are ``sv``."""
    return re.split(r"[-_]", language.strip().lower(), maxsplit=1)[0]


def normalize(text: str, language: str) -> str:
    """A transcript as it is scored.

    Lower case, punctuation and symbols removed, apostrophes kept inside words, dashes, ``/`` and
    ``·`` read as spaces, white space collapsed, Unicode NFC. Words in parentheses stay: they were
    spoken. The function is idempotent.

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
    text = unicodedata.normalize("NFC", text).translate(_APOSTROPHES)
    text = text.replace(_CATALAN_PLACEHOLDER, "")
    if language in _DOTLESS_I_LANGUAGES:
        text = text.translate(_DOTLESS_I)
    # Outside Turkish, lower case turns a dotted capital I into i and a combining dot.
    text = text.lower().replace("i\u0307", "i")
    if language == "ca":
        text = _CATALAN_DOT.sub(_CATALAN_PLACEHOLDER, text)
    text = "".join(map(_replacement, text)).replace(_CATALAN_PLACEHOLDER, "\u00b7")
    text = re.sub("'+", "'", text)
    words = (word.strip("'") for word in text.split())
    return unicodedata.normalize("NFC", " ".join(word for word in words if word))

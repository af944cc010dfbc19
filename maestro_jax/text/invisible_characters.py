"""Characters that are neither seen nor heard: one rule for all scripts.

Texts are full of them: marks of writing direction, joiners, variation selectors, soft hyphens, byte
order marks, control characters. Two texts that differ by nothing else are the same text. Where such
a character is part of how a word is spelled, as in Persian and in the scripts of India, it stays.

Source: Unicode Standard Annex 31, section 2.3 (the contexts in which joiners matter, A1, A2 and B);
the Unicode Character Database for all properties.
"""

from __future__ import annotations

# The same version of Unicode under every Python, and properties that `unicodedata` does not have.
import regex

SPELLED_JOINERS = "\u200c\u200d\u180e"
"""Zero-width non-joiner and joiner, Mongolian vowel separator: spelling in some contexts."""

_LINE_BREAK = "\u200b"
"""Zero-width space, by which words are parted where a script has no spaces."""

# Of the control characters, those that are white space.
_WHITE = r"[\t-\r\x1c-\x1f\x85]"

_SUSPECT = regex.compile(r"[\p{C}\p{Default_Ignorable_Code_Point}]", regex.V1)
_DROPPED = regex.compile(
    rf"[[\p{{C}}\p{{Default_Ignorable_Code_Point}}]--{_WHITE}--[{SPELLED_JOINERS}{_LINE_BREAK}]]+",
    regex.V1,
)
_SURROGATES = regex.compile(r"\p{Cs}+")
_REPEATED = regex.compile(rf"([{SPELLED_JOINERS}])[{SPELLED_JOINERS}]+")
_BETWEEN_WORDS = regex.compile(
    rf"(?<=\p{{Line_Break=SA}}){_LINE_BREAK}|"
    rf"{_LINE_BREAK}(?=\p{{Line_Break=SA}})"
)

# A virama takes the vowel from a consonant; a joiner beside it chooses between a conjunct, a half
# form and the bare consonant.
_VIRAMA = r"\p{Canonical_Combining_Class=Virama}"
_JOINER = regex.compile(
    rf"""
    (?P<spelled>
      # A1: between letters of a cursive script (Arabic, Syriac, N'Ko, ...). Wider than in the
      # annex: Persian parts a word's stem from its ending after letters that never join, too.
      (?<=[\p{{Joining_Type=D}}\p{{Joining_Type=L}}\p{{Joining_Type=R}}]\p{{Joining_Type=T}}*)
      \u200c (?=\p{{Joining_Type=T}}*[\p{{Joining_Type=R}}\p{{Joining_Type=D}}])
      # A2: after a virama, before a letter.
    | (?<=\p{{L}}\p{{M}}*{_VIRAMA}) \u200c (?=\p{{L}})
      # B: after a virama, not before a vowel sign; also at the end of a word.
    | (?<=\p{{L}}\p{{M}}*{_VIRAMA}) \u200d (?!\p{{Indic_Syllabic_Category=Vowel_Dependent}})
      # Before a virama (Bengali and Kannada R, touching letters in Sinhala): the Unicode Standard,
      # chapters 12 and 13.
    | (?<=\p{{L}}\p{{M}}*) [\u200c\u200d] (?={_VIRAMA}\p{{L}})
      # Before the last vowel of a Mongolian word.
    | (?<=\p{{Script=Mongolian}}) \u180e (?=[\u1820\u1821])
    )
    | [{SPELLED_JOINERS}]
    """,
    regex.VERBOSE | regex.V1,
)


def without_invisible(text: str) -> str:
    r"""Removes the characters that are neither seen nor heard.

    Control and format characters, variation selectors, fillers, private and unassigned characters
    and halves of surrogate pairs go. Joiners stay where they are spelling: between letters of a
    cursive script (Persian), and beside a virama (the scripts of India and Sri Lanka).
    A zero-width space between words of a script that has no spaces (Thai, Lao, Khmer, Burmese)
    becomes a space, and goes elsewhere. White space of any other kind stays.

    Args:
        text: Any string, also one that cannot be encoded.

    Returns:
        What is left. The function is idempotent, and what it returns can be encoded as UTF-8.

    Example:
        >>> without_invisible("\u202bex\u00adtra\u202c Auf\u200clage")
        'extra Auflage'
    """
    if not _SUSPECT.search(text):
        return text
    text = _DROPPED.sub("", text)
    if _LINE_BREAK in text:
        text = _BETWEEN_WORDS.sub(" ", regex.sub(f"{_LINE_BREAK}+", _LINE_BREAK, text))
        text = text.replace(_LINE_BREAK, "")
    if any(joiner in text for joiner in SPELLED_JOINERS):
        text = _JOINER.sub(lambda match: match["spelled"] or "", _REPEATED.sub(r"\1", text))
    return text


def without_surrogates(text: str) -> str:
    """Removes halves of surrogate pairs, which JSON can escape and UTF-8 cannot hold."""
    return _SURROGATES.sub("", text)

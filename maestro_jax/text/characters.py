"""Which characters texts are written in: composed, in their standard forms, none invisible.

- `spelled`: text as a vocabulary spells it, in composed Unicode (NFC) with any white space as one
  space. Nothing else is changed. SentencePiece's own default, `nmt_nfkc`, also replaces characters
  by others that look or read alike: the joiners of Persian by spaces, the full-width punctuation of
  Chinese by that of ASCII, the vowel am of Lao and Thai by two characters. A model that learns from
  such tokens cannot write its own references.
- `standard_forms`: letters that Unicode has twice, because older character sets had them: Arabic
  letters in each of their shapes, Latin and Chinese ones in full or half width, and the vowel am of
  Thai and of Lao as two characters. Nobody sees or hears a difference, and NFC leaves it alone.
- `without_invisible`: marks of writing direction, joiners, variation selectors, soft hyphens, byte
  order marks, control characters. Two texts that differ by nothing else are the same text. Where
  such a character is part of how a word is spelled, as in Persian and in the scripts of India, it
  stays.

Source: Unicode Standard Annex 31, section 2.3 (the contexts in which joiners matter, A1, A2 and B);
the Unicode Character Database for all properties.
"""

from __future__ import annotations

import functools
import itertools
import re
import sys
import unicodedata
from collections.abc import Iterator

# The same version of Unicode under every Python, and properties that `unicodedata` does not have.
import regex


def spelled(text: str) -> str:
    """Returns a text as a vocabulary of this project gives it back.

    Returns:
        The text in Unicode's form NFC, words between single spaces.
    """
    return " ".join(unicodedata.normalize("NFC", text).split())


@functools.cache
def rules_tsv() -> str:
    """Returns the rules of `spelled` for SentencePiece (``normalization_rule_tsv``).

    A rule replaces a sequence of characters, the longest that fits; there is one for each sequence
    that composes to a single character. No such sequence stands in a text that is in NFC, so such a
    text is left as it is, but for its white space. Marks in another order than the canonical one,
    of which no character is composed, are not sorted.

    Returns:
        A line a rule: code points in hexadecimal, a tab, code points.
    """
    lines = [f"{_codes(before)}\t{_codes(after)}\n" for before, after in sorted(_rules())]
    return "".join(lines)


def _rules() -> Iterator[tuple[str, str]]:
    for code in range(sys.maxunicode + 1):
        character = chr(code)
        if character.isspace():
            if character != " ":
                yield character, " "
            continue
        parts = unicodedata.normalize("NFD", character)
        if parts == character:
            continue
        composed = unicodedata.normalize("NFC", character)
        if composed != character:
            # Not in NFC by itself, such as compatibility ideographs and U+212B, the angstrom sign.
            yield character, composed
        elif composed == unicodedata.normalize("NFC", parts):
            for sequence in _sequences(parts):
                if unicodedata.normalize("NFC", sequence) == character != sequence:
                    yield sequence, character


def _sequences(parts: str) -> set[str]:
    """Yields a base and its marks in any order, the base composed with any first marks."""
    sequences = set()
    for marks in itertools.permutations(parts[1:]):
        for count in range(len(marks)):
            head = unicodedata.normalize("NFC", parts[0] + "".join(marks[:count]))
            sequences.add(head + "".join(marks[count:]))
    return sequences


def _codes(text: str) -> str:
    return " ".join(f"{ord(character):X}" for character in text)


_SHAPES_AND_WIDTHS = ("<initial>", "<medial>", "<final>", "<isolated>", "<wide>", "<narrow>")

# Nikhahit (niggahita) and sara aa (vowel sign aa), with any tone mark between: what Unicode lists
# among the sequences that are not to be used, for sara am (vowel sign am).
_AM = re.compile("\u0e4d([\u0e48-\u0e4b]?)\u0e32|\u0ecd([\u0ec8-\u0ecb]?)\u0eb2")


def standard_forms(text: str) -> str:
    """Writes each letter and digit in its standard form, in Unicode's form NFC.

    Only letters and digits are replaced: signs stay as they are, and so do ligatures that stand for
    several words, superscripts and letters of other styles, which are not alike.

    Example:
        >>> standard_forms("ＡＢＣ ２０ ｶﾞ")
        'ABC 20 ガ'
    """
    text = _AM.sub(_am, text.translate(_standard_letters()))
    return unicodedata.normalize("NFC", text)


def _am(match: re.Match[str]) -> str:
    tone = match[1] or match[2] or ""
    return tone + ("\u0e33" if match[0][0] == "\u0e4d" else "\u0eb3")


@functools.cache
def _standard_letters() -> dict[int, str]:
    forms = {}
    # The blocks of Arabic presentation forms, half-width and full-width forms.
    for code in range(0xFB50, 0xFFF0):
        kind, *points = unicodedata.decomposition(chr(code)).split(" ")
        if kind in _SHAPES_AND_WIDTHS and unicodedata.category(chr(code))[0] in "LN":
            standard = "".join(chr(int(point, 16)) for point in points)
            if " " not in standard:
                forms[code] = standard
    return forms


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

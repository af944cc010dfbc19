"""Text as a vocabulary spells it: composed Unicode (NFC), any white space as one space.

Nothing else is changed. SentencePiece's own default, `nmt_nfkc`, also replaces characters by
others that look or read alike: the joiners of Persian by spaces, the full-width punctuation of
Chinese by that of ASCII, the vowel am of Lao and Thai by two characters. A model that learns from
such tokens cannot write its own references.
"""

from __future__ import annotations

import functools
import itertools
import sys
import unicodedata
from collections.abc import Iterator


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

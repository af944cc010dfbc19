"""Running text cut into pieces that a model can take, with nothing lost between them."""

from __future__ import annotations

import re
from collections.abc import Iterator

import regex

from maestro_jax.text.invisible_characters import SPELLED_JOINERS

LONGEST = 256
"""Characters of a piece: some 15 to 20 seconds of speech in most languages."""

# After a full stop and the quotation marks and brackets that close with it. Between ideographs, and
# in Burmese and Thai, no space follows.
_END = re.compile(
    r"""(?<=[.!?\u2026\u061f\u06d4\u0964\u0589\u1362])["'\u201d\u2019\u00bb)\]]*\s+"""
    r"""|(?<=[\u3002\uff01\uff1f\u104b])(?!["\u201d\u2019\u300d\u300f\uff09])"""
)

# Vowel signs, accents and joiners belong to what stands before them, some vowels in Thai and Lao to
# what stands behind them.
_TO_BEFORE = regex.compile(rf"[\p{{M}}{SPELLED_JOINERS}]")
_TO_BEHIND = regex.compile(rf"[\p{{Logical_Order_Exception}}{SPELLED_JOINERS}]")


def sentences(text: str, longest: int = LONGEST) -> Iterator[str]:
    """Cuts a text into sentences, and those that are too long into pieces.

    Sentences end at punctuation that ends them, whatever it stands for: after an abbreviation a
    piece is shorter than it could be, which harms no one. Pieces without a letter or digit belong
    to their neighbour, as far as there is room.

    Args:
        text: A paragraph or a document; its lines end sentences.
        longest: Characters of a piece. A longer sentence is cut where words end, or within a word
            that is longer still; what remains is the next piece.

    Yields:
        Pieces with single spaces. Joined, they are the text, but for white space.
    """
    pending: list[str] = []
    characters, words = 0, False
    for sentence in _sentences(text):
        for piece in _pieces(sentence, longest):
            new = _has_words(piece)
            if pending and ((words and new) or characters + 1 + len(piece) > longest):
                yield " ".join(pending)
                pending, characters, words = [], 0, False
            characters += len(piece) + bool(pending)
            pending.append(piece)
            words = words or new
    if pending:
        yield " ".join(pending)


def _sentences(text: str) -> Iterator[str]:
    for line in text.splitlines():
        begin = 0
        for match in _END.finditer(line):
            # Closing marks are matched with the space after them; they belong to the sentence.
            end = match.start() + len(match[0].rstrip())
            if sentence := " ".join(line[begin:end].split()):
                yield sentence
            begin = match.end()
        if sentence := " ".join(line[begin:].split()):
            yield sentence


def _pieces(sentence: str, longest: int) -> Iterator[str]:
    while len(sentence) > longest:
        # A space right after the last character that fits ends a word, too.
        end = sentence.rfind(" ", 1, longest + 1)
        end = _between_letters(sentence, longest) if end < 0 else end
        yield sentence[:end].rstrip()
        sentence = sentence[end:].lstrip()
    if sentence:
        yield sentence


def _between_letters(sentence: str, end: int) -> int:
    """The last place up to `end` that parts no letter from what belongs to it."""
    for place in range(end, 0, -1):
        before, after = sentence[place - 1], sentence[place]
        if not (_TO_BEHIND.match(before) or _TO_BEFORE.match(after)):
            return place
    return end


def _has_words(piece: str) -> bool:
    return any(map(str.isalnum, piece))

"""Text as UTF-8 bytes: one inventory for all languages and scripts, with nothing to train.

Maestro-U (arXiv 2210.10027) writes bytes, so that languages without transcripts share the outputs
of those with. Ids are those of ByT5 (arXiv 2105.13626): 0 padding, 1 end of sequence, 2 unknown,
and byte b is b + 3.
"""

from __future__ import annotations

from collections.abc import Sequence

from maestro_jax.vocabularies.vocabulary import Vocabulary

OFFSET = 3
"""Ids before those of bytes."""

CONTENT = b"maestro_jax vocabulary: UTF-8 bytes, version 1\n"
"""What stands in a vocabulary file instead of a SentencePiece model."""

_SPECIAL = ("<pad>", "</s>", "<unk>")
_BLANK = "\u2581"  # SentencePiece's mark, so that words are found in the same way.


class ByteVocabulary(Vocabulary):
    """Text to bytes and back, in the place of a SentencePiece model."""

    @property
    def model_bytes(self) -> bytes:
        """The mark that a vocabulary file holds instead of a SentencePiece model."""
        return CONTENT

    @property
    def vocab_size(self) -> int:
        """256 bytes and the special ids."""
        return OFFSET + 256

    def encode(self, text: str) -> list[int]:
        """Returns the token ids of a text, without an end of sequence."""
        return [OFFSET + byte for byte in text.encode("utf-8")]

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of token ids; special ids and bytes that are no UTF-8 are left out."""
        content = bytes(int(i) - OFFSET for i in ids if OFFSET <= int(i) < self.vocab_size)
        return content.decode("utf-8", errors="ignore")

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Letters for bytes that are one, `<0xC3>` for others, SentencePiece's mark for blanks."""
        return [self._piece(int(i)) for i in ids]

    def _piece(self, identity: int) -> str:
        if not 0 <= identity < self.vocab_size:
            raise IndexError(f"id {identity} is not below {self.vocab_size}")
        if identity < OFFSET:
            return _SPECIAL[identity]
        byte = identity - OFFSET
        if byte == ord(" "):
            return _BLANK
        return chr(byte) if 0x20 < byte < 0x7F else f"<0x{byte:02X}>"

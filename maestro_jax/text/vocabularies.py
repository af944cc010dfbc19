"""Token inventories, shared by the text encoder and the RNN-T: SentencePiece models and bytes.

Ids 0, 1 and 2 are padding (and the RNN-T's blank), end of sequence and the unknown piece; there is
no beginning of sequence.
"""

from __future__ import annotations

import abc
import collections
import importlib
import io
import math
import re
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import sentencepiece
from etils import epath

from maestro_jax.errors import UserError
from maestro_jax.files import as_path, write_atomically
from maestro_jax.text.characters import rules_tsv, spelled

PAD_ID = 0
EOS_ID = 1
UNK_ID = 2
MODEL_FILE = "vocabulary.model"
"""The name of a vocabulary inside a model directory."""


class Vocabulary(abc.ABC):
    """Converts text to token ids and back."""

    @property
    @abc.abstractmethod
    def vocab_size(self) -> int:
        """The number of ids, the special ones counted."""

    @property
    @abc.abstractmethod
    def model_bytes(self) -> bytes:
        """The content of the vocabulary's file."""

    @abc.abstractmethod
    def encode(self, text: str) -> list[int]:
        """Returns the token ids of a text, without an end of sequence."""

    @abc.abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of token ids, without padding and end of sequence."""

    @abc.abstractmethod
    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Returns the pieces of token ids, for alignments and tables."""

    def token_bytes(self) -> list[bytes | None]:
        """Returns the UTF-8 that each id writes, a space before each word; None for special ids."""
        written: list[bytes | None] = [
            bytes([int(byte[1], 16)])
            if (byte := _BYTE_PIECE.fullmatch(piece))
            else piece.replace(_BLANK, " ").encode()
            for piece in self.pieces(range(self.vocab_size))
        ]
        written[: UNK_ID + 1] = [None] * (UNK_ID + 1)
        return written

    def round_trip(self, text: str) -> str:
        """Returns what a model that makes no mistake writes in place of a text."""
        return self.decode(self.encode(text))

    def save(self, directory: epath.PathLike) -> epath.Path:
        """Writes ``vocabulary.model`` into a directory and returns its path."""
        path = as_path(directory) / MODEL_FILE
        write_atomically(path, self.model_bytes)
        return path

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Vocabulary) and self.model_bytes == other.model_bytes

    def __hash__(self) -> int:
        return hash(self.model_bytes)


class SentencePieceVocabulary(Vocabulary):
    """The pieces of a SentencePiece model, without TensorFlow.

    Args:
        model: A serialized SentencePiece model.
        origin: Name of its file, for messages.

    Raises:
        UserError: The bytes are no SentencePiece model, or its padding is not id 0.
    """

    def __init__(self, model: bytes, origin: str = "the vocabulary") -> None:
        self._model = model
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(model)
        except (RuntimeError, OSError) as error:
            raise UserError(
                f"{origin} is not a SentencePiece model; prepare the corpus anew."
            ) from error
        if self._processor.pad_id() != PAD_ID:
            raise UserError(
                f"{origin} has padding id {self._processor.pad_id()}; "
                "train it with pad_id=0, eos_id=1, unk_id=2."
            )

    @property
    def vocab_size(self) -> int:
        """The number of pieces, the special ones counted."""
        return self._processor.GetPieceSize()

    @property
    def model_bytes(self) -> bytes:
        """The serialized SentencePiece model."""
        return self._model

    def encode(self, text: str) -> list[int]:
        """Returns the token ids of a text, without an end of sequence."""
        return self._processor.EncodeAsIds(text)

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of token ids, without padding and end of sequence.

        Ids beyond the vocabulary count as the unknown piece.
        """
        kept = [int(i) for i in ids if int(i) not in (PAD_ID, EOS_ID)]
        size = self.vocab_size
        return self._processor.DecodeIds([i if 0 <= i < size else UNK_ID for i in kept])

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Returns the pieces of token ids, for alignments and tables."""
        return [self._processor.IdToPiece(int(i)) for i in ids]


BYTE_OFFSET = 3
"""Ids before those of bytes."""

BYTE_MODEL = b"maestro_jax vocabulary: UTF-8 bytes, version 1\n"
"""What stands in a vocabulary file instead of a SentencePiece model."""

_SPECIAL = ("<pad>", "</s>", "<unk>")
_BLANK = "\u2581"  # SentencePiece's mark, so that words are found in the same way.
_BYTE_PIECE = re.compile("<0x([0-9A-F]{2})>")


class ByteVocabulary(Vocabulary):
    """Text as UTF-8 bytes: one inventory for all languages and scripts, with nothing to train.

    Maestro-U (arXiv 2210.10027) writes bytes, so that languages without transcripts share the
    outputs of those with. Ids are those of ByT5 (arXiv 2105.13626): 0 padding, 1 end of sequence,
    2 unknown, and byte b is b + 3.
    """

    @property
    def model_bytes(self) -> bytes:
        """The mark that a vocabulary file holds instead of a SentencePiece model."""
        return BYTE_MODEL

    @property
    def vocab_size(self) -> int:
        """256 bytes and the special ids."""
        return BYTE_OFFSET + 256

    def encode(self, text: str) -> list[int]:
        """Returns the token ids of a text, without an end of sequence."""
        return [BYTE_OFFSET + byte for byte in text.encode("utf-8")]

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of token ids; special ids and bytes that are no UTF-8 are left out."""
        content = bytes(
            int(i) - BYTE_OFFSET for i in ids if BYTE_OFFSET <= int(i) < self.vocab_size
        )
        return content.decode("utf-8", errors="ignore")

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Letters for bytes that are one, `<0xC3>` for others, SentencePiece's mark for blanks."""
        return [self._piece(int(i)) for i in ids]

    def _piece(self, identity: int) -> str:
        if not 0 <= identity < self.vocab_size:
            raise IndexError(f"id {identity} is not below {self.vocab_size}")
        if identity < BYTE_OFFSET:
            return _SPECIAL[identity]
        byte = identity - BYTE_OFFSET
        if byte == ord(" "):
            return _BLANK
        return chr(byte) if 0x20 < byte < 0x7F else f"<0x{byte:02X}>"


def load_vocabulary(path: epath.PathLike) -> Vocabulary:
    """Reads a vocabulary: a ``.model`` file, or a directory that holds ``vocabulary.model``.

    Returns:
        A `ByteVocabulary` where the file says so, else a `SentencePieceVocabulary`.

    Raises:
        UserError: There is no such file, or it is no SentencePiece model.
    """
    path = as_path(path)
    if path.is_dir():
        path = path / MODEL_FILE
    if not path.is_file():
        raise UserError(f"there is no vocabulary at {path}; `maestro prepare` makes one.")
    return vocabulary_from_bytes(path.read_bytes(), str(path))


def vocabulary_from_bytes(content: bytes, origin: str = "the vocabulary") -> Vocabulary:
    """Returns the vocabulary of a file's content; see `load_vocabulary`."""
    if content == BYTE_MODEL:
        return ByteVocabulary()
    return SentencePieceVocabulary(content, origin)


_FALLBACK_BYTES = 256
# SentencePiece leaves out every sentence with one of these, and the other letters of it, too.
_RESERVED = dict.fromkeys(map(ord, "\0\u2585"))
LOWEST_COVERAGE = 0.98
"""Below, SentencePiece refuses: a language would hardly be written."""
_LONGEST_LINE = 1 << 16  # Bytes; SentencePiece leaves longer lines out in silence.


def train_sentencepiece(
    texts: Iterable[str],
    path: str | Path,
    vocab_size: int,
    kind: str = "unigram",
    *,
    coverage: float = 1.0,
    byte_fallback: bool = False,
) -> SentencePieceVocabulary:
    """Trains a SentencePiece model and writes it.

    The result depends on the texts and their order alone. A corpus with too little variety for
    ``vocab_size`` pieces gives a smaller vocabulary. The model normalises by the rules of
    `spelled`: what it encodes, it gives back composed (NFC) and with single spaces, and otherwise
    as it was, but for letters that are no pieces.

    Args:
        texts: One sentence each; empty ones are left out.
        path: The file to write, at once or not at all.
        vocab_size: Pieces wanted, the three special ones counted.
        kind: The type of the model: `unigram`, `bpe`, `char` or `word`.
        coverage: The share of all letters that are pieces; the rarest of the rest are unknown.
        byte_fallback: Whether letters that are no pieces become their UTF-8 bytes instead, which
            are 256 further pieces.

    Returns:
        The vocabulary.

    Raises:
        UserError: There is no text, or ``vocab_size`` is too small for the letters of the texts.
    """
    sentences = [line for text in texts if (line := spelled(text.translate(_RESERVED)))]
    if not sentences:
        raise UserError(f"there is no text to train the vocabulary {path} on.")
    model = io.BytesIO()
    try:
        with tempfile.NamedTemporaryFile("w", suffix=".tsv", encoding="utf-8") as rules:
            rules.write(rules_tsv())
            rules.flush()
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(sentences),
                model_writer=model,
                model_type=kind,
                vocab_size=vocab_size,
                hard_vocab_limit=False,
                character_coverage=coverage,
                byte_fallback=byte_fallback,
                normalization_rule_tsv=rules.name,
                pad_id=PAD_ID,
                eos_id=EOS_ID,
                unk_id=UNK_ID,
                bos_id=-1,
                num_threads=1,
                shuffle_input_sentence=False,
                max_sentence_length=_LONGEST_LINE,
                minloglevel=2,
            )
    except (RuntimeError, OSError) as error:
        letters = collections.Counter("".join(sentences))
        extra = _FALLBACK_BYTES if byte_fallback else 0
        remedy = f"ask for at least {len(letters) + 4 + extra} pieces"
        if (fitting := _fitting_coverage(letters, vocab_size - extra)) >= LOWEST_COVERAGE:
            remedy += f", or leave the rarest letters out with a coverage of {fitting}"
        raise UserError(
            f"no vocabulary of {vocab_size} pieces can be trained on {len(sentences)} sentences "
            f"with {len(letters)} different letters; {remedy}."
        ) from error
    path = Path(path)
    write_atomically(path, _without_the_name_of_rules(model.getvalue()))
    return SentencePieceVocabulary(path.read_bytes(), str(path))


def _without_the_name_of_rules(model: bytes) -> bytes:
    """Removes the path of a temporary file, which would differ each time."""
    messages: Any = importlib.import_module("sentencepiece.sentencepiece_model_pb2")
    proto = messages.ModelProto.FromString(model)
    proto.normalizer_spec.normalization_rule_tsv = ""
    proto.normalizer_spec.name = "nfc"
    return proto.SerializeToString(deterministic=True)


def _fitting_coverage(letters: collections.Counter[str], vocab_size: int) -> float:
    """Returns a coverage that takes no more than three pieces of four."""
    kept = sum(count for _, count in letters.most_common(max(vocab_size, 0) * 3 // 4))
    return math.floor(1e4 * kept / letters.total()) / 1e4

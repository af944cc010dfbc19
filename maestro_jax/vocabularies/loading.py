"""Reading vocabularies of every kind."""

from __future__ import annotations

from pathlib import Path

from maestro_jax.errors import UserError
from maestro_jax.vocabularies import byte_vocabulary
from maestro_jax.vocabularies.sentencepiece_vocabulary import SentencePieceVocabulary
from maestro_jax.vocabularies.vocabulary import MODEL_FILE, Vocabulary


def load_vocabulary(path: str | Path) -> Vocabulary:
    """Reads a vocabulary: a ``.model`` file, or a directory that holds ``vocabulary.model``.

    Returns:
        A `ByteVocabulary` where the file says so, else a `SentencePieceVocabulary`.

    Raises:
        UserError: There is no such file, or it is no SentencePiece model.
    """
    path = Path(path)
    if path.is_dir():
        path = path / MODEL_FILE
    if not path.is_file():
        raise UserError(f"there is no vocabulary at {path}; `maestro prepare` makes one.")
    return vocabulary_from_bytes(path.read_bytes(), str(path))


def vocabulary_from_bytes(content: bytes, origin: str = "the vocabulary") -> Vocabulary:
    """Returns the vocabulary of a file's content; see `load_vocabulary`."""
    if content == byte_vocabulary.CONTENT:
        return byte_vocabulary.ByteVocabulary()
    return SentencePieceVocabulary(content, origin)

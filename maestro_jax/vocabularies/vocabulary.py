"""Token inventories, shared by the text encoder and the RNN-T.

Ids 0, 1 and 2 are padding (and the RNN-T's blank), end of sequence and the unknown piece; there is
no beginning of sequence.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from pathlib import Path

from maestro_jax.files import write_atomically

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

    def round_trip(self, text: str) -> str:
        """Returns what a model that makes no mistake writes in place of a text."""
        return self.decode(self.encode(text))

    def save(self, directory: str | Path) -> Path:
        """Writes ``vocabulary.model`` into a directory and returns its path."""
        path = Path(directory) / MODEL_FILE
        write_atomically(path, self.model_bytes)
        return path

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Vocabulary) and self.model_bytes == other.model_bytes

    def __hash__(self) -> int:
        return hash(self.model_bytes)

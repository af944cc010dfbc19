"""Text as the pieces of a SentencePiece model, and the training of one."""

from __future__ import annotations

import collections
import importlib
import io
import math
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import sentencepiece

from maestro_jax.errors import UserError
from maestro_jax.files import write_atomically
from maestro_jax.text.composition import rules_tsv, spelled
from maestro_jax.vocabularies.vocabulary import EOS_ID, PAD_ID, UNK_ID, Vocabulary

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
    `maestro_jax.text.composition`: what it encodes, it gives back composed (NFC) and with single
    spaces, and otherwise as it was, but for letters that are no pieces.

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

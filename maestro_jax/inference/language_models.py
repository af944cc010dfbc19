"""Language models of text files and ARPA files, over a vocabulary's pieces or over words."""

from __future__ import annotations

import io
import logging
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from maestro_jax.decoding import kneser_ney
from maestro_jax.decoding.arpa import BEGIN, END, UNKNOWN, ArpaFile, is_arpa, open_text, write_arpa
from maestro_jax.decoding.backoff import BackoffModel
from maestro_jax.decoding.ngram import NgramLm
from maestro_jax.errors import UserError
from maestro_jax.inference.rescoring import WordLm
from maestro_jax.vocabularies.vocabulary import EOS_ID, PAD_ID, UNK_ID, Vocabulary

log = logging.getLogger(__name__)

_SPECIAL = (BEGIN, END, *UNKNOWN)
_MARK = "\u2581"  # What SentencePiece writes for a blank.


def text_model(
    path: str | Path, vocabulary: Vocabulary, *, order: int, prune: Sequence[int] = ()
) -> BackoffModel:
    """Estimates a model over pieces from text.

    Args:
        path: UTF-8, one sentence a line, plain or compressed with gzip; empty lines do not count.
        vocabulary: Text to tokens.
        order: Tokens of the longest n-gram.
        prune: Cut-offs of the counts, by length.

    Raises:
        UserError: The file cannot be read, has no text, or is a model in the ARPA format; or a
            number is out of its range.
    """
    if is_arpa(path):
        raise UserError(f"{path} is a language model in the ARPA format: give it as --lm_arpa")
    found = 0

    def texts() -> Iterator[list[int]]:
        nonlocal found
        with io.TextIOWrapper(open_text(path), encoding="utf-8-sig") as lines:
            for line in lines:
                if line.strip():
                    found += 1
                    yield vocabulary.encode(line.strip())
        if not found:
            raise UserError(f"there is no text in {path}")

    try:
        model = kneser_ney.estimate(
            texts(), vocab_size=vocabulary.vocab_size, order=order, prune=prune, boundary=PAD_ID
        )
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the text {path}: {error}") from error
    log.info("a language model of %d sentences has n-grams: %s", found, _listed(model))
    return model


def arpa_model(path: str | Path, vocabulary: Vocabulary) -> BackoffModel | WordLm:
    """Reads a model over a vocabulary's pieces, or over words.

    Args:
        path: A file in the ARPA format, plain or compressed with gzip.
        vocabulary: Its pieces are the tokens of a model that has no others.

    Returns:
        A model over the vocabulary's ids; or over words, if its tokens are no pieces and none has
        SentencePiece's mark.

    Raises:
        UserError: The file cannot be read, or its tokens are pieces of another vocabulary.
    """
    file = ArpaFile(path)
    size = vocabulary.vocab_size
    ids = {piece: i for i, piece in enumerate(vocabulary.pieces(range(size)))}
    pieces = {piece: i for piece, i in ids.items() if i not in (PAD_ID, EOS_ID)}
    strange = [word for word in file.words if word not in pieces and word not in _SPECIAL]
    if not strange:
        model = file.model(pieces, size=size, unknown=UNK_ID, boundary=PAD_ID)
        log.info("the language model %s has n-grams: %s", path, _listed(model))
        return model
    if any(_MARK in word for word in file.words):
        raise UserError(
            f"{path} is a language model over the pieces of another vocabulary: "
            f"{len(strange)} of its {len(file.words)} tokens, such as {strange[0]!r}, are no "
            "pieces of the model's; make it of text that is cut by the model's vocabulary, or "
            "give the text with --lm_text"
        )
    words = {word: i for i, word in enumerate(file.words)}
    ordinary = {word: i for word, i in words.items() if word not in _SPECIAL}
    boundary, unknown = len(words), len(words) + 1
    model = file.model(words, size=len(words) + 2, unknown=unknown, boundary=boundary)
    log.warning(
        "%s is a language model over %d words: it ranks the hypotheses that the search has found, "
        "and has no part in the search",
        path,
        len(ordinary),
    )
    return WordLm(model, ordinary, unknown)


def device_model(model: BackoffModel, vocabulary: Vocabulary, vocab_size: int) -> NgramLm:
    """Lays a model over pieces out for the search.

    Args:
        model: The model.
        vocabulary: Whose pieces they are.
        vocab_size: Tokens that the decoder can write; those beyond the vocabulary are as likely as
            the unknown piece.

    Raises:
        UserError: The decoder can write fewer tokens than there are pieces.
    """
    if vocab_size < vocabulary.vocab_size:
        raise UserError(
            f"the vocabulary has {vocabulary.vocab_size} pieces and the decoder writes "
            f"{vocab_size}: it is another model's vocabulary"
        )
    lm = NgramLm.from_model(model.extended(vocab_size, UNK_ID))
    log.info("the language model takes %.1f MiB", lm.nbytes / 2**20)
    return lm


def write_model(model: BackoffModel, path: str | Path, vocabulary: Vocabulary) -> None:
    """Writes a model over pieces in the ARPA format, compressed if the name ends in `.gz`.

    Args:
        model: The model.
        path: The file to write.
        vocabulary: Names the tokens.

    Raises:
        UserError: It cannot be written.
    """
    names: list[str | None] = list(vocabulary.pieces(range(vocabulary.vocab_size)))
    names[PAD_ID] = names[EOS_ID] = None
    names[UNK_ID] = UNKNOWN[0]
    try:
        write_arpa(model, path, names)
    except OSError as error:
        raise UserError(f"cannot write the language model {path}: {error}") from error


def _listed(model: BackoffModel) -> str:
    return ", ".join(f"{count} of {n}" for n, count in enumerate(model.counts, start=1))

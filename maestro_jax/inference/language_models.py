"""Builds language models for decoding, over a vocabulary's pieces or over words.

A model over pieces takes part in the search (`decoding.fusion`). Most models in the ARPA format,
such as LibriSpeech's, are over words, which a search over pieces cannot score before a word is
complete. They rank the hypotheses of a beam in a second pass:

    fused score = score of the search + weight * log P_lm(words, end)

The scores of an attention decoder are normalised by length, and so is the added term.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import logging
import string
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import numpy as np
from etils import epath

from maestro_jax.decoding import kneser_ney
from maestro_jax.decoding.arpa import BEGIN, END, UNKNOWN, ArpaFile, is_arpa, open_text, write_arpa
from maestro_jax.decoding.backoff import BackoffModel
from maestro_jax.decoding.hypotheses import Hypotheses
from maestro_jax.decoding.ngram import NgramLm
from maestro_jax.errors import UserError
from maestro_jax.files import naming_failures
from maestro_jax.inference.timed_words import WORD_START
from maestro_jax.text.vocabularies import EOS_ID, PAD_ID, UNK_ID, Vocabulary

log = logging.getLogger(__name__)

_SPECIAL = (BEGIN, END, *UNKNOWN)
_PUNCTUATION = string.punctuation + "¿¡…«»“”„‘’、。！？"


@dataclasses.dataclass(frozen=True)
class WordLm:
    """An n-gram model over words.

    If all words of the model are in one case, texts are converted to that case. A word that the
    model lacks is looked up without the punctuation around it, and otherwise is the unknown word.

    Attributes:
        model: The n-grams over ids of words.
        ids: Id of each word.
        unknown: Id of the unknown word.
    """

    model: BackoffModel
    ids: Mapping[str, int]
    unknown: int

    @functools.cached_property
    def _in_case(self) -> Callable[[str], str]:
        for change in (str.upper, str.lower):
            if all(change(word) == word for word in self.ids):
                return change
        return str

    def encode(self, text: str) -> list[int]:
        """Converts a text to ids of words."""
        ids = []
        for word in self._in_case(text).split():
            word_id = self.ids.get(word)
            if word_id is None:
                bare = word.strip(_PUNCTUATION)
                if not bare:
                    continue
                word_id = self.ids.get(bare, self.unknown)
            ids.append(word_id)
        return ids

    def log_prob(self, text: str) -> float:
        """Computes the natural log-probability of a text, its end included."""
        return self.model.text_log_prob(self.encode(text))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rescoring:
    """Ranks the hypotheses of a beam with a language model over words.

    Attributes:
        lm: The language model.
        weight: Weight of its log-probabilities.
        length_alpha: Exponent of the length normalisation of an attention decoder; 0 for none.
    """

    lm: WordLm
    weight: float
    length_alpha: float = 0.0

    def __call__(self, hypotheses: Hypotheses, texts: Sequence[Sequence[str]]) -> Hypotheses:
        """Ranks hypotheses.

        Args:
            hypotheses: Numpy arrays of `[batch, beam, ...]`, empty places last.
            texts: The text of each hypothesis, `[batch][beam]`.

        Returns:
            The hypotheses in the order of their new fused scores, equal ones in their old order.
        """
        added = np.array([[self.lm.log_prob(text) for text in row] for row in texts])
        # As in `decoding.attention`, the end of sequence counts as a token.
        added /= ((6.0 + hypotheses.lengths) / 6.0) ** self.length_alpha
        fused = hypotheses.fused_scores + np.float32(self.weight) * added.astype(np.float32)
        order = np.argsort(-fused, axis=1, kind="stable")

        def reorder(x: np.ndarray) -> np.ndarray:
            return np.take_along_axis(x, order.reshape(order.shape + (1,) * (x.ndim - 2)), axis=1)

        return jax.tree.map(reorder, hypotheses._replace(fused_scores=fused))


def text_model(
    path: epath.PathLike, vocabulary: Vocabulary, *, order: int, prune: Sequence[int] = ()
) -> BackoffModel:
    """Estimates a model over pieces from text.

    Args:
        path: UTF-8, one sentence per line, plain or compressed by gzip; empty lines are skipped.
        vocabulary: Encodes the text.
        order: Tokens of the longest n-gram.
        prune: Cut-offs of the counts, by length.

    Raises:
        UserError: If the file cannot be read, has no text, or is a model in the ARPA format, or if
            a number is out of its range.
    """
    if is_arpa(path):
        raise UserError(f"{path} is a language model in the ARPA format: give it as --lm_arpa")
    sentences = 0

    def texts() -> Iterator[list[int]]:
        nonlocal sentences
        with io.TextIOWrapper(open_text(path), encoding="utf-8-sig") as lines:
            for line in lines:
                if line.strip():
                    sentences += 1
                    yield vocabulary.encode(line.strip())
        if not sentences:
            raise UserError(f"there is no text in {path}")

    try:
        model = kneser_ney.estimate(
            texts(), vocab_size=vocabulary.vocab_size, order=order, prune=prune, boundary=PAD_ID
        )
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the text {path}: {error}") from error
    log.info("a language model of %d sentences has n-grams: %s", sentences, _listed(model))
    return model


def arpa_model(path: epath.PathLike, vocabulary: Vocabulary) -> BackoffModel | WordLm:
    """Reads a model over a vocabulary's pieces, or over words.

    Args:
        path: A file in the ARPA format, plain or compressed by gzip.
        vocabulary: The model's vocabulary.

    Returns:
        A model over the vocabulary's ids if all tokens of the file are its pieces; a model over
        words if some are not and none has SentencePiece's mark.

    Raises:
        UserError: If the file cannot be read, or its tokens are pieces of another vocabulary.
    """
    file = ArpaFile(path)
    size = vocabulary.vocab_size
    ids = {piece: i for i, piece in enumerate(vocabulary.pieces(range(size)))}
    pieces = {piece: i for piece, i in ids.items() if i not in (PAD_ID, EOS_ID)}
    unknown_pieces = [word for word in file.words if word not in pieces and word not in _SPECIAL]
    if not unknown_pieces:
        model = file.model(pieces, size=size, unknown=UNK_ID, boundary=PAD_ID)
        log.info("the language model %s has n-grams: %s", path, _listed(model))
        return model
    if any(WORD_START in word for word in file.words):
        raise UserError(
            f"{path} is a language model over the pieces of another vocabulary: of its "
            f"{len(file.words)} tokens, {len(unknown_pieces)}, such as {unknown_pieces[0]!r}, are "
            "not pieces of this one; estimate it from text that is encoded with the model's "
            "vocabulary, or give the text with --lm_text"
        )
    words = {word: i for i, word in enumerate(file.words)}
    ordinary = {word: i for word, i in words.items() if word not in _SPECIAL}
    boundary, unknown = len(words), len(words) + 1
    model = file.model(words, size=len(words) + 2, unknown=unknown, boundary=boundary)
    log.warning(
        "%s is a language model over %d words: it rescores the hypotheses after the search",
        path,
        len(ordinary),
    )
    return WordLm(model, ordinary, unknown)


def device_model(model: BackoffModel, vocabulary: Vocabulary, vocab_size: int) -> NgramLm:
    """Moves a model over pieces to the device, for the search.

    Args:
        model: The model.
        vocabulary: The vocabulary of its pieces.
        vocab_size: Number of tokens of the decoder; those beyond the vocabulary are as likely as
            the unknown piece.

    Raises:
        UserError: If the decoder has fewer tokens than the vocabulary.
    """
    if vocab_size < vocabulary.vocab_size:
        raise UserError(
            f"the vocabulary has {vocabulary.vocab_size} pieces and the decoder has "
            f"{vocab_size} tokens: this is the vocabulary of another model"
        )
    lm = NgramLm.from_model(model.extended(vocab_size, UNK_ID))
    log.info("the language model takes %.1f MiB", lm.nbytes / 2**20)
    return lm


def write_model(model: BackoffModel, path: epath.PathLike, vocabulary: Vocabulary) -> None:
    """Writes a model over pieces in the ARPA format, compressed if the name ends in `.gz`.

    Args:
        model: The model.
        path: The file to write.
        vocabulary: The vocabulary of its pieces.

    Raises:
        UserError: If the file cannot be written.
    """
    names: list[str | None] = list(vocabulary.pieces(range(vocabulary.vocab_size)))
    names[PAD_ID] = names[EOS_ID] = None
    names[UNK_ID] = UNKNOWN[0]
    with naming_failures(path, "language model"):
        write_arpa(model, path, names)


def _listed(model: BackoffModel) -> str:
    return ", ".join(f"{count} of {n}" for n, count in enumerate(model.counts, start=1))

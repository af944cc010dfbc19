"""Counts of n-grams, by sorting.

Every position of the texts carries the index of the n-gram that ends there. The next token and that
index are one number, and sorting these numbers counts the n-grams that are a token longer. Texts
are read in blocks: beside 9 bytes for a token of the text, memory holds the n-grams and one block.
"""

from __future__ import annotations

import array
import dataclasses
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from maestro_jax.decoding.backoff import LARGEST, lookup, ngram_keys
from maestro_jax.errors import UserError

BLOCK = 1 << 22
"""Tokens that are sorted at a time."""


@dataclasses.dataclass(frozen=True)
class Counts:
    """How often n-grams of one length were seen, `[n-grams]`, sorted as in `backoff.Level`.

    Attributes:
        prefixes: Index of the n-gram without its last token in the level below, int32.
        tokens: The last token, int32.
        suffixes: Index of the n-gram without its first token in the level below, int32.
        begins: Whether the first token is the beginning of a text, bool.
        counts: Int64; of unigrams 0 for what was not seen.
    """

    prefixes: np.ndarray
    tokens: np.ndarray
    suffixes: np.ndarray
    begins: np.ndarray
    counts: np.ndarray


@dataclasses.dataclass
class _Block:
    """A block of whole texts, each with the boundary at both ends."""

    tokens: np.ndarray  # int32
    first: np.ndarray  # bool: the beginning of a text
    ending: np.ndarray  # int32: the index of the n-gram that ends here, -1 if there is none


class _Tally:
    """Adds up sorted keys with counts; runs are merged when they outgrow what is merged."""

    def __init__(self) -> None:
        self._keys = np.zeros(0, np.int64)
        self._counts = np.zeros(0, np.int64)
        self._runs: list[tuple[np.ndarray, np.ndarray]] = []

    def add(self, keys: np.ndarray) -> None:
        self._runs.append(np.unique(keys, return_counts=True))
        if sum(len(run) for run, _ in self._runs) > max(len(self._keys), BLOCK):
            self._merge()

    def result(self) -> tuple[np.ndarray, np.ndarray]:
        self._merge()
        return self._keys, self._counts

    def _merge(self) -> None:
        keys = np.concatenate([self._keys, *(run for run, _ in self._runs)])
        counts = np.concatenate([self._counts, *(count for _, count in self._runs)])
        self._runs = []
        if not len(keys):
            return
        order = np.argsort(keys, kind="stable")
        keys, counts = keys[order], counts[order]
        starts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
        self._keys, self._counts = keys[starts], np.add.reduceat(counts, starts)


def count_ngrams(
    texts: Iterable[Sequence[int]], *, vocab_size: int, order: int, boundary: int = 0
) -> list[Counts]:
    """Counts the n-grams of texts; none reaches over the beginning of a text.

    Args:
        texts: Token ids of one text each, without the boundary.
        vocab_size: Number of token ids, the boundary included.
        order: Tokens of the longest n-gram.
        boundary: The token id that begins and ends every text.

    Returns:
        The counts of unigrams, of pairs and so on. Unigrams are all token ids in order, and that of
        the boundary counts ends of texts.

    Raises:
        UserError: There is no text, or an id is not a label.
    """
    blocks = list(_blocks(texts, vocab_size, boundary))
    if not blocks:
        raise UserError("there is no text to estimate a language model from")
    everything = np.arange(vocab_size, dtype=np.int32)
    nothing = np.zeros(vocab_size, np.int32)
    seen = np.zeros(vocab_size, np.int64)
    for block in blocks:
        seen += np.bincount(block.tokens[~block.first], minlength=vocab_size)
    levels = [Counts(nothing, everything, nothing, everything == boundary, seen)]
    keys: list[np.ndarray] = [everything.astype(np.int64)]
    for length in range(2, order + 1):
        tally = _Tally()
        for block in blocks:
            where, key = _grown(block, vocab_size)
            tally.add(key)
        found, counts = tally.result()
        if sum(map(len, keys)) + len(found) > LARGEST:
            raise UserError(
                f"a language model has at most {LARGEST} n-grams; take a lower order than {order}"
            )
        below = levels[-1]
        prefixes, tokens = np.divmod(found, vocab_size)
        # The suffix of an n-gram is the suffix of its prefix, and the last token.
        if length == 2:
            suffixes = tokens
        else:
            suffixes = lookup(keys[-1], ngram_keys(below.suffixes[prefixes], tokens, vocab_size))
        if length < order:
            for block in blocks:
                where, key = _grown(block, vocab_size)
                block.ending = np.full(len(block.tokens), -1, np.int32)
                block.ending[where] = np.searchsorted(found, key)
        levels.append(
            Counts(
                prefixes.astype(np.int32),
                tokens.astype(np.int32),
                suffixes.astype(np.int32),
                below.begins[prefixes],
                counts,
            )
        )
        keys.append(found)
    return levels


def _grown(block: _Block, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Where n-grams a token longer end, and their keys."""
    where = np.flatnonzero(~block.first[1:] & (block.ending[:-1] >= 0)) + 1
    return where, ngram_keys(block.ending[where - 1], block.tokens[where], vocab_size)


def _blocks(texts: Iterable[Sequence[int]], vocab_size: int, boundary: int) -> Iterator[_Block]:
    """Blocks of whole texts; the unigrams that end at their positions are known."""
    tokens, starts = array.array("q"), array.array("q")
    for text in texts:
        starts.append(len(tokens))
        tokens.append(boundary)
        tokens.extend(text)
        tokens.append(boundary)
        if len(tokens) >= BLOCK:
            yield _block(tokens, starts, vocab_size, boundary)
            tokens, starts = array.array("q"), array.array("q")
    if starts:
        yield _block(tokens, starts, vocab_size, boundary)


def _block(
    read: array.array[int], starts: array.array[int], vocab_size: int, boundary: int
) -> _Block:
    tokens = np.frombuffer(read, np.int64)
    first = np.zeros(len(tokens), bool)
    first[np.frombuffer(starts, np.int64)] = True
    inner = ~first & ~np.append(first[1:], True)
    wrong = tokens[inner & ((tokens == boundary) | (tokens < 0) | (tokens >= vocab_size))]
    if len(wrong):
        raise UserError(
            f"token {wrong[0]} is no label of a vocabulary of {vocab_size} with blank {boundary}"
        )
    tokens = tokens.astype(np.int32)
    return _Block(tokens, first, tokens.copy())

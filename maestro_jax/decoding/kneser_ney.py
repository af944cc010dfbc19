"""Estimates n-gram models with interpolated, modified Kneser-Ney smoothing and count cut-offs.

Source: Chen and Goodman 1998 (TR-10-98, section 3), in the form of KenLM's lmplz (Heafield et al.
2013). For the longest n-grams, ``a(h w)`` is their count; for shorter ones it is the number of
different tokens before them (for n-grams that begin a text again their count), and

    P(w | h) = (a(h w) - D(a(h w))) / A(h) + backoff(h) P(w | h without its first token)
    backoff(h) = sum of the discounts of what follows h / A(h),  A(h) = sum of a(h w) over w

down to the uniform distribution over the vocabulary. Counts of one, two, and three or more have
their own discount ``D``, from the counts of counts of the same length. The mass of n-grams that are
cut off goes to the back-off weight of their context, so that every distribution still sums to one.

N-grams are counted by sorting. Every position of the texts holds the index of the n-gram that ends
there; that index and the next token make one number, and sorting these numbers counts the n-grams
that are one token longer. Texts are read in blocks: memory holds 9 bytes per token of text, the
n-grams and one block.
"""

from __future__ import annotations

import array
import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from maestro_jax.decoding.backoff import LARGEST, BackoffModel, Level, lookup, ngram_keys
from maestro_jax.errors import UserError

FALLBACK = (0.5, 1.0, 1.5)
"""Discounts of texts that are too small, or too regular, to estimate them from."""


def estimate(
    texts: Iterable[Sequence[int]],
    *,
    vocab_size: int,
    order: int,
    prune: Sequence[int] = (),
    boundary: int = 0,
) -> BackoffModel:
    """Estimates a model from texts.

    Args:
        texts: Token ids of one text each, without the boundary.
        vocab_size: Number of token ids, the boundary included.
        order: Tokens of the longest n-gram; 1 has no context.
        prune: N-grams with at most this count are left out, one number per length from 1 on; the
            last holds for all longer n-grams too. Empty keeps all n-grams.
        boundary: Token id that begins and ends every text.

    Returns:
        The model, normalised over all token ids; the boundary is the end of text.

    Raises:
        UserError: If there is no text, an id is not a label, or a number is out of its range.
    """
    if order < 1:
        raise UserError(f"the order of an n-gram model must be at least 1, not {order}")
    cutoffs = cut_offs(prune, order)
    counted = count_ngrams(texts, vocab_size=vocab_size, order=order, boundary=boundary)
    adjusted = [level.counts for level in counted]
    for at in range(order - 1):
        # No token precedes an n-gram that begins a text: its count stays. No unigram begins one,
        # since that of the boundary counts ends of texts.
        before = np.bincount(counted[at + 1].suffixes, minlength=len(adjusted[at]))
        adjusted[at] = np.where(counted[at].begins & (at > 0), adjusted[at], before)
    levels: list[Level] = []
    below = np.full(1, 1.0 / vocab_size)  # Probabilities of the level below.
    kept_rows = np.zeros(1, np.int64)  # Its n-grams that are not cut off,
    new_index = np.zeros(1, np.int64)  # and the index of each among them.
    for at, (level, amounts) in enumerate(zip(counted, adjusted, strict=True)):
        kept = level.counts > cutoffs[at] if at else np.ones(vocab_size, bool)
        # Discount of each n-gram, by its count of 1, 2, or 3 and more.
        discounts = _discounts(amounts)[np.minimum(amounts, 3)]
        total = np.bincount(level.prefixes, amounts, len(below))
        # Mass that the context gives away: the discounts of what is kept, and all of what is cut
        # off.
        freed = np.bincount(level.prefixes, np.where(kept, discounts, amounts), len(below))
        # A context that nothing follows backs off with weight one.
        backoffs = np.where(total > 0, freed / np.maximum(total, 1), 1.0)
        # The equation of P(w | h) above, interpolated: `below` is the distribution one token
        # shorter.
        probabilities = (amounts - discounts) / total[level.prefixes]
        probabilities += backoffs[level.prefixes] * below[level.suffixes]
        if at:
            weights = np.log(backoffs[kept_rows]).astype(np.float32)
            levels[-1] = dataclasses.replace(levels[-1], backoffs=weights)
        kept_rows = np.flatnonzero(kept)
        levels.append(
            Level(
                prefixes=new_index[level.prefixes[kept_rows]].astype(np.int32),
                tokens=level.tokens[kept_rows],
                suffixes=new_index[level.suffixes[kept_rows]].astype(np.int32),
                log_probs=np.log(probabilities[kept_rows]).astype(np.float32),
                backoffs=np.zeros(len(kept_rows), np.float32),
            )
        )
        # Of all n-grams, also of those cut off: longer ones interpolate with them. `new_index` of
        # an n-gram that is kept is its place among the kept.
        below, new_index = probabilities, np.cumsum(kept) - 1
    return BackoffModel(tuple(levels), boundary)


def cut_offs(prune: Sequence[int], order: int) -> tuple[int, ...]:
    """Returns one cut-off per length of n-grams.

    Raises:
        UserError: If cut-offs are negative or decrease, are more than `order`, or cut unigrams.
    """
    given = ",".join(str(number) for number in prune)
    if len(prune) > order:
        raise UserError(f"cut-offs {given} are for {len(prune)} lengths, but the order is {order}")
    numbers = tuple(prune) or (0,)
    if numbers[0] != 0 or any(a > b for a, b in itertools.pairwise(numbers)):
        raise UserError(
            f"cut-offs are {given}; they must begin with 0, for unigrams, and must not decrease"
        )
    return numbers + numbers[-1:] * (order - len(numbers))


def _discounts(amounts: np.ndarray) -> np.ndarray:
    """Computes the discounts of counts 0, 1, 2, and 3 or more, float64 `[4]`."""
    one, two, three, four = (float(np.count_nonzero(amounts == n)) for n in (1, 2, 3, 4))
    if one and two and three:
        # Y = n_1 / (n_1 + 2 n_2), and D_i = i - (i + 1) Y n_(i+1) / n_i, with n_i the number of
        # n-grams of count i (Chen and Goodman 1998).
        ratio = one / (one + 2 * two)
        discounts = (
            1 - 2 * ratio * two / one,
            2 - 3 * ratio * three / two,
            3 - 4 * ratio * four / three,
        )
        if all(0 < discount <= n for n, discount in enumerate(discounts, start=1)):
            return np.array((0.0, *discounts))
    return np.array((0.0, *FALLBACK))


BLOCK = 1 << 22
"""Number of tokens that are sorted at a time."""


@dataclasses.dataclass(frozen=True)
class Counts:
    """The counts of n-grams of one length, `[n-grams]`, sorted as in `backoff.Level`.

    Attributes:
        prefixes: Index of the n-gram without its last token in the level below, int32.
        tokens: The last token, int32.
        suffixes: Index of the n-gram without its first token in the level below, int32.
        begins: Whether the first token is the beginning of text, bool.
        counts: int64; 0 for unigrams that no text has.
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
    first: np.ndarray  # bool: the beginning of text
    ending: np.ndarray  # int32: index of the n-gram that ends here, -1 if there is none


class _Tally:
    """Counts keys; merges sorted runs once they are longer than what is merged already."""

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
    """Counts the n-grams of texts; no n-gram crosses the beginning of a text.

    Args:
        texts: Token ids of one text each, without the boundary.
        vocab_size: Number of token ids, the boundary included.
        order: Tokens of the longest n-gram.
        boundary: The token id that begins and ends every text.

    Returns:
        The counts of unigrams, bigrams and so on. Unigrams are all token ids in order, and that of
        the boundary counts ends of texts.

    Raises:
        UserError: If there is no text, or an id is not a label.
    """
    blocks = list(_blocks(texts, vocab_size, boundary))
    if not blocks:
        raise UserError("there is no text to estimate a language model from")
    all_tokens = np.arange(vocab_size, dtype=np.int32)
    zeros = np.zeros(vocab_size, np.int32)
    unigrams = np.zeros(vocab_size, np.int64)
    for block in blocks:
        unigrams += np.bincount(block.tokens[~block.first], minlength=vocab_size)
    levels = [Counts(zeros, all_tokens, zeros, all_tokens == boundary, unigrams)]
    keys: list[np.ndarray] = [all_tokens.astype(np.int64)]
    for length in range(2, order + 1):
        tally = _Tally()
        for block in blocks:
            tally.add(_grown(block, vocab_size)[1])
        grown, counts = tally.result()
        if sum(map(len, keys)) + len(grown) > LARGEST:
            raise UserError(
                f"a language model has at most {LARGEST} n-grams; take a lower order than {order}"
            )
        below = levels[-1]
        prefixes, tokens = np.divmod(grown, vocab_size)
        # The suffix of an n-gram is the suffix of its prefix, and the last token.
        if length == 2:
            suffixes = tokens
        else:
            suffixes = lookup(keys[-1], ngram_keys(below.suffixes[prefixes], tokens, vocab_size))
        if length < order:
            for block in blocks:
                where, key = _grown(block, vocab_size)
                block.ending = np.full(len(block.tokens), -1, np.int32)
                # The index of each n-gram in the sorted keys, to be extended by the next token.
                block.ending[where] = np.searchsorted(grown, key)
        levels.append(
            Counts(
                prefixes.astype(np.int32),
                tokens.astype(np.int32),
                suffixes.astype(np.int32),
                below.begins[prefixes],
                counts,
            )
        )
        keys.append(grown)
    return levels


def _grown(block: _Block, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the positions at which n-grams of one more token end, and their keys."""
    where = np.flatnonzero(~block.first[1:] & (block.ending[:-1] >= 0)) + 1
    return where, ngram_keys(block.ending[where - 1], block.tokens[where], vocab_size)


def _blocks(texts: Iterable[Sequence[int]], vocab_size: int, boundary: int) -> Iterator[_Block]:
    """Yields blocks of whole texts, with the unigrams that end at their positions."""
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
    # Labels alone: neither a first boundary nor the one before the next text.
    inner = ~first & ~np.append(first[1:], True)
    wrong = tokens[inner & ((tokens == boundary) | (tokens < 0) | (tokens >= vocab_size))]
    if len(wrong):
        raise UserError(
            f"token {wrong[0]} is no label of a vocabulary of {vocab_size} with blank {boundary}"
        )
    tokens = tokens.astype(np.int32)
    return _Block(tokens, first, tokens.copy())

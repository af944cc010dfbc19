"""Represents n-gram models in back-off form, as sorted arrays on the host.

This is the model of an ARPA file: log-probabilities of listed n-grams, a weight for every context,
and Katz's recursion (1987) for all other n-grams,

    log P(w | h) = log P of the n-gram h w             where it is listed,
                   backoff(h) + log P(w | h without its first token)  otherwise,

with a weight of 0 (of log 1) for a context that is not listed. The n-grams of one length are a
`Level`, sorted by the index of their prefix in the level below and then by their last token. The
levels are a trie in breadth-first order, in which the continuations of a context are neighbours.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from maestro_jax.errors import UserError

LARGEST = (1 << 31) - 1
"""Largest number of n-grams of all lengths together: indices are int32."""


@dataclasses.dataclass(frozen=True)
class Level:
    """The n-grams of one length, `[n-grams]`, sorted by prefix and token.

    Attributes:
        prefixes: Index of the n-gram without its last token in the level below, int32.
        tokens: The last token, int32.
        suffixes: Index of the n-gram without its first token in the level below, int32.
        log_probs: Natural log-probability of the last token after the others, float32.
        backoffs: Natural logarithm of the n-gram's weight as a context, float32.
    """

    prefixes: np.ndarray
    tokens: np.ndarray
    suffixes: np.ndarray
    log_probs: np.ndarray
    backoffs: np.ndarray

    def __len__(self) -> int:
        return len(self.tokens)


@dataclasses.dataclass(frozen=True)
class BackoffModel:
    """An n-gram model; the first level has every token, in order.

    Attributes:
        levels: Unigrams to longest n-grams. The prefix and the suffix of every n-gram are in the
            level below.
        boundary: The token that begins a text, as a context, and ends it, as the next token.
    """

    levels: tuple[Level, ...]
    boundary: int = 0

    @property
    def order(self) -> int:
        """Returns the number of tokens of the longest n-gram."""
        return len(self.levels)

    @property
    def vocab_size(self) -> int:
        """Returns the number of tokens."""
        return len(self.levels[0])

    @property
    def counts(self) -> tuple[int, ...]:
        """Returns the number of n-grams of each length."""
        return tuple(len(level) for level in self.levels)

    @functools.cached_property
    def _keys(self) -> tuple[np.ndarray, ...]:
        return tuple(
            ngram_keys(level.prefixes, level.tokens, self.vocab_size) for level in self.levels
        )

    def extended(self, vocab_size: int, like: int) -> BackoffModel:
        """Adds tokens to the vocabulary, each as likely as a given one and in no longer n-gram.

        Args:
            vocab_size: Number of tokens of the result, at least that of the model.
            like: The given token.
        """
        added = vocab_size - self.vocab_size
        tokens, zeros = np.arange(vocab_size, dtype=np.int32), np.zeros(vocab_size, np.int32)
        unigrams = self.levels[0]
        log_probs = np.append(unigrams.log_probs, np.repeat(unigrams.log_probs[like], added))
        backoffs = np.append(unigrams.backoffs, np.zeros(added, np.float32))
        first = Level(zeros, tokens, zeros, log_probs, backoffs)
        return dataclasses.replace(self, levels=(first, *self.levels[1:]))

    def find(self, tokens: Sequence[int]) -> int:
        """Returns the index of an n-gram in its level, -1 if it is not listed; 0 for no tokens."""
        index = 0
        for length, token in enumerate(tokens):
            keys = self._keys[length]
            key = np.int64(index * self.vocab_size + token)
            index = int(np.searchsorted(keys, key))
            if index == len(keys) or keys[index] != key:
                return -1
        return index

    def log_prob(self, history: Sequence[int], token: int) -> float:
        """Computes the natural log-probability of a token after a history.

        Args:
            history: The tokens before, with the boundary first if they begin a text.
            token: The next token; the boundary is the end of text.
        """
        # At most order - 1 tokens of history matter.
        history = tuple(history)[max(0, len(history) + 1 - self.order) :]
        backoff = 0.0
        while history:
            ngram = self.find((*history, token))
            if ngram >= 0:
                return backoff + float(self.levels[len(history)].log_probs[ngram])
            # A context that is not listed has weight log 1 = 0.
            context = self.find(history)
            if context >= 0:
                backoff += float(self.levels[len(history) - 1].backoffs[context])
            history = history[1:]
        return backoff + float(self.levels[0].log_probs[token])

    def text_log_prob(self, tokens: Sequence[int]) -> float:
        """Computes the natural log-probability of a text, its end included."""
        text = [self.boundary, *tokens, self.boundary]
        return sum(
            self.log_prob(text[max(0, at + 1 - self.order) : at], text[at])
            for at in range(1, len(text))
        )


def ngram_keys(prefixes: np.ndarray, tokens: np.ndarray, vocab_size: int) -> np.ndarray:
    """Computes numbers that order n-grams by prefix and token, int64 of the arguments' shape."""
    return prefixes.astype(np.int64) * vocab_size + tokens


def lookup(keys: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Returns the indices of `queries` in sorted `keys`, -1 if absent; int64 `[len(queries)]`."""
    if not len(keys):
        return np.full(len(queries), -1, np.int64)
    index = np.minimum(np.searchsorted(keys, queries), len(keys) - 1)
    return np.where(keys[index] == queries, index, -1)


@dataclasses.dataclass(frozen=True)
class Ngrams:
    """N-grams of one length in any order, as a file lists them.

    Attributes:
        tokens: int32 `[n-grams, length]`.
        log_probs: Natural log-probabilities, float32 `[n-grams]`; NaN stands for the value that
            backing off gives.
        backoffs: Natural logarithms of weights, float32 `[n-grams]`.
    """

    tokens: np.ndarray
    log_probs: np.ndarray
    backoffs: np.ndarray


def build(
    unigrams: Ngrams,
    longer: Sequence[Ngrams],
    *,
    boundary: int = 0,
    origin: str = "the language model",
) -> BackoffModel:
    """Builds a model from unsorted n-grams.

    Pruned models lack prefixes or suffixes of n-grams that they list. Such n-grams are added with
    the probability that backing off gives and a weight of 0, which changes no probability.

    Args:
        unigrams: Every token, in order.
        longer: Bigrams, trigrams and so on.
        boundary: The token at both ends of a text.
        origin: Name of the source, for error messages.

    Raises:
        UserError: If an n-gram is listed twice, or there are too many.
    """
    vocab_size = len(unigrams.tokens)
    listed = [unigrams, *longer]
    if sum(len(one.tokens) for one in listed) > LARGEST:
        raise UserError(f"{origin} has more than {LARGEST} n-grams; prune it")
    while True:
        levels, missing = _levels(listed, vocab_size, origin)
        if not missing:
            return BackoffModel(levels, boundary)
        for length, rows in missing.items():
            old, new = listed[length - 1], np.unique(np.concatenate(rows), axis=0)
            listed[length - 1] = Ngrams(
                np.concatenate([old.tokens, new]),
                np.concatenate([old.log_probs, np.full(len(new), np.nan, np.float32)]),
                np.concatenate([old.backoffs, np.zeros(len(new), np.float32)]),
            )


def _levels(
    listed: Sequence[Ngrams], vocab_size: int, origin: str
) -> tuple[tuple[Level, ...], dict[int, list[np.ndarray]]]:
    """Builds the levels; or returns the prefixes and suffixes that are missing, by length."""
    all_tokens = np.arange(vocab_size, dtype=np.int32)
    zeros = np.zeros(vocab_size, np.int32)
    levels = [Level(zeros, all_tokens, zeros, listed[0].log_probs, listed[0].backoffs)]
    keys = [all_tokens.astype(np.int64)]
    missing: dict[int, list[np.ndarray]] = {}
    for length in range(2, len(listed) + 1):
        rows = listed[length - 1].tokens
        indices = []
        for part in (rows[:, :-1], rows[:, 1:]):  # Prefixes and suffixes.
            # The index of the first token, then of the first two and so on.
            index = part[:, 0].astype(np.int64)
            for at in range(1, length - 1):
                present = np.flatnonzero(index >= 0)
                queries = ngram_keys(index[present], part[present, at], vocab_size)
                index[present] = lookup(keys[at], queries)
                absent = present[index[present] < 0]
                if len(absent):
                    missing.setdefault(at + 1, []).append(part[absent, : at + 1])
            indices.append(index)
        if missing:
            # The levels above cannot be numbered until those below are complete.
            break
        prefixes, suffixes = indices
        unsorted = ngram_keys(prefixes, rows[:, -1], vocab_size)
        order = np.argsort(unsorted, kind="stable")
        key = unsorted[order]
        twice = np.flatnonzero(key[1:] == key[:-1])
        if len(twice):
            names = " ".join(str(token) for token in rows[order[twice[0]]])
            raise UserError(
                f"{origin} lists {len(twice)} n-grams of {length} tokens twice, such as that of "
                f"the ids {names}; write the file again"
            )
        log_probs = listed[length - 1].log_probs[order]
        prefixes, suffixes = prefixes[order].astype(np.int32), suffixes[order].astype(np.int32)
        below = levels[-1]
        # An n-gram that was added has the probability that backing off would give it: its listing
        # changes nothing. The suffix may have been added too, in the level below, and has its value
        # by now.
        backed_off = below.backoffs[prefixes] + below.log_probs[suffixes]
        levels.append(
            Level(
                prefixes=prefixes,
                tokens=rows[order, -1],
                suffixes=suffixes,
                log_probs=np.where(np.isnan(log_probs), backed_off, log_probs),
                backoffs=listed[length - 1].backoffs[order],
            )
        )
        keys.append(key)
    return tuple(levels), missing

"""Modified Kneser-Ney smoothing, interpolated, with count cut-offs.

Chen and Goodman 1998 (TR-10-98, section 3); estimated as KenLM's lmplz does it (Heafield et al.
2013). With ``a(h w)`` how often the longest n-grams were seen, and of shorter ones how many
different tokens were seen before them (how often, where the n-gram begins a text),

    P(w | h) = (a(h w) - D(a(h w))) / A(h) + backoff(h) P(w | h without its first token)
    backoff(h) = sum of the discounts of what follows h / A(h),  A(h) = sum of a(h w) over w

down to the uniform distribution over the vocabulary. A discount is chosen for counts of one, two,
and three or more, from the counts of counts of its order. What a cut-off takes away goes to the
back-off weight of its context, so that every distribution still sums to one.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Sequence

import numpy as np

from maestro_jax.decoding.backoff import BackoffModel, Level
from maestro_jax.decoding.ngram_counts import count_ngrams
from maestro_jax.errors import UserError

FALLBACK = (0.5, 1.0, 1.5)
"""Discounts where a text is too small, or too regular, to have counts of counts."""


def estimate(
    texts: Iterable[Sequence[int]],
    *,
    vocab_size: int,
    order: int,
    prune: Sequence[int] = (),
    boundary: int = 0,
) -> BackoffModel:
    """Counts and smooths.

    Args:
        texts: Token ids of one text each, without the boundary.
        vocab_size: Number of token ids, the boundary included.
        order: Tokens of the longest n-gram; 1 knows no context.
        prune: N-grams that were seen so often or less are left out, for each length from 1; the
            last number counts for all longer ones. Empty keeps all.
        boundary: The token id that begins and ends every text.

    Returns:
        The model, normalised over all token ids; the boundary's is the end of a text.

    Raises:
        UserError: There is no text, an id is not a label, or a number is out of its range.
    """
    if order < 1:
        raise UserError(f"the order of an n-gram model must be at least 1, not {order}")
    cutoffs = cut_offs(prune, order)
    counted = count_ngrams(texts, vocab_size=vocab_size, order=order, boundary=boundary)
    adjusted = [level.counts for level in counted]
    for at in range(order - 1):
        # Nothing comes before what begins a text. Unigrams have no beginning among them.
        before = np.bincount(counted[at + 1].suffixes, minlength=len(adjusted[at]))
        adjusted[at] = np.where(counted[at].begins & (at > 0), adjusted[at], before)
    levels: list[Level] = []
    below = np.full(1, 1.0 / vocab_size)  # Probabilities of the suffixes of unigrams.
    above = np.zeros(1, np.int64)  # The n-grams of the level below that are kept,
    number = np.zeros(1, np.int64)  # and the new index of each.
    for at, (level, amounts) in enumerate(zip(counted, adjusted, strict=True)):
        kept = level.counts > cutoffs[at] if at else np.ones(vocab_size, bool)
        discounts = _discounts(amounts)[np.minimum(amounts, 3)]
        total = np.bincount(level.prefixes, amounts, len(below))
        freed = np.bincount(level.prefixes, np.where(kept, discounts, amounts), len(below))
        # A context that nothing follows hands everything down.
        backoffs = np.where(total > 0, freed / np.maximum(total, 1), 1.0)
        probabilities = (amounts - discounts) / total[level.prefixes]
        probabilities += backoffs[level.prefixes] * below[level.suffixes]
        if at:
            weights = np.log(backoffs[above]).astype(np.float32)
            levels[-1] = dataclasses.replace(levels[-1], backoffs=weights)
        above = np.flatnonzero(kept)
        levels.append(
            Level(
                prefixes=number[level.prefixes[above]].astype(np.int32),
                tokens=level.tokens[above],
                suffixes=number[level.suffixes[above]].astype(np.int32),
                log_probs=np.log(probabilities[above]).astype(np.float32),
                backoffs=np.zeros(len(above), np.float32),
            )
        )
        below, number = probabilities, np.cumsum(kept) - 1
    return BackoffModel(tuple(levels), boundary)


def cut_offs(prune: Sequence[int], order: int) -> tuple[int, ...]:
    """A cut-off for each length of n-grams.

    Raises:
        UserError: They are negative or fall, there are more than lengths, or unigrams are cut.
    """
    said = ",".join(str(number) for number in prune)
    if len(prune) > order:
        raise UserError(f"cut-offs {said} are for {len(prune)} lengths, and the order is {order}")
    numbers = tuple(prune) or (0,)
    if numbers[0] != 0 or any(a > b for a, b in itertools.pairwise(numbers)):
        raise UserError(
            f"cut-offs must begin with 0, as no unigram can be left out, and must not fall: {said}"
        )
    return numbers + numbers[-1:] * (order - len(numbers))


def _discounts(amounts: np.ndarray) -> np.ndarray:
    """The discounts of amounts 0, 1, 2, and 3 or more, float64 `[4]`."""
    one, two, three, four = (float(np.count_nonzero(amounts == n)) for n in (1, 2, 3, 4))
    if one and two and three:
        share = one / (one + 2 * two)
        found = (
            1 - 2 * share * two / one,
            2 - 3 * share * three / two,
            3 - 4 * share * four / three,
        )
        if all(0 < discount <= n for n, discount in enumerate(found, start=1)):
            return np.array((0.0, *found))
    return np.array((0.0, *FALLBACK))

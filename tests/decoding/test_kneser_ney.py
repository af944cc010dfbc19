"""Modified Kneser-Ney against its formulas over plain tuples, in float64."""

from __future__ import annotations

import collections
import itertools

import numpy as np
import pytest

from maestro_jax.decoding import kneser_ney
from maestro_jax.decoding.kneser_ney import count_ngrams
from maestro_jax.errors import UserError

VOCAB = 6
RNG = np.random.default_rng(0)
TEXTS = [tuple(RNG.zipf(1.7, RNG.integers(0, 9)) % (VOCAB - 1) + 1) for _ in range(80)]


def seen(texts, length):
    """How often every n-gram of a length was seen; the boundary is 0."""
    rows = [(0, *text, 0) for text in texts]
    return collections.Counter(
        row[at : at + length]
        for row in rows
        for at in range(len(row) - length + 1)
        if length > 1 or at > 0  # The beginning alone is no n-gram.
    )


def adjusted(texts, length, order):
    """Counts of the longest n-grams, and of what begins a text; else kinds of tokens before."""
    counts = seen(texts, length)
    if length == order:
        return counts
    before = collections.Counter(ngram[1:] for ngram in seen(texts, length + 1))
    begins = {n: c for n, c in counts.items() if n[0] == 0 and length > 1}
    return collections.Counter({**before, **begins})


def slow(texts, order, prune, history, token):
    """P(token | history) by the recursion of the method."""
    length = len(history) + 1
    amounts, counts = adjusted(texts, length, order), seen(texts, length)
    kinds = collections.Counter(amounts.values())
    n1, n2, n3, n4 = (kinds[n] for n in (1, 2, 3, 4))
    discounts = [0, 0.5, 1.0, 1.5]
    if n1 and n2 and n3:
        y = n1 / (n1 + 2 * n2)
        found = [0, 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3]
        if all(0 < d <= n for n, d in zip((1, 2, 3), found[1:], strict=True)):
            discounts = found
    cut = [*prune, *[prune[-1]] * order][length - 1] if prune else 0
    below = slow(texts, order, prune, history[1:], token) if history else 1 / VOCAB
    after = {n: a for n, a in amounts.items() if n[:-1] == history}
    if not after:
        return below
    total = sum(after.values())
    kept = {n for n in after if counts[n] > cut}
    freed = sum(discounts[min(a, 3)] if n in kept else a for n, a in after.items())
    ngram = (*history, token)
    own = after[ngram] - discounts[min(after[ngram], 3)] if ngram in kept else 0
    return (own + freed * below) / total


@pytest.mark.parametrize("prune", [(), (0, 0, 1), (0, 1, 2)])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_against_the_formulas(order, prune):
    prune = prune[:order]
    model = kneser_ney.estimate(TEXTS, vocab_size=VOCAB, order=order, prune=prune)
    assert model.order == order
    for inner in [(), (1,), (2, 1), (5, 5, 5), (1, 1, 2), (3, 2, 1, 1)]:
        history = (0, *inner)[max(0, len(inner) + 2 - order) :] if order > 1 else ()
        got = [np.exp(model.log_prob((0, *inner), token)) for token in range(VOCAB)]
        want = [slow(TEXTS, order, prune, history, token) for token in range(VOCAB)]
        np.testing.assert_allclose(got, want, rtol=1e-5)
        np.testing.assert_allclose(sum(want), 1.0, rtol=1e-12)


def test_counts_in_blocks_are_counts(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(kneser_ney, "BLOCK", 16)
    shorter: list[tuple[int, ...]] = []
    for length, level in enumerate(count_ngrams(TEXTS, vocab_size=VOCAB, order=4), start=1):
        if length == 1:
            ngrams = [(token,) for token in range(VOCAB)]
        else:
            ngrams = [(*shorter[p], t) for p, t in zip(level.prefixes, level.tokens, strict=True)]
            assert ngrams == sorted(ngrams)
            assert [shorter[s] for s in level.suffixes] == [n[1:] for n in ngrams]
        want = seen(TEXTS, length)
        assert {n: c for n, c in zip(ngrams, level.counts, strict=True) if c} == want
        shorter = ngrams


def test_cut_offs_leave_out_what_was_seen_so_often():
    whole = kneser_ney.estimate(TEXTS, vocab_size=VOCAB, order=3)
    cut = kneser_ney.estimate(TEXTS, vocab_size=VOCAB, order=3, prune=(0, 0, 2))
    counts = seen(TEXTS, 3)
    assert whole.counts == (VOCAB, len(seen(TEXTS, 2)), len(counts))
    assert cut.counts == (*whole.counts[:2], sum(c > 2 for c in counts.values()))


@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        ([], {}, "no text"),
        ([[1, 0]], {}, "token 0 is no label"),
        ([[9]], {}, "token 9 is no label of a vocabulary of 6"),
        ([[-1]], {}, "token -1 is no label"),
        ([[1]], {"order": 0}, "at least 1, not 0"),
        ([[1]], {"prune": (1,)}, "begin with 0"),
        ([[1]], {"prune": (0, 2, 1)}, "are 0,2,1; .* must not decrease"),
        ([[1]], {"prune": (0, 0, 0, 1)}, "4 lengths, but the order is 3"),
    ],
)
def test_bad_input_is_one_clear_line(texts, options, message):
    with pytest.raises(UserError, match=message) as error:
        kneser_ney.estimate(texts, **({"vocab_size": VOCAB, "order": 3} | options))
    assert "\n" not in str(error.value)


def test_texts_too_regular_for_counts_of_counts():
    """Every n-gram was seen equally often: the discounts fall back, and all sums to one."""
    model = kneser_ney.estimate([[1, 2, 3]] * 5, vocab_size=VOCAB, order=3)
    for history in itertools.product(range(VOCAB), repeat=2):
        total = sum(np.exp(model.log_prob(history, token)) for token in range(VOCAB))
        np.testing.assert_allclose(total, 1.0, rtol=1e-6)
    assert model.log_prob((1, 2), 3) > np.log(0.8)

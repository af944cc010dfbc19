"""The n-gram model against counts by hand and a recursion over plain tuples."""

from __future__ import annotations

import collections
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maestro_jax.decoding.ngram import NgramLm
from maestro_jax.errors import UserError

VOCAB = 5


def log_probability(lm, text):
    """Of a text with its end, and of every next token on the way, `[steps, vocab]`."""
    state, seen = lm.initial_state(1), []
    for label in (0, *text):
        scores, state = lm.score(state, jnp.asarray([label]))
        seen.append(np.asarray(scores[0]))
    return np.stack(seen)


def slow(texts, order, history, token):
    """Witten-Bell by recursion over the history, shortest last."""
    counts = collections.Counter()
    for text in texts:
        tokens = (0, *text, 0)
        for at in range(1, len(tokens)):
            if at >= len(history) and tokens[at - len(history) : at] == history:
                counts[tokens[at]] += 1
    below = slow(texts, order, history[1:], token) if history else 1 / VOCAB
    if not counts:
        return below
    kinds, total = len(counts), sum(counts.values())
    return (counts[token] + kinds * below) / (total + kinds)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_against_a_recursion_over_every_text(order):
    rng = np.random.default_rng(0)
    texts = [tuple(rng.integers(1, VOCAB, size=rng.integers(0, 6)).tolist()) for _ in range(7)]
    lm = NgramLm.estimate(texts, vocab_size=VOCAB, order=order)
    for text in itertools.product(range(1, VOCAB), repeat=3):
        steps = log_probability(lm, text)
        for at, scores in enumerate(steps):
            history = (0, *text[:at])[max(0, at + 2 - order) :] if order > 1 else ()
            want = [slow(texts, order, history, token) for token in range(VOCAB)]
            np.testing.assert_allclose(np.exp(scores), want, rtol=1e-5)
            np.testing.assert_allclose(np.exp(scores).sum(), 1.0, rtol=1e-5)


def test_counts_by_hand():
    """Once "1 2" and once "1": after 1, which was seen twice, come 2 and the end."""
    lm = NgramLm.estimate([[1, 2], [1]], vocab_size=4, order=2)
    # Unigrams: 1 twice, 2 once, the end twice: five tokens of three kinds.
    unigram = {1: (2 + 3 / 4) / 8, 2: (1 + 3 / 4) / 8, 0: (2 + 3 / 4) / 8, 3: (3 / 4) / 8}
    after_1 = np.exp(log_probability(lm, [1])[1])
    np.testing.assert_allclose(after_1[2], (1 + 2 * unigram[2]) / 4, rtol=1e-6)
    np.testing.assert_allclose(after_1[0], (1 + 2 * unigram[0]) / 4, rtol=1e-6)
    np.testing.assert_allclose(after_1[3], 2 * unigram[3] / 4, rtol=1e-6)


def test_it_is_an_argument_of_a_jitted_function():
    traces = []

    @jax.jit
    def first(lm):
        traces.append(1)
        return lm.score(lm.initial_state(2), jnp.zeros(2, int))[0]

    for text in ([1, 2, 3], [3, 2, 1]):
        lm = NgramLm.estimate([text], vocab_size=4, order=3)
        scores = first(lm)
        assert scores.shape == (2, 4) and int(np.argmax(scores[0])) == text[0]
    assert len(traces) == 1


@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        ([], {}, "no text"),
        ([[1, 0]], {}, "token 0 is no label"),
        ([[9]], {}, "token 9 is no label of a vocabulary of 5"),
        ([[1]], {"order": 0}, "at least 1, not 0"),
        ([[1, 2]], {"vocab_size": 1 << 26}, "larger than"),
    ],
)
def test_bad_input_is_one_clear_line(texts, options, message):
    with pytest.raises(UserError, match=message) as error:
        NgramLm.estimate(texts, **({"vocab_size": VOCAB} | options))
    assert "\n" not in str(error.value)

"""The tables on the device against the recursion of the back-off model."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from maestro_jax.decoding import kneser_ney
from maestro_jax.decoding.ngram import NgramLm

VOCAB = 7
RNG = np.random.default_rng(0)
TEXTS = [tuple(RNG.integers(1, VOCAB, size=RNG.integers(0, 9)).tolist()) for _ in range(50)]


def scores_along(lm, texts):
    """Of every next token at each step of texts of one length, `[texts, steps, vocab]`."""
    labels = np.pad(np.asarray(texts, np.int32), ((0, 0), (1, 0)))
    state, seen = lm.initial_state(len(labels)), []
    for column in labels.T:
        scores, state = lm.score(state, jnp.asarray(column))
        seen.append(np.asarray(scores))
    return np.stack(seen, axis=1)


# Nothing is dense but the empty context; the contexts of one token; all of them.
@pytest.mark.parametrize("dense", [1, VOCAB * (VOCAB + 1), 1 << 20])
@pytest.mark.parametrize(("order", "prune"), [(1, ()), (2, ()), (3, (0, 1)), (4, (0, 0, 0, 1))])
def test_it_is_the_recursion(order, prune, dense):
    model = kneser_ney.estimate(TEXTS, vocab_size=VOCAB, order=order, prune=prune)
    lm = NgramLm.from_model(model, dense=dense)
    texts = list(itertools.product(range(1, VOCAB), repeat=5))[::311]
    got = scores_along(lm, texts)
    want = [
        [
            [model.log_prob((0, *text[:at]), token) for token in range(VOCAB)]
            for at in range(len(text) + 1)
        ]
        for text in texts
    ]
    np.testing.assert_allclose(got, want, atol=2e-6)
    np.testing.assert_allclose(np.exp(got).sum(axis=2), 1.0, rtol=1e-5)


def test_contexts_with_more_continuations_than_are_written_at_a_time():
    """500 tokens after every one of them, of which the last are not to be forgotten."""
    vocab = 600
    texts = [[1, token] for token in range(2, 502)]
    model = kneser_ney.estimate(texts, vocab_size=vocab, order=3)
    lm = NgramLm.from_model(model, dense=1)
    assert lm.widest >= 500
    (steps,) = scores_along(lm, [[1, 501]])
    for at, history in enumerate([(0,), (0, 1), (1, 501)]):
        want = [model.log_prob(history, token) for token in range(vocab)]
        np.testing.assert_allclose(steps[at], want, atol=2e-6)


def test_its_size_is_that_of_the_ngrams():
    """6 bytes for an n-gram, 12 more for one that is a context, and what is dense."""
    vocab, dense = 300, 301 * 300
    texts = [RNG.integers(1, vocab, size=20).tolist() for _ in range(200)]
    model = kneser_ney.estimate(texts, vocab_size=vocab, order=4)
    lm = NgramLm.from_model(model, dense=dense)
    contexts = 1 + sum(model.counts[:-1])
    assert lm.nbytes == 6 * sum(model.counts) + 12 * contexts + 4 + 4 * dense
    # A table of contexts times tokens takes hundreds of times as much.
    assert lm.nbytes * 20 < 8 * contexts * vocab


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


def test_another_blank_begins_and_ends_texts():
    lm = NgramLm.estimate([[0, 1], [0, 1, 1]], vocab_size=4, order=2, blank_id=3)
    scores, state = lm.score(lm.initial_state(1), jnp.asarray([3]))
    assert int(np.argmax(scores[0])) == 0
    for label in (0, 1):
        scores, state = lm.score(state, jnp.asarray([label]))
    assert float(scores[0, 3]) > float(scores[0, 0])


@pytest.mark.skipif(jax.device_count() < 8, reason="needs eight (CPU) devices")
def test_rows_that_are_split_over_devices_stay_split():
    """The tables are on every device, and only the longest list of continuations is agreed on."""
    model = kneser_ney.estimate(TEXTS, vocab_size=VOCAB, order=4)
    mesh = Mesh(np.array(jax.devices()[:8]), ("data",))
    whole, split = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), ("data",)))
    lm = jax.device_put(NgramLm.from_model(model, dense=1), whole)
    rows = jax.device_put(jnp.zeros(16, jnp.int32), split)
    compiled = jax.jit(lambda lm, rows: lm.score(rows, rows)).lower(lm, rows).compile()
    text = compiled.as_text()
    assert "all-reduce" in text
    assert not any(moved in text for moved in ("all-gather", "all-to-all", "collective-permute"))
    for sharding in jax.tree.leaves(compiled.output_shardings):
        assert sharding.spec == PartitionSpec("data")

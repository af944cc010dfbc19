"""CTC searches against every path there is."""

from __future__ import annotations

import functools
import itertools
from collections import defaultdict

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maestro_jax.decoding.ctc import ctc_beam_search, ctc_greedy
from maestro_jax.decoding.fusion import Fusion
from maestro_jax.decoding.ngram import NgramLm

VOCAB, FRAMES, ROOM = 3, 5, 5
LENGTHS = np.asarray([5, 3, 0, 4], np.int32)


def collapse(path):
    return tuple(symbol for symbol, _ in itertools.groupby(path) if symbol)


@pytest.fixture(scope="module")
def log_probs():
    logits = np.random.default_rng(3).normal(size=(4, FRAMES, VOCAB), scale=1.5)
    found = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
    # Nothing may be read behind the last frame.
    return np.where(np.arange(FRAMES)[:, None] < LENGTHS[:, None, None], found, np.nan)


@pytest.fixture(scope="module")
def texts(log_probs):
    """Of each row, log-probability and likeliest path of every text, in float64."""
    rows = []
    for row, length in enumerate(LENGTHS):
        paths = defaultdict(list)
        for path in itertools.product(range(VOCAB), repeat=int(length)):
            score = sum(log_probs[row, t, symbol] for t, symbol in enumerate(path))
            paths[collapse(path)].append((score, path))
        rows.append(
            {
                text: (np.logaddexp.reduce([score for score, _ in found]), max(found))
                for text, found in paths.items()
            }
        )
    return rows


def beam_search(log_probs, lengths=LENGTHS, **options):
    options = {"max_labels": ROOM, **options}
    function = jax.jit(functools.partial(ctc_beam_search, **options))
    return function(jnp.asarray(log_probs, jnp.float32), jnp.asarray(lengths))


@pytest.fixture(scope="module")
def wide(log_probs):
    return beam_search(log_probs, beam_size=40)


def text_of(found, row, place):
    return tuple(found.tokens[row, place, : found.lengths[row, place]].tolist())


def test_a_beam_that_holds_everything_is_exact(wide, texts):
    for row, expected in enumerate(texts):
        ranked = sorted(expected, key=lambda text: -expected[text][0])
        assert np.isfinite(wide.scores[row]).sum() == len(ranked)
        for place, text in enumerate(ranked):
            assert text_of(wide, row, place) == text
            score, (_, path) = expected[text]
            np.testing.assert_allclose(wide.scores[row, place], score, atol=1e-5)
            begins = [t for t, s in enumerate(path) if s and (t == 0 or path[t - 1] != s)]
            np.testing.assert_array_equal(wide.frames[row, place, : len(text)], begins)
    assert not wide.truncated.any()


def test_what_a_small_beam_keeps_is_a_lower_bound(log_probs, texts):
    found = beam_search(log_probs, beam_size=3)
    for row, expected in enumerate(texts):
        for place in range(3):
            if np.isfinite(found.scores[row, place]):
                assert found.scores[row, place] <= expected[text_of(found, row, place)][0] + 1e-5
        assert np.all(np.diff(found.scores[row][np.isfinite(found.scores[row])]) <= 0)


def test_rows_are_heard_as_they_are_alone(log_probs, wide):
    alone = beam_search(log_probs[1:2, :3], LENGTHS[1:2], beam_size=40)
    np.testing.assert_array_equal(alone.tokens[0, :9], wide.tokens[1, :9])
    np.testing.assert_allclose(alone.scores[0], wide.scores[1], atol=1e-6)


def test_fusion_ranks_and_leaves_the_scores(log_probs, texts):
    lm = NgramLm.estimate([[1, 2], [2, 1, 2], [2]], vocab_size=VOCAB, order=2)
    fusion = Fusion(lm=lm, weight=0.7, length_bonus=0.4)
    found = beam_search(log_probs, beam_size=40, fusion=fusion)

    def language(text):
        state, total = lm.initial_state(1), 0.0
        for label, following in zip((0, *text), (*text, 0), strict=True):
            scores, state = lm.score(state, jnp.asarray([label]))
            total += float(scores[0, following])
        return 0.7 * total + 0.4 * len(text)

    row = 3
    expected = {text: score + language(text) for text, (score, _) in texts[row].items()}
    ranked = sorted(expected, key=lambda text: -expected[text])
    for place, text in enumerate(ranked[:12]):
        assert text_of(found, row, place) == text
        np.testing.assert_allclose(found.fused_scores[row, place], expected[text], atol=1e-4)
        np.testing.assert_allclose(found.scores[row, place], texts[row][text][0], atol=1e-5)


def test_greedy_takes_the_likeliest_symbols(log_probs):
    found = jax.jit(functools.partial(ctc_greedy, max_labels=ROOM))(log_probs, LENGTHS)
    for row, length in enumerate(LENGTHS):
        path = log_probs[row, :length].argmax(-1) if length else np.zeros(0, int)
        best = log_probs[row, :length].max(-1) if length else np.zeros(0)
        begins = [t for t, s in enumerate(path) if s and (t == 0 or path[t - 1] != s)]
        count = len(begins)
        assert found.lengths[row] == count
        np.testing.assert_array_equal(found.tokens[row, :count], path[begins])
        np.testing.assert_array_equal(found.tokens[row, count:], 0)
        np.testing.assert_array_equal(found.frames[row, :count], begins)
        np.testing.assert_allclose(found.token_scores[row, :count], best[begins], rtol=1e-6)
        np.testing.assert_allclose(found.scores[row], best.sum(), rtol=1e-5)
    assert not found.truncated.any()


def test_who_wants_more_room_is_cut_and_marked():
    """Labels 1 2 1 2 1 are near certain, with room for three."""
    certain = np.full((1, 5, 3), -9.0)
    certain[0, np.arange(5), [1, 2, 1, 2, 1]] = -0.001
    greedy = ctc_greedy(jnp.asarray(certain), jnp.asarray([5]), max_labels=3)
    np.testing.assert_array_equal(greedy.tokens[0], [1, 2, 1])
    assert greedy.truncated[0]
    np.testing.assert_allclose(greedy.scores[0], 3 * -0.001 - 18.0, rtol=1e-5)
    beam = beam_search(certain, [5], beam_size=2, max_labels=3)
    assert beam.truncated[0, 0]
    assert beam.lengths[0, 0] == 3


def test_what_cannot_be_searched(log_probs):
    with pytest.raises(ValueError, match="not 0"):
        beam_search(log_probs, beam_size=0)
    with pytest.raises(ValueError, match="internal language model"):
        beam_search(log_probs, beam_size=1, fusion=Fusion(internal_weight=0.1))

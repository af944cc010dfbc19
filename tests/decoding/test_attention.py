"""Beam search of an attention decoder against every text there is."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maestro_jax.decoding.attention import attention_decode
from maestro_jax.decoding.fusion import Fusion
from maestro_jax.decoding.ngram import NgramLm

VOCAB, ROOM, ROWS = 4, 3, 3
END = 1
# log P(next | last two tokens), another table a row.
TABLES = np.random.default_rng(5).normal(size=(ROWS, VOCAB, VOCAB, VOCAB), scale=1.5)


def step(tokens, position, past):
    """A decoder that remembers one token; its past is what the search must hand on."""
    tables = jnp.asarray(TABLES, jnp.float32)
    logits = tables[jnp.arange(len(tokens))[:, None], past, tokens]
    return logits, tokens


def search(rows=ROWS, present=None, *, beam_size, **options):
    options = {"max_labels": ROOM, "length_alpha": 0.8, **options}
    present = jnp.ones(rows, bool) if present is None else jnp.asarray(present)
    past = jnp.zeros((rows, beam_size), jnp.int32)
    function = functools.partial(attention_decode, step, beam_size=beam_size, **options)
    return jax.jit(function)(past, present)


def every_text(row, room=ROOM):
    """`{text: (log-probability with its end, log-probabilities of its tokens)}` in float64."""
    log_p = TABLES[row] - np.logaddexp.reduce(TABLES[row], axis=-1, keepdims=True)
    found = {}
    for length in range(room + 1):
        for text in itertools.product([2, 3], repeat=length):
            read = (0, 0, *text)
            arcs = [
                log_p[before, last, following]
                for before, last, following in zip(read, read[1:], (*text, END), strict=False)
            ]
            found[text] = (sum(arcs), arcs[:-1])
    return found


def text_of(found, row, place):
    return tuple(found.tokens[row, place, : found.lengths[row, place]].tolist())


def rank(score, text, alpha=0.8):
    return score / ((5 + len(text) + 1) / 6) ** alpha


@pytest.mark.parametrize("alpha", [0.0, 0.8])
def test_a_beam_that_holds_everything_is_exhaustive(alpha):
    found = search(beam_size=16, length_alpha=alpha)
    for row in range(ROWS):
        expected = every_text(row)
        ranked = sorted(expected, key=lambda text: -rank(expected[text][0], text, alpha))
        assert np.isfinite(found.scores[row]).sum() == len(ranked) == 15
        for place, text in enumerate(ranked):
            score, arcs = expected[text]
            assert text_of(found, row, place) == text
            np.testing.assert_allclose(found.scores[row, place], score, atol=1e-5)
            np.testing.assert_allclose(
                found.fused_scores[row, place], rank(score, text, alpha), atol=1e-5
            )
            np.testing.assert_allclose(found.token_scores[row, place, : len(text)], arcs, atol=1e-5)


def test_a_search_that_stops_early_has_what_one_that_does_not_would_have():
    """The best two of a wide beam, when nothing that still grows can rank before them."""
    room = 9
    found = search(beam_size=24, max_labels=room)
    for row in range(ROWS):
        expected = every_text(row, room)
        best = max(expected, key=lambda text: rank(expected[text][0], text))
        assert text_of(found, row, 0) == best
        np.testing.assert_allclose(found.scores[row, 0], expected[best][0], atol=1e-5)


def test_a_beam_of_one_is_greedy():
    found = search(beam_size=1)
    log_p = TABLES - np.logaddexp.reduce(TABLES, axis=-1, keepdims=True)
    log_p[..., 0] = -np.inf
    for row in range(ROWS):
        text, before, last, total = [], 0, 0, 0.0
        while len(text) < ROOM and (token := int(log_p[row, before, last].argmax())) != END:
            total += log_p[row, before, last, token]
            text.append(token)
            before, last = last, token
        total += log_p[row, before, last, END]
        assert text_of(found, row, 0) == tuple(text)
        np.testing.assert_allclose(found.scores[row, 0], total, atol=1e-5)
        wants_more = log_p[row, before, last].argmax() != END
        assert bool(found.truncated[row, 0]) == wants_more
    assert len(set(found.lengths[:, 0].tolist())) > 1


def test_an_absent_row_is_empty_and_disturbs_nobody():
    whole = search(beam_size=3)
    found = search(present=[True, False, True], beam_size=3)
    assert found.lengths[1, 0] == 0 and found.scores[1, 0] == 0.0
    assert np.isneginf(found.scores[1, 1:]).all()
    for row in (0, 2):
        np.testing.assert_array_equal(found.tokens[row], whole.tokens[row])
        np.testing.assert_array_equal(found.scores[row], whole.scores[row])


def test_fusion_ranks_and_leaves_the_scores():
    lm = NgramLm.estimate([[2, 3], [3, 3, 2], [3]], vocab_size=VOCAB, order=2)
    fusion = Fusion(lm=lm, weight=0.7, length_bonus=0.5)
    found = search(beam_size=16, fusion=fusion)

    def language(text):
        state, total = lm.initial_state(1), 0.0
        for label, following in zip((0, *text), (*text, 0), strict=True):
            scores, state = lm.score(state, jnp.asarray([label]))
            total += float(scores[0, following])
        return 0.7 * total + 0.5 * len(text)

    expected = every_text(0)
    fused = {text: rank(score + language(text), text) for text, (score, _) in expected.items()}
    ranked = sorted(fused, key=lambda text: -fused[text])
    for place, text in enumerate(ranked):
        assert text_of(found, 0, place) == text
        np.testing.assert_allclose(found.fused_scores[0, place], fused[text], atol=1e-4)
        np.testing.assert_allclose(found.scores[0, place], expected[text][0], atol=1e-5)


@pytest.mark.parametrize("wrong", [{"beam_size": 0}, {"max_labels": 0}, {"length_alpha": -1.0}])
def test_numbers_out_of_range(wrong):
    with pytest.raises(ValueError, match="at least"):
        search(**{"beam_size": 1, **wrong})

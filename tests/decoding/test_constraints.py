"""Constrained logits against a slow search of a table that is constrained by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from table_transducer import TableTransducer, listed

from maestro_jax.decoding.beam import beam_decode
from maestro_jax.decoding.constraints import constrain_logits
from maestro_jax.decoding.fusion import Fusion
from maestro_jax.decoding.greedy import greedy_decode

ALLOWED = np.array([[True, True, True, False], [True, False, True, True], [True] * 4])


@pytest.mark.parametrize("hat", [False, True])
def test_searches_of_constrained_logits_are_slow_searches_of_a_constrained_table(hat):
    transducer = TableTransducer.random(3, batch=3, vocab=4, bias=1.0, hat=hat)
    table = transducer.logits.astype(np.float64)
    table[..., 0] -= 1.3
    table = np.where(ALLOWED[:, None, None], table, -np.inf)
    slow = TableTransducer(table, hat=hat)
    predict, joint, state = transducer.networks

    def constrained(frame, outputs):
        return constrain_logits(
            joint(frame, outputs), blank_penalty=1.3, allowed=jnp.asarray(ALLOWED)
        )

    lengths = jnp.asarray([4, 4, 3])
    options = {"max_labels": 3, "max_symbols_per_frame": 99, "hat": hat}
    greedy, beam, subtracted = jax.jit(
        lambda encoded: tuple(
            search(predict, constrained, state, encoded, lengths, **options, **more)
            for search, more in [
                (greedy_decode, {}),
                (beam_decode, {"beam_size": 3}),
                (beam_decode, {"beam_size": 3, "fusion": Fusion(internal_weight=0.3)}),
            ]
        )
    )(transducer.encoded)
    with np.errstate(divide="ignore", invalid="ignore"):
        for row, frames in enumerate([4, 4, 3]):
            want = slow.beam_search(row, frames, 3, 3)
            for place, (labels, score) in enumerate(want):
                assert listed(beam, row, place)[0] == labels
                np.testing.assert_allclose(beam.scores[row, place], score, rtol=3e-6)
            labels, frame, score = (), 0, 0.0
            while frame < frames:
                frame, labels, gain = max(
                    slow.extensions(row, frame, labels, 3), key=lambda item: item[2]
                )
                score += gain
            assert listed(greedy, row)[0] == labels
            np.testing.assert_allclose(greedy.scores[row], score, rtol=3e-6)
    for found in (greedy.tokens[:, None], beam.tokens, subtracted.tokens):
        assert not np.any(found[0] == 3) and not np.any(found[1] == 1)
        assert np.any(found[2] == 3) or np.any(found[2] == 1)
    assert np.all(np.isfinite(subtracted.fused_scores[:, 0]))


def test_nothing_to_constrain_changes_no_bit():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)), jnp.bfloat16)
    assert constrain_logits(logits) is logits


def test_a_penalty_changes_the_odds_of_the_blank_alone():
    logits = np.random.default_rng(0).normal(size=(4, 5))
    odds = {}
    for penalty in (0.0, 2.0):
        found = constrain_logits(jnp.asarray(logits, jnp.float32), blank_penalty=penalty)
        p = np.asarray(jax.nn.softmax(found))
        odds[penalty] = p[:, 1:] / p[:, :1]
    np.testing.assert_allclose(odds[2.0], np.exp(2.0) * odds[0.0], rtol=1e-5)

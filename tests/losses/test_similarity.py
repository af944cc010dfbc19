"""Retrieval accuracy against loops, on encoders of which it is known how well they retrieve."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maestro_jax.losses import similarity

BATCH, FRAMES, FEATURES = 3, 7, 5
# One row is full, one has a hole and padding, one is absent.
MASK = np.array([[1] * 7, [1, 1, 0, 1, 1, 0, 0], [0] * 7], bool)
TOKEN = np.array([[0, 0, 1, 1, 1, 2, 3], [0, 1, 1, 1, 1, 0, 0], [0] * 7], np.int32)

retrieval_accuracy = jax.jit(similarity.retrieval_accuracy, static_argnames="scope")


def sides(noise):
    rng = np.random.default_rng(44)
    text = rng.normal(size=(BATCH, FRAMES, FEATURES))
    speech = text + noise * rng.normal(size=text.shape)
    return speech.astype(np.float32), text.astype(np.float32)


def by_definition(speech, text, scope):
    """Totals of one direction at the level of frames and tokens, and of chance."""
    speech, text = (
        np.asarray(s, np.float64) / np.linalg.norm(s, axis=-1, keepdims=True)
        for s in (speech, text)
    )
    places = [tuple(place) for place in np.argwhere(MASK)]
    frame = token = frame_chance = token_chance = 0.0
    for query in places:
        candidates = [p for p in places if scope == "batch" or p[0] == query[0]]
        found = max(candidates, key=lambda p: speech[query] @ text[p])
        siblings = [p for p in candidates if p[0] == query[0] and TOKEN[p] == TOKEN[query]]
        frame += found == query
        token += found in siblings
        frame_chance += 1 / len(candidates)
        token_chance += len(siblings) / len(candidates)
    return [frame, token, frame_chance, token_chance]


@pytest.mark.parametrize("scope", ["utterance", "batch"])
@pytest.mark.parametrize("noise", [1.0, 2.0])
def test_it_is_that_of_a_loop(scope, noise):
    speech, text = sides(noise)
    found = retrieval_accuracy(speech, text, TOKEN, MASK, scope=scope)
    forth, back = by_definition(speech, text, scope), by_definition(text, speech, scope)
    assert forth[0] != back[0] and forth[1] != back[1]  # the directions can be told apart
    assert 0 < forth[0] < forth[1] <= MASK.sum()
    expected = {
        "frame_speech_to_text": forth[0],
        "frame_text_to_speech": back[0],
        "token_speech_to_text": forth[1],
        "token_text_to_speech": back[1],
        "frame_chance": forth[2],
        "token_chance": forth[3],
    }
    for name, total in expected.items():
        np.testing.assert_allclose(getattr(found, name), (total, MASK.sum()), rtol=1e-6)


@pytest.mark.parametrize("scope", ["utterance", "batch"])
def test_equal_sides_are_always_right_and_constant_sides_by_chance(scope):
    _, text = sides(0.0)
    same = retrieval_accuracy(text, 3 * text, TOKEN, MASK, scope=scope)
    assert float(same.frame_speech_to_text[0]) == float(same.token_text_to_speech[0]) == MASK.sum()
    for constant in (np.zeros_like(text), np.ones_like(text)):
        blind = retrieval_accuracy(constant, constant, TOKEN, MASK, scope=scope)
        np.testing.assert_allclose(blind.frame_speech_to_text, blind.frame_chance, rtol=1e-6)
        np.testing.assert_allclose(blind.token_text_to_speech, blind.token_chance, rtol=1e-6)
        assert 0 < float(blind.frame_chance[0]) < float(blind.token_chance[0]) < MASK.sum()


@pytest.mark.parametrize("scope", ["utterance", "batch"])
def test_nothing_valid_is_zero(scope):
    speech, text = sides(1.0)
    found = retrieval_accuracy(speech, text, TOKEN, jnp.zeros_like(MASK), scope=scope)
    assert all(float(leaf) == 0.0 for leaf in jax.tree.leaves(found))


def test_unknown_scope():
    with pytest.raises(ValueError, match="choose one of"):
        retrieval_accuracy(*sides(1.0), TOKEN, MASK, scope="corpus")

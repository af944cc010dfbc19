"""Text meets speech on the scale of speech: the paper's plain MSE falls with the loss we train."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from maestro_jax.losses.matching import matching_loss
from maestro_jax.training.parameter_trees import unbox

ROWS, FRAMES = 8, 15
TRAINED = ("text_encoder", "resampler", "refiner")


@pytest.fixture(scope="module")
def pairs(tiny):
    """Parameters as they begin, e_s of random features, texts, and durations of the same sum."""
    params = jax.jit(lambda: unbox(tiny.model.init({"params": jax.random.key(1)}, {})["params"]))()
    rng = np.random.default_rng(0)
    features = rng.normal(size=(ROWS, FRAMES, 16)).astype(np.float32)
    mask = np.ones((ROWS, FRAMES), bool)
    speech = tiny.model.apply({"params": params}, features, mask, method="encode_speech")
    tokens = rng.integers(3, 12, (ROWS, 5)).astype(np.int32)
    durations = np.tile(np.array([3, 1, 5, 2, 4], np.int32), (ROWS, 1))
    return params, np.asarray(speech), tokens, durations


def text_side(model, params, tokens, durations):
    """ê_t."""
    call = functools.partial(model.apply, {"params": params})
    language = np.zeros(len(tokens), np.int32)
    embedded = call(tokens, np.ones(tokens.shape, bool), language, method="encode_text")
    return call(embedded, durations, FRAMES, method="upsample")[0]


def plain(speech, text):
    return float(np.mean(np.square(speech - np.asarray(text))))


def test_text_begins_on_the_scale_of_speech(tiny, pairs):
    params, speech, tokens, durations = pairs
    text = text_side(tiny.model, params, tokens, durations)
    of_speech, of_text = (np.mean(np.square(side), axis=-1) for side in (speech, text))
    np.testing.assert_allclose(of_text, of_speech, rtol=1e-2)


def test_training_by_the_standardised_loss_beats_the_mean_frame_in_plain_mse(tiny, pairs):
    params, speech, tokens, durations = pairs
    mask = jnp.ones((ROWS, FRAMES), bool)
    optimizer = optax.adam(1e-2)

    def loss(trained):
        text = text_side(tiny.model, params | trained, tokens, durations)
        total, count = matching_loss(speech, text, mask)
        return total / count, text

    @jax.jit
    def step(trained, state):
        (_, text), gradient = jax.value_and_grad(loss, has_aux=True)(trained)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(trained, updates), state, text

    trained = {name: params[name] for name in TRAINED}
    state = optimizer.init(trained)
    for _ in range(60):
        trained, state, text = step(trained, state)
    mean_frame = plain(speech, speech.mean(axis=(0, 1)))
    assert plain(speech, text) < 0.8 * mean_frame
    assert np.mean(np.square(text)) == pytest.approx(np.mean(np.square(speech)), rel=0.1)

"""Resampling, durations, the quantizer and the LSTM against plain computations."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maestro_jax.layers.lstm import LstmLayer
from maestro_jax.modules.duration import DurationModel, DurationPrediction
from maestro_jax.modules.quantizer import GumbelQuantizer
from maestro_jax.modules.resampler import frame_index
from maestro_jax.modules.text_encoder import TextEncoder
from maestro_jax.modules.transducer import TransducerDecoder


@given(st.lists(st.integers(0, 5), min_size=4, max_size=4))
def test_frames_are_repeated_tokens(durations: list[int]) -> None:
    found = frame_index(jnp.array([durations], jnp.int32), 12)
    expected = np.repeat(np.arange(4), durations)
    positions = np.concatenate([np.arange(d) for d in durations] or [[]])
    kept = min(len(expected), 12)
    assert int(found.lengths[0]) == kept
    assert int(found.overflow[0]) == len(expected) - kept
    np.testing.assert_array_equal(found.token[0, :kept], expected[:kept])
    np.testing.assert_array_equal(found.position[0, :kept], positions[:kept])
    np.testing.assert_array_equal(found.duration[0, :kept], np.asarray(durations)[expected[:kept]])
    np.testing.assert_array_equal(found.mask[0], np.arange(12) < kept)


def test_durations_are_rounded_by_the_rules() -> None:
    prediction = DurationPrediction(
        nonzero_logit=jnp.array([[1.0, -1.0, 1.0, 1.0, 1.0]]),
        frames=jnp.array([[0.2, 9.0, 2.6, 500.0, 3.0]]),
    )
    mask = jnp.array([[True, True, True, True, False]])
    found = DurationModel(max_frames=120).round(prediction, mask)
    np.testing.assert_array_equal(found, [[1, 0, 3, 120, 0]])


def test_a_text_of_unknown_language_has_no_language_embedding() -> None:
    module = TextEncoder(vocab_size=5, features=4, layers=1, heads=1, hidden=4, languages=3)
    tokens, mask = jnp.array([[1, 2, 3]] * 3), jnp.ones((3, 3), bool)
    language = jnp.array([-1, 0, 2])
    params = nn.unbox(module.init(jax.random.key(0), tokens, mask, language))["params"]
    without = {**params, "languages": jax.tree.map(jnp.zeros_like, params["languages"])}
    told, untold = (module.apply({"params": p}, tokens, mask, language) for p in (params, without))
    np.testing.assert_array_equal(told[0], untold[0])
    assert np.abs(told[1:] - untold[1:]).max(axis=(1, 2)).min() > 1e-3


def test_quantizer() -> None:
    module = GumbelQuantizer(codes=6, code_features=4)
    features = np.random.default_rng(0).normal(size=(2, 5, 8)).astype(np.float32)
    params = nn.unbox(module.init(jax.random.key(0), features))
    found = module.apply(params, features)
    kernel, bias = params["params"]["logits"]["kernel"], params["params"]["logits"]["bias"]
    logits = features @ np.asarray(kernel) + np.asarray(bias)
    np.testing.assert_array_equal(found.ids, logits.argmax(-1))
    np.testing.assert_allclose(found.vectors, params["params"]["codebook"][found.ids], atol=1e-5)
    np.testing.assert_allclose(found.probabilities.sum(-1), 1.0, rtol=1e-5)

    def vector_sum(p: dict) -> jax.Array:
        return jnp.sum(module.apply(p, features).vectors)

    gradient = jax.grad(vector_sum)(params)["params"]["logits"]["kernel"]
    assert np.abs(gradient).max() > 0


@pytest.mark.parametrize(("step", "expected"), [(0, 2.0), (100_000, 1.2130607), (10**6, 0.1)])
def test_temperature_decays_to_its_floor(step: int, expected: float) -> None:
    # 2 exp(100000 ln 0.999995) = 2 exp(-0.50000125)
    assert float(GumbelQuantizer().temperature(step)) == pytest.approx(expected, rel=1e-3)


def test_lstm_against_float64() -> None:
    module, rng = LstmLayer(3), np.random.default_rng(0)
    x = rng.normal(size=(2, 4, 5)).astype(np.float32)
    zeros = jnp.zeros((2, 3))
    params = nn.unbox(module.init(jax.random.key(0), x, (zeros, zeros)))
    found, _ = module.apply(params, x, (zeros, zeros))
    weights = params["params"]
    inputs, recurrent = (
        np.asarray(w, np.float64) for w in (weights["input"]["kernel"], weights["recurrent"])
    )
    hidden = cell = np.zeros((2, 3))

    def sigmoid(value: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-value))

    for step in range(4):
        entry, forget, candidate, output = np.split(x[:, step] @ inputs + hidden @ recurrent, 4, 1)
        cell = sigmoid(forget + 1) * cell + sigmoid(entry) * np.tanh(candidate)
        hidden = sigmoid(output) * np.tanh(cell)
        np.testing.assert_allclose(found[:, step], hidden, atol=1e-5)


def test_labels_one_by_one_predict_what_they_do_together() -> None:
    module = TransducerDecoder(7, embedding_features=4, units=5, layers=2, joint_features=6)
    labels = jnp.array([[0, 3, 5, 1]])
    encoded = jnp.ones((1, 3, 8))
    params = nn.unbox(module.init(jax.random.key(0), encoded, labels[:, 1:]))
    state = module.apply(params, 1, method="initial_state")
    whole, _ = module.apply(params, labels, state, method="predict")
    for step in range(4):
        one, state = module.apply(params, labels[:, step : step + 1], state, method="predict")
        np.testing.assert_allclose(one[:, 0], whole[:, step], atol=1e-6)
    log_blank, log_label = module.apply(params, encoded, labels[:, 1:])
    assert log_blank.shape == (1, 3, 4) and log_label.shape == (1, 3, 3)

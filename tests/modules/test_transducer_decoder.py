"""The LSTM against a float64 loop; the whole lattice against step-by-step decoding."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from maestro_jax.layers.lstm import LstmLayer
from maestro_jax.modules.transducer import TransducerDecoder


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def lstm():
    x, state = normal(2, 5, 3), (normal(2, 4, seed=1), normal(2, 4, seed=2))
    module = LstmLayer(4)
    variables = nn.unbox(jax.jit(module.init)(jax.random.key(0), x, state))
    return module, jax.tree.map(lambda p: p + 0.05, variables), x, state


def test_lstm_is_that_of_a_float64_loop():
    module, variables, x, state = lstm()
    found, (last_hidden, last_cell) = module.apply(variables, x, state)
    dense = variables["params"]["input"]
    kernel, bias, recurrent = (
        np.asarray(p, np.float64)
        for p in (dense["kernel"], dense["bias"], variables["params"]["recurrent"])
    )
    for b in range(2):
        hidden, cell = (part[b].astype(np.float64) for part in state)
        for t in range(5):
            gate = x[b, t].astype(np.float64) @ kernel + bias + hidden @ recurrent
            entry, forget, candidate, output = gate[:4], gate[4:8], gate[8:12], gate[12:]
            cell = sigmoid(forget + 1) * cell + sigmoid(entry) * np.tanh(candidate)
            hidden = sigmoid(output) * np.tanh(cell)
            np.testing.assert_allclose(found[b, t], hidden, atol=1e-5)
        np.testing.assert_allclose(last_hidden[b], hidden, atol=1e-5)
        np.testing.assert_allclose(last_cell[b], cell, atol=1e-5)


def test_lstm_step_by_step_equals_the_whole():
    module, variables, x, state = lstm()
    whole, last = module.apply(variables, x, state)
    for t in range(5):
        out, state = module.apply(variables, x[:, t : t + 1], state)
        np.testing.assert_allclose(out[:, 0], whole[:, t], atol=1e-6)
    for part, expected in zip(state, last, strict=True):
        np.testing.assert_allclose(part, expected, atol=1e-6)


def test_lattice_is_the_joint_of_every_frame_and_prefix():
    module = TransducerDecoder(
        vocab_size=7, embedding_features=3, units=4, layers=2, joint_features=5
    )
    encoded = normal(2, 3, 6)
    labels = jnp.array([[3, 1, 4], [5, 0, 0]])
    variables = nn.unbox(jax.jit(module.init)(jax.random.key(0), encoded, labels))
    log_blank, log_label = module.apply(variables, encoded, labels)
    assert log_blank.shape == (2, 3, 4) and log_label.shape == (2, 3, 3)
    assert log_blank.dtype == log_label.dtype == jnp.float32
    state = module.apply(variables, 2, method="initial_state")
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(state))
    frames = module.apply(variables, encoded, method="project_frames")
    output = variables["params"]["output"]
    label = jnp.zeros((2, 1), jnp.int32)
    for u in range(4):
        predicted, state = module.apply(variables, label, state, method="predict")
        for t in range(3):
            logits = module.apply(variables, frames[:, t], predicted[:, 0], method="joint")
            expected = np.tanh(frames[:, t] + predicted[:, 0]) @ output["kernel"] + output["bias"]
            np.testing.assert_allclose(logits, expected, atol=1e-5)
            normalised = expected - np.log(np.exp(expected).sum(-1, keepdims=True))
            np.testing.assert_allclose(log_blank[:, t, u], normalised[:, 0], atol=1e-5)
            if u < 3:
                chosen = np.take_along_axis(normalised, labels[:, u : u + 1], axis=1)[:, 0]
                np.testing.assert_allclose(log_label[:, t, u], chosen, atol=1e-5)
        if u < 3:
            label = labels[:, u : u + 1]


def test_a_label_does_not_see_those_after_it():
    module = TransducerDecoder(
        vocab_size=5, embedding_features=3, units=4, layers=1, joint_features=4
    )
    encoded = normal(1, 2, 3)
    variables = jax.jit(module.init)(jax.random.key(0), encoded, jnp.array([[1, 2, 3]]))
    one, _ = module.apply(variables, encoded, jnp.array([[1, 2, 3]]))
    other, _ = module.apply(variables, encoded, jnp.array([[1, 4, 4]]))
    np.testing.assert_array_equal(one[:, :, :2], other[:, :, :2])
    assert np.abs(one[:, :, 2:] - other[:, :, 2:]).max() > 1e-4

"""Greedy transducer decoding as a Python loop over the frames of one utterance.

The compiled search is compared with two such loops. `jitted` calls the model's own compiled
prediction and joint network once per step. `numpy` computes the same networks with NumPy, which is
faster for small models since it does not call a runtime. Both are as efficient as a loop can be:
the weights are converted and the frames are on the host beforehand, the prediction network runs
only after a label, and there are no scores.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from maestro_jax.modules.maestro import Maestro

BLANK = 0

Predict = Callable[[int, Any], tuple[np.ndarray, Any]]
"""`(label, state) -> (outputs [1, joint_features], new state)`."""

Best = Callable[[np.ndarray, np.ndarray], int]
"""`(frame [1, joint_features], outputs [1, joint_features]) -> likeliest symbol`."""


def plain_greedy(
    predict: Predict,
    best: Best,
    state: Any,
    frames: np.ndarray,
    *,
    max_labels: int,
    max_symbols_per_frame: int = 4,
) -> list[int]:
    """Decodes one utterance.

    Args:
        predict: The prediction network.
        best: The joint network and its argmax.
        state: The prediction network's first state.
        frames: Encoder output, projected for the joint, `[frames, joint_features]`.
        max_labels: Stops when it wants more.
        max_symbols_per_frame: At most so many labels on one frame.
    """
    tokens: list[int] = []
    outputs, state = predict(BLANK, state)
    for frame in range(len(frames)):
        for _ in range(max_symbols_per_frame):
            symbol = best(frames[frame : frame + 1], outputs)
            if symbol == BLANK:
                break
            if len(tokens) == max_labels:
                return tokens
            tokens.append(symbol)
            outputs, state = predict(symbol, state)
    return tokens


def jitted_networks(model: Maestro, params: Any) -> tuple[Predict, Best, Any]:
    """Returns the model's own networks, compiled for one utterance, and the initial state."""
    import jax
    import jax.numpy as jnp

    # The weights are constants of the program; passing them at every call would take longer.
    @jax.jit
    def predict_step(label: jax.Array, state: Any) -> tuple[jax.Array, Any]:
        outputs, state = model.bind({"params": params}).prediction_step(label[None, None], state)
        return outputs[:, 0], state

    @jax.jit
    def joint_step(frame: jax.Array, outputs: jax.Array) -> jax.Array:
        return jnp.argmax(model.bind({"params": params}).joint(frame, outputs)[0])

    def predict(label: int, state: Any) -> tuple[Any, Any]:
        return predict_step(np.int32(label), state)

    def best(frame: np.ndarray, outputs: Any) -> int:
        return int(joint_step(frame, outputs))

    return predict, best, model.bind({"params": params}).decoder_state(1)


def numpy_networks(model: Any, params: Any) -> tuple[Predict, Best, Any]:
    """Returns the same in NumPy: an LSTM whose forget gate has a bias of 1, and a joint network.

    Raises:
        ValueError: If the model factors its blank out, which is not written here.
    """
    if getattr(model.decoder, "hat", False):
        raise ValueError("the NumPy loop has no factored blank (hat)")
    weights = _as_numpy(params["decoder"])
    layers = [weights[f"lstm_{number}"] for number in range(model.decoder.layers)]
    label_kernel = weights["label_projection"]["kernel"]
    kernel, bias = weights["output"]["kernel"], weights["output"]["bias"]
    zeros = np.zeros((1, model.decoder.units), np.float32)

    def predict(label: int, state: Any) -> tuple[np.ndarray, Any]:
        x = weights["embed"]["embedding"][label : label + 1]
        states = []
        for layer, (hidden, cell) in zip(layers, state, strict=True):
            gate = x @ layer["input"]["kernel"] + layer["input"]["bias"]
            gate += hidden @ layer["recurrent"]
            entry, forget, candidate, output = np.split(gate, 4, axis=-1)
            cell = _sigmoid(forget + 1.0) * cell + _sigmoid(entry) * np.tanh(candidate)
            x = _sigmoid(output) * np.tanh(cell)
            states.append((x, cell))
        return x @ label_kernel, tuple(states)

    def best(frame: np.ndarray, outputs: np.ndarray) -> int:
        return int(np.argmax(np.tanh(frame + outputs) @ kernel + bias))

    return predict, best, tuple((zeros, zeros) for _ in layers)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-x))


def _as_numpy(tree: Any) -> Any:
    if hasattr(tree, "items"):
        return {name: _as_numpy(branch) for name, branch in tree.items()}
    return np.asarray(tree)

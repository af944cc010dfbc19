"""The recurrence's gradient beside the one that JAX makes of a plain loop, and beside float64."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maestro_jax.layers.lstm import recurrence

STEPS, BATCH, UNITS = 6, 3, 5


@pytest.fixture
def in_float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def plain(
    gates: jax.Array, recurrent: jax.Array, hidden: jax.Array, cell: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """An LSTM as textbooks write it, in the dtype of its inputs."""
    outputs = []
    for gate in gates:
        entry, forget, candidate, output = jnp.split(gate + hidden @ recurrent, 4, axis=-1)
        forget, entry, output = (jax.nn.sigmoid(x) for x in (forget + 1, entry, output))
        cell = forget * cell + entry * jnp.tanh(candidate)
        hidden = output * jnp.tanh(cell)
        outputs.append(hidden)
    return jnp.stack(outputs), hidden, cell


def inputs(steps: int = STEPS, batch: int = BATCH, units: int = UNITS) -> list[np.ndarray]:
    draw = np.random.default_rng(0).normal
    shapes = [(steps, batch, 4 * units), (units, 4 * units), (batch, units), (batch, units)]
    return [draw(size=shape) for shape in shapes]


def weights(steps: int = STEPS, batch: int = BATCH, units: int = UNITS) -> list[np.ndarray]:
    draw = np.random.default_rng(1).normal
    return [draw(size=shape) for shape in [(steps, batch, units), (batch, units), (batch, units)]]


def gradients(function, arrays, dtypes):
    """Gradients of a sum that weighs every output, with respect to every input."""

    def loss(*arrays):
        found = function(*arrays)
        return sum(jnp.sum(x.astype(w.dtype) * w) for x, w in zip(found, weighing, strict=True))

    arrays = [jnp.asarray(x, dtype) for x, dtype in zip(arrays, dtypes, strict=True)]
    weighing = [
        jnp.asarray(x, jnp.float64) for x in weights(*arrays[0].shape[:2], arrays[1].shape[0])
    ]
    return jax.grad(loss, tuple(range(4)))(*arrays)


@pytest.mark.parametrize("batch", [1, BATCH])
def test_values_and_gradients_are_those_of_a_plain_loop_in_float64(
    in_float64: None, batch: int
) -> None:
    arrays = inputs(batch=batch)
    exact = plain(*(jnp.asarray(x, jnp.float64) for x in arrays))
    found = recurrence(*(jnp.asarray(x, jnp.float32) for x in arrays))
    for one, other in zip(found, exact, strict=True):
        assert one.dtype == jnp.float32
        np.testing.assert_allclose(one, other, atol=1e-5)
    wanted = gradients(plain, arrays, [jnp.float64] * 4)
    for one, other in zip(gradients(recurrence, arrays, [jnp.float32] * 4), wanted, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)


def loop(
    gates: jax.Array, recurrent: jax.Array, hidden: jax.Array, cell: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The same loop as `recurrence`, whose gradient is left to JAX."""

    def step(carry, gate):
        total = (gate + carry[0].astype(recurrent.dtype) @ recurrent).astype(jnp.float32)
        entry, forget, candidate, output = jnp.split(total, 4, axis=-1)
        cell = jax.nn.sigmoid(forget + 1) * carry[1] + jax.nn.sigmoid(entry) * jnp.tanh(candidate)
        hidden = jax.nn.sigmoid(output) * jnp.tanh(cell)
        return (hidden, cell), hidden

    last, outputs = jax.lax.scan(step, (hidden, cell), gates)
    return outputs, *last


def test_late_steps_count_in_the_kernels_gradient_of_bfloat16(in_float64: None) -> None:
    steps, units = 400, 4
    gates, recurrent, hidden, cell = inputs(steps, 1, units)
    # Every step is alike, so that all terms have one sign.
    gates[:] = gates[0]
    arrays = (gates, 0.1 * recurrent, hidden, cell)
    dtypes = [jnp.bfloat16, jnp.bfloat16, jnp.float32, jnp.float32]
    rounded = [jnp.asarray(x, dtype) for x, dtype in zip(arrays, dtypes, strict=True)]

    def kernel_gradient(function, arrays):
        def total(*arrays):
            return jnp.sum(function(*arrays)[0].astype(jnp.float64))

        return np.asarray(jax.grad(total, 1)(*arrays), np.float64)

    exact = kernel_gradient(plain, [x.astype(jnp.float64) for x in rounded])

    def error(function) -> float:
        found = kernel_gradient(function, rounded)
        return np.linalg.norm(found - exact) / np.linalg.norm(exact)

    assert error(recurrence) < 0.02
    # A sum that is rounded to 8 bits at each of 400 terms drops the late ones: why it has a
    # gradient of its own.
    assert error(loop) > 0.05

"""The same pretraining step on eight devices that split the rows as on one.

`test_mesh.py` has all three axes at once.
"""

from __future__ import annotations

import math

import jax
import numpy as np
import pytest

from maestro_jax.training.partitioning import Partitioning, replicated

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(jax.device_count() < 8, reason="needs eight (CPU) devices"),
]


@pytest.fixture(scope="module")
def weights(tiny):
    return {name: np.float32(1.0) for name in tiny.weights}


@pytest.fixture(scope="module")
def alone(tiny, weights):
    """Gradients, metrics and the memory beside state and batch of a step on one device."""
    state, batch = tiny.state(), tiny.batch()
    step = jax.jit(tiny.train_step)
    compiled = step.lower(state, batch, weights).compile()
    new, metrics = compiled(state, batch, weights)
    return tiny.gradients(new), jax.device_get(metrics), compiled.memory_analysis()


@pytest.mark.parametrize("shape", [(8, 1, 1), (1, 8, 1)], ids=["data", "fsdp"])
def test_loss_gradients_and_metrics_agree(tiny, weights, alone, shape):
    partitioning = Partitioning(mesh_shape=shape)
    mesh = partitioning.mesh()
    shardings = partitioning.state_shardings(mesh, tiny.abstract)
    step = jax.jit(
        tiny.train_step,
        in_shardings=(shardings, partitioning.batch_sharding(mesh), replicated(mesh)),
        out_shardings=(shardings, replicated(mesh)),
    )
    with partitioning.activate(mesh):
        state = jax.device_put(tiny.state(), shardings)
        batch = partitioning.shard_batch(mesh, tiny.batch())
        compiled = step.lower(state, batch, weights).compile()
        new, metrics = compiled(state, batch, weights)
    gradients, expected, memory = alone
    for name, pair in expected.items():
        np.testing.assert_allclose(metrics[name], pair, rtol=1e-5, atol=1e-6, err_msg=name)
    found = tiny.gradients(new)
    norm = math.sqrt(sum(np.sum(np.square(gradient)) for gradient in gradients.values()))
    for name, gradient in gradients.items():
        assert np.linalg.norm(found[name] - gradient) < 1e-5 * norm, name
    # Rows are split eight ways; gradients, which a data axis leaves whole, are the rest.
    parameters = sum(gradient.size for gradient in gradients.values()) * 4
    share = compiled.memory_analysis().temp_size_in_bytes
    assert share < memory.temp_size_in_bytes / 8 + 2 * parameters

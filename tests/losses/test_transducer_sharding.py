"""The batch stays split over the devices through joint, loss and alignment."""

from __future__ import annotations

import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from maestro_jax.losses.transducer import transducer_loss, transducer_loss_from_lattices
from maestro_jax.losses.transducer_alignment import transducer_alignment
from maestro_jax.modules.transducer import TransducerDecoder
from maestro_jax.training.partitioning import Partitioning

pytestmark = pytest.mark.skipif(jax.device_count() < 8, reason="needs eight (CPU) devices")

BATCH, FRAMES, LABELS, VOCAB, FEATURES = 16, 12, 5, 24, 8
DECODER = TransducerDecoder(
    vocab_size=VOCAB, embedding_features=4, units=6, layers=1, joint_features=10, chunk_frames=5
)
GATHERS = ("all-gather", "all-to-all", "collective-permute")


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(0)
    encoded = rng.normal(size=(BATCH, FRAMES, FEATURES)).astype(np.float32)
    labels = rng.integers(1, VOCAB, (BATCH, LABELS)).astype(np.int32)
    frame_lengths = rng.integers(0, FRAMES + 1, BATCH).astype(np.int32)
    label_lengths = rng.integers(0, LABELS + 1, BATCH).astype(np.int32)
    params = nn.unbox(jax.jit(DECODER.init)(jax.random.key(0), encoded, labels))
    return params, encoded, labels, frame_lengths, label_lengths


def loss_and_path(params, encoded, labels, frame_lengths, label_lengths):
    lattices = DECODER.apply(params, encoded, labels)
    loss = transducer_loss_from_lattices(*lattices, frame_lengths, label_lengths)
    path = transducer_alignment(*lattices, frame_lengths, label_lengths)
    return loss.sum(), (loss, path, lattices)


gradients = jax.value_and_grad(loss_and_path, (0, 1), has_aux=True)


@pytest.mark.extended
@pytest.mark.parametrize("shape", [(8, 1, 1), (2, 4, 1), (4, 1, 2)], ids=str)
def test_joint_loss_and_alignment(inputs, shape):
    partitioning = Partitioning(mesh_shape=shape)
    mesh = partitioning.mesh()
    rows, whole = partitioning.batch_sharding(mesh), NamedSharding(mesh, PartitionSpec())
    params, *arrays = inputs
    with partitioning.activate(mesh):
        step = jax.jit(gradients, in_shardings=(whole, *[rows] * 4))
        placed = jax.device_put(params, whole), *jax.device_put(arrays, rows)
        program = step.lower(*placed).compile()
        (_, (loss, path, lattices)), (of_params, of_encoded) = program(*placed)

    (_, expected), expected_gradients = jax.jit(gradients)(*inputs)
    for got, want in zip(jax.tree.leaves((loss, path)), jax.tree.leaves(expected[:2]), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    for got, want in zip(
        jax.tree.leaves((of_params, of_encoded)), jax.tree.leaves(expected_gradients), strict=True
    ):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)

    shards = shape[0] * shape[1]
    for array in jax.tree.leaves((loss, path, lattices, of_encoded)):
        assert array.sharding.shard_shape(array.shape)[0] == BATCH // shards
    text = program.as_text()
    moved = [line for line in text.splitlines() if any(f" {name}(" in line for name in GATHERS)]
    if shape[2] == 1:
        assert not moved
    for line in moved:  # a vocabulary that is split may move what is as small as a kernel
        sizes = [int(d) for d in re.search(r"\[([\d,]*)\]", line).group(1).split(",") if d]
        assert np.prod(sizes) < BATCH // shards * FRAMES * (LABELS + 1), line


def test_loss_from_logits():
    partitioning = Partitioning(mesh_shape=(8, 1, 1))
    mesh = partitioning.mesh()
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(BATCH, FRAMES, LABELS + 1, VOCAB)).astype(np.float32)
    labels = rng.integers(1, VOCAB, (BATCH, LABELS))
    sizes = rng.integers(1, FRAMES + 1, BATCH), rng.integers(0, LABELS + 1, BATCH)
    placed = jax.device_put((logits, labels, *sizes), partitioning.batch_sharding(mesh))

    @functools.partial(jax.value_and_grad, has_aux=True)
    def total(*arguments):
        loss = transducer_loss(*arguments)
        return jnp.sum(loss), loss

    program = jax.jit(total).lower(*placed).compile()
    (_, loss), gradient = program(*placed)
    for array in (loss, gradient):
        assert array.sharding.shard_shape(array.shape)[0] == BATCH // 8
    assert not any(f" {name}(" in program.as_text() for name in GATHERS)
    (_, expected), expected_gradient = jax.jit(total)(logits, labels, *sizes)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient, expected_gradient, atol=1e-6)

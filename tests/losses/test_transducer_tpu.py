"""The decoder's training step at the paper's size, compiled for TPUs that are not there."""

from __future__ import annotations

import os

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from jax.experimental import topologies

from maestro_jax.losses.transducer import transducer_loss_from_lattices
from maestro_jax.modules.transducer import TransducerDecoder
from maestro_jax.training.partitioning import Partitioning

pytestmark = pytest.mark.tpu_backend

ROWS_A_CHIP, FRAMES, LABELS, VOCAB = 4, 400, 100, 4096
GIB = 2**30


@pytest.fixture(scope="module")
def devices():
    # Without these libtpu asks a metadata server, which only a cloud machine has.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    return topologies.get_topology_desc("v5e:2x2", platform="tpu").devices


@pytest.mark.parametrize("shape", [(4, 1, 1), (1, 4, 1), (2, 1, 2)], ids=str)
def test_value_and_gradient_of_the_decoder_fit_in_2_gib(devices, shape):
    """2 LSTM layers of 1280, a joint layer of 640, bfloat16: 4 utterances of 16 s a chip.

    One copy of the lattice of logits would be 2.5 GiB.
    """
    batch = ROWS_A_CHIP * shape[0] * shape[1]
    decoder = TransducerDecoder(vocab_size=VOCAB, dtype=jnp.bfloat16)
    partitioning = Partitioning(mesh_shape=shape)
    mesh = partitioning.mesh(devices)
    rows = partitioning.batch_sharding(mesh)

    def value(params, encoded, labels, frame_lengths, label_lengths):
        lattices = decoder.apply({"params": params}, encoded, labels)
        return transducer_loss_from_lattices(*lattices, frame_lengths, label_lengths).sum()

    def array(dimensions, dtype):
        return jax.ShapeDtypeStruct(dimensions, dtype, sharding=rows)

    encoded = array((batch, FRAMES, 1024), jnp.bfloat16)
    labels = array((batch, LABELS), jnp.int32)
    lengths = array((batch,), jnp.int32)
    boxed = jax.eval_shape(decoder.init, jax.random.key(0), encoded, labels)["params"]
    shardings = partitioning.state_shardings(mesh, boxed)
    params = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        nn.unbox(boxed),
        shardings,
    )
    with partitioning.activate(mesh):
        step = jax.jit(jax.value_and_grad(value, (0, 1)), out_shardings=(None, (shardings, rows)))
        memory = step.lower(params, encoded, labels, lengths, lengths).compile().memory_analysis()
    held = max(
        memory.peak_memory_in_bytes,
        memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes,
    )
    print(f"{shape}: {held / GIB:.2f} GiB a chip")
    assert held < 2 * GIB

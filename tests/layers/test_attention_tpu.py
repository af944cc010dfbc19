"""Attention's ways compiled for TPUs that are not there: the kernel on its own rows and heads."""

from __future__ import annotations

import os

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec

from maestro_jax.layers.attention import SelfAttention
from maestro_jax.training import parameter_trees
from maestro_jax.training.partitioning import Partitioning

pytestmark = pytest.mark.tpu_backend

MIB = 2**20


@pytest.fixture(scope="module")
def devices():
    # Without these libtpu asks a metadata server, which only a cloud machine has.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    return topologies.get_topology_desc("v5e:2x2", platform="tpu").devices


def compiled(devices, shape, features, heads, frames, **settings):
    """Value and gradient of an attention layer, two rows a group of `tensor` chips."""
    partitioning = Partitioning(mesh_shape=shape)
    mesh = partitioning.mesh(devices)
    rows = partitioning.batch_sharding(mesh)
    batch = 2 * shape[0] * shape[1]
    layer = SelfAttention(heads, dtype=jnp.bfloat16, **settings)
    x = jax.ShapeDtypeStruct((batch, frames, features), jnp.bfloat16, sharding=rows)
    mask = jax.ShapeDtypeStruct((batch, frames), bool, sharding=rows)
    params = jax.eval_shape(layer.init, jax.random.key(0), x, mask)
    whole = NamedSharding(mesh, PartitionSpec())
    params = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole),
        parameter_trees.unbox(params),
    )
    with partitioning.activate(mesh):
        step = jax.jit(
            jax.grad(
                lambda p, x, mask: jnp.sum(layer.apply(p, x, mask).astype(jnp.float32)), (0, 1)
            )
        )
        return step.lower(params, x, mask).compile()


@pytest.mark.parametrize("shape", [(4, 1, 1), (2, 1, 2)], ids=str)
@pytest.mark.parametrize(("features", "heads"), [(1024, 8), (512, 8)])
def test_the_kernel_compiles_and_keeps_to_its_rows_and_heads(devices, shape, features, heads):
    program = compiled(devices, shape, features, heads, 750, implementation="pallas")
    text = program.as_text()
    # Forward, gradient of keys and values, gradient of queries.
    assert text.count('custom_call_target="tpu_custom_call"') >= 3
    size = features // heads
    assert f"bf16[2,{heads // shape[2]},768,{size}]" in text
    assert f"bf16[{2 * shape[0]},{heads},768,{size}]" not in text


def test_blocks_and_bands_need_a_part_of_the_memory(devices):
    temporary = {
        settings["implementation"]: compiled(devices, (4, 1, 1), 1024, 8, 3000, **settings)
        .memory_analysis()
        .temp_size_in_bytes
        for settings in (
            {"implementation": "whole"},
            {"implementation": "blocked"},
            {"implementation": "local", "context": 128},
        )
    }
    print({name: f"{size / MIB:.0f} MiB" for name, size in temporary.items()})
    # All weights of 2 rows and 8 heads, in bfloat16.
    square = 2 * 8 * 3000**2 * 2
    assert temporary["whole"] > square
    assert temporary["blocked"] < square / 2
    assert temporary["local"] < square / 2

"""Memory and transfers without a compiler, against arrays that are there and compiled programs."""

from __future__ import annotations

from collections import Counter

import jax
import jax.numpy as jnp
import pytest

from maestro_jax.errors import UserError
from maestro_jax.planning.analytic import trace_step
from maestro_jax.planning.chips import parse_topology
from maestro_jax.planning.collectives import find_collectives
from maestro_jax.planning.roofline import slow_bytes
from maestro_jax.training.state import sharded_state
from maestro_jax.training.step import jit_train_step

MESH = (2, 2, 2)


def test_the_state_takes_what_real_arrays_take(small) -> None:
    run = small.run(MESH)
    trace = trace_step(run, {"speech": 16})
    mesh = run.partitioning.mesh(jax.devices()[:8])
    layout = sharded_state(run, mesh)
    arrays = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype, device=leaf.sharding), layout.abstract
    )

    def of_one_device(tree) -> int:
        return sum(array.addressable_shards[0].data.nbytes for array in jax.tree.leaves(tree))

    memory = trace.memory(MESH)
    assert memory.parameters == memory.gradients == of_one_device(arrays.params)
    assert memory.average == of_one_device(arrays.ema_params)
    assert memory.optimizer == of_one_device(arrays.opt_state)
    assert memory.batch == 16 * (2 * small.INPUTS + 4 + 4)
    assert trace.parameters == 2 * small.matrix + small.INPUTS + small.HIDDEN
    assert memory.total == sum(memory.by_part().values())


def test_what_is_kept_for_the_gradient(small) -> None:
    """At least the inputs of both products and the sign of the rectifier, and no parameters."""
    few, many = (trace_step(small.run(), {"speech": rows}).saved_bytes for rows in (16, 160))
    least = 2 * small.INPUTS + 2 * small.HIDDEN + small.HIDDEN
    # In the error of the loss, values in float32 may be kept more than once.
    assert least <= (many - few) / 144 <= least + 3 * 4 * small.INPUTS
    # Matrices as they are multiplied, and little else, do not grow with the rows.
    assert few - 16 * (many - few) / 144 <= 2 * 2 * small.matrix


def by_hand(small, mesh: tuple[int, int, int], rows: int) -> dict[tuple[str, str], float]:
    """Two matrices in bfloat16 and two biases in float32, one pass."""
    data, fsdp, tensor = mesh
    part = 2 * small.matrix / tensor
    # The bias of the first layer is split over tensor, that of the second over fsdp.
    first, second = 4 * small.HIDDEN / tensor, 4 * small.INPUTS
    ring = {name: (n - 1) / n for name, n in zip(("data", "fsdp", "tensor"), mesh, strict=True)}
    return {
        ("all-gather", "fsdp"): 2 * (2 * part + second) * ring["fsdp"],
        ("reduce-scatter", "fsdp"): (2 * part + second) * ring["fsdp"],
        ("all-reduce", "fsdp"): 2 * first * ring["fsdp"],
        ("all-reduce", "data"): 2 * ((2 * part + second) / fsdp + first) * ring["data"],
        # Forward alone: nobody asks for the gradient of audio.
        ("all-reduce", "tensor"): 2 * (2 * rows * small.INPUTS) * ring["tensor"],
    }


@pytest.mark.parametrize("mesh", [(2, 2, 2), (2, 4, 1), (8, 1, 1), (1, 8, 1), (1, 2, 4)])
def test_transfers(small, mesh: tuple[int, int, int]) -> None:
    trace = trace_step(small.run(), {"speech": 16})
    found = {(each.kind, each.axis): each.sent for each in trace.transfers(mesh)}
    assert found == pytest.approx({k: v for k, v in by_hand(small, mesh, 16).items() if v})


def test_transfers_along_tensor_are_those_of_the_compiled_step(small) -> None:
    run = small.run(MESH)
    mesh = run.partitioning.mesh(jax.devices()[:8])
    layout = sharded_state(run, mesh)
    with run.partitioning.activate(mesh):
        lowered = jit_train_step(run, mesh, layout.shardings).lower(
            layout.abstract, small.batch_of(run, run.partitioning.batch_sharding(mesh)), None
        )
    compiled: Counter[tuple[str, ...]] = Counter()
    for each in find_collectives(lowered.compile().as_text(), dict(mesh.shape)):
        compiled[each.axes] += each.sent
    trace = trace_step(run, {"speech": 16})
    ours = {(each.kind, each.axis): each.sent for each in trace.transfers(MESH)}
    # CPUs multiply in float32, and norms and metrics are a few numbers.
    tensor = 2 * ours["all-reduce", "tensor"]
    assert compiled[("tensor",)] == pytest.approx(tensor, rel=0.02)


def test_a_batch_in_parts(small) -> None:
    """As much work, a part of the activations, and weights travel for each part."""
    whole = trace_step(small.run(), {"speech": 64})
    parts = trace_step(small.run(accumulate=4), {"speech": 64})
    quarter = trace_step(small.run(), {"speech": 16})
    assert parts.flops.model == whole.flops.model
    assert parts.saved_bytes == quarter.saved_bytes
    assert parts.memory((8, 1, 1)).gradients == 2 * whole.memory((8, 1, 1)).gradients
    once, often = (sum(e.sent for e in t.transfers((1, 8, 1))) for t in (whole, parts))
    assert often == pytest.approx(4 * once)
    with pytest.raises(UserError, match="accumulate=4 does not divide"):
        trace_step(small.run(accumulate=4), {"speech": 6})


@pytest.mark.tpu_backend
def test_transfers_are_those_that_the_tpu_compiler_wrote(small, monkeypatch) -> None:
    pytest.importorskip("libtpu")
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    from jax.experimental import topologies

    topology = parse_topology("v5e:4x4", slices=2)
    devices = topologies.get_topology_desc(
        topology.libtpu_name, platform="tpu", **topology.libtpu_options
    ).devices
    shape = (2, 16, 1)
    run = small.run(shape, batch=32 * 512)
    mesh = run.partitioning.mesh(list(devices))
    layout = sharded_state(run, mesh)
    with run.partitioning.activate(mesh):
        lowered = jit_train_step(run, mesh, layout.shardings).lower(
            layout.abstract, small.batch_of(run, run.partitioning.batch_sharding(mesh)), None
        )
    found = find_collectives(lowered.compile().as_text(), dict(mesh.shape), slices=2)
    trace = trace_step(run, {"speech": 512})
    ours: Counter[str] = Counter()
    for each in trace.transfers(shape):
        ours[each.axis] += each.sent
    compiled: Counter[str] = Counter()
    for each in found:
        compiled["+".join(each.axes)] += each.sent
    assert compiled["fsdp"] == pytest.approx(ours["fsdp"], rel=0.01)
    assert compiled["data"] == pytest.approx(ours["data"], rel=0.01)
    slow = sum(slow_bytes(topology, shape, each) for each in trace.transfers(shape))
    assert sum(each.sent for each in found if each.crosses_slices) == pytest.approx(slow, rel=0.01)

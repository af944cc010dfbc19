"""Replicas that differ in a bit are found, and the device is named."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from maestro_jax.errors import RestartableError
from maestro_jax.training.callbacks import Callback
from maestro_jax.training.partitioning import Partitioning
from maestro_jax.training.replica_check import replica_comparison
from maestro_jax.training.trainer import train


def _flipped(array, device, word=0, bit=0):
    """The same global array, with one bit of what a device holds flipped."""
    parts = []
    for shard in array.addressable_shards:
        local = np.array(shard.data)
        if shard.device == device:
            words = local.reshape(-1).view(f"uint{8 * local.dtype.itemsize}")
            words[word] ^= np.asarray(1 << bit, words.dtype)
        parts.append(jax.device_put(local, shard.device))
    return jax.make_array_from_single_device_arrays(array.shape, array.sharding, parts)


def _tree(mesh):
    rng = np.random.default_rng(0)
    values = {
        "kernel": (
            rng.standard_normal((8, 12)).astype(np.float32),
            PartitionSpec("fsdp", "tensor"),
        ),
        "half": (rng.standard_normal((4, 6)).astype(jnp.bfloat16), PartitionSpec(None, "tensor")),
        "whole": (np.zeros(5, np.float32), PartitionSpec()),
        "step": (np.int32(7), PartitionSpec()),
    }
    shardings = {name: NamedSharding(mesh, spec) for name, (_, spec) in values.items()}
    arrays = {name: jax.device_put(v, shardings[name]) for name, (v, _) in values.items()}
    return arrays, shardings


@pytest.mark.parametrize("shape", [(4, 2, 1), (2, 2, 2), (8, 1, 1), (1, 4, 2)])
def test_every_device_with_a_flipped_bit_is_named(shape):
    mesh = Partitioning(mesh_shape=shape).mesh()
    tree, shardings = _tree(mesh)
    find = replica_comparison(mesh, shardings, tree)
    assert find(tree) == []
    rng = np.random.default_rng(1)
    for name, array in tree.items():
        for device in mesh.devices.flat:
            local = next(s.data for s in array.addressable_shards if s.device == device)
            word = int(rng.integers(local.size))
            bit = int(rng.integers(8 * local.dtype.itemsize))
            copies = sum(
                s.index == next(s.index for s in array.addressable_shards if s.device == device)
                for s in array.addressable_shards
            )
            found = find({**tree, name: _flipped(array, device, word, bit)})
            if copies == 1:  # Nothing to compare it with.
                assert found == []
                continue
            [mismatch] = found
            assert mismatch.name == name and device in mismatch.suspects
            assert len(mismatch.suspects) == (1 if copies > 2 else 2)


def test_without_replicas_there_is_nothing_to_compare():
    mesh = jax.sharding.Mesh(np.array(jax.devices()).reshape(1, 8, 1), ("data", "fsdp", "tensor"))
    sharding = {"x": NamedSharding(mesh, PartitionSpec("fsdp"))}
    assert replica_comparison(mesh, sharding, {"x": jnp.zeros(8)}) is None


@pytest.mark.parametrize("every", [2, 100])
@pytest.mark.extended
def test_a_corrupt_replica_ends_the_run_before_it_is_saved(toy, tmp_path, every):
    """Flipped after step 4: found at step 6, by its own turn or before the checkpoint."""

    class Corrupts(Callback):
        def on_step(self, trainer, info):
            if info.step == 4:
                kernel = trainer.state.params["up"]["kernel"]
                params = dict(trainer.state.params)
                bad = _flipped(kernel, trainer.mesh.devices.flat[5], 3, 20)
                params["up"] = {**params["up"], "kernel": bad}
                trainer.state = trainer.state.replace(params=params)

    run = toy.run(partitioning=Partitioning(mesh_shape=(4, 2, 1)), check_replicas_every=every)
    with pytest.raises(RestartableError, match="at step 6: up/kernel on .*5 of process 0"):
        train(run, tmp_path / "a", batches=toy.batches, callbacks=[Corrupts()])
    assert [p.name for p in (tmp_path / "a" / "checkpoints").iterdir()] == ["3"]
    state = train(run, tmp_path / "a", batches=toy.batches)
    expected = train(run, tmp_path / "b", batches=toy.batches)
    toy.assert_trees_equal(jax.device_get(state), jax.device_get(expected))

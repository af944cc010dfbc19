"""Dropout beside Flax's, and its bits on devices that are split."""

from __future__ import annotations

import os
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maestro_jax.layers.dropout import Dropout, hardware_mask
from maestro_jax.training.partitioning import Partitioning


def test_it_is_flax_s_where_there_is_no_tpu() -> None:
    x = jax.random.normal(jax.random.key(1), (4, 7, 16))
    rngs = {"dropout": jax.random.key(2)}
    ours = Dropout(0.3).apply({}, x, deterministic=False, rngs=rngs)
    theirs = nn.Dropout(0.3).apply({}, x, deterministic=False, rngs=rngs)
    np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(Dropout(0.3).apply({}, x, deterministic=True), x)
    np.testing.assert_array_equal(Dropout(0.0).apply({}, x, deterministic=False), x)


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 2, 1), (1, 2, 2), (8, 1, 1)], ids=str)
def test_each_device_draws_its_own_rows_at_the_right_rate(shape) -> None:
    keep, size = 0.9, (8, 64, 128)
    partitioning = Partitioning(mesh_shape=shape)
    devices = int(np.prod(shape))
    if devices > len(jax.devices()):
        pytest.skip("needs more devices")
    mesh = partitioning.mesh(jax.devices()[:devices])
    with partitioning.activate(mesh):

        def draw(seed: int, place: int) -> np.ndarray:
            drawn = jax.jit(lambda key: hardware_mask(key, place, keep, size))
            return np.asarray(drawn(jax.random.key(seed)))

        mask = draw(5, 7)
        others = [draw(6, 7), draw(5, 8), draw(5, 7 + 2**40)]
    # Six deviations of a binomial distribution.
    bound = 6 * np.sqrt(keep * (1 - keep) / mask.size)
    assert abs(mask.mean() - keep) < bound
    # Two rows agree by chance alone, whether one device draws them or two, and so do two keys
    # and two places.
    chance = keep**2 + (1 - keep) ** 2
    bound = 6 * np.sqrt(chance * (1 - chance) / mask[0].size)
    for row in range(1, len(mask)):
        assert abs((mask[0] == mask[row]).mean() - chance) < bound
        for other in others:
            assert abs((mask[row] == other[row]).mean() - chance) < bound


def test_rows_that_the_devices_do_not_divide_are_drawn_whole() -> None:
    partitioning = Partitioning(mesh_shape=(2, 1, 1))
    if len(jax.devices()) < 2:
        pytest.skip("needs two devices")
    with partitioning.activate(partitioning.mesh(jax.devices()[:2])):
        mask = jax.jit(lambda key: hardware_mask(key, 7, 0.5, (3, 1000)))(jax.random.key(0))
    assert mask.shape == (3, 1000)
    assert 0.4 < mask.mean() < 0.6


@pytest.mark.tpu_backend
def test_a_tpu_s_generator_draws_the_rows_of_one_device() -> None:
    from jax.experimental import topologies

    for variable in ("TPU_SKIP_MDS_QUERY", "ALLOW_MULTIPLE_LIBTPU_LOAD"):
        os.environ.setdefault(variable, "1")
    devices = topologies.get_topology_desc("v5e:2x2", platform="tpu").devices
    partitioning = Partitioning(mesh_shape=(2, 2, 1))
    mesh = partitioning.mesh(devices)
    rows = partitioning.batch_sharding(mesh)

    def step(x: jax.Array, seed: jax.Array) -> jax.Array:
        rngs = {"dropout": jax.random.key(seed)}
        return Dropout(0.1).apply({}, x, deterministic=False, rngs=rngs)

    x = jax.ShapeDtypeStruct((64, 128, 512), jnp.bfloat16, sharding=rows)
    seed = jax.ShapeDtypeStruct((), jnp.int32)
    with partitioning.activate(mesh):
        text = jax.jit(step, out_shardings=rows).lower(x, seed).compile().as_text()
    drawn = re.findall(r"= \(?u\d+\[([\d,]+)\]\S* (?:[^=]*)rng-bit-generator\(", text)
    assert drawn
    assert {tuple(map(int, shape.split(","))) for shape in drawn if "," in shape} == {
        (16, 128, 512)
    }

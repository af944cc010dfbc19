"""The mesh, and where arrays live on it."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from maestro_jax.errors import UserError
from maestro_jax.layers.partitioned import Dense
from maestro_jax.modules.frontend import ConvSubsampling
from maestro_jax.training import parameter_trees
from maestro_jax.training.parameter_trees import parameter_overview
from maestro_jax.training.partitioning import DEFAULT_RULES, Partitioning


def test_mesh_fills_in_what_is_left_and_has_auto_axes():
    mesh = Partitioning(mesh_shape=(-1, 2, 2)).mesh()
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    assert mesh.axis_types == (AxisType.Auto,) * 3


@pytest.mark.parametrize("shape", [(3, 1, 1), (-1, 3, 1), (2, 2, 1)])
def test_a_shape_that_does_not_fit_names_the_number_of_devices(shape):
    with pytest.raises(UserError, match="there are 8"):
        Partitioning(mesh_shape=shape).mesh()


@pytest.mark.parametrize("shape", [(-1, -1, 1), (0, 1, 1), (1, 1), (2.0, 1, 1)])
def test_a_shape_that_no_machine_has_is_refused(shape):
    with pytest.raises(UserError, match="mesh_shape"):
        Partitioning(mesh_shape=shape)
    with pytest.raises(UserError, match="mesh_shape is 8; it must be a tuple of 3 whole numbers"):
        Partitioning(mesh_shape=8)


def test_a_rule_for_an_unknown_mesh_axis_is_refused():
    with pytest.raises(UserError, match="Did you mean 'tensor'"):
        Partitioning(rules=(("mlp", "tensr"),))


def test_lists_from_a_configuration_file_become_hashable():
    partitioning = Partitioning(mesh_shape=[-1, 1, 1], rules=[["batch", ["data", "fsdp"]]])
    assert hash(partitioning) == hash(Partitioning(rules=(("batch", ("data", "fsdp")),)))


def test_slices_are_joined_along_the_data_axis():
    class Device:
        platform, device_kind = "tpu", "TPU v5e"

        def __init__(self, index):
            self.id, self.slice_index = index, index // 4
            self.process_index = index // 4
            self.coords, self.core_on_chip = (index % 4 % 2, index % 4 // 2, 0), 0

    devices = [Device(index) for index in range(8)]
    mesh = Partitioning(mesh_shape=(-1, 2, 1)).mesh(devices)
    assert dict(mesh.shape) == {"data": 4, "fsdp": 2, "tensor": 1}
    slices = np.vectorize(lambda device: device.slice_index)(mesh.devices)[..., 0]
    # Each row of the fsdp axis stays within one slice; the first half of data is slice 0.
    np.testing.assert_array_equal(slices, [[0, 0], [0, 0], [1, 1], [1, 1]])
    with pytest.raises(UserError, match="2 slices"):
        Partitioning(mesh_shape=(1, -1, 1)).mesh(devices)
    # Asked for, another axis lies across them, and the rest of the mesh within.
    mesh = Partitioning(mesh_shape=(2, -1, 1), slices=(1, -1, 1)).mesh(devices)
    slices = np.vectorize(lambda device: device.slice_index)(mesh.devices)[..., 0]
    np.testing.assert_array_equal(slices, [[0, 0, 1, 1], [0, 0, 1, 1]])
    with pytest.raises(UserError, match=r"slices \(3, 1, 1\) does not fit the 2 available slices"):
        Partitioning(slices=(3, 1, 1)).mesh(devices)
    with pytest.raises(UserError, match="tensor axis that is a multiple of 2"):
        Partitioning(slices=(1, 1, 2)).mesh(devices)
    with pytest.raises(UserError, match="slices .* is not three"):
        Partitioning(slices=(2, 1))


def test_dimensions_that_do_not_divide_are_replicated_with_a_line(caplog):
    partitioning = Partitioning(mesh_shape=(1, 4, 2))
    mesh = partitioning.mesh()
    assert partitioning.spec(mesh, ("embed", "mlp"), (8, 6)) == PartitionSpec("fsdp", "tensor")
    with caplog.at_level("INFO"):
        assert partitioning.spec(mesh, ("embed", "mlp"), (8, 7), "w") == PartitionSpec("fsdp", None)
    assert "w: the axis 'mlp' of size 7 is replicated" in caplog.text


def test_an_axis_name_without_rule_is_refused():
    partitioning = Partitioning()
    with pytest.raises(UserError, match="'embd' of w has no rule.*Did you mean 'embed'"):
        partitioning.spec(partitioning.mesh(), ("embd",), (8,), "w")
    with pytest.raises(UserError, match="name each dimension"):
        partitioning.spec(partitioning.mesh(), ("embed",), (8, 8), "w")


def test_every_mesh_axis_serves_parameters_by_default():
    axes = {axis for _, axis in DEFAULT_RULES if isinstance(axis, str)}
    assert axes == {"fsdp", "tensor"}


def test_state_shardings_cover_parameters_moments_and_average(toy):
    partitioning = Partitioning(mesh_shape=(2, 2, 2))
    mesh = partitioning.mesh()
    abstract = toy.run().abstract_state()
    shardings = partitioning.state_shardings(mesh, abstract)
    expected = {
        "table": PartitionSpec("tensor", "fsdp"),
        "up/kernel": PartitionSpec("fsdp", "tensor"),
        "up/bias": PartitionSpec("tensor"),
        "out/kernel": PartitionSpec("tensor", "fsdp"),
        "out/bias": PartitionSpec(),
    }
    adam = next(part for part in shardings.opt_state if hasattr(part, "mu"))
    for tree in (shardings.params, shardings.ema_params, adam.mu, adam.nu):
        specs = {name: leaf.spec for name, leaf in parameter_trees.named_leaves(tree)}
        assert specs == expected
    assert shardings.step.spec == adam.count.spec == PartitionSpec()
    # The same structure as the unboxed state, so that jax.jit takes it as out_shardings.
    unboxed = parameter_trees.unbox(abstract)
    assert jax.tree.structure(shardings) == jax.tree.structure(unboxed)


def test_unboxing_abstract_values_works_under_a_mesh(toy):
    partitioning = Partitioning()
    with partitioning.activate(partitioning.mesh()):
        unboxed = parameter_trees.unbox(toy.run().abstract_state().params)
    assert unboxed["table"].shape == (16, 8)


def test_batch_rows_are_split_over_data_and_fsdp():
    partitioning = Partitioning(mesh_shape=(2, 2, 2))
    mesh = partitioning.mesh()
    rows = np.arange(8, dtype=np.int32)
    batch = {"text": {"text": np.tile(rows[:, None], (1, 3)), "text_length": rows}}
    placed = partitioning.shard_batch(mesh, batch)
    np.testing.assert_array_equal(placed["text"]["text"], batch["text"]["text"])
    assert placed["text"]["text"].addressable_shards[0].data.shape == (2, 3)
    assert partitioning.data_shard(mesh) == (0, 1)
    with pytest.raises(UserError, match="batch size 6 .* multiple of the 4 devices.* set it to 8"):
        partitioning.check_batch_sizes(mesh, {"paired": (8, 6)})


def test_parameter_overview_counts_and_names(toy):
    partitioning = Partitioning(mesh_shape=(2, 2, 2))
    boxed = toy.run().abstract_state().params
    text = parameter_overview(boxed, partitioning.state_shardings(partitioning.mesh(), boxed))
    line = next(line for line in text.splitlines() if line.startswith("up/kernel"))
    assert line.split() == "up/kernel 8x12 float32 embed, mlp fsdp, tensor 96".split()
    total = 16 * 8 + 8 * 12 + 12 + 12 * 16 + 16
    assert text.splitlines()[-1] == f"{total} parameters in 5 arrays"
    up = 8 * 12 + 12
    assert any(line.split() == ["up", str(up), f"{up / total:.1%}"] for line in text.splitlines())


def test_names_leave_out_the_collection():
    tree = {"params": {"encoder": {"kernel": jnp.zeros(1)}}}
    assert [name for name, _ in parameter_trees.named_leaves(tree)] == ["encoder/kernel"]
    assert [name for name, _ in parameter_trees.named_leaves(tree["params"])] == ["encoder/kernel"]


@pytest.mark.skipif(jax.device_count() < 8, reason="needs eight (CPU) devices")
@pytest.mark.parametrize("channels", [(4, 4), (8, 32)], ids=["fewer than devices", "more"])
def test_gradients_of_convolutions_that_the_tensor_axis_splits(channels):
    """XLA gave kernels of fewer channels than devices twice their gradient."""

    class Entrance(nn.Module):
        @nn.compact
        def __call__(self, features, lengths):
            x, _ = ConvSubsampling(channels=channels)(features, lengths)
            return Dense(16, ("conv_out", "embed"))(x)

    model = Entrance()
    features = jax.random.normal(jax.random.key(0), (8, 40, 80))
    lengths = jnp.asarray([40, 30, 20, 40, 10, 40, 33, 40])
    boxed = model.init(jax.random.key(1), features, lengths)
    params = parameter_trees.unbox(boxed)

    def loss(params, features):
        y = model.apply(params, features, lengths)
        return jnp.sum(jnp.square(y) * jnp.cos(jnp.arange(y.shape[-1])))

    expected = jax.jit(jax.grad(loss))(params, features)
    partitioning = Partitioning(mesh_shape=(1, 1, 8))
    mesh = partitioning.mesh(jax.devices()[:8])
    shardings = partitioning.state_shardings(mesh, boxed)
    step = jax.jit(
        jax.grad(loss),
        in_shardings=(shardings, partitioning.batch_sharding(mesh)),
        out_shardings=shardings,
    )
    with partitioning.activate(mesh):
        found = step(params, features)
    for name, gradient in jax.tree_util.tree_leaves_with_path(expected):
        actual = functools.reduce(lambda tree, key: tree[key.key], name, found)
        np.testing.assert_allclose(actual, gradient, rtol=1e-4, atol=1e-4, err_msg=str(name))

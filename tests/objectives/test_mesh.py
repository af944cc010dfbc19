"""The same training step on one device and on a mesh of eight (data 2, fsdp 2, tensor 2)."""

from __future__ import annotations

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from maestro_jax.layers.conformer import ConformerStack
from maestro_jax.modules.duration import DurationModel
from maestro_jax.modules.frontend import ConvSubsampling, LogMelFrontend
from maestro_jax.modules.maestro import Maestro
from maestro_jax.modules.quantizer import GumbelQuantizer
from maestro_jax.modules.refiner import Refiner
from maestro_jax.modules.resampler import Resampler
from maestro_jax.modules.shared_encoder import SharedEncoder
from maestro_jax.modules.speech_encoder import SpeechEncoder
from maestro_jax.modules.text_encoder import TextEncoder
from maestro_jax.modules.transducer import TransducerDecoder
from maestro_jax.training import parameter_trees
from maestro_jax.training.partitioning import Partitioning, replicated

pytestmark = pytest.mark.skipif(jax.device_count() < 8, reason="needs eight (CPU) devices")

PARTITIONING = Partitioning(mesh_shape=(2, 2, 2))


@pytest.fixture(scope="module")
def weights(tiny):
    return {name: np.float32(1.0) for name in tiny.weights}


@pytest.fixture(scope="module")
def alone(tiny, weights):
    """Gradients and metrics of a step on one device, dropout and augmentation on."""
    return tiny.run(tiny.state(), tiny.batch(), **weights)


@pytest.fixture(scope="module")
def sharded(tiny, weights):
    """The same step laid out by the partitioning: compiled program, new state, metrics."""
    mesh = PARTITIONING.mesh()
    shardings = PARTITIONING.state_shardings(mesh, tiny.abstract)
    step = jax.jit(
        tiny.train_step,
        in_shardings=(shardings, PARTITIONING.batch_sharding(mesh), replicated(mesh)),
        out_shardings=(shardings, replicated(mesh)),
    )
    with PARTITIONING.activate(mesh):
        state = jax.device_put(tiny.state(), shardings)
        batch = PARTITIONING.shard_batch(mesh, tiny.batch())
        compiled = step.lower(state, batch, weights).compile()
        new_state, metrics = compiled(state, batch, weights)
    return compiled, new_state, metrics


@pytest.mark.extended
def test_loss_and_every_metric_agree(alone, sharded):
    _, expected = alone
    _, _, metrics = sharded
    assert set(metrics) == set(expected)
    assert expected["skipped_steps"] == (0.0, 1.0)
    for name, pair in expected.items():
        np.testing.assert_allclose(metrics[name], pair, rtol=1e-5, atol=1e-7, err_msg=name)


@pytest.mark.extended
def test_gradients_agree(tiny, alone, sharded):
    """The gradient norm is among the metrics; here all gradients, each against the whole's norm."""
    expected, _ = alone
    gradients = tiny.gradients(sharded[1])
    norm = math.sqrt(sum(np.sum(np.square(gradient)) for gradient in expected.values()))
    for name, gradient in expected.items():
        error = np.linalg.norm(gradients[name] - gradient)
        assert error < 1e-5 * norm, name


@pytest.mark.extended
def test_parameters_agree_after_the_step(tiny, alone, sharded):
    """An Adam step has the size of the learning rate at most, whatever rounding does to signs."""
    learning_rate = alone[1]["learning_rate"][0]
    before = parameter_trees.named_leaves(tiny.state().params)
    after = dict(parameter_trees.named_leaves(sharded[1].params))
    for name, old in before:
        change = np.abs(np.asarray(after[name], np.float64) - old).max()
        assert 0.0 < change < 1.01 * learning_rate + 1e-7, name


@pytest.mark.extended
def test_the_new_state_lies_where_the_rules_say(tiny, sharded):
    shardings = PARTITIONING.state_shardings(PARTITIONING.mesh(), tiny.abstract)
    for leaf, sharding in zip(jax.tree.leaves(sharded[1]), jax.tree.leaves(shardings), strict=True):
        assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)


@pytest.mark.extended
def test_the_lattice_is_never_whole_on_a_device(tiny, sharded):
    """Rows of four lattices (paired, text, mt, st) are split over data and fsdp.

    Left alone, the partitioner may replicate the joint network's batch, the largest array by far.
    """
    frames, labels = tiny.max_text_frames, tiny.streams["paired"].text_tokens + 1
    rows = sum(tiny.streams[name].batch_size for name in ("paired", "text", "mt", "st"))
    shapes = set(re.findall(rf"f32\[(\d+),{frames},{labels},\d+\]", sharded[0].as_text()))
    assert shapes
    assert max(int(found) for found in shapes) <= rows // 4


def test_every_parameter_names_its_axes_and_every_name_has_a_rule(tiny):
    boxes = jax.tree.leaves(tiny.abstract.params, is_leaf=parameter_trees.is_box)
    known = {name for name, _ in PARTITIONING.rules}
    for box in boxes:
        assert parameter_trees.is_box(box)
        assert len(box.names) == len(box.value.shape)
        assert {name for name in box.names if name is not None} <= known


@pytest.fixture(scope="module")
def paper():
    """The model at the paper's size (section 3), in shapes only."""

    def stack(layers):
        return ConformerStack(layers=layers, features=1024, heads=8, hidden=4096)

    model = Maestro(
        frontend=LogMelFrontend(),
        subsampling=ConvSubsampling(),
        quantizer=GumbelQuantizer(),
        speech_encoder=SpeechEncoder(stack=stack(6)),
        text_encoder=TextEncoder(vocab_size=4096),
        duration_model=DurationModel(),
        resampler=Resampler(),
        refiner=Refiner(features=1024),
        shared_encoder=SharedEncoder(stack=stack(18)),
        decoder=TransducerDecoder(vocab_size=4096),
    )
    return jax.eval_shape(lambda: model.init({"params": jax.random.key(0)}, {}))["params"]


def test_the_paper_s_model_is_split_four_ways(paper):
    """fsdp x tensor = 4: a device holds little more than a quarter, and every large kernel less."""
    mesh = PARTITIONING.mesh()
    shardings = dict(parameter_trees.named_leaves(PARTITIONING.state_shardings(mesh, paper)))
    whole, held = 0, 0
    for name, leaf in parameter_trees.named_leaves(parameter_trees.unbox(paper)):
        size = math.prod(leaf.shape)
        share = math.prod(shardings[name].shard_shape(leaf.shape))
        whole, held = whole + size, held + share
        if size >= 2**20:
            assert share <= size // 2, f"{name} {leaf.shape} {shardings[name].spec}"
    assert whole > 500e6
    assert held < 0.26 * whole


def test_where_the_large_kernels_of_the_paper_s_model_lie(paper):
    mesh = PARTITIONING.mesh()
    shardings = dict(parameter_trees.named_leaves(PARTITIONING.state_shardings(mesh, paper)))
    block = "shared_encoder/stack/layers"
    for name, spec in {
        f"{block}/feed_forward_in/up/kernel": PartitionSpec(None, "fsdp", "tensor"),
        f"{block}/feed_forward_in/down/kernel": PartitionSpec(None, "tensor", "fsdp"),
        f"{block}/attention/query/kernel": PartitionSpec(None, "fsdp", "tensor", None),
        f"{block}/attention/output/kernel": PartitionSpec(None, "tensor", None, "fsdp"),
        "decoder/lstm_0/input/kernel": PartitionSpec("fsdp", "tensor"),
        "decoder/output/kernel": PartitionSpec(None, "tensor"),
        "text_encoder/tokens/embedding": PartitionSpec("tensor", "fsdp"),
    }.items():
        assert shardings[name].spec == spec, name


def test_the_mesh_s_random_numbers_are_those_of_one_device():
    """What all else rests on: a sharded draw gives the bits of an unsharded one."""
    mesh = PARTITIONING.mesh()
    draw = lambda: jax.random.uniform(jax.random.key(1), (8, 16))  # noqa: E731
    split = jax.jit(draw, out_shardings=PARTITIONING.batch_sharding(mesh))()
    np.testing.assert_array_equal(np.asarray(split), np.asarray(jnp.asarray(draw())))

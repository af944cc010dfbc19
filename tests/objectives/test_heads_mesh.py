"""The heads for fine-tuning on one device and on a mesh of eight (data 2, fsdp 2, tensor 2).

They are given an encoder's output, whose own layout `test_mesh` looks at.
"""

from __future__ import annotations

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maestro_jax.decoding.speech import decode_encoded
from maestro_jax.losses.reduction import mean
from maestro_jax.modules.ctc_head import CtcHead
from maestro_jax.modules.transformer_decoder import TransformerDecoder
from maestro_jax.objectives.base import bind
from maestro_jax.objectives.decoder_losses import TargetLabels, attention_losses, ctc_term
from maestro_jax.objectives.forward import EncoderInput
from maestro_jax.training import parameter_trees
from maestro_jax.training.partitioning import Partitioning, replicated

pytestmark = pytest.mark.skipif(jax.device_count() < 8, reason="needs eight (CPU) devices")

PARTITIONING = Partitioning(mesh_shape=(2, 2, 2))
# Sizes of which no two agree, so that an array is known by its shape.
ROWS, FRAMES, WIDTH, TOKENS, CTC_VOCABULARY, VOCABULARY = 8, 11, 16, 5, 20, 28
GATHERS = r" (all-gather|all-to-all|collective-permute)(-start)?\("


@pytest.fixture(scope="module")
def model(tiny):
    return tiny.maestro().clone(
        ctc_head=CtcHead(vocab_size=CTC_VOCABULARY, dropout=0.1),
        translation_decoder=TransformerDecoder(
            vocab_size=VOCABULARY, layers=1, features=WIDTH, heads=2, hidden=24, languages=2
        ),
    )


@pytest.fixture(scope="module")
def params(tiny, model):
    return tiny.params_of(model)


@pytest.fixture(scope="module")
def shardings(model):
    abstract = jax.eval_shape(lambda: model.init({"params": jax.random.key(0)}, {}))["params"]
    return PARTITIONING.state_shardings(PARTITIONING.mesh(), abstract)


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(0)
    # One absent, and one too short for its text.
    frames = np.asarray([0, 1, *rng.integers(TOKENS, FRAMES + 1, ROWS - 2)])
    return {
        "context": rng.normal(size=(ROWS, FRAMES, WIDTH)).astype(np.float32),
        "mask": np.arange(FRAMES) < frames[:, None],
        "tokens": rng.integers(3, CTC_VOCABULARY, (ROWS, TOKENS)).astype(np.int32),
        "lengths": np.asarray([3, 3, 0, *rng.integers(1, TOKENS, ROWS - 3)], np.int32),
        "language": rng.integers(0, 2, ROWS).astype(np.int32),
    }


@pytest.fixture(scope="module")
def terms(model):
    """Gradients and sums of both heads, with dropout."""

    def compute(params, batch):
        bound = bind(model, params, jax.random.key(1))
        labels = TargetLabels(batch["tokens"], batch["lengths"])
        inputs = EncoderInput(batch["context"], batch["mask"], batch["language"])
        ctc, lacking = ctc_term(bound, batch["context"], batch["mask"], labels, deterministic=False)
        attention = attention_losses(
            bound,
            {"st": batch["context"]},
            {"st": inputs},
            {"st": labels},
            smoothing=0.1,
            deterministic=False,
        )["st"]
        return mean(ctc) + mean(attention.loss), (ctc, lacking, attention)

    return jax.grad(compute, has_aux=True)


@pytest.fixture(scope="module")
def alone(terms, params, inputs):
    return jax.jit(terms)(params, inputs)


@pytest.fixture(scope="module")
def sharded(terms, params, shardings, inputs):
    mesh = PARTITIONING.mesh()
    function = jax.jit(
        terms,
        in_shardings=(shardings, PARTITIONING.batch_sharding(mesh)),
        out_shardings=(shardings, replicated(mesh)),
    )
    with PARTITIONING.activate(mesh):
        batch = PARTITIONING.shard_batch(mesh, inputs)
        compiled = function.lower(params, batch).compile()
        return compiled, compiled(jax.device_put(params, shardings), batch)


def test_sums_and_gradients_agree(alone, sharded):
    expected_gradients, expected = alone
    _, (gradients, found) = sharded
    for pair, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(pair, other, rtol=1e-5)
    assert all(count > 0 for _, count in (expected[0], expected[2].loss))
    assert expected[1] == (1.0, 1.0)
    there = dict(parameter_trees.named_leaves(gradients))
    moved = 0
    for name, leaf in parameter_trees.named_leaves(expected_gradients):
        assert np.isfinite(leaf).all(), name
        np.testing.assert_allclose(there[name], leaf, atol=1e-5, err_msg=name)
        moved += bool(np.abs(leaf).max() > 1e-4)
    assert moved > 20


def test_rows_of_logits_stay_split(sharded):
    text = sharded[0].as_text()
    for positions, vocabulary in ((FRAMES, CTC_VOCABULARY), (TOKENS + 1, VOCABULARY)):
        pattern = rf"f32\[(\d+),{positions},(?:{vocabulary}|{vocabulary // 2})\]"
        found = {int(count) for count in re.findall(pattern, text)}
        assert found and max(found) == ROWS // 4


def test_every_kernel_of_a_head_is_split(params, shardings):
    placed = dict(parameter_trees.named_leaves(shardings))
    for name, leaf in parameter_trees.named_leaves(params):
        if name.startswith(("ctc_head", "translation_decoder")) and name.endswith("kernel"):
            assert np.prod(placed[name].shard_shape(leaf.shape)) <= leaf.size // 2, name


@pytest.mark.parametrize("decoder", ["ctc", "attention"])
def test_a_search_leaves_its_rows_where_they_are(model, params, inputs, decoder):
    """With parameters on every device nothing is moved, and the result is that of one device."""
    partitioning = Partitioning(mesh_shape=(8, 1, 1))
    mesh = partitioning.mesh()
    rows, whole = partitioning.batch_sharding(mesh), replicated(mesh)
    function = functools.partial(decode_encoded, model, max_labels=4, beam_size=3, decoder=decoder)
    arguments = (inputs["context"], inputs["mask"], inputs["language"])
    with partitioning.activate(mesh):
        compiled = (
            jax.jit(function, in_shardings=(whole, rows, rows, rows))
            .lower(params, *arguments)
            .compile()
        )
        found = compiled(jax.device_put(params, whole), *jax.device_put(arguments, rows))
    moved = [line for line in compiled.as_text().splitlines() if re.search(GATHERS, line)]
    assert not moved, moved[0]
    for leaf in found:
        assert leaf.sharding.is_equivalent_to(rows, leaf.ndim)
    alone = jax.jit(function)(params, *map(jnp.asarray, arguments))
    np.testing.assert_array_equal(found.tokens, alone.tokens)
    np.testing.assert_allclose(found.scores, alone.scores, rtol=1e-5)

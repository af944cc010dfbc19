"""Compiled programs of a run on eight devices: nothing is born whole, nothing is kept twice."""

from __future__ import annotations

import dataclasses
import math

import jax
import pytest

from maestro_jax.batches import synthetic_batch
from maestro_jax.training import parameter_trees
from maestro_jax.training.curriculum_controller import initial_controls
from maestro_jax.training.optimizers import AdafactorConfig, AdamConfig
from maestro_jax.training.partitioning import Partitioning
from maestro_jax.training.state import create_state, initial_params, sharded_state
from maestro_jax.training.step import jit_train_step
from maestro_jax.training.trainer import train

pytestmark = pytest.mark.skipif(jax.device_count() < 8, reason="needs eight (CPU) devices")

OPTIMIZERS = {"adam": AdamConfig(), "adafactor": AdafactorConfig(b1=0.9, smallest_factored=8)}


def whole_bytes(tree) -> int:
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def held_bytes(abstract) -> int:
    """Of what lies where the rules say, on one device."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(abstract)
    )


def large(toy, mesh_shape, optimizer="adam", **changes):
    """Kernels of 2 and 4 MB, beside which all else is small."""
    return toy.run(
        model=toy.Model(vocab_size=1024, width=512, hidden=2048),
        optimizer=OPTIMIZERS[optimizer],
        partitioning=Partitioning(mesh_shape=mesh_shape),
        **changes,
    )


@pytest.mark.parametrize("mesh_shape", [(1, 8, 1), (1, 2, 4), (1, 1, 8)])
def test_parameters_are_born_where_they_belong(toy, mesh_shape):
    """The program that makes them holds no array whole: neither results nor anything on the way."""
    run = large(toy, mesh_shape)
    mesh = run.partitioning.mesh()
    laid_out = sharded_state(run, mesh)
    with run.partitioning.activate(mesh):
        program = jax.jit(
            lambda: parameter_trees.unbox(
                initial_params(run.model, run.objective, run.batch_shapes(), run.seed)
            ),
            out_shardings=laid_out.shardings.params,
        )
        memory = program.lower().compile().memory_analysis()
    whole = whole_bytes(laid_out.abstract.params)
    assert whole > 14e6
    assert memory.output_size_in_bytes < 1.02 * whole / 8
    # Random bits and their transforms take a few times the room of what they become.
    assert memory.output_size_in_bytes + memory.temp_size_in_bytes < 0.6 * whole


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_rest_of_the_state_is_made_from_the_parameters_on_each_device(toy, optimizer):
    run = large(toy, (1, 8, 1), optimizer)
    mesh = run.partitioning.mesh()
    laid_out = sharded_state(run, mesh)
    with run.partitioning.activate(mesh):
        program = jax.jit(
            lambda params: create_state(params, run.optimizer),
            out_shardings=laid_out.shardings,
            donate_argnums=0,
        )
        memory = program.lower(laid_out.abstract.params).compile().memory_analysis()
    held = held_bytes(laid_out.abstract)
    assert held < 1.05 * whole_bytes(laid_out.abstract) / 8
    assert memory.output_size_in_bytes < 1.05 * held + 4096
    assert memory.temp_size_in_bytes < 0.1 * held


def compiled_step(run):
    mesh = run.partitioning.mesh()
    laid_out = sharded_state(run, mesh)
    batch = synthetic_batch(run.streams, 0, run.model.vocab_size)
    controls = initial_controls(run.objective)
    with run.partitioning.activate(mesh):
        batch = run.partitioning.shard_batch(mesh, batch)
        step = jit_train_step(run, mesh, laid_out.shardings)
        return step.lower(laid_out.abstract, batch, controls).compile(), laid_out


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("mesh_shape", [(8, 1, 1), (1, 4, 2)])
def test_the_new_state_takes_the_place_of_the_old(toy, mesh_shape, optimizer):
    """Every buffer of the state is donated, and every one is used."""
    compiled, laid_out = compiled_step(large(toy, mesh_shape, optimizer))
    assert compiled.memory_analysis().alias_size_in_bytes == pytest.approx(
        held_bytes(laid_out.abstract), abs=64
    )


@pytest.fixture
def text_alone(toy):
    """The toy's objective without the distance to the average."""

    class TextAlone(toy.Objective):
        def loss_terms(self, *arguments, **keywords):
            terms, metrics = super().loss_terms(*arguments, **keywords)
            return {"text": terms["text"]}, metrics

    return TextAlone()


def test_sums_of_gradients_lie_as_their_parameters_do(toy, text_alone):
    """A batch in parts needs room for one more gradient, of one device."""
    run = large(toy, (1, 8, 1), objective=text_alone)
    plain, laid_out = compiled_step(run)
    streams = {name: dataclasses.replace(c, batch_size=32) for name, c in run.streams.items()}
    parts, _ = compiled_step(dataclasses.replace(run, streams=streams, accumulate=4))
    more = parts.memory_analysis().temp_size_in_bytes - plain.memory_analysis().temp_size_in_bytes
    whole = whole_bytes(laid_out.abstract.params)
    assert more < 3 * whole / 8


def test_a_run_in_parts_on_a_mesh_is_taken_up_again(toy, text_alone, tmp_path):
    run = toy.run(
        objective=text_alone,
        accumulate=2,
        partitioning=Partitioning(mesh_shape=(2, 2, 2)),
    )
    logged = {}
    whole = train(
        run, tmp_path / "a", batches=toy.batches, callbacks=[toy.OnLog(logged.__setitem__)]
    )
    train(dataclasses.replace(run, steps=3), tmp_path / "b", batches=toy.batches)
    toy.assert_trees_equal(whole, train(run, tmp_path / "b", batches=toy.batches))
    # Amounts are those of the step, not of its parts.
    assert logged[6]["text/examples"] == 8.0

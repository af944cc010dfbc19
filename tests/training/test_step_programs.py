"""Programs of the training step: compiled once per shape, ahead of the first step on request."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from maestro_jax.objectives.base import Controls
from maestro_jax.training.curriculum_controller import initial_controls
from maestro_jax.training.optimizers import AdamConfig
from maestro_jax.training.parameter_groups import ParameterGroup
from maestro_jax.training.state import sharded_state
from maestro_jax.training.step import describe_shapes, jit_train_step
from maestro_jax.training.step_programs import StepPrograms
from maestro_jax.training.trainer import _new_state


def _programs(run):
    mesh = run.partitioning.mesh()
    layout = sharded_state(run, mesh)
    return mesh, layout, StepPrograms(run, mesh, layout.shardings)


def test_a_program_compiled_ahead_takes_the_step_of_the_jitted_function(toy, tmp_path) -> None:
    run = toy.run()
    mesh, layout, programs = _programs(run)
    controls = initial_controls(run.objective)
    # MAESTRO reads translations, which few runs have.
    programs.compile_ahead(layout.abstract, controls, (*run.streams, "mt"))
    batch = run.partitioning.shard_batch(mesh, next(toy.batches(0)))
    # It comes from the background: nothing is compiled a second time.
    programs._compile = None  # type: ignore[method-assign, assignment]
    with run.partitioning.activate(mesh):
        results = []
        for step in (
            jit_train_step(run, mesh, layout.shardings),
            programs.get(layout.abstract, batch, controls).run,
        ):
            state = _new_state(run, mesh, layout.shardings, tmp_path)
            results.append(jax.device_get(step(state, batch, controls)))
    jax.tree.map(np.testing.assert_array_equal, *results)
    assert programs.get(layout.abstract, batch, controls).flops > 0
    programs.close()


def test_the_order_of_streams_makes_no_other_shape() -> None:
    """Batches that went through JAX have theirs sorted; those of a run are as it names them."""
    batch = {"speech": {"audio": np.zeros((2, 8))}, "mt": {"text": np.zeros((3, 4))}}
    described = describe_shapes(batch)
    assert described == "mt 3 x 4; speech 2 x 8"
    assert describe_shapes(dict(reversed(batch.items()))) == described


def test_a_batch_of_other_shapes_gets_a_program_of_its_own(toy) -> None:
    run = toy.run()
    mesh, layout, programs = _programs(run)
    controls = initial_controls(run.objective)
    batch = next(toy.batches(0))
    doubled = {
        name: {feature: np.concatenate([value] * 2) for feature, value in features.items()}
        for name, features in batch.items()
    }
    with run.partitioning.activate(mesh):
        once, twice = (
            programs.get(layout.abstract, run.partitioning.shard_batch(mesh, b), controls)
            for b in (batch, doubled)
        )
    assert once is not twice
    assert twice.flops == 2 * once.flops
    programs.close()


def test_controls_of_later_steps_fit_the_program(toy, tmp_path) -> None:
    run = toy.run()
    mesh, layout, programs = _programs(run)
    batch = run.partitioning.shard_batch(mesh, next(toy.batches(0)))
    first = initial_controls(run.objective)
    with run.partitioning.activate(mesh):
        program = programs.get(layout.abstract, batch, first)
        later = Controls(np.int32(7), first.learned_weights)  # type: ignore[arg-type]
        state, _ = program.run(_new_state(run, mesh, layout.shardings, tmp_path), batch, later)
    assert int(state.step) == 1
    programs.close()


def test_a_run_of_another_length_finds_its_program(toy, tmp_path) -> None:
    """Its learning rates, also of groups, end at another update: an input, not a constant."""
    results, texts = [], []
    out = ParameterGroup(name="out", patterns="out/.*", decay_steps=60, frozen_steps=2)
    for end in (50, 70):
        config = AdamConfig(
            learning_rate=0.1,
            warmup_steps=2,
            schedule_name="cosine",
            decay_steps=end,
            groups=(dataclasses.replace(out, decay_steps=end + 10),),
        )
        run = dataclasses.replace(toy.run(), optimizer=config)
        assert config.schedule_ends() == {"base": end, "out": end + 10}
        mesh = run.partitioning.mesh()
        layout = sharded_state(run, mesh)
        batch = run.partitioning.shard_batch(mesh, next(toy.batches(0)))
        controls = initial_controls(run.objective)
        given = dataclasses.replace(
            controls,
            schedule_ends={name: jnp.int32(at) for name, at in config.schedule_ends().items()},
        )
        with run.partitioning.activate(mesh):
            step = jit_train_step(run, mesh, layout.shardings)
            texts.append(step.lower(layout.abstract, batch, given).as_text())
            rates = []
            for each in (controls, given):
                state = _new_state(run, mesh, layout.shardings, tmp_path)
                state = state.replace(step=np.int32(40))
                metrics = step(state, batch, each)[1]
                rates.append([float(metrics[f"learning_rate{of}"][0]) for of in ("", "/out")])
        np.testing.assert_allclose(rates[1], rates[0], rtol=1e-5)
        results.append(rates[0])
    assert texts[0] == texts[1]
    assert np.all(np.array(results[1]) > 1.2 * np.array(results[0]))

"""Programs of the training step: compiled once per shape, ahead of the first step on request."""

from __future__ import annotations

import jax
import numpy as np

from maestro_jax.objectives.base import Controls
from maestro_jax.training.curriculum_controller import initial_controls
from maestro_jax.training.state import sharded_state
from maestro_jax.training.step import jit_train_step
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
    with run.partitioning.activate(mesh):
        results = []
        for step in (
            jit_train_step(run, mesh, layout.shardings),
            programs.get(layout.abstract, batch, controls).run,
        ):
            state = _new_state(run, mesh, layout.shardings, tmp_path)
            results.append(jax.device_get(step(state, batch, controls)))
    jax.tree.map(np.testing.assert_array_equal, *results)
    # It came from the background, and is compiled no second time.
    compiled = programs._compile
    programs._compile = None  # type: ignore[method-assign, assignment]
    assert programs.get(layout.abstract, batch, controls).flops > 0
    programs._compile = compiled  # type: ignore[method-assign]
    programs.close()


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

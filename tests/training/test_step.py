"""One step: the same on any mesh, and harmless when something is not finite."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from maestro_jax.training import parameter_trees
from maestro_jax.training.state import create_state, initial_params
from maestro_jax.training.step import train_step


def _state(run, ema=True):
    @jax.jit
    def init():
        params = initial_params(run.model, run.objective, run.batch_shapes(), run.seed)
        return create_state(parameter_trees.unbox(params), run.optimizer, ema=ema)

    return init()


def _step(run):
    return jax.jit(
        functools.partial(
            train_step,
            model=run.model,
            objective=run.objective,
            optimizer=run.optimizer,
            ema_decay=run.ema_decay,
            seed=run.seed,
        )
    )


def test_metrics_and_update(toy):
    run = toy.run()
    state, batch = _state(run), next(toy.batches(0))
    new, metrics = _step(run)(state, batch)
    assert int(new.step) == 1
    rng = jax.random.fold_in(jax.random.key(run.seed), 0)
    gradients = jax.jit(
        jax.grad(
            lambda p: run.objective.loss(run.model, p, state.ema_params, batch, rng=rng, step=0)[0]
        )
    )(state.params)
    expected = np.sqrt(sum(np.sum(np.float64(g) ** 2) for g in jax.tree.leaves(gradients)))
    np.testing.assert_allclose(metrics["grad_norm"][0], expected, rtol=1e-5)
    np.testing.assert_allclose(metrics["param_norm"][0], optax.tree.norm(new.params), rtol=1e-6)
    np.testing.assert_allclose(metrics["learning_rate"][0], run.optimizer.schedule(0), rtol=1e-6)
    assert float(metrics["skipped_steps"][0]) == 0.0
    # The average warms up: after the first update it is 1/10 of the old and 9/10 of the new.
    for old, value, average in zip(
        *map(jax.tree.leaves, (state.params, new.params, new.ema_params)), strict=True
    ):
        np.testing.assert_allclose(
            average, 0.1 * np.float64(old) + 0.9 * np.float64(value), rtol=1e-5, atol=1e-7
        )


def test_a_step_that_is_not_finite_changes_nothing_but_its_number(toy):
    run = toy.run(objective=toy.Objective(explode_at=0))
    state, batch = _state(run), next(toy.batches(0))
    new, metrics = _step(run)(state, batch)
    for field in ("params", "opt_state", "ema_params"):
        toy.assert_trees_equal(getattr(new, field), getattr(state, field))
    assert int(new.step) == 1
    assert float(metrics["skipped_steps"][0]) == 1.0
    # What is not finite has no part in averages.
    assert [float(x) for x in metrics["loss"]] == [0.0, 0.0]
    assert all(np.isfinite(float(total)) for total, _ in metrics.values())
    after, _ = _step(run)(new, batch)
    assert not np.array_equal(after.params["table"], state.params["table"])


def test_without_average(toy):
    class Plain(toy.Objective):
        def loss_terms(self, model, params, ema_params, batch, **kwargs):
            assert ema_params is None
            return super().loss_terms(model, params, params, batch, **kwargs)

    run = toy.run(ema_decay=None, objective=Plain())
    new, _ = _step(run)(_state(run, ema=False), next(toy.batches(0)))
    assert new.ema_params is None


def test_randomness_is_a_function_of_seed_and_step(toy):
    batch = next(toy.batches(0))
    state = _state(toy.run())
    steps = {seed: _step(toy.run(seed=seed)) for seed in (0, 1)}

    def loss(seed, step):
        return float(steps[seed](state.replace(step=jnp.int32(step)), batch)[1]["loss"][0])

    assert len({loss(0, 0), loss(0, 1), loss(1, 0), loss(1, 1)}) == 4
    assert loss(0, 1) == loss(0, 1)

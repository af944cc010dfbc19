"""Groups with rates of their own, that thaw late or never, against AdamW written out in float64."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from maestro_jax.errors import UserError
from maestro_jax.training import parameter_trees
from maestro_jax.training.optimizers import AdamConfig
from maestro_jax.training.parameter_groups import ParameterGroup
from maestro_jax.training.partitioning import Partitioning
from maestro_jax.training.state import create_state, initial_params
from maestro_jax.training.step import train_step
from maestro_jax.training.trainer import train

CONFIG = AdamConfig(
    learning_rate=0.1,
    warmup_steps=2,
    weight_decay=0.3,
    clip_norm=1.0,
    groups=(
        ParameterGroup(name="head", patterns="decoder/out/.*", frozen=True),
        ParameterGroup(
            name="decoder",
            patterns=("decoder/.*", "joint"),
            learning_rate=0.4,
            warmup_steps=1,
            schedule_name="constant",
            weight_decay=0.0,
        ),
        ParameterGroup(name="encoder", patterns=("encoder/.*",), frozen_steps=2),
    ),
)
START = {
    "encoder/kernel": [1.5, -0.5],
    "encoder/bias": [0.25, 0.0],
    "decoder/kernel": [0.5, 2.0],
    "decoder/out/kernel": [-3.0, 1.0],
    "joint": [1.0, 1.0],
    "other": [0.7, -0.7],
}


def _tree(flat):
    tree = {}
    for name, value in flat.items():
        *parents, last = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = jnp.asarray(value, jnp.float32)
    return tree


def _gradients(steps):
    rng = np.random.default_rng(1)
    return [{name: rng.normal(size=2) for name in START} for _ in range(steps)]


def _by_hand(gradients):
    """What each parameter is after each step; every rule is written out, none looked up."""
    values = {name: np.array(value, np.float64) for name, value in START.items()}
    first = {name: np.zeros(2) for name in START}
    second = {name: np.zeros(2) for name in START}
    history = []
    for step, gradient in enumerate(gradients):
        # The encoder thaws at step 2, and the head never does.
        moves = [n for n in START if n != "decoder/out/kernel" and (step >= 2 or "enc" not in n)]
        norm = math.sqrt(sum(np.sum(gradient[name] ** 2) for name in moves))
        for name in moves:
            g = gradient[name] / max(norm, 1.0)
            t = step + 1 - (2 if "encoder" in name else 0)
            first[name] = 0.9 * first[name] + 0.1 * g
            second[name] = 0.98 * second[name] + 0.02 * g**2
            update = (first[name] / (1 - 0.9**t)) / (np.sqrt(second[name] / (1 - 0.98**t)) + 1e-9)
            if name in ("decoder/kernel", "joint"):
                rate, decay = 0.4, 0.0
            else:
                rate = 0.1 * min(t / 2, math.sqrt(2 / t))
                decay = 0.0 if name == "encoder/bias" else 0.3
            values[name] = values[name] - rate * (update + decay * values[name])
        history.append(dict(values))
    return history


def _apply(config, gradients):
    params = _tree(START)
    optimizer = config.build(params)
    state, history = optimizer.init(params), []
    update = jax.jit(optimizer.update)
    for gradient in gradients:
        updates, state = update(_tree(gradient), state, params)
        params = optax.apply_updates(params, updates)
        history.append(dict(parameter_trees.named_leaves(params)))
    return history, state


def test_groups_match_adamw_by_hand():
    gradients = _gradients(5)
    history, state = _apply(CONFIG, gradients)
    for step, expected in enumerate(_by_hand(gradients)):
        for name, value in expected.items():
            np.testing.assert_allclose(
                history[step][name], value, rtol=2e-5, atol=1e-6, err_msg=f"{name} at {step}"
            )
    # What stands still does so to the bit, decay or not.
    for name, until in (("encoder/kernel", 2), ("encoder/bias", 2), ("decoder/out/kernel", 5)):
        for step in range(until):
            np.testing.assert_array_equal(history[step][name], START[name])
    # Five of six parameters have moments; the frozen one costs no memory.
    assert set(state.groups) == {"decoder", "encoder", "base"}
    assert sum(leaf.size for leaf in jax.tree.leaves(state) if leaf.ndim) == 2 * 5 * 2


def test_learning_rates_of_groups():
    """The encoder's warm-up and root are counted from its thaw."""
    rates = [CONFIG.group_schedules(step) for step in range(7)]
    assert {len(rate) for rate in rates} == {3}
    assert [float(rate["head"]) for rate in rates] == [0.0] * 7
    np.testing.assert_allclose([rate["decoder"] for rate in rates], [0.4] * 7)
    expected = [0, 0, 0.05, 0.1, 0.1 * math.sqrt(2 / 3), 0.1 * math.sqrt(2 / 4)]
    np.testing.assert_allclose([rate["encoder"] for rate in rates][:6], expected, rtol=1e-6)


def test_a_cosine_ends_with_the_run_however_late_it_began():
    group = ParameterGroup(name="late", patterns=".*", warmup_steps=5, frozen_steps=20)
    config = AdamConfig(
        learning_rate=1.0, warmup_steps=10, schedule_name="cosine", decay_steps=75, groups=(group,)
    )
    rates = [float(config.group_schedules(step)["late"]) for step in (19, 20, 24, 49, 74, 90)]
    # Half of the fifty steps from the peak at 25 updates to the end at 75 is half the peak.
    np.testing.assert_allclose(rates, [0.0, 0.2, 1.0, 0.5, 0.0, 0.0], atol=1e-6)


def test_groups_of_equal_settings_change_nothing():
    config = AdamConfig(learning_rate=0.1, warmup_steps=2, weight_decay=0.1)
    groups = (
        ParameterGroup(name="decoder", patterns="decoder/.*"),
        ParameterGroup(name="rest", patterns=".*"),
    )
    gradients = _gradients(3)
    alone, _ = _apply(config, gradients)
    grouped, _ = _apply(AdamConfig(**{**vars(config), "groups": groups}), gradients)
    for a, b in zip(alone, grouped, strict=True):
        for name in START:
            np.testing.assert_allclose(a[name], b[name], rtol=1e-6)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (
            [{"name": "d", "patterns": "decodr/.*"}],
            r"'d' matches no parameter; Did.*'decoder/\.\*'",
        ),
        ([{"name": "d", "patterns": ("decoder/.*", "j")}], "'j' of the .* 'd' matches no"),
        (
            [{"name": "a", "patterns": ".*"}, {"name": "b", "patterns": "joint"}],
            "'b' is empty.* a;",
        ),
        ([{"name": "a", "patterns": "("}], "'\\(' of the parameter group 'a' is not a regular"),
        ([{"name": "a", "patterns": ()}], "no patterns"),
        ([{"name": "base", "patterns": ".*"}], "may not be named 'base'"),
        ([{"name": "a", "patterns": ".*"}] * 2, "one name"),
        ([{"name": "a", "patterns": ".*", "frozen_steps": -1}], "frozen_steps .* -1"),
        ([{"name": "a", "patterns": ".*", "learning_rate": -1.0}], "'a': learning_rate -1.0"),
        (
            [{"name": "a", "patterns": ".*", "schedule_name": "cosine", "frozen_steps": 3}],
            r"'a' \(counted from the end of its freeze at 3\): .* decay_steps > warmup_steps",
        ),
    ],
)
def test_groups_that_cannot_be_are_refused(groups, message):
    with pytest.raises(UserError, match=message):
        config = AdamConfig(groups=tuple(ParameterGroup(**group) for group in groups))
        config.build(_tree(START))


# ------------------------------------------------------------------------------- within whole runs
TOY_GROUPS = (
    ParameterGroup(name="table", patterns="table", frozen=True),
    ParameterGroup(name="up", patterns="up/.*", frozen_steps=2, learning_rate=0.02),
)


def _toy_run(toy, **changes):
    optimizer = AdamConfig(learning_rate=1e-2, warmup_steps=2, groups=TOY_GROUPS)
    return toy.run(optimizer=optimizer, **changes)


def _step(run):
    return functools.partial(
        train_step,
        model=run.model,
        objective=run.objective,
        optimizer=run.optimizer,
        ema_decay=run.ema_decay,
        seed=run.seed,
    )


def _state(run):
    @jax.jit
    def init():
        params = initial_params(run.model, run.objective, run.batch_shapes(), run.seed)
        return create_state(parameter_trees.unbox(params), run.optimizer)

    return init()


def test_metrics_of_a_step_by_group(toy):
    run = _toy_run(toy)
    state, batch = _state(run), next(toy.batches(0))
    _, metrics = jax.jit(_step(run))(state, batch)
    rng = jax.random.fold_in(jax.random.key(run.seed), 0)
    gradients = jax.jit(
        jax.grad(
            lambda p: run.objective.loss(run.model, p, state.ema_params, batch, rng=rng, step=0)[0]
        )
    )(state.params)
    squares = {
        name: float(np.sum(np.square(gradient, dtype=np.float64)))
        for name, gradient in parameter_trees.named_leaves(gradients)
    }
    up = squares["up/kernel"] + squares["up/bias"]
    rest = squares["out/kernel"] + squares["out/bias"]
    values = {name: float(total) for name, (total, _) in metrics.items()}
    np.testing.assert_allclose(values["grad_norm/up"], math.sqrt(up), rtol=1e-5)
    np.testing.assert_allclose(values["grad_norm/base"], math.sqrt(rest), rtol=1e-5)
    # What is frozen for good has no part in the whole norm, which is the one that is clipped.
    np.testing.assert_allclose(values["grad_norm"], math.sqrt(up + rest), rtol=1e-5)
    assert values["learning_rate"] == pytest.approx(5e-3)
    assert values["learning_rate/up"] == values["learning_rate/table"] == 0.0


def test_no_gradient_is_computed_for_what_is_frozen(toy):
    def flops(*groups):
        run = toy.run(optimizer=AdamConfig(groups=groups))
        compiled = jax.jit(_step(run)).lower(_state(run), next(toy.batches(0))).compile()
        return compiled.cost_analysis()["flops"]

    up = ParameterGroup(name="up", patterns=("table", "up/.*"))
    frozen = ParameterGroup(name="up", patterns=("table", "up/.*"), frozen=True)
    # The product for the kernel of `up` alone: 2 x 48 tokens x 8 x 12.
    assert flops(frozen) < flops(up) - 2 * 48 * 8 * 12


def test_a_frozen_part_of_a_run_and_its_average_never_change(toy, tmp_path):
    """Also over a restart, on another mesh, with moments that are laid out like parameters."""
    mesh = Partitioning(mesh_shape=(2, 2, 2))
    start = _state(_toy_run(toy))
    first = train(_toy_run(toy, steps=2, partitioning=mesh), tmp_path / "a", batches=toy.batches)
    for name in ("table", "up"):
        toy.assert_trees_equal(jax.device_get(first.params[name]), start.params[name])
        toy.assert_trees_equal(jax.device_get(first.ema_params[name]), start.params[name])
    assert not np.array_equal(first.params["out"]["kernel"], start.params["out"]["kernel"])
    moments = first.opt_state.groups["up"][0].mu
    assert moments["table"] is None and moments["out"]["kernel"] is None
    kernel = moments["up"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == (4, 6)

    resumed = train(_toy_run(toy, steps=4), tmp_path / "a", batches=toy.batches)
    whole = train(_toy_run(toy, steps=4), tmp_path / "b", batches=toy.batches)
    for a, b in zip(jax.tree.leaves(resumed), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
    toy.assert_trees_equal(jax.device_get(resumed.params["table"]), start.params["table"])
    assert not np.array_equal(resumed.params["up"]["kernel"], start.params["up"]["kernel"])


def test_an_interruption_changes_nothing(toy, tmp_path):
    train(_toy_run(toy, steps=3), tmp_path / "a", batches=toy.batches)
    resumed = train(_toy_run(toy), tmp_path / "a", batches=toy.batches)
    whole = train(_toy_run(toy), tmp_path / "b", batches=toy.batches)
    toy.assert_trees_equal(resumed, whole)

"""Schedules, Adam and the moving average, against formulas in float64."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from maestro_jax.errors import UserError
from maestro_jax.training.optimizers import AdamConfig, update_ema


def _formula(name: str, step: int) -> float:
    """Peak 2, warm-up 10, cosine to a tenth at 50; counted from the first update."""
    n, peak, warm, end = step + 1, 2.0, 10, 50
    if n <= warm:
        return peak * n / warm
    if name == "inverse_sqrt":
        return peak * math.sqrt(warm / n)
    if name == "constant":
        return peak
    progress = min((n - warm) / (end - warm), 1.0)
    return peak * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * progress)))


@pytest.mark.parametrize("name", ["inverse_sqrt", "cosine", "constant"])
def test_schedule(name):
    config = AdamConfig(
        learning_rate=2.0, warmup_steps=10, schedule_name=name, decay_steps=50, end_fraction=0.1
    )
    steps = [0, 4, 9, 10, 29, 49, 80]
    values = [float(config.schedule(step)) for step in steps]
    np.testing.assert_allclose(values, [_formula(name, step) for step in steps], rtol=1e-5)


def test_no_warm_up_starts_at_the_peak():
    assert float(AdamConfig(learning_rate=0.5, warmup_steps=0).schedule(0)) == 0.5


def _adam_float64(gradients, start, config):
    """AdamW as Loshchilov and Hutter print it, over given gradients."""
    value, m, v = np.float64(start), 0.0, 0.0
    for index, gradient in enumerate(gradients):
        t = index + 1
        m = config.b1 * m + (1 - config.b1) * gradient
        v = config.b2 * v + (1 - config.b2) * gradient**2
        update = (m / (1 - config.b1**t)) / (math.sqrt(v / (1 - config.b2**t)) + config.eps)
        rate = config.learning_rate * min(
            t / config.warmup_steps, math.sqrt(config.warmup_steps / t)
        )
        value -= rate * (update + config.weight_decay * value)
    return value


def test_adam_with_decay_matches_float64():
    config = AdamConfig(
        learning_rate=0.1,
        warmup_steps=2,
        weight_decay=0.3,
        clip_norm=None,
    )
    params = {
        "encoder": {"kernel": jnp.float32(1.5), "bias": jnp.float32(1.5)},
        "decoder": {"bias": jnp.float32(0.5)},
    }
    optimizer = config.build(params)
    state = optimizer.init(params)
    gradients = [0.7, -0.2, 0.4, 0.9]
    for gradient in gradients:
        tree = jax.tree.map(lambda p, g=gradient: jnp.full_like(p, g), params)
        updates, state = optimizer.update(tree, state, params)
        params = optax.apply_updates(params, updates)
    plain = dataclasses.replace(config, weight_decay=0.0)
    expected = {
        ("encoder", "kernel"): _adam_float64(gradients, 1.5, config),
        ("encoder", "bias"): _adam_float64(gradients, 1.5, plain),
        ("decoder", "bias"): _adam_float64(gradients, 0.5, plain),
    }
    for (part, name), value in expected.items():
        np.testing.assert_allclose(params[part][name], value, rtol=1e-5)


def test_clipping_limits_the_global_norm():
    config = AdamConfig(clip_norm=1.0, b1=0.0, b2=0.0, eps=1e-9)
    params = {"a": jnp.zeros(2)}
    optimizer = config.build(params)
    state = optimizer.init(params)
    _, state = optimizer.update({"a": jnp.array([30.0, 40.0])}, state, params)
    # With b1 = 0 the first moment is the clipped gradient itself: (3, 4) / 5.
    np.testing.assert_allclose(optax.tree_utils.tree_get(state, "mu")["a"], [0.6, 0.8], rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schedule_name": "cosin"}, "Did you mean 'cosine'"),
        ({"schedule_name": "cosine"}, "decay_steps"),
        ({"clip_norm": 0.0}, "clip_norm"),
        ({"weight_decay_exclude": ("(",)}, "regular expression"),
        ({"learning_rate": -1.0}, "negative"),
        ({"learning_rate": "fast"}, "learning_rate is 'fast'; it must be a number"),
    ],
)
def test_bad_values_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        AdamConfig(**changes)


def test_moving_average_matches_float64():
    decay, values = 0.5, np.random.default_rng(0).normal(size=(12, 3))
    average = {"w": jnp.zeros(3)}
    expected = np.zeros(3)
    for step, value in enumerate(values):
        d = min(decay, (1 + step) / (10 + step))
        expected = d * expected + (1 - d) * value
        params = {"w": jnp.asarray(value, jnp.float32)}
        average = update_ema(average, params, step, decay)
    np.testing.assert_allclose(average["w"], expected, rtol=1e-5, atol=1e-6)
    assert (1 + 11) / (10 + 11) > decay  # Both branches of the minimum were taken.


def test_moving_average_of_low_precision_parameters_is_float32():
    average = update_ema({"w": jnp.zeros(1)}, {"w": jnp.ones(1, jnp.bfloat16)}, 0, 0.9)
    assert average["w"].dtype == jnp.float32

"""Averages between log points, the speed of steps, and the console line."""

from __future__ import annotations

import json

import clu.metrics
import jax.numpy as jnp
import numpy as np
import pytest

from maestro_jax.training import metrics


def test_means_are_those_of_clu():
    values = [(3.0, 2.0), (5.0, 1.0), (0.0, 0.0)]
    window = metrics.MetricWindow()
    reference = clu.metrics.Average.empty()
    for total, count in values:
        window.add({"loss": (jnp.float32(total), jnp.float32(count)), "mt": (0.0, 0.0)})
        reference = reference.merge(clu.metrics.Average(jnp.float32(total), jnp.float32(count)))
    means, totals = window.compute()
    np.testing.assert_allclose(means["loss"], reference.compute())
    assert "mt" not in means  # Never counted: a stream without examples has no mean.
    assert totals == {"loss": 8.0, "mt": 0.0}
    assert len(window) == 3


def test_many_small_values_do_not_drift():
    window = metrics.MetricWindow()
    for _ in range(1000):
        window.add({"loss": (np.float32(0.1), np.float32(1.0))})
    window.add({"loss": (np.float32(1e8), np.float32(1.0))})
    means, _ = window.compute()
    np.testing.assert_allclose(means["loss"], (1e8 + 1000 * np.float64(np.float32(0.1))) / 1001)


def test_a_window_taken_up_again_gives_the_same_bits():
    rng = np.random.default_rng(0)
    steps = [
        {
            "loss": (np.float32(total), np.float32(count)),
            **({"late": (np.float32(1 / 3), np.float32(7))} if step > 4 else {}),
        }
        for step, (total, count) in enumerate(rng.uniform(0.1, 9.0, (9, 2)))
    ]
    whole, window = metrics.MetricWindow(), metrics.MetricWindow()
    for step, values in enumerate(steps):
        whole.add(values)
        window.add(values)
        if step in (2, 5):
            window = metrics.MetricWindow(json.loads(json.dumps(window.state())))
    assert len(window) == len(whole) == 9
    assert window.compute() == whole.compute()


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands at `clock[0]` seconds."""
    now = [100.0]
    monkeypatch.setattr(metrics.time, "monotonic", lambda: now[0])
    return now


def test_steps_are_timed_from_end_to_end(clock):
    timer = metrics.StepTimer(50, elapsed=1000.0, devices=2, peak_flops=400.0)
    clock[0] += 30.0
    timer.complete(11, clock[0], counted=False)  # It was compiled.
    assert timer.window(11) == {"elapsed_seconds": 1030.0}
    for step in range(12, 20):
        timer.waited(step, 0.125)
        clock[0] += 0.5
        timer.complete(step, clock[0], flops=100.0)
    assert timer.window(19) == {
        "elapsed_seconds": 1034.0,
        "steps_per_second": 2.0,
        "seconds_left": 15.5,
        "data_wait_fraction": 0.25,
        # 800 FLOPs in 4 seconds on 2 devices.
        "model_tflops_per_second": 100e-12,
        "mfu": 0.25,
    }
    assert timer.window(19) == {"elapsed_seconds": 1034.0}
    with timer.paused():
        clock[0] += 100.0
    for step in (20, 21):
        clock[0] += 1.0
        timer.complete(step, clock[0])
    values = timer.window(21)
    assert values["steps_per_second"] == 1.0 and values["elapsed_seconds"] == 1136.0
    assert "mfu" not in values and "model_tflops_per_second" not in values


def test_a_log_point_has_the_speed_of_its_own_steps(clock):
    """Whenever it is written: step 5, done before the log point of 4 is, belongs to the next."""
    timer = metrics.StepTimer(5)
    for step, seconds in ((2, 1.0), (3, 1.0), (4, 4.0), (5, 0.5)):
        clock[0] += seconds
        timer.complete(step, clock[0])
    assert timer.window(4)["steps_per_second"] == 0.5
    assert timer.window(5)["steps_per_second"] == 2.0


def test_console_line():
    values = {
        "loss": 3.14159,
        "loss/rnnt": 2.0,
        "skipped_steps": 3.0,
        "steps_per_second": 2.5,
        "elapsed_seconds": 3671.2,
        "seconds_left": 59.6,
    }
    line = metrics.console_line(40, 2000, values, ("loss", "absent", "loss/rnnt"))
    assert line == (
        "step   40/2000  loss 3.142  loss/rnnt 2  skipped 3  2.5 steps/s  "
        "elapsed 1:01:11  left 0:01:00"
    )

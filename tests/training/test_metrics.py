"""Averages over log points, the chronometer, and the files."""

from __future__ import annotations

import builtins
import json

import clu.metrics
import jax.numpy as jnp
import numpy as np

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
            window = metrics.MetricWindow(json.loads(json.dumps(window.record())))
    assert len(window) == len(whole) == 9
    assert window.compute() == whole.compute()


def test_chronometer(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(metrics.time, "monotonic", lambda: now[0])
    chronometer = metrics.Chronometer(10, 50, elapsed=1000.0)
    now[0] += 30.0  # The compilation of the first step.
    chronometer.restart_window(11)
    chronometer.waited(1.0)
    now[0] += 4.0
    values = chronometer.window(19)
    assert values == {
        "elapsed_seconds": 1034.0,
        "steps_per_second": 2.0,
        "seconds_left": 15.5,
        "data_wait_fraction": 0.25,
    }
    assert chronometer.window(19) == {"elapsed_seconds": 1034.0}
    now[0] += 1.0
    with chronometer.paused():
        now[0] += 100.0
    now[0] += 1.0
    values = chronometer.window(21)
    assert values["steps_per_second"] == 1.0 and values["elapsed_seconds"] == 1136.0


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


def test_lines_of_steps_to_be_done_again_are_removed(tmp_path):
    writer = metrics.MetricWriter(tmp_path, tensorboard=False)
    for step in (2, 4, 6):
        writer.write(step, {"loss": float(step), "bad": float("nan")})
    writer.close()
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 7, "lo')  # Its process was killed.
    writer = metrics.MetricWriter(tmp_path, start_step=4, tensorboard=False)
    writer.write(6, {"loss": 0.5})
    writer.close()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 6]
    assert lines[0] == {"step": 2, "loss": 2.0, "bad": None}
    assert lines[-1]["loss"] == 0.5


def test_without_tensorflow_one_line_says_so(tmp_path, monkeypatch, caplog):
    real_import = builtins.__import__

    def refuse(name, globals=None, locals=None, fromlist=(), level=0):
        if name == "clu" and "metric_writers" in (fromlist or ()):
            raise ImportError("No module named 'tensorflow'")
        return real_import(name, globals, locals, fromlist, level)

    monkeypatch.setattr(builtins, "__import__", refuse)
    writer = metrics.MetricWriter(tmp_path)
    writer.write(1, {"loss": 1.0})
    writer.close()
    assert "No TensorBoard files are written (No module named 'tensorflow')" in caplog.text
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "loss": 1.0}\n'

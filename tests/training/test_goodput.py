"""The account of a run's time, the memory that it watches, and what it compiles."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
import textwrap
import time

import pytest

from maestro_jax.batches import StreamConfig, synthetic_batch
from maestro_jax.training import goodput, metrics
from maestro_jax.training.callbacks import Callback
from maestro_jax.training.health import HealthConfig
from maestro_jax.training.host_memory import HostMemory, anonymous_memory
from maestro_jax.training.trainer import train

_PROCESS = """
    import os, signal, sys, time
    sys.path.insert(0, sys.argv[1])
    from maestro_jax.training import goodput
    goodput.count_from_process_start()
    from conftest import toy_batches, toy_run
    from maestro_jax.training.callbacks import Callback
    from maestro_jax.training.trainer import train

    class Acts(Callback):
        def on_step(self, trainer, info):
            with trainer.paused():
                time.sleep(0.1)
            if info.step == int(sys.argv[3]):
                time.sleep(0.3)
                trainer._goodput.write()  # As every few seconds.
                os.kill(os.getpid(), signal.SIGKILL)

    def batches(start):
        for batch in toy_batches(start):
            time.sleep(0.2)
            yield batch

    run = toy_run(steps=7, check_replicas_every=0)
    train(run, sys.argv[2], batches=batches, callbacks=[Acts()])
"""


def _lines(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.extended
def test_parts_add_up_to_the_time_of_the_run_over_restarts(tmp_path):
    """Killed at step 5, of which the checkpoint has 3, and once before any step was saved."""
    began = time.time()
    for dies_at in (2, 5, 0):
        here = str(pathlib.Path(__file__).parent)
        command = [sys.executable, "-c", textwrap.dedent(_PROCESS), here, tmp_path, str(dies_at)]
        process = subprocess.run(list(map(str, command)), check=False, timeout=120)
        assert process.returncode == (-9 if dies_at else 0)
        if dies_at:
            time.sleep(1.0)
    account = json.loads((tmp_path / goodput.GOODPUT_FILE).read_text())
    seconds, wall = account["seconds"], account["time"] - began
    assert sum(seconds.values()) == pytest.approx(wall, rel=0.01)
    assert set(seconds) == set(goodput.PARTS) and min(seconds.values()) >= 0
    # What the test put there: pauses, deliveries that devices wait for, and times in between.
    assert 2.0 <= seconds["down"] < 3.0
    assert 0.7 <= seconds["diagnostics"] < 1.3
    # Six batches of the last two processes, less what came while the checkpoint was written.
    assert 0.6 <= seconds["input"] < 1.6
    assert seconds["lost"] > 2 * 0.3 + 4 * 0.3  # The whole first process, and two steps more.
    last = _lines(tmp_path)[-1]
    assert last["step"] == 7
    parts = {part: last[f"goodput/{part}_seconds"] for part in goodput.PARTS}
    assert last["goodput/fraction"] == pytest.approx(parts["step"] / sum(parts.values()))
    assert parts["lost"] == pytest.approx(seconds["lost"])


def test_what_a_rollback_gives_up_is_lost(toy, tmp_path):
    class Diverges(Callback):
        def __init__(self):
            self.spent = None

        def on_step(self, trainer, info):
            time.sleep(0.05)
            if info.step == 5 and not trainer.rollbacks:
                self.spent = sum(trainer._goodput.seconds.values())
                trainer.roll_back(3, {"batches": [4, 5]})

    diverges = Diverges()
    train(toy.run(health=HealthConfig()), tmp_path, batches=toy.batches, callbacks=[diverges])
    account = json.loads((tmp_path / goodput.GOODPUT_FILE).read_text())["seconds"]
    saved = json.loads((tmp_path / "checkpoints" / "3" / "data" / "metadata").read_text())
    at_checkpoint = sum(saved["callbacks"]["goodput"]["seconds"].values())
    given_up = diverges.spent - at_checkpoint
    assert given_up > 0.05 and given_up <= account["lost"] < given_up + 2.0
    assert [line["step"] for line in _lines(tmp_path)] == [2, 4, 6]


def test_a_batch_that_comes_while_devices_work_keeps_nothing_waiting(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(metrics.time, "monotonic", lambda: now[0])
    timer = metrics.StepTimer(9)
    now[0] += 3.0
    with timer.paused():
        now[0] += 1.0
        with timer.paused("checkpoint"):  # Within another pause, and so a part of it.
            now[0] += 1.0
    timer.begin()
    now[0] += 4.0
    timer.complete(1, now[0], counted=False)
    # Asked for at 109, when step 1 is done; there at 111. Step 2 is done at 114.
    now[0] += 2.0
    timer.waited(2, 2.0)
    # Asked for while step 2 is computed, from 111 to 113.
    now[0] += 2.0
    timer.waited(3, 2.0)
    timer.complete(2, 114.0)
    now[0] = 115.0
    timer.complete(3, 115.0)
    with timer.paused("checkpoint"):
        now[0] += 5.0
    now[0] += 0.5
    assert timer.spent() == {
        "start": 3.0,
        "diagnostics": 2.0,
        "compile": 4.0,
        "input": 2.0,
        "step": 3.0 + 1.0 + 0.5,
        "checkpoint": 5.0,
    }


def test_memory_that_keeps_growing_is_told_with_figures():
    gib = 2**30
    watch = HostMemory()
    flat = [watch.judge(step, 3 * gib + step % 3) for step in range(0, 1500, 100)]
    up_and_down = [watch.judge(1500 + n * 100, (3 + 4 * (n % 3 == 0)) * gib) for n in range(9)]
    assert not any(flat + up_and_down)
    growing = [watch.judge(2400 + n * 100, int((3 + 0.25 * n) * gib)) for n in range(20)]
    warnings = [text for text in growing if text]
    assert len(warnings) == 2
    assert "grew from 3.0 GiB at step 900 to 4.2 GiB at step 3300, 0.52 GiB per" in warnings[0]
    assert "grew from 4.2 GiB at step 3300 to 5.5 GiB" in warnings[1]
    memory = anonymous_memory()
    block = b"x" * (256 << 20)
    assert anonymous_memory() - memory == pytest.approx(len(block), rel=0.1)


def test_a_step_that_is_compiled_for_an_unknown_shape_is_told(toy, tmp_path, caplog):
    longer = {"text": StreamConfig(mixture="toy", batch_size=8, text_tokens=7)}

    def batches(start):
        for step, batch in enumerate(toy.batches(start), start + 1):
            yield synthetic_batch(longer, seed=step, vocab_size=16) if step == 3 else batch

    caplog.set_level("INFO")
    train(toy.run(steps=4), tmp_path, batches=batches)
    assert "step 3 is compiled for a batch of text 8 x 7 (the run has 8 x 6)" in caplog.text
    assert "from the compilation cache" in caplog.text

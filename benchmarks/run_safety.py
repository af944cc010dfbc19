"""Measures what it costs a training run to watch over itself, as a share of its steps.

    python benchmarks/run_safety.py                        # base, on two virtual devices of the CPU
    python benchmarks/run_safety.py --model tiny --steps 40
    python benchmarks/run_safety.py --update_docs          # also write the table into the docs

One run of the trainer on synthetic batches, in which the callbacks that only guard it take turns
with steps without them: health, comparison of replicas, memory, goodput and whatever else is in
`GUARDS`. Time in their methods is measured with the devices idle, so that it is theirs, and so are
the checksums of a checkpoint. Both are divided by the steps between two of them in a run with the
default settings. On a busy machine the times of steps scatter by more than 1 %: the difference of
the turns is printed, but the shares are those of the time measured.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from typing import Any

from command import put_out
from rows import Bar, Row, Table
from step_speed import BATCHES
from timing import progress

GUARDS = ("HealthGuard", "ReplicaCheck", "HostMemory", "Goodput")
METHODS = ("on_step", "log_values", "on_log", "is_healthy")
CHECKPOINT_EVERY = 1000
"""That of `gin/runs/pretrain.gin`."""


def parse_arguments() -> argparse.Namespace:
    """Returns the parsed command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=("tiny", "base"), default="base")
    parser.add_argument("--steps", type=int, default=24, help="number of steps (default 24)")
    parser.add_argument("--seconds", type=float, default=2.0, help="padded seconds of speech")
    parser.add_argument("--devices", type=int, default=2, help="virtual devices, for replicas")
    output = parser.add_mutually_exclusive_group()
    for option in ("json", "markdown", "update_docs"):
        output.add_argument(f"--{option}", action="store_true")
    arguments = parser.parse_args()
    arguments.repeats = 1
    if arguments.steps < 8 or arguments.steps % 4:
        parser.error("--steps must be a multiple of 4, and 8 or more")
    return arguments


class Turns:
    """Times the methods of guards, every second pair of steps, and the steps themselves."""

    def __init__(self) -> None:
        self.is_on = True
        self.spent: dict[str, list[float]] = {}
        self.steps: dict[bool, list[float]] = {True: [], False: []}

    def wrap(self, trainer: Any) -> None:
        """Wraps the guards of a trainer."""
        import jax

        for callback in trainer.callbacks:
            name = type(callback).__name__
            if name not in GUARDS:
                continue
            for method in METHODS:
                setattr(callback, method, self._timed(jax, name, getattr(callback, method)))

    def _timed(self, jax: Any, name: str, method: Any) -> Any:
        def timed(trainer: Any, *arguments: Any) -> Any:
            # Replicas are compared at their own steps, whichever turn it is.
            if not self.is_on and name != "ReplicaCheck" and method.__name__ == "on_step":
                return None
            jax.block_until_ready(trainer.state)
            began = time.perf_counter()
            try:
                return method(trainer, *arguments)
            finally:
                seconds = time.perf_counter() - began
                self.spent.setdefault(f"{name}.{method.__name__}", []).append(seconds)

        return timed


def measure(arguments: argparse.Namespace) -> Table:
    """Trains, and returns the shares."""
    import jax
    import numpy as np

    from maestro_jax.batches import SAMPLE_RATE, synthetic_batch
    from maestro_jax.gin_utils import gin_config
    from maestro_jax.training.callbacks import Callback
    from maestro_jax.training.trainer import Trainer

    every = arguments.steps // 4
    run = gin_config.parse_and_build(
        [
            "runs/pretrain.gin",
            f"models/{arguments.model}.gin",
            "objectives/maestro.gin",
            "data/minivox_small.gin",
        ],
        {
            "STEPS": str(arguments.steps),
            "LOG_EVERY": "4",
            "CHECKPOINT_EVERY": str(10 * arguments.steps),
            "DIAGNOSTICS_EVERY": "0",
            "AUDIO_SAMPLES": str(round(arguments.seconds * SAMPLE_RATE)),
            "TOKENS": "32",
            "run.TrainRun.check_replicas_every": str(every),
            **dict.fromkeys(BATCHES, str(arguments.devices)),
        },
    )
    default = type(run).check_replicas_every
    log_every = 100  # Of gin/runs/pretrain.gin.
    turns = Turns()

    class Steps(Callback):
        """Waits for each step, and lets the guards take turns, two steps each."""

        def on_step(self, trainer: Any, info: Any) -> None:
            jax.block_until_ready(trainer.state)
            now = time.perf_counter()
            if info.step > 2:
                turns.steps[turns.is_on].append(now - self.began)
            turns.is_on = info.step // 2 % 2 == 0
            progress(f"step {info.step} of {arguments.steps}")
            self.began = time.perf_counter()

    def batches(start: int) -> Any:
        batch = synthetic_batch(run.streams, 0, 60)
        while True:
            yield batch

    with tempfile.TemporaryDirectory() as directory:
        trainer = Trainer(run, directory, batches=batches, callbacks=[Steps()])
        turns.wrap(trainer)
        trainer.fit()
        parameters = sum(int(np.prod(p.shape)) for p in jax.tree.leaves(trainer.state.params))
        checksums = _checksum_seconds(trainer.state)
    step = statistics.median(turns.steps[False])
    difference = statistics.median(turns.steps[True]) / step - 1
    costs = []
    for name, seconds in sorted(turns.spent.items()):
        guard, method = name.split(".")
        if name == "ReplicaCheck.on_step":
            # Four of the calls compare, and the first of them is compiled.
            compared = statistics.median(sorted(seconds)[-4:-1])
            costs.append(("replicas compared", compared, default))
        elif method == "on_step":
            costs.append((f"{guard}, each step", statistics.median(seconds), 1))
        elif method in ("log_values", "on_log"):
            costs.append((f"{guard}, {method}", statistics.median(seconds), log_every))
    costs.append(("checksums of a checkpoint", checksums, CHECKPOINT_EVERY))
    total = sum(seconds / steps for _, seconds, steps in costs)
    note = "; ".join(
        f"{name} {1e3 * seconds:.3g} ms" + (f" in {steps} steps" if steps > 1 else "")
        for name, seconds, steps in costs
    )
    row = Row(
        what=f"{arguments.model}, {parameters / 1e6:.3g}M parameters",
        size=f"{arguments.devices} devices, 5 streams of {arguments.devices} x "
        f"{arguments.seconds:g} s",
        ours=total,
        unit="s",
        peer_name="step",
        peer=step,
        ratio=total / step,
        percent=True,
        bar=Bar(limit=0.01, at_most=True),
        note=f"{note}; steps with them took {difference:+.1%} longer than those without",
    )
    remark = (
        "Seconds a step in a run with the default settings, beside a step without the guards, all "
        "measured in one run."
    )
    return Table("A run that watches over itself, CPU", "share of a step", (row,), (remark,))


def _checksum_seconds(state: Any) -> float:
    from maestro_jax.training import array_checksums

    times = []
    for _ in range(2):  # The first time, programs are compiled.
        began = time.perf_counter()
        [int(value) for value in array_checksums.checksums(state).values()]
        times.append(time.perf_counter() - began)
    return times[-1]


def main() -> None:
    """Runs the benchmark."""
    arguments = parse_arguments()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    flag = f"--xla_force_host_platform_device_count={arguments.devices}"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()
    table = measure(arguments)
    if not arguments.json and not arguments.markdown:
        print(f"{table.text()}\n", flush=True)
    put_out("run_safety", [table], arguments, ("jax", "jaxlib"))


if __name__ == "__main__":
    main()

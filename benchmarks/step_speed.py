"""Times a whole training step of a shipped model, on synthetic batches of all streams.

The step is that of training (`training.step`), with the MAESTRO objective: five streams,
gradients, optimizer and average of the parameters. Its model FLOPs are counted from its jaxpr
(`maestro_jax.flops`); what is computed twice to save memory does not count.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable
from typing import Any

from rows import Row, Table
from timing import Contender, available_cores, progress, take_turns

BATCHES = ("SPEECH_BATCH", "PAIRED_BATCH", "TEXT_BATCH", "MT_BATCH", "ST_BATCH")
_SECONDS_TO_TOKENS = 25
"""Letters of padded text per second of padded speech."""
# Several processes share one GPU, so none may reserve most of its memory.
ANY_DEVICE = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}


@dataclasses.dataclass(frozen=True)
class Setting:
    """Settings of a step.

    Attributes:
        model: Name of a file of `gin/models`.
        rows: Examples of each stream, a device.
        seconds: Padded length of the speech.
    """

    model: str
    rows: int
    seconds: float


CPU = (Setting("tiny", 4, 3.2), Setting("base", 1, 6.0))
ACCELERATOR = (Setting("tiny", 32, 15.0), Setting("base", 8, 15.0))


def measure(
    settings: tuple[Setting, ...] | None, dtype: str | None, repeats: int, platform: str
) -> Table:
    """Measures seconds per step and FLOPs per second, against a large matrix product.

    Args:
        settings: What to measure; None: what fits the device.
        dtype: Type computed in; None: float32 on CPUs, else bfloat16.
        repeats: Rounds that count.
        platform: JAX's platforms, as in JAX_PLATFORMS; empty for the best there is.
    """
    from maestro_jax.chip_table import chip_of

    environment = ANY_DEVICE | {"JAX_PLATFORMS": platform}

    def start(module: str, job: dict[str, Any]) -> Contender:
        return stack.enter_context(
            Contender(module, job, cores=available_cores(), environment=environment)
        )

    rows: list[Row] = []
    with contextlib.ExitStack() as stack:
        device = start("matrix_product", {"size": 256, "dtype": "float32"}).report
    on_cpu = device["platform"] == "cpu"
    dtype = dtype or ("float32" if on_cpu else "bfloat16")
    chip = chip_of(device["device"]) if dtype == "bfloat16" else None
    for setting in settings or (CPU if on_cpu else ACCELERATOR):
        progress(f"training step of {setting.model}: compiling")
        with contextlib.ExitStack() as stack:
            job = dataclasses.asdict(setting) | {"dtype": dtype}
            contenders = {
                "step": start("step_speed", job),
                "product": start("matrix_product", {"size": None, "dtype": dtype}),
            }
            times = take_turns(contenders, repeats)
            step, product = (contenders[name].report for name in ("step", "product"))
        best = times["step"].best
        peak = product["devices"] * product["flops"] / times["product"].best
        speed = step["model_flops"] / best
        notes = [
            f"{step['model_flops'] / 1e9:.4g} GFLOP of the model "
            f"({step['hardware_flops'] / step['model_flops'] - 1:.0%} more are computed again)",
            f"{speed / 1e9:.4g} of {peak / 1e9:.4g} GFLOP/s",
            f"{step['audio_seconds'] / best:.3g} s of padded speech a second",
            f"median {times['step'].median:.3g} s",
            f"compiled in {step['compile_seconds']:.3g} s",
        ]
        if chip is not None:
            vendor = chip.peak_flops / chip.devices_per_chip * product["devices"]
            notes.insert(
                2, f"{speed / vendor:.1%} of the {chip.name}'s {vendor / 1e12:.4g} TFLOP/s"
            )
        rows.append(
            Row(
                what=f"{setting.model}, {step['parameters'] / 1e6:.3g}M parameters",
                size=f"{dtype}, 5 streams of {step['rows']} x {setting.seconds:g} s",
                ours=best,
                unit="s",
                peer_name="matrix product",
                peer=step["model_flops"] / peak,
                ratio=speed / peak,
                percent=True,
                note="; ".join(notes),
            )
        )
    where = f"{device['devices']} x {device['device']}" if not on_cpu else "CPU"
    remark = (
        "The peer is what the step would take if all its model FLOPs were done at the speed of one "
        "large matrix product in the same type, measured in the same turns."
    )
    return Table(f"Training step, {where}", "utilisation", tuple(rows), (remark,))


def prepare(job: dict[str, Any]) -> tuple[dict[str, Any], Callable[[], object]]:
    """Compiles the step and takes one."""
    import jax
    import numpy as np

    from maestro_jax.batches import SAMPLE_RATE, synthetic_batch
    from maestro_jax.gin_utils import gin_config
    from maestro_jax.planning.analytic import step_flops
    from maestro_jax.training.curriculum_controller import initial_controls
    from maestro_jax.training.parameter_trees import unbox
    from maestro_jax.training.state import create_state, initial_params, sharded_state
    from maestro_jax.training.step import jit_train_step

    rows = job["rows"] * len(jax.devices())
    tokens = max(16, round(job["seconds"] * _SECONDS_TO_TOKENS))
    run = gin_config.parse_and_build(
        [
            "runs/pretrain.gin",
            f"models/{job['model']}.gin",
            "objectives/maestro.gin",
            "data/minivox_small.gin",
        ],
        {
            "STEPS": "1000",
            "DTYPE": f'"{job["dtype"]}"',
            "AUDIO_SAMPLES": str(round(job["seconds"] * SAMPLE_RATE)),
            "TOKENS": str(tokens),
            **dict.fromkeys(BATCHES, str(rows)),
        },
    )
    shapes = run.batch_shapes()
    flops = step_flops(run.model, run.objective, run.optimizer, shapes, ema_decay=run.ema_decay)
    mesh = run.partitioning.mesh()
    places = sharded_state(run, mesh)
    controls = initial_controls(run.objective)
    with run.partitioning.activate(mesh):

        def initial() -> Any:
            params = unbox(initial_params(run.model, run.objective, shapes, run.seed))
            return create_state(params, run.optimizer, ema=run.ema_decay is not None)

        state = jax.jit(initial, out_shardings=places.shardings)()
        numbers = synthetic_batch(run.streams, 0, 60)
        batch = run.partitioning.shard_batch(mesh, numbers)
        begun = time.perf_counter()
        step = jit_train_step(run, mesh, places.shardings).lower(state, batch, controls).compile()
        compile_seconds = time.perf_counter() - begun

    def take() -> object:
        # The buffers of the state are donated, so the next step needs the returned state.
        nonlocal state
        state, metrics = step(state, batch, controls)
        return jax.block_until_ready(metrics)

    take()
    report = {
        "rows": rows,
        "parameters": sum(int(np.prod(p.shape)) for p in jax.tree.leaves(state.params)),
        "model_flops": flops.model,
        "hardware_flops": flops.hardware,
        "audio_seconds": sum(f["audio"].size for f in numbers.values() if "audio" in f)
        / SAMPLE_RATE,
        "compile_seconds": compile_seconds,
    }
    return report, take

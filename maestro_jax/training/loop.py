"""The training loop, from an empty or half-trained model directory to a trained model."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import logging
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from maestro_jax.errors import UserError
from maestro_jax.training import model_vocabulary, parameter_trees
from maestro_jax.training.checkpoints import (
    REPORT_FILE,
    Checkpoints,
    as_begun,
    find_checkpoint,
    partial_restore,
)
from maestro_jax.training.diagnostics import Diagnostics, describe
from maestro_jax.training.inputs import Batches, held_out_pairs, task_batches
from maestro_jax.training.interruption import Interrupted, StopSignals
from maestro_jax.training.metrics import (
    Chronometer,
    MetricWindow,
    MetricWriter,
    console_line,
    throughput,
)
from maestro_jax.training.parameter_trees import parameter_overview
from maestro_jax.training.partitioning import replicated
from maestro_jax.training.run import TrainRun
from maestro_jax.training.state import TrainState, create_state, initial_params, sharded_state
from maestro_jax.training.steering import Steering
from maestro_jax.training.step import describe_shapes, jit_train_step, term_gradient_norms

log = logging.getLogger(__name__)

# A run whose every update is skipped for so many steps will not recover.
_HOPELESS_STEPS = 100


def train(
    run: TrainRun,
    model_dir: str | Path,
    data_dir: str | Path | None = None,
    *,
    batches: Batches | None = None,
    held_out: Mapping[str, np.ndarray] | None = None,
    on_log: Callable[[int, dict[str, float]], None] | None = None,
    on_look: Callable[[int], Mapping[str, np.ndarray]] | None = None,
) -> TrainState:
    """Train a model, or go on training it.

    Called again with the same arguments after any interruption, it continues from the last
    checkpoint and gives the result that it would have given without the interruption.

    Args:
        run: What to train, on what, and for how long.
        model_dir: Where checkpoints and metrics go.
        data_dir: The root of the prepared data.
        batches: From the number of steps done to an iterator of numpy batches (this process's
            rows); by default, batches are loaded from ``run.streams``.
        held_out: A paired stream for the diagnostics, the same on every process; by default it is
            loaded, but not where batches are given.
        on_log: Called at each log point with the step and the metrics, on process 0.
        on_look: Called with the step each time that diagnostics have been written, on process 0; it
            gives pictures `[height, width, channels]` uint8 by name, for TensorBoard.

    Returns:
        The state after the last step.

    Raises:
        UserError: The run does not fit the devices, the data or the model directory.
        Interrupted: A signal came; the state was saved.
        FloatingPointError: No update was finite for a long time.
    """
    # ------------------------------------------------------------------------------------ mesh
    partitioning = run.partitioning
    mesh = partitioning.mesh()
    partitioning.check_batch_sizes(mesh, run.batch_sizes, run.accumulate)
    directory = epath.Path(model_dir).expanduser().absolute()
    is_first_process = jax.process_index() == 0
    log.info(
        "%d %s devices in a mesh %s", mesh.size, jax.devices()[0].device_kind, dict(mesh.shape)
    )
    unused = [stream for stream in run.streams if stream not in run.used_streams]
    if unused:
        log.warning("the objective does not use the streams %s", ", ".join(unused))

    checkpoints = Checkpoints(directory, keep=run.keep_checkpoints)
    run = as_begun(run, checkpoints.directory, checkpoints.all_steps())

    # ------------------------------------------------------------------ state: shapes and places
    placed = sharded_state(run, mesh)
    shardings, abstract = placed.shardings, placed.abstract
    size = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract.params))
    log.info("%s parameters", f"{size:,}")
    if is_first_process:
        directory.mkdir(parents=True, exist_ok=True)
        overview = parameter_overview(placed.boxed.params, shardings.params)
        (directory / "parameters.txt").write_text(overview)

    # ------------------------------------- state: own checkpoint, else init_from, else from scratch
    restored = checkpoints.restore_latest(abstract)
    record: dict[str, Any] = {}
    if restored is not None:
        state, record = restored
        _check_record(run, record, directory)
        log.info("continuing from step %d of %s", record["step"], directory)
    else:
        state = _new_state(run, mesh, abstract, shardings, directory)
    start = int(record.get("step", 0))
    if start >= run.steps:
        log.info("nothing to do: step %d of %d is done", start, run.steps)
        checkpoints.close()
        return state

    # ------------------------------------------------------------------------------------ data
    steering = Steering(run.objective, run.log_every, record.get("steering"))
    source = task_batches(run, mesh, directory, data_dir) if batches is None else batches
    iterator = source(start)

    def next_batch(step: int) -> Any:
        batch = next(iterator, None)
        if batch is None:
            raise UserError(f"The data ended before step {step} of {run.steps}; set fewer steps.")
        # The curriculum: a stream that has not begun is left out, and the step compiled without it.
        active = steering.active_streams(step - 1)
        chosen = {name: stream for name, stream in batch.items() if name in active}
        return partitioning.shard_batch(mesh, chosen)

    # ------------------------------------------------------------------------------------ step
    step_function = jit_train_step(run, mesh, shardings)
    measure_gradients = jax.jit(
        functools.partial(
            term_gradient_norms,
            model=run.model,
            objective=run.objective,
            seed=run.seed,
            accumulate=run.accumulate,
        ),
        in_shardings=(shardings, partitioning.batch_sharding(mesh), replicated(mesh)),
        out_shardings=replicated(mesh),
    )

    # ------------------------------------------------------------------------- log and checkpoint
    chronometer = Chronometer(start, run.steps, float(record.get("elapsed_seconds", 0.0)))
    skipped = int(record.get("skipped_steps", 0))
    skipped_in_a_row = int(record.get("skipped_in_a_row", 0))
    writer = None
    if is_first_process:
        writer = MetricWriter(directory, start_step=start, tensorboard=run.tensorboard)

    compiled: set[str] = set()
    pending: tuple[int, MetricWindow] | None = None
    diagnostics: Diagnostics | None = None
    gradient_seconds = 0.0
    if run.diagnostics.every:
        if held_out is None and batches is None:
            held_out = held_out_pairs(run, mesh, data_dir)
        diagnostics = Diagnostics(run, mesh, directory, shardings.params, held_out)
        if is_first_process:
            diagnostics.begin(start, describe(run, mesh, size))

    def log_point(step: int, window: MetricWindow, more: Mapping[str, float] | None = None) -> None:
        nonlocal skipped, skipped_in_a_row
        means, totals = window.compute()
        skipped_here = round(totals["skipped_steps"])
        skipped += skipped_here
        skipped_in_a_row = skipped_in_a_row + skipped_here if skipped_here == len(window) else 0
        steering.observe(step, means)
        speed = chronometer.window(step)
        values = {
            **means,
            "skipped_steps": float(skipped),
            "curriculum_step": float(steering.clock(step)),
            **speed,
            **throughput(totals, len(window), speed.get("steps_per_second")),
            **(more or {}),
        }
        if writer is not None:
            writer.write(step, values)
            names = _console_names(values) if run.console_metrics is None else run.console_metrics
            log.info("%s", console_line(step, run.steps, values, names))
            if on_log is not None:
                on_log(step, values)
        if skipped_in_a_row >= _HOPELESS_STEPS:
            raise FloatingPointError(
                f"Loss or gradient of the last {skipped_in_a_row} steps were not finite; lower the "
                "learning rate, or look at the data."
            )

    def look(step: int, norms: Mapping[str, float]) -> None:
        """Write diagnostics, together with the log point of the step if there is one."""
        nonlocal pending
        assert diagnostics is not None
        params = state.params if state.ema_params is None else state.ema_params
        with chronometer.paused():
            seen = diagnostics.look(step, params, norms)
        seen["diagnostics_seconds"] += gradient_seconds
        if pending is not None:
            log_point(*pending, seen)
            pending = None
        elif writer is not None:
            writer.write(step, {**seen, "elapsed_seconds": chronometer.elapsed})
        if writer is not None:
            began = time.monotonic()
            with chronometer.paused():
                pictures = {} if on_look is None else on_look(step)
                writer.write_pictures(step, pictures, diagnostics.samples)
            log.info(
                "diagnostics of step %d: %.1f s, and %.1f s to draw them",
                step,
                seen["diagnostics_seconds"],
                time.monotonic() - began,
            )

    def gradient_norms(state: TrainState, step: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """Of each term on the batch of a step: the norm of its gradient, and its mean."""
        nonlocal gradient_seconds
        began = time.monotonic()
        with chronometer.paused():
            found = jax.device_get(measure_gradients(state, batch, steering.controls(step - 1)))
        gradient_seconds = time.monotonic() - began
        return found

    def save(step: int) -> None:
        data = {
            "step": step,
            "seed": run.seed,
            "elapsed_seconds": chronometer.elapsed,
            "skipped_steps": skipped,
            "skipped_in_a_row": skipped_in_a_row,
            "window": window.record(),
            "steering": steering.record(),
            model_vocabulary.KEY: model_vocabulary.fingerprint_in(directory),
            # The position of a stream: examples of step n are a function of (seed, n).
            "streams": {
                name: {
                    **dataclasses.asdict(config),
                    # Of a stream with buckets nobody has counted them.
                    "examples": None if config.buckets else step * config.batch_size,
                }
                for name, config in run.streams.items()
            },
        }
        checkpoints.save(state, data)
        over_long = {name: n for name, n in getattr(iterator, "counters", {}).items() if n}
        if over_long:
            log.info("over-long examples so far, in this process: %s", over_long)
        if writer is not None:
            writer.flush()

    # ------------------------------------------------------------------------------------ loop
    window = MetricWindow(record.get("window"))
    previous: Any = None
    first_profiled, last_profiled = run.profile_steps or (0, 0)
    began = time.monotonic()
    try:
        with StopSignals() as signals, partitioning.activate(mesh):
            batch = next_batch(start + 1)
            if diagnostics is not None and start == 0:
                look(0, {})
            for step in range(start + 1, run.steps + 1):
                if step == first_profiled:
                    jax.profiler.start_trace(str(directory / "profile"))
                shape = describe_shapes(batch)
                is_new = shape not in compiled
                if is_new:
                    compiled.add(shape)
                    log.info("compiling the training step of shape %d: %s", len(compiled), shape)
                # A call with a new shape returns when the step is compiled.
                with (
                    jax.profiler.StepTraceAnnotation("train", step_num=step),
                    chronometer.paused() if is_new else contextlib.nullcontext(),
                ):
                    state, metrics = step_function(state, batch, steering.controls(step - 1))
                window.add(metrics)
                norms: dict[str, Any] = {}
                gradient_seconds = 0.0
                balance_due = steering.balance_due(step)
                if balance_due or run.diagnostics.gradients_due(step, run.steps):
                    norms, losses = gradient_norms(state, step)
                    if balance_due:
                        steering.balance(step, norms, losses)
                # At most two steps are under way, which bounds the memory of batches. While the
                # devices work on this one, log what came before and fetch what comes next.
                jax.block_until_ready(previous)
                previous = metrics
                if pending is not None:
                    log_point(*pending)
                    pending = None
                waiting = time.monotonic()
                if step < run.steps:
                    batch = next_batch(step + 1)
                chronometer.waited(time.monotonic() - waiting)
                if step == last_profiled and first_profiled > start:
                    jax.block_until_ready(metrics)
                    jax.profiler.stop_trace()
                if step == start + 1:
                    jax.block_until_ready(metrics)
                    log.info("first step after %.1f s", time.monotonic() - began)
                    chronometer.restart_window(step)
                if step % run.log_every == 0 or step == run.steps:
                    window, pending = MetricWindow(), (step, window)
                if diagnostics is not None and run.diagnostics.due(step, run.steps):
                    look(step, norms)

                code = signals.exit_code(step)
                if step % run.checkpoint_every == 0 or step == run.steps or code is not None:
                    if pending is not None:
                        log_point(*pending)
                        pending = None
                    save(step)
                if code is not None and step < run.steps:
                    checkpoints.wait()
                    log.warning("saved step %d; run the same command to continue", step)
                    raise Interrupted(code)
    finally:
        # ------------------------------------------------------------------------------- close
        checkpoints.close()
        if writer is not None:
            writer.close()
        if hasattr(iterator, "close"):
            iterator.close()
    log.info("done: %d steps, model in %s", run.steps, directory)
    return state


def _new_state(
    run: TrainRun, mesh: Mesh, abstract: TrainState, shardings: TrainState, directory: epath.Path
) -> TrainState:
    """A state from ``init_from`` or from scratch; every array is born where it belongs."""
    with run.partitioning.activate(mesh):
        params = jax.jit(
            lambda: parameter_trees.unbox(
                initial_params(run.model, run.objective, run.batch_shapes(), run.seed)
            ),
            out_shardings=shardings.params,
        )()
        if run.init_from is None:
            log.info("starting from scratch")
        else:
            params, report = partial_restore(
                params,
                run.init_from,
                run.init_which,
                include=run.init_include,
                exclude=run.init_exclude,
            )
            log.info("starting from %s (%s): %s", run.init_from, run.init_which, report.summary())
            if jax.process_index() == 0:
                source = f"{find_checkpoint(run.init_from)} ({run.init_which})\n"
                (directory / REPORT_FILE).write_text(source + report.text())
        return jax.jit(
            functools.partial(create_state, optimizer=run.optimizer, ema=run.ema_decay is not None),
            out_shardings=shardings,
            donate_argnums=0,
        )(params)


def _check_record(run: TrainRun, record: dict[str, Any], model_dir: epath.Path) -> None:
    """Refuse to continue where the batches would not be the ones that come next."""
    if record["seed"] != run.seed:
        raise UserError(
            f"{model_dir} was begun with seed {record['seed']}, not {run.seed}; set seed to "
            f"{record['seed']}, or choose another model directory."
        )
    for stream, config in run.streams.items():
        saved = record.get("streams", {}).get(stream, {})
        # As JSON has it, which knows no tuples.
        now = json.loads(json.dumps(dataclasses.asdict(config)))
        if any(saved.get(name) != now[name] for name in ("batch_size", "mixture", "buckets")):
            log.warning(
                "the stream %r changed since the checkpoint: its examples go on from another place",
                stream,
            )


def _console_names(values: dict[str, float]) -> list[str]:
    """The loss, its parts, and the learning rate."""
    parts = sorted(name for name in values if name.startswith("loss/"))
    return ["loss", *parts, "grad_norm", "learning_rate"]

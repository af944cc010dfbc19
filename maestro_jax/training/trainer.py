"""The trainer: from an empty or half-trained model directory to a trained model.

    train(run, "models/asr", "data")

`Trainer.fit` is the loop. What happens around its steps is done by callbacks (`callbacks`), where
metrics go is decided by trackers (`trackers`).
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import copy
import functools
import json
import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from maestro_jax.chip_table import chip_of
from maestro_jax.errors import RESTART_EXIT_CODE, UserError
from maestro_jax.files import absolute_path, write_if_changed
from maestro_jax.objectives.base import Controls
from maestro_jax.training import agreement, elastic, parameter_trees
from maestro_jax.training.batch_feed import Batches, BatchFeed, Sample, TaskBatches
from maestro_jax.training.callbacks import (
    Callback,
    MetricLogger,
    Profiler,
    StepInfo,
)
from maestro_jax.training.changes import describe
from maestro_jax.training.checkpointer import Checkpointer
from maestro_jax.training.checkpoints import Checkpoints, restore_newest
from maestro_jax.training.compilation import cache_counts, unexpected_shapes
from maestro_jax.training.curriculum_controller import (
    CurriculumController,
    LossBalancer,
    step_controls,
)
from maestro_jax.training.diagnostics import Diagnostics, run_metadata
from maestro_jax.training.distributed import first_process_says, process_group
from maestro_jax.training.goodput import Goodput
from maestro_jax.training.health import HealthGuard
from maestro_jax.training.host_memory import HostMemory
from maestro_jax.training.lease import Lease, LeaseGuard
from maestro_jax.training.left_out import (
    LeftOut,
    batches_of,
    open_batches,
    read_left_out,
    write_left_out,
)
from maestro_jax.training.local_checkpoints import LocalCheckpoints
from maestro_jax.training.metrics import StepTimer
from maestro_jax.training.partial_restore import REPORT_FILE, partial_restore
from maestro_jax.training.partitioning import replicated
from maestro_jax.training.preemption import PreemptionHandler, TrainingPreempted
from maestro_jax.training.process_group import AgreedStop
from maestro_jax.training.records import TrainingRecord
from maestro_jax.training.replica_check import ReplicaCheck
from maestro_jax.training.run import TrainRun
from maestro_jax.training.saved_checkpoints import as_begun, find_checkpoint, saved_record
from maestro_jax.training.start import Start, check_start
from maestro_jax.training.state import (
    ShardedState,
    TrainState,
    create_state,
    initial_params,
    sharded_state,
)
from maestro_jax.training.step import describe_shapes, term_gradient_norms
from maestro_jax.training.step_programs import StepPrograms
from maestro_jax.training.trackers import JsonlTracker, TensorBoardTracker, Tracker
from maestro_jax.training.validation import Validation
from maestro_jax.training.watchdog import Activity, watching

log = logging.getLogger(__name__)


def train(
    run: TrainRun,
    model_dir: str | Path,
    data_dir: str | Path | None = None,
    *,
    batches: Batches | None = None,
    held_out: Mapping[str, np.ndarray] | None = None,
    validation_samples: Mapping[str, Sample] | None = None,
    callbacks: Sequence[Callback] = (),
    allow_changes: bool = False,
    take_over: bool = False,
) -> TrainState:
    """Trains a model, or resumes its training; see `Trainer` for the arguments.

    Called again with the same arguments after any interruption, it continues from the last
    checkpoint and gives the result that it would have given without the interruption.

    Returns:
        The state after the last step.

    Raises:
        UserError: The run does not fit the devices, the data or the model directory, or it
            diverges whenever it rolls back.
        TrainingPreempted: A signal arrived; the state was saved.
    """
    return Trainer(
        run,
        model_dir,
        data_dir,
        batches=batches,
        held_out=held_out,
        validation_samples=validation_samples,
        callbacks=callbacks,
        allow_changes=allow_changes,
        take_over=take_over,
    ).fit()


class Trainer:
    """Trains the model of one run in one process.

    Args:
        run: What to train, on what, and for how long.
        model_dir: Directory of checkpoints and metrics.
        data_dir: Root of the prepared data.
        batches: Function of the number of steps done that returns an iterator of numpy batches
            (the rows of this process); by default, batches are loaded from ``run.streams``. With
            it, nothing is loaded for diagnostics and validation.
        held_out: Paired stream for the diagnostics, the same on every process; by default it is
            loaded.
        validation_samples: Sample of each stream to validate; by default it is loaded.
        callbacks: Callbacks besides those of the run.
        allow_changes: Whether to go on with a run whose result is changed (`changes`).
        take_over: Whether to take the model directory from another run that uses it (`lease`).

    Attributes:
        run: The run, adapted to the checkpoint from which it continues.
        model_dir: The model directory.
        data_dir: Root of the prepared data.
        mesh: The device mesh.
        shardings: Shardings of the state.
        state: The training state after `step` updates.
        step: Number of updates dispatched.
        start_step: Step from which this process continues.
        callbacks: All callbacks, in the order in which they are called.
        trackers: Where metrics are written; empty but on process 0.
        checkpoints: The checkpoints of the model directory.
        local_checkpoints: Those on a local disk; None for none.
        rollbacks: What the run has left out so far, as `left_out.write_left_out` writes it.
        batch_parts: Into how many parts a batch is divided (`elastic.batch_parts`); in an elastic
            run, when it began.
        timer: Measures the speed.
        feed: Gives the batches.
        processes: The processes of the run.
        activity: What this process is doing.
    """

    mesh: jax.sharding.Mesh
    shardings: TrainState
    state: TrainState
    timer: StepTimer
    feed: BatchFeed

    def __init__(
        self,
        run: TrainRun,
        model_dir: str | Path,
        data_dir: str | Path | None = None,
        *,
        batches: Batches | None = None,
        held_out: Mapping[str, np.ndarray] | None = None,
        validation_samples: Mapping[str, Sample] | None = None,
        callbacks: Sequence[Callback] = (),
        allow_changes: bool = False,
        take_over: bool = False,
    ) -> None:
        self.run = run
        self.processes = process_group()
        self.activity = Activity()
        self.model_dir = absolute_path(model_dir)
        self._lease = Lease(self.model_dir, take_over=take_over)
        self._allow_changes = allow_changes
        self.data_dir = data_dir
        self.step = self.start_step = 0
        self.local_checkpoints: LocalCheckpoints | None = None
        self.loads_data = batches is None
        self.trackers: list[Tracker] = []
        self.curriculum = CurriculumController(run.objective, run.log_every)
        self.balancer = LossBalancer(run.objective, self.curriculum)
        self.validation = Validation(run.validation, validation_samples)
        self._logger = MetricLogger()
        self._goodput = Goodput()
        self.callbacks: tuple[Callback, ...] = (
            # Before all that write.
            LeaseGuard(self._lease),
            # First: it has the metrics of a step before any other callback asks for a log point.
            self._logger,
            self._goodput,
            self.curriculum,
            self.balancer,
            Diagnostics(run.diagnostics, held_out),
            self.validation,
            *([Profiler(*run.profile_steps)] if run.profile_steps else []),
            HealthGuard(run.max_skipped_steps, run.health),
            ReplicaCheck(run.check_replicas_every),
            HostMemory(),
            # Copies: the state of one training must not reach another one of the same run.
            *copy.deepcopy(run.callbacks),
            *callbacks,
            PreemptionHandler(),
            # Last: it saves what all others have decided.
            Checkpointer(run.best_metric, run.best_mode),
        )
        names = [callback.name for callback in self.callbacks]
        for name in names:
            if names.count(name) > 1:
                raise UserError(f"Two callbacks have the name {name!r}; give one another name.")
        self._batches = batches
        self.rollbacks: list[Mapping[str, Any]] = []
        self._rollback: tuple[int, dict[str, Any]] | None = None
        self._task_batches: TaskBatches | None = None
        self._opened: Iterator[Any] | None = None
        self._is_stopping = False
        self._exit_code: int | None = None
        self._reason = ""
        self._measured: dict[str, float] = {}
        self._gradient_norms: tuple[int, Any] | None = None
        # The step in flight, the time at which it will have been completed, its FLOPs.
        self._in_flight: tuple[int, concurrent.futures.Future[float], float] | None = None
        # Sees when a step is completed, whatever the main thread is doing then.
        self._watcher = concurrent.futures.ThreadPoolExecutor(1)

    # ---------------------------------------------------------------------------------- the loop

    def fit(self) -> TrainState:
        """Trains until the last step of the run, or until something asks it to stop.

        Returns:
            The state after the last step.

        Raises:
            UserError: The run does not fit the devices, the data or the model directory, or it
                diverges whenever it rolls back.
            TrainingPreempted: A signal arrived; the state was saved.
        """
        with self._lease, watching(self):
            return self._fit()

    def _fit(self) -> TrainState:
        self.setup()
        if self.step >= self.run.steps:
            log.info("nothing to do: step %d of %d is done", self.step, self.run.steps)
            self.checkpoints.close()
            return self.state
        with self._open(), self.run.partitioning.activate(self.mesh):
            for callback in self.callbacks:
                callback.on_start(self)
            self.flush_log()
            self._initial_states = self._callback_states() if self.step == 0 else {}
            self.timer.begin()
            batch = self.next_batch()
            while self.step < self.run.steps and not self.is_stopping:
                info = self.train_step(batch)
                # While the devices work on it: log what came before, read what comes next.
                self.flush_log()
                if self.step < self.run.steps:
                    batch = self.next_batch()
                for callback in self.callbacks:
                    callback.on_step(self, info)
                if self._rollback is not None:
                    batch = self._roll_back()
        if self.step < self.run.steps:
            saved = f"saved step {self.step}; run the same command to continue"
            if self.step == self.start_step:
                saved = f"no step was taken after step {self.step}; run the same command to go on"
            if self._exit_code == RESTART_EXIT_CODE:
                raise AgreedStop(f"{self._reason}: {saved}")
            log.warning("%s", saved)
            if self._exit_code is not None:
                raise TrainingPreempted(self._exit_code)
            return self.state
        log.info("done: %d steps, model in %s", self.run.steps, self.model_dir)
        return self.state

    def setup(self) -> None:
        """Creates mesh and shardings, and restores or initialises the state.

        Nothing is written until the run has been compared with devices, data and model directory,
        on all processes.

        Raises:
            UserError: The run does not fit the devices, the data or the model directory, or another
                run uses it.
        """
        begin = self.activity.begin
        begin("comparing the run with its model directory")
        start, layout = self._check_start()
        begin("opening the data")
        self._open_data(start)
        begin("agreeing with the other processes")
        self._agree()
        # The start is accepted: from here on, files are written.
        if jax.process_index() == 0:
            overview = parameter_trees.parameter_overview(
                layout.boxed.params, self.shardings.params
            )
            write_if_changed(self.model_dir / "parameters.txt", overview.encode())
        if self._task_batches is not None:
            self._task_batches.save()
        begin("restoring the checkpoint")
        record = self._restore(start)
        begin("starting")
        if record.step != start.record.step:
            # The newest checkpoint was damaged, or there is a newer one on a local disk.
            self._open_batches()

        run, parameters = self.run, jax.tree.leaves(self._abstract.params)
        self.metadata = run_metadata(run, self.mesh, sum(math.prod(x.shape) for x in parameters))
        log.info("%s parameters", f"{self.metadata['parameters']:,}")
        self._term_gradient_norms = jax.jit(
            functools.partial(
                term_gradient_norms,
                model=run.model,
                objective=run.objective,
                seed=run.seed,
                accumulate=run.accumulate,
            ),
            in_shardings=(
                self.shardings,
                run.partitioning.batch_sharding(self.mesh),
                replicated(self.mesh),
            ),
            out_shardings=replicated(self.mesh),
        )
        chip = chip_of(jax.devices()[0].device_kind)
        self.timer = StepTimer(
            run.steps,
            record.elapsed_seconds,
            devices=self.mesh.size,
            peak_flops=None if chip is None else chip.peak_flops / chip.devices_per_chip,
        )

    def _check_start(self) -> tuple[Start, ShardedState]:
        """Compares the run with the devices and with its checkpoints; holds the lease from here."""
        self.checkpoints = Checkpoints(
            self.model_dir,
            keep=self.run.keep_checkpoints,
            keep_every=self.run.keep_checkpoint_every,
        )
        if self.run.elastic:
            self.run = elastic.fitted(self.run, len(jax.devices()), self._saved_parts())
        run = self.run
        self.mesh = run.partitioning.mesh()
        run.partitioning.check_batch_sizes(self.mesh, run.batch_sizes, run.accumulate)
        device_kind = jax.devices()[0].device_kind
        log.info("%d %s devices in a mesh %s", self.mesh.size, device_kind, dict(self.mesh.shape))
        unused = [stream for stream in run.streams if stream not in run.used_streams]
        if unused:
            log.warning("the objective does not use the streams %s", ", ".join(unused))
        # By itself: while the first process waits for a sign of life of another run, the others
        # must not enter a collective, where they would wait for half a minute at most.
        with agreement.failing_together():
            self._lease.acquire()
        with agreement.failing_together():
            steps = self.checkpoints.all_steps()
            self.run = run = as_begun(run, self.checkpoints.directory, steps)
            layout = sharded_state(run, self.mesh)
            self._abstract, self.shardings = layout.abstract, layout.shardings
            start = check_start(
                run, self.model_dir, steps, self._abstract, allow_changes=self._allow_changes
            )
        return start, layout

    def _open_data(self, start: Start) -> None:
        """Opens the batches that follow, while the program of a restart is read from the cache."""
        written = read_left_out(self.model_dir) if jax.process_index() == 0 else []
        # The file is written first; a run without it goes by its checkpoint.
        rollbacks = (start.record.rollbacks, first_process_says(written))
        self.rollbacks = max(map(list, rollbacks), key=len)
        self._begin(start.record)
        self._programs = StepPrograms(self.run, self.mesh, self.shardings)
        if self.loads_data and 0 < self.step < self.run.steps:
            # A new run would keep whoever mistyped something waiting for the compiler.
            streams = self.curriculum.active_streams(self.step)
            self._programs.compile_ahead(self._abstract, self.controls(self.step), streams)
        with agreement.failing_together():
            if self._batches is None:
                self._task_batches = TaskBatches(self.run, self.mesh, self.model_dir, self.data_dir)
                self._batches = self._task_batches
            self._open_batches()

    def _agree(self) -> None:
        """Compares what all processes are about to do, and confirms the lease."""
        if jax.process_count() > 1:
            data = {} if self._task_batches is None else self._task_batches.fingerprints()
            agreement.agree(agreement.facts(describe(self.run), data, self.step))
        with agreement.failing_together():
            self._lease.confirm()

    def _restore(self, start: Start) -> TrainingRecord:
        """Sets the state: of the run's own checkpoint, else of init_from, else from scratch."""
        run, places = self.run, [self.checkpoints]
        if run.local_checkpoint_dir is not None:
            self.local_checkpoints = LocalCheckpoints(self.model_dir, run.local_checkpoint_dir)
            places.insert(0, self.local_checkpoints)
        restored = restore_newest(places, self._abstract, with_optimizer=start.same_optimizer)
        if restored is None:
            self.state = _new_state(run, self.mesh, self.shardings, self.model_dir)
            record = TrainingRecord(seed=run.seed)
        else:
            self.state, record = restored[0], TrainingRecord.from_json(restored[1])
            if not start.same_optimizer:
                self.state = _with_new_optimizer_state(self.state, run, self.shardings)
            log.info("continuing from step %d of %s", record.step, self.model_dir)
        self.batch_parts = elastic.batch_parts(run, self.mesh.size)
        if run.elastic and record.batch_parts:
            self.batch_parts = record.batch_parts
        self._begin(record)
        self.start_step = self.step
        return record

    def train_step(self, batch: Any) -> StepInfo:
        """Dispatches one training step.

        Args:
            batch: ``{stream: {feature: array}}``, global arrays on the mesh.
        """
        step, controls = self.step + 1, self.controls(self.step)
        self.activity.begin(f"step {step}", "step")
        is_new = describe_shapes(batch) not in self._programs
        if is_new:
            # A step that is compiled is not timed, and neither is what is in flight before it.
            self.wait()
            self.activity.begin(f"compiling step {step}")
            unexpected = unexpected_shapes(self.run, batch)
            if unexpected is not None and step > self.start_step + 1:
                log.warning("step %d is compiled for a batch of %s", step, unexpected)
        began = time.monotonic()
        program = self._programs.get(self.state, batch, controls)
        with jax.profiler.StepTraceAnnotation("train", step_num=step):
            # The old state is donated: nothing may hold on to its arrays.
            self.state, metrics = program.run(self.state, batch, controls)
        if is_new:
            self.timer.complete(step, _completion_time(metrics), counted=False)
            self.activity.begin(f"after step {step}")
            if step == self.start_step + 1:
                log.info(
                    "first step after %.1f s; programs so far: %d from the compilation cache, %d "
                    "compiled for it",
                    time.monotonic() - began,
                    *cache_counts(),
                )
        else:
            # At most two steps are in flight, which bounds the memory of batches.
            self.wait()
            done = self._watcher.submit(_completion_time, metrics)
            self._in_flight = (step, done, program.flops)
        self.step = step
        return StepInfo(step=step, batch=batch, metrics=metrics)

    def next_batch(self) -> Any:
        """Returns the batch of the next step; None if all processes stop before it."""
        with self.activity.during(f"waiting for the input of step {self.step + 1}", "input"):
            batch = self.feed.get(self.step + 1)
            stop = self.processes.stop_after(self.step)
            if batch is not None:
                self.activity.begin(f"waiting for the other processes at step {self.step}", "input")
                stop = self.processes.ready_after(self.step)
        if stop is not None:
            log.warning("stopping after step %d: %s", self.step, stop.reason)
            self._reason = stop.reason
            self.stop(stop.exit_code)
        return batch

    # ------------------------------------------------------------------------- for callbacks

    @property
    def eval_params(self) -> Any:
        """Returns the parameters to evaluate: their moving average, if the run keeps one."""
        return self.state.params if self.state.ema_params is None else self.state.ema_params

    @property
    def is_stopping(self) -> bool:
        """Returns whether training ends after the current step."""
        return self._is_stopping

    @property
    def has_measured(self) -> bool:
        """Returns whether callbacks have measured something that is not written yet."""
        return bool(self._measured)

    @property
    def is_saving(self) -> bool:
        """Returns whether a checkpoint is being written."""
        return self.activity.name.startswith("saving")

    def controls(self, step: int) -> Controls:
        """Returns what the update that follows `step` updates is told."""
        ends = self.run.optimizer.schedule_ends()
        return step_controls(self.curriculum, self.balancer, step, self.run.seed, ends)

    def stop(self, exit_code: int | None = None) -> None:
        """Asks training to save its state and to end after the current step.

        Args:
            exit_code: Exit code of `TrainingPreempted`, if steps are left; None to return the state
                as after the last step.
        """
        self._is_stopping, self._exit_code = True, exit_code

    @property
    def left_out(self) -> LeftOut:
        """Returns the batches that no step takes."""
        return LeftOut(self.run.leave_out_batches) | batches_of(self.rollbacks)

    @property
    def is_healthy(self) -> bool:
        """Returns whether a checkpoint of the current step may replace earlier ones."""
        return all(callback.is_healthy(self) for callback in self.callbacks)

    @property
    def is_rolling_back(self) -> bool:
        """Returns whether training goes back to an earlier step after the current one."""
        return self._rollback is not None

    def roll_back(self, step: int, entry: Mapping[str, Any]) -> None:
        """Asks training to go back to an earlier step, once callbacks are done with this one.

        Args:
            step: Step of a checkpoint, or 0 for the state with which the run began.
            entry: The ``batches`` to leave out from then on, and why (`left_out.write_left_out`).
        """
        self._rollback = (step, dict(entry))

    def log_metrics(self, metrics: Mapping[str, float]) -> None:
        """Adds values measured after the current step to its line in the log."""
        self._measured |= metrics

    def flush_log(self) -> None:
        """Writes the log point that is due and what callbacks have measured, if there is any."""
        measured, self._measured = self._measured, {}
        self._logger.write(self, measured)

    def wait(self) -> None:
        """Waits until the devices have done the step in flight."""
        if self._in_flight is not None:
            (step, done, flops), self._in_flight = self._in_flight, None
            self.timer.complete(step, done.result(), flops=flops)

    @contextlib.contextmanager
    def paused(self, part: str = "diagnostics") -> Iterator[None]:
        """Waits for the step in flight, and excludes a block from the measured speed.

        Args:
            part: What its time is spent on (`goodput.PARTS`).
        """
        self.wait()
        during = self.activity.during(f"work after step {self.step}")
        with self.timer.paused(part), during:
            yield

    def term_gradient_norms(self, info: StepInfo) -> tuple[dict[str, float], dict[str, float]]:
        """Computes the gradient norm of each loss term on the batch of the current step.

        Args:
            info: The current step.

        Returns:
            Norms and means by term; computed once, however many callbacks ask.
        """
        if self._gradient_norms is None or self._gradient_norms[0] != info.step:
            with self.paused():
                # The controls of the step, whose randomness and weights are measured.
                controls = self.controls(info.step - 1)
                norms = self._term_gradient_norms(self.state, info.batch, controls)
                self._gradient_norms = (info.step, jax.device_get(norms))
        return self._gradient_norms[1]

    # ----------------------------------------------------------------------- opening and closing

    @contextlib.contextmanager
    def _open(self) -> Iterator[None]:
        """Opens the feed and the trackers; closes them and ends all callbacks at exit."""
        run = self.run
        self.processes.resume = self._resume
        with contextlib.ExitStack() as stack:
            stack.callback(self._goodput.write)
            # A step that hangs must not keep the process.
            stack.callback(self._watcher.shutdown, wait=False)
            stack.callback(self._programs.close)
            self._open_feed()
            stack.callback(lambda: self.feed.close())
            if jax.process_index() == 0:
                tensorboard = [TensorBoardTracker()] if run.tensorboard else []
                self.trackers = [JsonlTracker(), *tensorboard, *copy.deepcopy(run.trackers)]
            for tracker in self.trackers:
                tracker.start(self.model_dir, self.step, self.metadata)
                stack.callback(tracker.close)
            for callback in self.callbacks:
                stack.callback(callback.on_end, self)
            # First of all, while signals are still watched: the last checkpoint is written.
            stack.push(self._close_checkpoints)
            yield

    def _open_batches(self) -> None:
        """Opens the batches of the steps that follow; a finished run needs none."""
        assert self._batches is not None
        close = getattr(self._opened, "close", None)
        if close is not None:
            close()
        if self.step < self.run.steps:
            self._opened = open_batches(self._batches, self.left_out, self.step)

    def _open_feed(self) -> None:
        assert self._opened is not None
        self.feed = BatchFeed(
            self._opened,
            self.run,
            self.mesh,
            self.curriculum.active_streams,
            self.timer,
            self.processes,
        )
        self.processes.begin(self.step)

    def _begin(self, record: TrainingRecord) -> None:
        """Continues where a record says that the run was."""
        self.step = record.step
        for callback in self.callbacks:
            if callback.name in record.callbacks:
                callback.load(record.callbacks[callback.name])

    def _callback_states(self) -> dict[str, Any]:
        return {each.name: json.loads(json.dumps(each.state())) for each in self.callbacks}

    def _roll_back(self) -> Any:
        """Goes back to an earlier step, and returns the batch of the step that follows."""
        assert self._rollback is not None
        (step, entry), self._rollback = self._rollback, None
        with self.paused():
            self.feed.close()
            # Two states would not fit beside each other.
            self.state = None  # type: ignore[assignment]
            restored = self.checkpoints.restore_latest(self._abstract, last_step=step)
            if restored is not None:
                # Of an earlier step, if the checkpoint is damaged.
                self.state, record = restored[0], TrainingRecord.from_json(restored[1])
            else:
                self.state = _new_state(self.run, self.mesh, self.shardings, self.model_dir)
                record = TrainingRecord(seed=self.run.seed, callbacks=self._initial_states)
            step = record.step
            # Before the file says that there was a rollback: a process that dies in between does
            # all this again, and none continues from a state that has been given up.
            self.checkpoints.remove_after(step)
            if self.local_checkpoints is not None:
                self.local_checkpoints.remove_after(step)
            self.rollbacks.append({**entry, "rolled_back_to": step})
            if jax.process_index() == 0:
                write_left_out(self.model_dir, self.rollbacks)
            self._begin(record)
            self._measured, self._gradient_norms = {}, None
            for tracker in self.trackers:
                tracker.close()
                tracker.start(self.model_dir, step, self.metadata)
            for callback in self.callbacks:
                callback.on_roll_back(self)
            self._open_batches()
            self._open_feed()
        return None if self.is_stopping else self.next_batch()

    def _saved_parts(self) -> int:
        """Returns `batch_parts` of the newest checkpoint that can be read; 0 if there is none."""
        for step in reversed(self.checkpoints.all_steps()):
            try:
                saved = saved_record(self.checkpoints.directory / str(step))
            except (UserError, OSError):
                continue  # A damaged one: `Checkpoints.restore_latest` names it.
            return int(saved.get("batch_parts", 0))
        return 0

    def _close_checkpoints(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: Any
    ) -> None:
        saving = self.activity.during(f"saving step {self.step}")
        with self.timer.paused("checkpoint"), saving:
            for checkpoints in (self.checkpoints, self.local_checkpoints):
                if checkpoints is not None:
                    # After an error, the others wait for the next step, and not for this.
                    checkpoints.close(alone=error is not None)

    def _resume(self) -> str:
        """Returns where a run goes on that ends now."""
        # Those that are complete now: the manager counts what is being written.
        steps = ocp.utils.checkpoint_steps(self.checkpoints.directory)
        return f"the same command continues from step {max(steps, default=0)}"


def _completion_time(arrays: Any) -> float:
    """Waits until the devices have computed a tree of arrays, and returns the time."""
    jax.block_until_ready(arrays)
    return time.monotonic()


def _with_new_optimizer_state(
    state: TrainState, run: TrainRun, shardings: TrainState
) -> TrainState:
    """Gives a state the optimizer state of a run that begins."""
    init = jax.jit(run.optimizer.build(state.params).init, out_shardings=shardings.opt_state)
    return state.replace(opt_state=init(state.params))


def _new_state(
    run: TrainRun, mesh: jax.sharding.Mesh, shardings: TrainState, model_dir: epath.Path
) -> TrainState:
    """Creates a state from ``init_from`` or from scratch, sharded from the start."""
    with run.partitioning.activate(mesh):
        # Sharded where they are computed: no device ever holds all parameters whole.
        params = jax.jit(
            lambda seed: parameter_trees.unbox(
                initial_params(run.model, run.objective, run.batch_shapes(), seed)
            ),
            out_shardings=shardings.params,
        )(np.int32(run.seed))
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
                content = (source + report.text()).encode()
                write_if_changed(model_dir / REPORT_FILE, content)
        return jax.jit(
            functools.partial(create_state, optimizer=run.optimizer, ema=run.ema_decay is not None),
            out_shardings=shardings,
            donate_argnums=0,
        )(params)

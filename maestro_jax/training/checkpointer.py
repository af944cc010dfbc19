"""The callback that saves checkpoints: when, which is the best, and what if the storage fails."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import jax

from maestro_jax.errors import RestartableError, near_misses
from maestro_jax.scoring.metrics import KINDS, metrics_of_kind
from maestro_jax.training import distributed, model_vocabulary
from maestro_jax.training.callbacks import Callback, LogWindow, StepInfo
from maestro_jax.training.checkpoints import BestCheckpoint
from maestro_jax.training.records import TrainingRecord

if TYPE_CHECKING:
    from maestro_jax.training.trainer import Trainer

log = logging.getLogger(__name__)


FIRST_PAUSE, LONGEST_PAUSE = 10.0, 600.0
"""Seconds from a failed attempt to save to the next one; each pause is twice the one before."""
PATIENCE = 60.0
"""Seconds that training waits for a checkpoint to be written when the next one is due."""
# At a stop, when the machine may be gone in half a minute: number of attempts, seconds between.
_ATTEMPTS_AT_STOP, _PAUSE_AT_STOP = 3, 2.0


class Checkpointer(Callback):
    """Saves the state every `TrainRun.checkpoint_every` steps, at the end, and when it is the best.

    If the storage fails, training goes on, and the state is saved again after a pause. After
    `TrainRun.max_checkpoint_failures` attempts in a row the run ends; the last checkpoint that was
    saved is intact.

    Args:
        best_metric: Metric by which the best checkpoint is chosen; None for the one that
            `Validation` measures first.
        best_mode: Whether its smallest (``min``) or largest (``max``) value is the best; None for
            what the name tells: ``max`` for BLEU, chrF and accuracies, ``min`` for all others.
    """

    def __init__(
        self, best_metric: str | None = None, best_mode: Literal["min", "max"] | None = None
    ) -> None:
        self._metric = best_metric
        self._mode = best_mode
        self._best: BestCheckpoint | None = None
        # The best one that exists; the best one may have failed to be saved.
        self._best_saved: BestCheckpoint | None = None
        self._improved = False
        self._is_overdue = False
        # Whether a checkpoint is due and the one before still being written.
        self._is_late = False
        self._is_missing_told = False
        # Failures in this run; those in a row that have been told; when to try again.
        self._failures = self._told = 0
        self._next_attempt = 0.0

    def on_start(self, trainer: Trainer) -> None:
        """Finds the metric of the best checkpoint, and that checkpoint if there is one."""
        trainer.checkpoints.check_writable()
        self._metric = self._metric or trainer.validation.primary_metric
        best, metric = self._best, self._metric
        if best is not None and metric is not None and best.metric != metric:
            log.warning(
                "the best checkpoint is chosen by %s from now on, not by %s", metric, best.metric
            )
            self._best = best = None
        if best is not None and best.step not in trainer.checkpoints.all_steps():
            log.warning("the best checkpoint, of step %d, does not exist any more", best.step)
            self._best = None
        trainer.checkpoints.best = self._best_saved = self._best
        trainer.checkpoints.write_best()
        if trainer.local_checkpoints is not None:
            trainer.local_checkpoints.claim()

    def on_roll_back(self, trainer: Trainer) -> None:
        """Goes back to the best checkpoint of that time."""
        self._improved = self._is_overdue = False
        trainer.checkpoints.best = self._best_saved = self._best
        trainer.checkpoints.write_best()

    def log_values(self, trainer: Trainer, window: LogWindow) -> Mapping[str, float]:
        """Returns the number of failed attempts to save since the run began, if there were any."""
        return {"checkpoint_failures": float(self._failures)} if self._failures else {}

    def on_log(self, trainer: Trainer, step: int, metrics: Mapping[str, float]) -> None:
        """Compares the metric of the best checkpoint with its best value so far."""
        metric = self._metric
        if metric is None:
            return
        if metric not in metrics:
            if "validation_seconds" in metrics and not self._is_missing_told:
                self._is_missing_told = True
                log.warning(
                    "best_metric %r is not a validation metric, so no best checkpoint is kept.%s",
                    metric,
                    near_misses(metric, [n for n in metrics if n.startswith("validation/")]),
                )
            return
        value = float(metrics[metric])
        if step != trainer.step or value != value or not trainer.is_healthy:
            # A checkpoint would have other parameters than those that were measured; or a NaN.
            return
        if self._best is None or self._best.is_beaten_by(value):
            mode = self._mode or _best_mode(metric)
            self._best = BestCheckpoint(step=step, metric=metric, mode=mode, value=value)
            self._improved = True

    def on_step(self, trainer: Trainer, info: StepInfo) -> None:
        """Saves the state, if it is time."""
        run, checkpoints = trainer.run, trainer.checkpoints
        is_log_point = info.step % run.log_every == 0
        if jax.process_count() == 1 or is_log_point:  # Several processes have to agree.
            checkpoints.poll()
            self._tell(trainer)
        is_last = info.step == run.steps or trainer.is_stopping
        is_due = info.step % run.checkpoint_every == 0 or is_last
        is_due |= checkpoints.failures > 0 or self._is_overdue or self._is_late
        if is_due or trainer.has_measured:
            # What is due is written first. Its steps are then not in the window that the record
            # saves, and a validation of this step has decided whether this is the best checkpoint.
            trainer.flush_log()
        if not is_last:
            is_wanted = is_due or self._improved
            if not is_wanted or not self._may_try(trainer, is_log_point):
                self._save_locally(trainer)
                return
        was_overdue, self._is_overdue = self._is_overdue, not trainer.is_healthy
        if self._is_overdue:
            # It would push out a good one, and a rollback would have nowhere to go.
            if not was_overdue:
                log.warning("step %d is not saved: too many of the last steps were bad", info.step)
        elif is_last:
            with trainer.paused("checkpoint"):
                with trainer.activity.during(f"saving step {info.step}"):
                    self._save_last(trainer)
        else:
            self._save(trainer)

    def _may_try(self, trainer: Trainer, is_log_point: bool) -> bool:
        """Returns whether the storage is ready for another checkpoint, as far as is known.

        All processes get the same answer: after trouble, they agree at log points.
        """
        checkpoints = trainer.checkpoints
        has_trouble = checkpoints.failures > 0 or self._is_late
        if has_trouble and jax.process_count() > 1 and not is_log_point:
            return False
        was_late = self._is_late
        checkpoints.poll(0.0 if was_late else PATIENCE)
        self._tell(trainer)
        self._is_late = not checkpoints.is_settled()
        if self._is_late:
            if not was_late:
                log.warning(
                    "the checkpoint before is still being written after %.0f s: training goes on, "
                    "and the next one is saved when it is complete",
                    PATIENCE,
                )
            return False
        if not checkpoints.failures:
            return True
        return bool(distributed.first_process_decides(time.monotonic() >= self._next_attempt))

    def _save(self, trainer: Trainer) -> None:
        if self._improved:
            assert self._best is not None
            if self._best.step == trainer.step:
                log.info("best checkpoint: %s %.4g", self._best.metric, self._best.value)
            else:  # It could not be saved then, and its state is gone.
                self._best = self._best_saved
        self._improved = False
        trainer.checkpoints.best = self._best
        record = self._record(trainer)
        for tracker in trainer.trackers:
            # Before: a process that is killed when the checkpoint is complete, and no sooner, has
            # written the metrics that no later one writes again.
            tracker.flush()
        saving = trainer.activity.during(f"saving step {trainer.step}")
        with trainer.paused("checkpoint"), saving:
            trainer.checkpoints.save(trainer.state, record)
        self._tell(trainer)
        over_long = {name: n for name, n in trainer.feed.counters.items() if n}
        if over_long:
            log.info("over-long examples so far, in this process: %s", over_long)

    def _save_locally(self, trainer: Trainer) -> None:
        """Saves the state on the local disk, if it is time; a failure is a warning."""
        local, every = trainer.local_checkpoints, trainer.run.local_checkpoint_every
        if local is None or every is None or trainer.step % every or not trainer.is_healthy:
            return
        trainer.flush_log()
        record = self._record(trainer)
        for tracker in trainer.trackers:
            tracker.flush()
        saving = trainer.activity.during(f"saving step {trainer.step} locally")
        with trainer.paused("checkpoint"), saving:
            local.save(trainer.state, record)
        if local.failures and jax.process_index() == 0:
            log.warning("nothing is saved in %s now: %s", local.directory, local.failure)

    @staticmethod
    def _record(trainer: Trainer) -> dict[str, Any]:
        # The times and counts of the record are those of a step that is done.
        trainer.wait()
        record = TrainingRecord.of_run(
            trainer.run,
            step=trainer.step,
            elapsed_seconds=trainer.timer.elapsed,
            callbacks={each.name: dict(each.state()) for each in trainer.callbacks},
            vocabulary=model_vocabulary.fingerprint_in(trainer.model_dir),
            rollbacks=trainer.rollbacks,
            batch_parts=trainer.batch_parts,
        )
        return record.to_json()

    def _save_last(self, trainer: Trainer) -> None:
        """Saves the last state of this process; after a failure, again until the limit."""
        attempts = 1
        self._save(trainer)
        trainer.checkpoints.settle()
        self._tell(trainer)
        while trainer.checkpoints.failures:
            if trainer.is_stopping:
                if attempts == _ATTEMPTS_AT_STOP:
                    raise self._end(trainer)
                time.sleep(_PAUSE_AT_STOP)
            else:
                time.sleep(max(0.0, self._next_attempt - time.monotonic()))
            attempts += 1
            self._save(trainer)
            trainer.checkpoints.settle()
            self._tell(trainer)
        if trainer.local_checkpoints is not None and trainer.step == trainer.run.steps:
            trainer.local_checkpoints.discard()

    def _tell(self, trainer: Trainer) -> None:
        """Says that an attempt to save failed and when the next one will be.

        Raises:
            RestartableError: So many have failed that the run ends.
        """
        checkpoints, limit = trainer.checkpoints, trainer.run.max_checkpoint_failures
        if checkpoints.failures == self._told:
            if not checkpoints.failures and checkpoints.is_settled():
                self._best_saved = checkpoints.best
            return
        self._failures += max(0, checkpoints.failures - self._told)
        self._told = checkpoints.failures
        if not self._told:
            return
        # The best one that exists must not be removed for one that does not.
        self._best = checkpoints.best = self._best_saved
        if self._told >= limit:
            raise self._end(trainer)
        pause = min(FIRST_PAUSE * 2 ** (self._told - 1), LONGEST_PAUSE)
        self._next_attempt = time.monotonic() + pause
        if jax.process_index() == 0:
            log.warning(
                "a checkpoint could not be saved in %s (%s): attempt %d of %d, the next one in "
                "%.3g s",
                checkpoints.directory,
                checkpoints.failure,
                self._told,
                limit,
                pause,
            )

    def _end(self, trainer: Trainer) -> RestartableError:
        checkpoints = trainer.checkpoints
        step = checkpoints.last_saved
        last = "none was saved before" if step is None else f"the last good one is of step {step}"
        return RestartableError(
            f"no checkpoint could be saved in {checkpoints.directory} in {self._told} attempts "
            f"({checkpoints.failure}), and {last}: see to the storage; the same command continues "
            "from there"
        )

    def state(self) -> Mapping[str, Any]:
        """Returns the best checkpoint so far, and the number of failures."""
        best = None if self._best is None else dataclasses.asdict(self._best)
        return {"best": best, "failures": self._failures}

    def load(self, state: Mapping[str, Any]) -> None:
        """Restores which checkpoint is the best."""
        best = state.get("best")
        self._best = None if best is None else BestCheckpoint(**best)
        self._failures = int(state.get("failures", 0))


def _best_mode(metric: str) -> Literal["min", "max"]:
    parts = metric.split("/")
    higher = any(
        scorer.higher_is_better
        for kind in KINDS
        for scorer in metrics_of_kind(kind)
        if scorer.name in parts
    )
    return "max" if higher or "accuracy" in parts[-1] else "min"

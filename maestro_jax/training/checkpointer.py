"""The callback that saves checkpoints: when, and which of them is the best."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from maestro_jax.errors import near_misses
from maestro_jax.scoring.metrics import KINDS, metrics_of_kind
from maestro_jax.training import model_vocabulary
from maestro_jax.training.callbacks import Callback, StepInfo
from maestro_jax.training.checkpoints import BestCheckpoint
from maestro_jax.training.records import TrainingRecord

if TYPE_CHECKING:
    from maestro_jax.training.trainer import Trainer

log = logging.getLogger(__name__)


class Checkpointer(Callback):
    """Saves the state every `TrainRun.checkpoint_every` steps, at the end, and when it is the best.

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
        self._improved = False
        self._is_overdue = False
        self._is_missing_told = False

    def on_start(self, trainer: Trainer) -> None:
        """Finds the metric of the best checkpoint, and that checkpoint if there is one."""
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
        trainer.checkpoints.best = self._best
        trainer.checkpoints.write_best()

    def on_roll_back(self, trainer: Trainer) -> None:
        """Goes back to the best checkpoint of that time."""
        self._improved = self._is_overdue = False
        trainer.checkpoints.best = self._best
        trainer.checkpoints.write_best()

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
        run = trainer.run
        is_due = info.step % run.checkpoint_every == 0 or info.step == run.steps
        is_due |= self._is_overdue
        if is_due or trainer.is_stopping or trainer.has_measured:
            # What is due is written first. Its steps are then not in the window that the record
            # saves, and a validation of this step has decided whether this is the best checkpoint.
            trainer.flush_log()
        if not (is_due or trainer.is_stopping or self._improved):
            return
        was_overdue, self._is_overdue = self._is_overdue, not trainer.is_healthy
        if self._is_overdue:
            # It would push out a good one, and a rollback would have nowhere to go.
            if not was_overdue:
                log.warning("step %d is not saved: too many of the last steps were bad", info.step)
            return
        if self._improved:
            assert self._best is not None
            log.info("best checkpoint: %s %.4g", self._best.metric, self._best.value)
        self._improved = False
        trainer.checkpoints.best = self._best
        record = TrainingRecord.of_run(
            run,
            step=info.step,
            elapsed_seconds=trainer.timer.elapsed,
            callbacks={each.name: dict(each.state()) for each in trainer.callbacks},
            vocabulary=model_vocabulary.fingerprint_in(trainer.model_dir),
            rollbacks=trainer.rollbacks,
        )
        trainer.checkpoints.save(trainer.state, record.to_json())
        over_long = {name: n for name, n in trainer.feed.counters.items() if n}
        if over_long:
            log.info("over-long examples so far, in this process: %s", over_long)
        for tracker in trainer.trackers:
            tracker.flush()

    def state(self) -> Mapping[str, Any]:
        """Returns the best checkpoint so far."""
        return {"best": None if self._best is None else dataclasses.asdict(self._best)}

    def load(self, state: Mapping[str, Any]) -> None:
        """Restores which checkpoint is the best."""
        best = state.get("best")
        self._best = None if best is None else BestCheckpoint(**best)


def _best_mode(metric: str) -> Literal["min", "max"]:
    parts = metric.split("/")
    higher = any(
        scorer.higher_is_better
        for kind in KINDS
        for scorer in metrics_of_kind(kind)
        if scorer.name in parts
    )
    return "max" if higher or "accuracy" in parts[-1] else "min"

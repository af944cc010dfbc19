"""The health of a run: what is done about steps that would spoil the model.

A step is bad if its loss or gradient is not finite, in which case it changes no parameter, or if
its loss is a spike: more than `HealthConfig.spike_sigmas` standard deviations above the median of
the last good steps, and more than twice that median. The standard deviation is estimated from the
median of absolute deviations, which spikes do not move.

A few bad steps pass. The run rolls back when `TrainRun.max_skipped_steps` more steps were bad than
were good since the first bad one, or when it would end with bad steps. It continues from the last
checkpoint before the first bad step, without the batches from shortly before that step on
(`left_out`), as PaLM was trained (https://arxiv.org/abs/2204.02311, section 5.1). While
steps are bad, no checkpoint is saved, so that a spoilt one never replaces a good one.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from maestro_jax.errors import UserError
from maestro_jax.field_types import check_fields
from maestro_jax.training.callbacks import Callback, LogWindow, StepInfo
from maestro_jax.training.distributed import first_process_decides
from maestro_jax.training.left_out import LEFT_OUT_FILE, write_left_out

if TYPE_CHECKING:
    from maestro_jax.training.trainer import Trainer

log = logging.getLogger(__name__)

# Standard deviation of a normal distribution over its median absolute deviation.
_SIGMAS_PER_MAD = 1.4826


@dataclasses.dataclass(frozen=True, kw_only=True)
class HealthConfig:
    """Configures what counts as a loss spike, and how a run rolls back.

    Attributes:
        spike_sigmas: Standard deviations above the median from which a loss is a spike; None for
            no spikes, so that only losses and gradients that are not finite are bad.
        window: Number of good steps from which median and deviation are computed. Before half as
            many are known, and after a stream has begun, no loss is a spike.
        margin: Number of steps before the first bad one whose batches are left out as well, and
            whose checkpoints are not trusted.
        max_rollbacks: Number of rollbacks of the whole run, after which it ends.
    """

    spike_sigmas: float | None = 10.0
    window: int = 128
    margin: int = 10
    max_rollbacks: int = 3

    def __post_init__(self) -> None:
        """Checks the values."""
        check_fields(self)
        for name, least in (("window", 8), ("margin", 0), ("max_rollbacks", 0)):
            if getattr(self, name) < least:
                raise UserError(
                    f"HealthConfig.{name} is {getattr(self, name)}; it must be {least} or more."
                )
        if self.spike_sigmas is not None and not self.spike_sigmas > 0:
            raise UserError(
                f"HealthConfig.spike_sigmas is {self.spike_sigmas}; it must be above 0, or None "
                "for no spikes."
            )


class HealthGuard(Callback):
    """Counts bad steps, and rolls a run back that does not recover.

    Every process makes the same decisions: they are functions of metrics that all of them have.

    Args:
        limit: By how many steps the bad ones must outweigh the good ones for a rollback.
        config: What is bad, and how to roll back.
    """

    # The name under which checkpoints have its counts since before there were rollbacks.
    name = "non_finite_guard"

    # By how many steps the bad ones since the first bad one outweigh the good ones.
    _excess: int
    # The bad steps since then, with their losses, as far as these were finite.
    _bad: list[tuple[int, float | None]]
    # Losses of the last good steps, with the streams of the last step.
    _losses: list[float]
    _streams: tuple[str, ...]
    _last: int
    _is_beyond_help: bool

    def __init__(self, limit: int = 100, config: HealthConfig = HealthConfig()) -> None:
        self._limit = limit
        self._config = config
        # Steps that have not been judged: their streams, and metrics that are still on the devices.
        self._unread: list[tuple[int, tuple[str, ...], Mapping[str, Any]]] = []
        self.load({})

    def on_step(self, trainer: Trainer, info: StepInfo) -> None:
        """Keeps the metrics of the step until its log point."""
        streams = trainer.curriculum.active_streams(info.step - 1)
        metrics = {name: info.metrics[name] for name in ("loss", "skipped_steps")}
        self._unread.append((info.step, streams, metrics))

    def log_values(self, trainer: Trainer, window: LogWindow) -> Mapping[str, float]:
        """Judges the steps of a window; the log has the numbers since the run began."""
        before = self._spikes
        self._judge()
        if self._spikes > before:
            log.warning(
                "loss spikes in the %d steps up to step %d: %d (median of the loss: %.4g)",
                window.steps,
                window.step,
                self._spikes - before,
                np.median(self._losses),
            )
        return {"skipped_steps": float(self._skipped), "loss_spikes": float(self._spikes)}

    def on_log(self, trainer: Trainer, step: int, metrics: Mapping[str, float]) -> None:
        """Asks for a rollback, if it is time."""
        self._roll_back(trainer)

    def is_healthy(self, trainer: Trainer) -> bool:
        """Returns whether hardly any of the last steps was bad."""
        self._judge()
        self._roll_back(trainer)
        return not self._is_beyond_help and self._excess < max(2, self._limit // 10)

    def _judge(self) -> None:
        """Tells good steps from bad ones, up to the current step."""
        unread, self._unread = self._unread, []
        read = jax.device_get([metrics for _, _, metrics in unread])
        for (step, streams, _), metrics in zip(unread, read, strict=True):
            total, count = metrics["loss"]
            is_finite = not metrics["skipped_steps"][0]
            loss = float(total) / float(count) if is_finite and count else math.nan
            self._last = step
            if streams != self._streams:
                # The loss is now the sum of other terms.
                self._streams, self._losses = streams, []
            is_spike = is_finite and self._is_spike(loss)
            self._skipped += not is_finite
            self._spikes += is_spike
            if is_finite and not is_spike:
                self._losses = [*self._losses[1 - self._config.window :], loss]
                self._excess = max(self._excess - 1, 0)
                if not self._excess and not self._is_beyond_help:
                    self._bad = []
                continue
            self._excess += 1
            self._bad.append((step, loss if is_finite else None))
            self._is_beyond_help |= self._excess >= self._limit

    def _is_spike(self, loss: float) -> bool:
        sigmas, losses = self._config.spike_sigmas, self._losses
        if sigmas is None or len(losses) < self._config.window // 2:
            return False
        median = float(np.median(losses))
        deviation = _SIGMAS_PER_MAD * float(np.median(np.abs(np.asarray(losses) - median)))
        # Of a loss that hardly varies, many standard deviations may still be next to nothing.
        return loss - median > max(sigmas * deviation, abs(median))

    def _roll_back(self, trainer: Trainer) -> None:
        """Asks the trainer for a rollback, or ends the run after too many.

        Raises:
            UserError: The run has rolled back often enough.
        """
        is_ending = self._last == trainer.run.steps and self._excess >= max(2, self._limit // 10)
        if not (self._is_beyond_help or is_ending) or trainer.is_rolling_back:
            return
        self._is_beyond_help = True
        config, bad, first = self._config, self._bad, self._bad[0][0]
        spikes = sum(loss is not None for _, loss in bad)
        parts = [
            f"{count} of the steps {first} to {self._last} {what}"
            for count, what in (
                (len(bad) - spikes, "had a loss or gradient that was not finite"),
                (spikes, "had a loss far above the median before"),
            )
            if count
        ]
        reason = ", ".join(parts)
        batch_of = trainer.left_out.batch_of
        target = _checkpoint_before(trainer, first, config.margin)
        begin = max(first - config.margin, target + 1)
        entry: dict[str, Any] = {
            "batches": [batch_of(begin), batch_of(self._last)],
            "reason": reason,
            "median_loss": float(np.median(self._losses)) if self._losses else None,
            # As JSON, which has no tuples; a loss that was not finite is null.
            "bad_steps": [
                {"step": step, "batch": batch_of(step), "loss": loss} for step, loss in bad
            ],
        }
        if len(trainer.rollbacks) >= config.max_rollbacks:
            if jax.process_index() == 0:
                ending = {**entry, "rolled_back_to": None}
                write_left_out(trainer.model_dir, [*trainer.rollbacks, ending])
            raise UserError(
                f"{reason}, after {len(trainer.rollbacks)} rollbacks; lower the learning rate "
                "(--allow_changes), or look at the batches that are listed in "
                f"{trainer.model_dir / LEFT_OUT_FILE} (to "
                "roll back more often: HealthConfig.max_rollbacks)."
            )
        log.warning(
            "%s: going back to step %d, and leaving out the batches %d to %d",
            reason,
            target,
            *entry["batches"],
        )
        trainer.roll_back(target, entry)

    def state(self) -> Mapping[str, Any]:
        """Returns the counts, and the losses with which later ones are compared."""
        self._judge()
        return {
            "skipped_steps": self._skipped,
            "loss_spikes": self._spikes,
            "consecutive": self._excess,
            "bad": self._bad,
            "losses": self._losses,
            "streams": self._streams,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Restores what `state` returned."""
        self._skipped = int(state.get("skipped_steps", 0))
        self._spikes = int(state.get("loss_spikes", 0))
        self._excess = int(state.get("consecutive", 0))
        self._bad = [(int(step), loss) for step, loss in state.get("bad", ())]
        if len(self._bad) < self._excess:
            # The record of an earlier version, which does not say which steps were bad.
            self._excess = 0
        self._losses = [float(loss) for loss in state.get("losses", ())]
        self._streams = tuple(state.get("streams", ()))
        self._last = 0
        self._is_beyond_help = False
        self._unread = []


def _checkpoint_before(trainer: Trainer, first: int, margin: int) -> int:
    """Finds the checkpoint to go back to; 0 for the state with which the run began.

    Args:
        trainer: The trainer.
        first: The first bad step.
        margin: Number of steps before it whose checkpoints may be spoilt already.
    """
    trainer.checkpoints.settle()
    before = [step for step in trainer.checkpoints.all_steps() if step < first]
    trusted = [step for step in before if step < first - margin]
    # Where all are younger, the oldest one is the best that there is.
    return first_process_decides(max(trusted, default=min(before, default=0)))

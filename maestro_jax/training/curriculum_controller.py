"""Decisions between steps: gates of the curriculum, loss weights learned from gradient norms.

Decisions depend on logged metrics and not on the step alone. They are part of every checkpoint, so
that a restarted run decides as it would have without the interruption.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import jax
import numpy as np

from maestro_jax.errors import near_misses
from maestro_jax.objectives.base import Controls, Objective
from maestro_jax.objectives.curriculum import Gate, weight_at
from maestro_jax.objectives.weighting import GradientNormWeighting
from maestro_jax.training.callbacks import Callback, LogWindow, StepInfo

if TYPE_CHECKING:
    from maestro_jax.training.trainer import Trainer

log = logging.getLogger(__name__)

# The batch of the step after a log point is already on its way when the log point is judged.
_DELAY = 2


class CurriculumController(Callback):
    """Keeps the curriculum step of a run, which stops where a gate of the curriculum is shut.

    Every process makes the same decisions: they are functions of metrics that all of them have.

    Args:
        objective: The objective, which may have a `curriculum`.
        log_every: Number of steps between two log points.
    """

    name = "curriculum"

    def __init__(self, objective: Objective, log_every: int) -> None:
        self._objective = objective
        self._log_every = log_every
        self._curriculum = objective.curriculum
        # From phases with gates to the step from which they are open.
        self._opened: dict[str, int] = {}

    def curriculum_step(self, step: int) -> int:
        """Returns the curriculum step of the update that follows `step` updates."""
        held = 0
        for phase in self._curriculum.phases if self._curriculum else ():
            if not phase.gates:
                continue
            # Steps for which earlier phases were held shift all later ones.
            due = phase.start_step + held
            opened = self._opened.get(phase.name)
            start = None if opened is None else max(due, opened)
            if start is None or step < start:
                # The clock stands at the last step before the phase until its gates open.
                return min(step - held, phase.start_step - 1)
            held += start - due
        return step - held

    def active_streams(self, step: int) -> tuple[str, ...]:
        """Returns the streams of the update that follows `step` updates."""
        return self._objective.active_streams(self.curriculum_step(step))

    def log_values(self, trainer: Trainer, window: LogWindow) -> Mapping[str, float]:
        """Judges the gates at a log point."""
        self.judge_gates(window.step, window.means)
        return {"curriculum_step": float(self.curriculum_step(window.step))}

    def judge_gates(self, step: int, means: Mapping[str, float]) -> None:
        """Opens the gates that metrics open.

        Args:
            step: Number of updates done.
            means: Means of all metrics since the last log point.
        """
        held = 0
        for phase in self._curriculum.phases if self._curriculum else ():
            if not phase.gates:
                continue
            due = phase.start_step + held
            if phase.name in self._opened:
                held += max(self._opened[phase.name] - due, 0)
                continue
            if step + self._log_every + _DELAY <= due:
                return
            shut = [gate for gate in phase.gates if not gate.is_open(means.get(gate.metric))]
            waited = max(step + _DELAY - due, 0)
            if not shut:
                self._opened[phase.name] = step + _DELAY
                log.info("phase %r: gates open at step %d, held %d steps", phase.name, step, waited)
            elif phase.max_hold_steps is not None and waited >= phase.max_hold_steps:
                self._opened[phase.name] = step + _DELAY
                log.warning(
                    "phase %r begins after %d steps although its gate is shut: %s",
                    phase.name,
                    waited,
                    _reason(shut[0], means),
                )
            else:
                log.warning(
                    "phase %r is held back at step %d: %s",
                    phase.name,
                    step,
                    _reason(shut[0], means),
                )
            return

    def state(self) -> Mapping[str, Any]:
        """Returns which gates are open."""
        return {"opened": self._opened}

    def load(self, state: Mapping[str, Any]) -> None:
        """Restores which gates are open."""
        self._opened = {name: int(step) for name, step in state.get("opened", {}).items()}


def _reason(gate: Gate, means: Mapping[str, float]) -> str:
    value = means.get(gate.metric)
    if value is None:
        hint = near_misses(gate.metric, list(means))
        return f"{gate} is required, and no such metric is logged.{hint}"
    return f"{gate} is required, and it is {value:.4g}"


class LossBalancer(Callback):
    """Learns weights of the loss terms from the norms of their gradients (GradNorm).

    Args:
        objective: The objective, which may have a `GradientNormWeighting`.
        curriculum: Curriculum of the run, for weights that follow a schedule.

    Attributes:
        weights: Learned weight of each term; empty without such a weighting.
    """

    name = "loss_balancer"

    def __init__(self, objective: Objective, curriculum: CurriculumController) -> None:
        self._objective = objective
        self._curriculum = curriculum
        weighting = objective.weighting
        self._weighting = weighting if isinstance(weighting, GradientNormWeighting) else None
        self._first_losses: dict[str, float] = {}
        self.weights: dict[str, float] = {}
        if self._weighting is not None:
            self.weights = dict.fromkeys(objective.term_weights, 1.0)

    def is_due(self, step: int) -> bool:
        """Returns whether the weights are updated after a step."""
        return self._weighting is not None and step % self._weighting.every == 0

    def on_step(self, trainer: Trainer, info: StepInfo) -> None:
        """Measures gradient norms and updates the weights, if it is time."""
        if self.is_due(info.step):
            norms, losses = trainer.term_gradient_norms(info)
            self.update(info.step, norms, losses)

    def update(self, step: int, norms: Mapping[str, float], losses: Mapping[str, float]) -> None:
        """Updates the weights.

        Args:
            step: Number of updates done.
            norms: Gradient norm of the mean of each term, before any weight.
            losses: Mean of each term.
        """
        if self._weighting is None:
            return
        curriculum_step = self._curriculum.curriculum_step(step)
        # Python numbers, because they go into a JSON record.
        losses = {name: float(loss) for name, loss in losses.items()}
        for name, loss in losses.items():
            if loss > 0.0:
                # The loss that a term began with, whenever its stream begins.
                self._first_losses.setdefault(name, loss)
        weighted_norms = {
            name: float(norms[name])
            * float(weight_at(self._objective.term_weights[name], curriculum_step))
            for name in norms
            if name in self._first_losses
        }
        self.weights = self._weighting.updated(
            self.weights, weighted_norms, losses, self._first_losses
        )

    def state(self) -> Mapping[str, Any]:
        """Returns the learned weights and the first losses, to which later ones are compared."""
        return {"weights": self.weights, "first_losses": self._first_losses}

    def load(self, state: Mapping[str, Any]) -> None:
        """Restores the learned weights and the first losses."""
        self.weights = dict(state.get("weights", {})) or self.weights
        self._first_losses = dict(state.get("first_losses", {}))


def step_controls(
    curriculum: CurriculumController,
    balancer: LossBalancer,
    step: int,
    seed: int | None = None,
    schedule_ends: Mapping[str, int] | None = None,
) -> Controls:
    """Returns what the update that follows `step` updates is told.

    Args:
        curriculum: Curriculum of the run.
        balancer: Learned weights of the run.
        step: Number of updates done.
        seed: Seed of the run; None for the one that the step is compiled with.
        schedule_ends: Updates at which schedules end, by group; None for those that the step is
            compiled with.
    """
    weights = {name: np.float32(weight) for name, weight in balancer.weights.items()}
    # Numbers of the host: the jitted step brings them to the devices.
    return Controls(
        curriculum_step=cast(jax.Array, np.int32(curriculum.curriculum_step(step))),
        learned_weights=cast(dict[str, jax.Array], weights),
        seed=None if seed is None else cast(jax.Array, np.int32(seed)),
        schedule_ends={
            group: cast(jax.Array, np.int32(end)) for group, end in (schedule_ends or {}).items()
        },
    )


def initial_controls(objective: Objective) -> Controls:
    """Returns what the first update of a run with an objective is told."""
    curriculum = CurriculumController(objective, log_every=1)
    return step_controls(curriculum, LossBalancer(objective, curriculum), 0)

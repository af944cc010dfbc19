"""What is decided between steps: gates of the curriculum, weights learned from gradient norms.

Decisions depend on logged metrics, not on the step alone; they are part of a checkpoint's record,
so that a restarted run decides as it would have without the interruption.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, cast

import jax
import numpy as np

from maestro_jax.errors import near_misses
from maestro_jax.objectives.base import Controls
from maestro_jax.objectives.curriculum import Curriculum, weight_at
from maestro_jax.objectives.weighting import GradientNormWeighting

log = logging.getLogger(__name__)

# The batch of the step after a log point is already on its way when the log point is judged.
_DELAY = 2


class Steering:
    """The curriculum's clock and the learned weights of a run.

    Every process makes the same decisions: they are functions of metrics that all of them have.

    Args:
        objective: One with a `curriculum` and a `weighting`, or without them.
        log_every: Steps between two log points.
        record: What `record` gave when the checkpoint was written.
    """

    def __init__(
        self, objective: Any, log_every: int, record: Mapping[str, Any] | None = None
    ) -> None:
        """Continue from a record, or begin."""
        record = record or {}
        self._objective = objective
        self._log_every = log_every
        self._curriculum: Curriculum | None = getattr(objective, "curriculum", None)
        weighting = getattr(objective, "weighting", None)
        self.weighting = weighting if isinstance(weighting, GradientNormWeighting) else None
        # Phase with gates -> the step from which they are open.
        self._opened: dict[str, int] = {k: int(v) for k, v in record.get("opened", {}).items()}
        self._weights: dict[str, float] = dict(record.get("weights", {}))
        self._first_losses: dict[str, float] = dict(record.get("first_losses", {}))
        if self.weighting is not None and not self._weights:
            self._weights = dict.fromkeys(objective.weights, 1.0)

    def record(self) -> dict[str, Any]:
        """What a checkpoint has to hold, for JSON."""
        return {
            "opened": self._opened,
            "weights": self._weights,
            "first_losses": self._first_losses,
        }

    def clock(self, step: int) -> int:
        """The curriculum step of the update that follows `step` updates."""
        held = 0
        for phase in self._curriculum.phases if self._curriculum else ():
            if not phase.gates:
                continue
            due = phase.begins + held
            opened = self._opened.get(phase.name)
            start = None if opened is None else max(due, opened)
            if start is None or step < start:
                return min(step - held, phase.begins - 1)
            held += start - due
        return step - held

    def active_streams(self, step: int) -> tuple[str, ...]:
        """The streams of the update that follows `step` updates."""
        return self._objective.active_streams(self.clock(step))

    def controls(self, step: int) -> Controls:
        """What the update that follows `step` updates is told."""
        weights = {name: np.float32(weight) for name, weight in self._weights.items()}
        # Numbers of the host: the step brings them to the devices.
        return Controls(
            clock=cast(jax.Array, np.int32(self.clock(step))),
            weights=cast(dict[str, jax.Array], weights),
        )

    def observe(self, step: int, means: Mapping[str, float]) -> None:
        """Judge the gates at a log point.

        Args:
            step: The updates done.
            means: The averages of all metrics since the last log point.
        """
        held = 0
        for phase in self._curriculum.phases if self._curriculum else ():
            if not phase.gates:
                continue
            due = phase.begins + held
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
            elif phase.longest_hold is not None and waited >= phase.longest_hold:
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

    def balance_due(self, step: int) -> bool:
        """Whether gradient norms are to be measured after so many updates."""
        return self.weighting is not None and step % self.weighting.every == 0

    def balance(self, step: int, norms: Mapping[str, float], losses: Mapping[str, float]) -> None:
        """Learn weights from the norms of the terms' gradients.

        Args:
            step: The updates done.
            norms: By term, of the gradient of its mean, before any weight.
            losses: By term, its mean.
        """
        if self.weighting is None:
            return
        clock = self.clock(step)
        # Numbers of Python: they go into a JSON record.
        losses = {name: float(loss) for name, loss in losses.items()}
        for name, loss in losses.items():
            if loss > 0.0:
                self._first_losses.setdefault(name, loss)
        there = {
            name: float(norms[name]) * float(weight_at(self._objective.weights[name], clock))
            for name in norms
            if name in self._first_losses
        }
        self._weights = self.weighting.updated(self._weights, there, losses, self._first_losses)


def _reason(gate: Any, means: Mapping[str, float]) -> str:
    value = means.get(gate.metric)
    if value is None:
        hint = near_misses(gate.metric, list(means))
        return f"{gate} is wanted, and no such metric is logged.{hint}"
    return f"{gate} is wanted, and it is {value:.4g}"

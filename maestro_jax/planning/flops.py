"""The FLOPs of training steps, by `maestro_jax.flops`: no device, no compiler.

step_flops(run.model, run.objective, run.optimizer, run.batch_shapes())
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

from maestro_jax.batches import StreamConfig, batch_shapes
from maestro_jax.flops import FlopCount, count_flops
from maestro_jax.training import parameter_trees
from maestro_jax.training.state import abstract_state
from maestro_jax.training.step import train_step


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepFlops:
    """The FLOPs of a training step.

    Attributes:
        count: Of the whole step.
        by_stream: Model FLOPs of a step that has this stream alone. Streams of equal length share
            a pass, and a head that only one of them needs then runs on all: the sum falls short of
            the step's by parts in a thousand. Empty if it was not asked for.
    """

    count: FlopCount
    by_stream: Mapping[str, float]


def step_flops(
    model: Any,
    objective: Any,
    optimizer: Any,
    shapes: Mapping[str, Any],
    *,
    ema_decay: float | None = 0.9999,
    accumulate: int = 1,
    by_stream: bool = True,
) -> StepFlops:
    """The FLOPs of the real training step: loss, gradient and update.

    Args:
        model: The Linen module.
        objective: The objective.
        optimizer: The optimizer's configuration.
        shapes: ``{stream: {feature: ShapeDtypeStruct}}``, the global batch; streams that have not
            begun are left out.
        ema_decay: Decay of the average of the parameters; None: there is none.
        accumulate: Parts in which the batch is taken.
        by_stream: Whether to trace the step once more for each stream.
    """

    def count(shapes: Mapping[str, Any]) -> FlopCount:
        state = parameter_trees.unbox(
            abstract_state(model, objective, optimizer, shapes, ema=ema_decay is not None)
        )
        step = functools.partial(
            train_step,
            model=model,
            objective=objective,
            optimizer=optimizer,
            ema_decay=ema_decay,
            seed=0,
            accumulate=accumulate,
        )
        return count_flops(step, state, shapes)

    whole = count(shapes)
    alone: dict[str, float] = {}
    if by_stream:
        alone = (
            {name: count({name: shapes[name]}).model for name in shapes}
            if len(shapes) > 1
            else dict.fromkeys(shapes, whole.model)
        )
    return StepFlops(count=whole, by_stream=alone)


def run_flops(run: Any, streams: Mapping[str, StreamConfig] | None = None) -> StepFlops:
    """The FLOPs of a step of a `TrainRun`, or of the same run with other batches.

    Args:
        run: The run.
        streams: Its streams, as far as they have begun; None: all that the objective uses.
    """
    if streams is None:
        streams = {name: run.streams[name] for name in run.used_streams}
    return step_flops(
        run.model,
        run.objective,
        run.optimizer,
        batch_shapes(streams),
        ema_decay=run.ema_decay,
        accumulate=run.accumulate,
    )

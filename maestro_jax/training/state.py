"""The training state: everything that a step reads and writes, and a checkpoint holds."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from maestro_jax.training.optimizers import Optimizer


class TrainState(struct.PyTreeNode):
    """What a training step maps to its successor.

    Random numbers need no place here: those of a step are ``fold_in(key(seed), step)``.

    Attributes:
        step: Scalar int32, the number of steps done.
        params: The tree of parameters, as ``Objective.init`` made it, without boxes.
        opt_state: The optimizer's state.
        ema_params: Exponential moving average of the parameters in float32, or None.
    """

    step: Any
    params: Any
    opt_state: Any
    ema_params: Any


def create_state(params: Any, optimizer: Optimizer, *, ema: bool = True) -> TrainState:
    """The state before the first step.

    Args:
        params: The parameters, boxed or not; every part of the state is boxed alike.
        optimizer: The optimizer's configuration.
        ema: Whether to keep an average of the parameters.
    """
    # A copy, because buffers of the state are donated and may not be shared.
    average = jax.tree.map(lambda p: jnp.array(p, jnp.float32, copy=True), params) if ema else None
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.build(params).init(params),
        ema_params=average,
    )


def initial_params(model: Any, objective: Any, batch_shapes: Any, seed: int | jax.Array) -> Any:
    """Freshly initialised, boxed parameters; to be traced by ``jax.jit`` or ``jax.eval_shape``.

    Args:
        model: The model.
        objective: The objective, whose ``init`` is called.
        batch_shapes: The global shapes of a batch, ``{stream: {feature: ShapeDtypeStruct}}``.
        seed: The seed of the run.
    """
    batch = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), batch_shapes)
    return objective.init(model, jax.random.key(seed), batch)


def abstract_state(
    model: Any, objective: Any, optimizer: Optimizer, batch_shapes: Any, *, ema: bool = True
) -> TrainState:
    """Shapes, types and logical axes of the state; nothing is allocated.

    Args:
        model: The model.
        objective: The objective.
        optimizer: The optimizer's configuration.
        batch_shapes: The global shapes of a batch, ``{stream: {feature: ShapeDtypeStruct}}``.
        ema: Whether the state keeps an average of the parameters.

    Returns:
        A state of ``ShapeDtypeStruct``, in boxes with the logical axes of their parameters.
    """

    def init() -> TrainState:
        params = initial_params(model, objective, batch_shapes, 0)
        return create_state(params, optimizer, ema=ema)

    return jax.eval_shape(init)

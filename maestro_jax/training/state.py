"""The training state, its shapes, and where it lies on a device mesh."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import Mesh

from maestro_jax.training import parameter_trees
from maestro_jax.training.optimizers import Optimizer

if TYPE_CHECKING:
    from maestro_jax.objectives.base import Objective
    from maestro_jax.training.run import TrainRun


class TrainState(struct.PyTreeNode):
    """Holds everything that a training step reads and writes, and that a checkpoint saves.

    Random keys need no field: those of a step are ``fold_in(key(seed), step)``.

    Attributes:
        step: Scalar int32, the number of steps done.
        params: Tree of parameters, as ``Objective.init`` made it, without boxes.
        opt_state: State of the optimizer.
        ema_params: Exponential moving average of the parameters in float32, or None.
    """

    step: Any
    params: Any
    opt_state: Any
    ema_params: Any


def create_state(params: Any, optimizer: Optimizer, *, ema: bool = True) -> TrainState:
    """Creates the state before the first step.

    Args:
        params: Tree of parameters, boxed or not; every part of the state is boxed alike.
        optimizer: Configuration of the optimizer.
        ema: Whether to keep a moving average of the parameters.
    """
    # A copy, because the buffers of the state are donated and may not be shared.
    average = jax.tree.map(lambda p: jnp.array(p, jnp.float32, copy=True), params) if ema else None
    return TrainState(
        # An array and not a Python number: a constant would compile every step anew.
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.build(params).init(params),
        ema_params=average,
    )


def initial_params(
    model: nn.Module, objective: Objective, batch_shapes: Any, seed: int | jax.Array
) -> Any:
    """Initialises boxed parameters; to be traced by ``jax.jit`` or ``jax.eval_shape``.

    Args:
        model: The model.
        objective: The objective, whose ``init`` is called.
        batch_shapes: Global shapes of a batch, ``{stream: {feature: ShapeDtypeStruct}}``.
        seed: Seed of the run.
    """
    batch = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), batch_shapes)
    return objective.init(model, jax.random.key(seed), batch)


def abstract_state(
    model: nn.Module,
    objective: Objective,
    optimizer: Optimizer,
    batch_shapes: Any,
    *,
    ema: bool = True,
) -> TrainState:
    """Computes shapes, dtypes and logical axes of the state; nothing is allocated.

    Args:
        model: The model.
        objective: The objective.
        optimizer: Configuration of the optimizer.
        batch_shapes: Global shapes of a batch, ``{stream: {feature: ShapeDtypeStruct}}``.
        ema: Whether the state keeps a moving average of the parameters.

    Returns:
        A state of ``ShapeDtypeStruct``, in boxes with the logical axes of their parameters.
    """

    def init() -> TrainState:
        params = initial_params(model, objective, batch_shapes, 0)
        return create_state(params, optimizer, ema=ema)

    return jax.eval_shape(init)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardedState:
    """Describes how the state of a run lies on a mesh.

    Attributes:
        boxed: Shapes with the logical axes of the parameters.
        shardings: Sharding of each array, in the structure of the unboxed state.
        abstract: Shapes with their shardings, unboxed.
    """

    boxed: TrainState
    shardings: TrainState
    abstract: TrainState


def sharded_state(run: TrainRun, mesh: Mesh) -> ShardedState:
    """Lays the state of a run out on a mesh; nothing is allocated.

    The mesh may consist of devices that this machine does not have, as in ahead-of-time
    compilation for another topology.

    Args:
        run: The run.
        mesh: The device mesh.

    Raises:
        UserError: A logical axis of a parameter has no rule.
    """
    with run.partitioning.activate(mesh):
        boxed = run.abstract_state()
    shardings = run.partitioning.state_shardings(mesh, boxed)
    abstract = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        parameter_trees.unbox(boxed),
        shardings,
    )
    return ShardedState(boxed=boxed, shardings=shardings, abstract=abstract)

"""The state and the step of a run on a device mesh: the same for training and for planning.

Nothing here touches a device, so the mesh may be of devices that are not there.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
from jax.sharding import Mesh

from maestro_jax.training import parameter_trees
from maestro_jax.training.partitioning import replicated
from maestro_jax.training.run import TrainRun
from maestro_jax.training.state import TrainState
from maestro_jax.training.step import train_step


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshState:
    """Shapes and places of a run's state.

    Attributes:
        boxed: Shapes with the logical axes of the parameters.
        shardings: Where each array lies; the structure of the unboxed state.
        abstract: Shapes with their shardings, unboxed.
    """

    boxed: TrainState
    shardings: TrainState
    abstract: TrainState


def mesh_state(run: TrainRun, mesh: Mesh) -> MeshState:
    """Lay the state of a run out on a mesh; nothing is allocated.

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
    return MeshState(boxed=boxed, shardings=shardings, abstract=abstract)


def jitted_step(run: TrainRun, mesh: Mesh, shardings: TrainState) -> Any:
    """The training step as it is compiled; trace it inside ``partitioning.activate(mesh)``.

    Args:
        run: The run.
        mesh: The device mesh.
        shardings: Of the state, whose buffers are donated.

    Returns:
        A jitted function of the state, the batch and the controls of `Steering`; it gives the next
        state, laid out as the one before, and metrics that every device holds.
    """
    return jax.jit(
        functools.partial(
            train_step,
            model=run.model,
            objective=run.objective,
            optimizer=run.optimizer,
            ema_decay=run.ema_decay,
            seed=run.seed,
            accumulate=run.accumulate,
            param_shardings=shardings.params,
        ),
        in_shardings=(shardings, run.partitioning.batch_sharding(mesh), replicated(mesh)),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=0,
    )

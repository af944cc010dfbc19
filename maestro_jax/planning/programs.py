"""The programs of a run, lowered for a mesh of devices that may not be there.

They are those that training and evaluation compile: `training.step`, `training.mesh_decoding`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from maestro_jax.training.mesh_decoding import jitted_decoding, longest_audio
from maestro_jax.training.run import TrainRun
from maestro_jax.training.state import ShardedState, sharded_state
from maestro_jax.training.steering import Steering
from maestro_jax.training.step import jit_train_step


def lower_training(
    run: TrainRun,
    mesh: Mesh,
    streams: Sequence[str] | None = None,
    placed: ShardedState | None = None,
) -> Any:
    """The training step.

    Args:
        run: The run.
        mesh: The device mesh.
        streams: The streams that have begun; None: all that the objective uses.
        placed: The state on the mesh, if it is known already.

    Returns:
        What ``jax.jit(...).lower(...)`` gives.

    Raises:
        UserError: The mesh cannot split a batch evenly.
    """
    run.partitioning.check_batch_sizes(mesh, run.batch_sizes)
    placed = placed or sharded_state(run, mesh)
    names = run.used_streams if streams is None else tuple(streams)
    rows = run.partitioning.batch_sharding(mesh)
    batch = {
        name: {feature: _placed(leaf, rows) for feature, leaf in features.items()}
        for name, features in run.batch_shapes().items()
        if name in names
    }
    controls = Steering(run.objective, run.log_every).controls(0)
    with run.partitioning.activate(mesh):
        return jit_train_step(run, mesh, placed.shardings).lower(placed.abstract, batch, controls)


def lower_decoding(
    run: TrainRun,
    mesh: Mesh,
    *,
    rows_per_device: int = 1,
    beam_size: int = 1,
    placed: ShardedState | None = None,
) -> Any:
    """Encoders and search over one batch of the run's longest audio.

    Args:
        run: The run.
        mesh: The device mesh.
        rows_per_device: Utterances that each device along data and fsdp decodes.
        beam_size: Hypotheses in the beam; 1 is the greedy search.
        placed: The state on the mesh, if it is known already.

    Returns:
        What ``jax.jit(...).lower(...)`` gives.

    Raises:
        UserError: The run has no audio.
    """
    placed = placed or sharded_state(run, mesh)
    trained = getattr(run.objective, "decoders", ("transducer",))
    batch = rows_per_device * mesh.shape["data"] * mesh.shape["fsdp"]
    rows = run.partitioning.batch_sharding(mesh)

    def array(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=rows)

    inputs = {
        "audio": array((batch, longest_audio(run)), np.int16),
        "audio_length": array((batch,), np.int32),
    }
    if run.model.needs_language:
        inputs["language"] = array((batch,), np.int32)
    if "st" in run.objective.streams and "paired" not in run.objective.streams:
        inputs["target_language"] = array((batch,), np.int32)
    decoding = jitted_decoding(run, beam_size=beam_size, decoder=trained[0])
    with run.partitioning.activate(mesh):
        return decoding.lower(placed.abstract.params, **inputs)


def parameter_shardings(placed: ShardedState) -> dict[str, str]:
    """The mesh axes of every parameter, ``{"decoder/embed/embedding": "(None, 'fsdp')"}``."""
    leaves = jax.tree_util.tree_leaves_with_path(placed.shardings.params)
    return {
        "/".join(str(getattr(key, "key", key)) for key in path): str(tuple(sharding.spec))
        for path, sharding in leaves
    }


def _placed(leaf: jax.ShapeDtypeStruct, sharding: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

"""Finds devices that compute or store wrong numbers, by comparing replicas of the training state.

Where an array is replicated over devices, each holds the same bits, because each computes the same
update of the same values. A device that is broken, rather than dead, raises no error: its replica
drifts away, and the model with it. So each device hashes its part of every array, and devices with
the same part must have the same hash.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from maestro_jax.errors import RestartableError
from maestro_jax.training import parameter_trees
from maestro_jax.training.callbacks import Callback, StepInfo
from maestro_jax.training.partitioning import replicated

if TYPE_CHECKING:
    from maestro_jax.training.trainer import Trainer

# 2^32 over the golden ratio.
_MULTIPLIER = 0x9E3779B9


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mismatch:
    """Devices that hold the same part of an array, with different bits.

    Attributes:
        name: Name of the array in the training state, as ``params/encoder/kernel``.
        suspects: The devices that differ from most; all of them if there is no majority.
        others: The devices that agree with each other.
    """

    name: str
    suspects: tuple[jax.Device, ...]
    others: tuple[jax.Device, ...]

    def __str__(self) -> str:
        """Describes it in one line."""
        devices = " and ".join(f"{d} of process {d.process_index}" for d in self.suspects)
        if not self.others:
            return f"{self.name} differs between {devices}, which should hold the same values"
        return f"{self.name} on {devices} is not what {len(self.others)} other devices hold"


class ReplicaCheck(Callback):
    """Ends a run whose devices disagree, before anything is saved.

    Args:
        every: Number of steps between two checks; there is one before every checkpoint as well.
            0 for no checks at all.
    """

    def __init__(self, every: int) -> None:
        self._every = every
        self._checked = 0
        self._find: Any = None

    def on_start(self, trainer: Trainer) -> None:
        """Prepares the check, if anything is replicated."""
        if self._every:
            self._find = replica_comparison(trainer.mesh, trainer.shardings, trainer.state)

    def on_step(self, trainer: Trainer, info: StepInfo) -> None:
        """Checks the state, if it is time."""
        if self._every and info.step % self._every == 0:
            self._check(trainer)

    def is_healthy(self, trainer: Trainer) -> bool:
        """Checks the state that is about to be saved."""
        self._check(trainer)
        return True

    def _check(self, trainer: Trainer) -> None:
        """Compares the replicas of the current state.

        Raises:
            RestartableError: They differ.
        """
        if self._find is None or self._checked == trainer.step:
            return
        self._checked = trainer.step
        with trainer.paused():
            found = self._find(trainer.state)
        if found:
            more = f" (and {len(found) - 1} other arrays)" if len(found) > 1 else ""
            raise RestartableError(
                f"silent data corruption at step {trainer.step}: {found[0]}{more}. The step is not "
                "saved; the same command continues from the last checkpoint. If the same device "
                "is named again, take its machine out of the run."
            )


def replica_comparison(mesh: Mesh, shardings: Any, state: Any) -> Any:
    """Makes a function that compares the replicas of a tree of arrays.

    Args:
        mesh: The device mesh.
        shardings: `NamedSharding` of each array.
        state: The tree, for shapes and names; it may be of ``ShapeDtypeStruct``.

    Returns:
        A function of such a tree that returns a list of `Mismatch`, the same on every process; None
        if no two devices hold the same part of an array. It reads each array once.
    """
    leaves, layouts = jax.tree.leaves(state), jax.tree.leaves(shardings)
    names = [parameter_trees.parameter_name(path) for path in _paths(state)]
    # Devices with the same part of an array: [arrays][parts][devices].
    groups = [_holders(leaf.shape, at) for leaf, at in zip(leaves, layouts, strict=True)]
    if all(len(devices) == 1 for parts in groups for devices in parts):
        return None
    row_of = {device: row for row, device in enumerate(mesh.devices.flat)}

    def own_hashes(*blocks: jax.Array) -> jax.Array:
        return jnp.stack([_hash(block) for block in blocks])[None]  # [1, arrays]

    # Every device by itself: nothing between them is exchanged before the hashes are there.
    hashed = jax.shard_map(
        own_hashes,
        mesh=mesh,
        in_specs=tuple(layout.spec for layout in layouts),
        out_specs=PartitionSpec(mesh.axis_names),
        check_vma=False,
    )
    hashes_of = jax.jit(hashed, out_shardings=replicated(mesh))

    def find(tree: Any) -> list[Mismatch]:
        hashes = np.asarray(jax.device_get(hashes_of(*jax.tree.leaves(tree))))  # [devices, arrays]
        found = []
        for column, (name, parts) in enumerate(zip(names, groups, strict=True)):
            for devices in parts:
                values = [int(hashes[row_of[device], column]) for device in devices]
                if len(set(values)) > 1:
                    found.append(_mismatch(name, devices, values))
        return found

    return find


def _paths(tree: Any) -> list[tuple[str, ...]]:
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    return [parameter_trees.path_keys(path) for path, _ in flat]


def _holders(shape: tuple[int, ...], layout: NamedSharding) -> list[list[jax.Device]]:
    """Groups the devices by the part of an array that they hold."""
    parts: dict[Any, list[jax.Device]] = {}
    for device, index in layout.devices_indices_map(shape).items():
        key = tuple(each.indices(size)[:2] for each, size in zip(index, shape, strict=True))
        parts.setdefault(key, []).append(device)
    return list(parts.values())


def _hash(block: jax.Array) -> jax.Array:
    """Hashes an array to 32 bits; an array with one other bit never has the same hash."""
    width = min(block.dtype.itemsize, 4)
    words = jax.lax.bitcast_convert_type(block, jnp.dtype(f"uint{8 * width}")).ravel()
    # Odd factors, which have an inverse modulo 2^32: a bit that flips always changes the sum.
    factors = jax.lax.iota(jnp.uint32, words.size) * jnp.uint32(_MULTIPLIER) | jnp.uint32(1)
    return jnp.sum(words.astype(jnp.uint32) * factors, dtype=jnp.uint32)


def _mismatch(name: str, devices: Sequence[jax.Device], values: Sequence[int]) -> Mismatch:
    (most, votes), *_ = collections.Counter(values).most_common(1)
    if votes <= len(values) // 2:
        return Mismatch(name=name, suspects=tuple(devices), others=())
    pairs = list(zip(devices, values, strict=True))
    return Mismatch(
        name=name,
        suspects=tuple(device for device, value in pairs if value != most),
        others=tuple(device for device, value in pairs if value == most),
    )

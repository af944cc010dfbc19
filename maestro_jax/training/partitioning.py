"""Maps logical axis names to a device mesh: where every parameter and every batch row lies.

Modules name the axes of their parameters and activations; the rules here say over which mesh axes
each of them is split. The mesh has three axes: ``data`` (batch rows; parameters are replicated),
``fsdp`` (batch rows; parameters are split as well) and ``tensor`` (features are split).
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from maestro_jax.errors import UserError, near_misses
from maestro_jax.field_types import check_fields
from maestro_jax.training import parameter_trees

log = logging.getLogger(__name__)

MeshAxes = str | tuple[str, ...] | None
Rules = tuple[tuple[str, MeshAxes], ...]

AXIS_NAMES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")

# In order of precedence: a mesh axis serves one dimension of an array at most, and the first rule
# that names a dimension of the array takes it.
DEFAULT_RULES: Rules = (
    # Parameters.
    ("vocab", "tensor"),
    ("mlp", "tensor"),
    ("heads", "tensor"),
    ("joint", "tensor"),
    ("conv_out", "tensor"),
    ("embed", "fsdp"),
    ("conv_in", "fsdp"),
    ("kv", None),
    ("kernel", None),
    ("codes", None),
    ("layers", None),
    # Activations.
    ("batch", BATCH_AXES),
    ("frames", None),
    ("act_embed", None),
    ("act_heads", "tensor"),
    ("act_mlp", "tensor"),
    ("act_vocab", "tensor"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Partitioning:
    """Configures how arrays are laid out over the devices.

    Attributes:
        mesh_shape: Number of devices along ``data``, ``fsdp`` and ``tensor``; one of them may be -1
            for all remaining devices.
        slices: Number of slices (groups of devices between which the network is slower) along
            ``data``, ``fsdp`` and ``tensor``; -1 for all slices. The rest of each axis of the mesh
            lies within a slice. Without slices it has no effect.
        rules: Pairs of a logical axis name and the mesh axes that it is split over (None: it is
            replicated), in order of precedence.
    """

    mesh_shape: tuple[int, int, int] = (-1, 1, 1)
    slices: tuple[int, int, int] = (-1, 1, 1)
    rules: Rules = DEFAULT_RULES

    def __post_init__(self) -> None:
        """Checks shapes and rules."""
        check_fields(self)
        # gin hands over lists; rules must be hashable to be part of a compilation key.
        object.__setattr__(self, "rules", _as_rules(self.rules))
        for field in ("mesh_shape", "slices"):
            shape = tuple(getattr(self, field))
            object.__setattr__(self, field, shape)
            sizes_are_valid = all(isinstance(n, int) and (n == -1 or n > 0) for n in shape)
            if len(shape) != len(AXIS_NAMES) or not sizes_are_valid or shape.count(-1) > 1:
                raise UserError(
                    f"{field} {shape} is not three positive numbers (data, fsdp, tensor), "
                    "of which one may be -1."
                )
        for name, axes in self.rules:
            for axis in _as_tuple(axes):
                if axis not in AXIS_NAMES:
                    raise UserError(
                        f"The rule for the logical axis {name!r} names the mesh axis {axis!r}; "
                        f"the mesh has {', '.join(AXIS_NAMES)}.{near_misses(axis, AXIS_NAMES)}"
                    )

    def shape(self, device_count: int) -> tuple[int, int, int]:
        """Returns the mesh shape for a number of devices, with -1 filled in.

        Raises:
            UserError: The devices cannot be arranged in this shape.
        """
        known = math.prod(n for n in self.mesh_shape if n != -1)
        if device_count % known or (-1 not in self.mesh_shape and known != device_count):
            multiple = "a multiple of " if -1 in self.mesh_shape else ""
            raise UserError(
                f"mesh_shape {self.mesh_shape} needs {multiple}{known} devices, but there are "
                f"{device_count}; set Partitioning.mesh_shape so that its product is "
                f"{device_count}, with one -1 for what is left."
            )
        data, fsdp, tensor = (device_count // known if n == -1 else n for n in self.mesh_shape)
        return data, fsdp, tensor

    def fitted(self, device_count: int) -> Partitioning:
        """Returns a partitioning for fewer devices: those of one process, or of another machine.

        The axes ``tensor`` and ``fsdp`` stay as large as divides the devices; ``data`` takes what
        is left.

        Args:
            device_count: Number of devices, all of one slice.
        """
        _, fsdp, tensor = (max(n, 1) for n in self.mesh_shape)
        tensor = math.gcd(tensor, device_count)
        fsdp = math.gcd(fsdp, device_count // tensor)
        return dataclasses.replace(self, mesh_shape=(-1, fsdp, tensor), slices=(-1, 1, 1))

    def mesh(self, devices: Sequence[Any] | None = None) -> Mesh:
        """Creates the device mesh.

        Several TPU slices are joined along ``data`` unless `slices` says otherwise: it is the axis
        with the least traffic, and the network between slices is slower than the one within.

        Args:
            devices: The devices to use; all devices of all processes by default.

        Raises:
            UserError: The devices cannot be arranged in ``mesh_shape``.
        """
        devices = list(jax.devices() if devices is None else devices)
        shape = self.shape(len(devices))
        slices = len({getattr(device, "slice_index", None) or 0 for device in devices})
        if slices > 1:
            between = self._between(slices, shape)
            within = tuple(n // parts for n, parts in zip(shape, between, strict=True))
            array = mesh_utils.create_hybrid_device_mesh(
                within, between, devices, allow_split_physical_axes=True
            )
        else:
            array = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
        # jax.make_mesh would give Explicit axes, in which logical constraints raise.
        return Mesh(array, AXIS_NAMES, axis_types=(AxisType.Auto,) * len(AXIS_NAMES))

    def _between(self, count: int, shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """Returns the number of slices along each axis of the mesh."""
        known = math.prod(n for n in self.slices if n != -1)
        if count % known or (-1 not in self.slices and known != count):
            raise UserError(
                f"slices {self.slices} does not fit the {count} available slices; set "
                f"Partitioning.slices so that its product is {count}, with one -1 for the rest."
            )
        between = tuple(count // known if n == -1 else n for n in self.slices)
        for axis, parts, size in zip(AXIS_NAMES, between, shape, strict=True):
            if size % parts:
                raise UserError(
                    f"{count} slices need a {axis} axis that is a multiple of {parts}, but "
                    f"mesh_shape gives {size}; set Partitioning.mesh_shape"
                    f"[{AXIS_NAMES.index(axis)}] to -1, or change Partitioning.slices."
                )
        data, fsdp, tensor = between
        return data, fsdp, tensor

    @contextlib.contextmanager
    def activate(self, mesh: Mesh) -> Iterator[None]:
        """Enters a context in which the logical constraints of the modules take effect.

        Every function with sharding constraints must be traced inside it.
        """
        with jax.set_mesh(mesh), nn.logical_axis_rules(self.rules):
            yield

    def spec(
        self,
        mesh: Mesh,
        names: Sequence[str | None],
        shape: Sequence[int],
        what: str = "an array",
        *,
        level: int = logging.INFO,
    ) -> PartitionSpec:
        """Returns the mesh axes of one array.

        Args:
            mesh: The device mesh.
            names: Logical name of each dimension; empty for a replicated array.
            shape: Size of each dimension.
            what: Name of the array, for messages.
            level: Logging level of the line that says what is replicated.

        Returns:
            A specification in which every dimension that does not divide evenly is replicated.

        Raises:
            UserError: A logical name has no rule, or the names do not match the shape.
        """
        if not names:
            return PartitionSpec()
        if len(names) != len(shape):
            raise UserError(
                f"{what} has shape {tuple(shape)}, but logical axes {tuple(names)}; "
                "name each dimension once."
            )
        known = {name for name, _ in self.rules}
        for name in names:
            if name is not None and name not in known:
                raise UserError(
                    f"The logical axis {name!r} of {what} has no rule in Partitioning.rules; "
                    f"add (({name!r}, None),) to replicate it.{near_misses(name, known)}"
                )
        assigned = tuple(nn.logical_to_mesh_axes(tuple(names), self.rules) or ())
        result: list[MeshAxes] = []
        for name, size, axes in zip(names, shape, assigned, strict=True):
            parts = math.prod(mesh.shape[axis] for axis in _as_tuple(axes))
            if size % parts:
                message = (
                    f"{what}: the axis {name!r} of size {size} is replicated, because {parts} "
                    f"devices along {'+'.join(_as_tuple(axes))} do not divide it"
                )
                log.log(level, message)
                axes = None
            result.append(axes)
        return PartitionSpec(*result)

    def state_shardings(self, mesh: Mesh, abstract: Any) -> Any:
        """Returns the sharding of every array of a training state, or of any tree of parameters.

        Args:
            mesh: The device mesh.
            abstract: A tree of shapes in which parameters are boxed with their logical axes
                (``state.abstract_state``); what is not boxed is replicated.

        Returns:
            A tree of ``NamedSharding`` with the structure of the unboxed tree.
        """

        def sharding(path: tuple[Any, ...], node: Any) -> NamedSharding:
            names = tuple(getattr(node, "names", ())) if parameter_trees.is_box(node) else ()
            value = parameter_trees.unbox(node)
            what = "/".join(parameter_trees.path_keys(path))
            # Moments and averages are laid out like their parameters: one line is enough.
            level = logging.DEBUG if what.startswith(("opt_state", "ema_params")) else logging.INFO
            return NamedSharding(mesh, self.spec(mesh, names, value.shape, what, level=level))

        return jax.tree_util.tree_map_with_path(sharding, abstract, is_leaf=parameter_trees.is_box)

    def batch_sharding(self, mesh: Mesh) -> NamedSharding:
        """Returns the sharding of batches, whose rows are split over ``data`` and ``fsdp``."""
        return NamedSharding(mesh, PartitionSpec(BATCH_AXES))

    def check_batch_sizes(
        self, mesh: Mesh, batch_sizes: Mapping[str, Sequence[int]], accumulate: int = 1
    ) -> None:
        """Checks that the mesh can split all batch sizes evenly.

        Args:
            mesh: The device mesh.
            batch_sizes: Global batch sizes of each stream, one per bucket.
            accumulate: Number of microbatches.

        Raises:
            UserError: A batch size is not a multiple of the devices along ``data`` and ``fsdp``,
                times ``accumulate``.
        """
        devices = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
        parts = devices * accumulate
        times = "" if accumulate == 1 else f", times accumulate = {accumulate}: {parts}"
        for stream, size in ((name, size) for name, sizes in batch_sizes.items() for size in sizes):
            if size % parts:
                raise UserError(
                    f"The batch size {size} of the stream {stream!r} is not a multiple of the "
                    f"{devices} devices along data and fsdp (mesh {dict(mesh.shape)}){times}; "
                    f"set it to "
                    f"{-(-size // parts) * parts}, or give the tensor axis more devices."
                )

    def data_shard(self, mesh: Mesh) -> tuple[int, int]:
        """Returns which part of the rows this process must load.

        Processes that hold copies of the same rows (the tensor axis spans them) get the same part.

        Returns:
            The index of this process's part, and the number of parts.

        Raises:
            UserError: Two processes share some of their rows, but not all.
        """
        rows = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
        owned: dict[int, set[int]] = {}
        placement: Mapping[Any, Any] = self.batch_sharding(mesh).devices_indices_map((rows,))
        for device, index in placement.items():
            owned.setdefault(device.process_index, set()).update(range(rows)[index[0]])
        parts = sorted({tuple(sorted(of_process)) for of_process in owned.values()})
        if sum(len(part) for part in parts) != rows or len({len(part) for part in parts}) != 1:
            raise UserError(
                f"The mesh {dict(mesh.shape)} gives processes overlapping parts of a batch; choose "
                "a tensor axis that divides, or is a multiple of, the devices of a process."
            )
        return parts.index(tuple(sorted(owned[jax.process_index()]))), len(parts)

    def shard_batch(self, mesh: Mesh, batch: Any) -> Any:
        """Moves this process's rows of a batch to its devices.

        Args:
            mesh: The device mesh.
            batch: A tree of numpy arrays `[rows of this process, ...]`.

        Returns:
            The tree of global arrays `[rows of all processes, ...]`.
        """
        sharding = self.batch_sharding(mesh)
        _, parts = self.data_shard(mesh)

        def place(array: np.ndarray) -> jax.Array:
            array = np.asarray(array)
            shape = (array.shape[0] * parts, *array.shape[1:])
            return jax.make_array_from_process_local_data(sharding, array, shape)

        return jax.tree.map(place, batch)


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of an array that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def _as_tuple(axes: MeshAxes) -> tuple[str, ...]:
    if axes is None:
        return ()
    return (axes,) if isinstance(axes, str) else tuple(axes)


def _as_rules(rules: Sequence[Sequence[Any]]) -> Rules:
    return tuple(
        (name, tuple(axes) if isinstance(axes, (list, tuple)) else axes) for name, axes in rules
    )

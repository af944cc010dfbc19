"""Parses topologies of accelerators, and derives chips, hosts and links.

    topology = parse_topology("v5e:16x16", slices=2)
    topology.chips, topology.chip.peak_flops, topology.chip.usable_hbm_bytes
    jax.experimental.topologies.get_topology_desc(
        topology.libtpu_name, platform="tpu", **topology.libtpu_options
    )
    parse_topology("gpu:H100x8x4")  # Four machines of eight GPUs.

The properties of chips are in `maestro_jax.chip_table`.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator
from typing import Any

from maestro_jax.chip_table import CHIPS, GIB, Chip
from maestro_jax.errors import UserError, near_misses

__all__ = ["CHIPS", "GIB", "Chip", "Topology", "parse_topology", "slice_shapes"]

# Slices of the chips with a torus of two dimensions (Cloud TPU, pages v5e and v6e).
_FLAT_SHAPES = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
# Slices of the others that are smaller than a cube of 4x4x4; larger ones are made of such cubes.
_SMALL_SHAPES = ((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Topology:
    """A number of chips and their network.

    Attributes:
        chip: The kind of chip.
        shape: Chips of one slice along each axis of the torus; for GPUs, those of one machine.
        slices: Number of slices (TPU) or machines (GPU), joined by the data centre's network.
    """

    chip: Chip
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def name(self) -> str:
        """The name that `parse_topology` reads, without the slices of TPUs."""
        if self.chip.kind == "gpu":
            nodes = f"x{self.slices}" if self.slices > 1 else ""
            return f"gpu:{self.chip.name}x{self.shape[0]}{nodes}"
        return f"{self.chip.name}:{_written(self.shape)}"

    def __str__(self) -> str:
        many = f"{self.slices} slices of " if self.slices > 1 and self.chip.kind == "tpu" else ""
        return many + self.name

    @property
    def chips_per_slice(self) -> int:
        """Number of chips joined by ICI or NVLink."""
        return math.prod(self.shape)

    @property
    def chips(self) -> int:
        """Number of all chips."""
        return self.chips_per_slice * self.slices

    @property
    def devices_per_slice(self) -> int:
        """Number of JAX devices per slice."""
        return self.chips_per_slice * self.chip.devices_per_chip

    @property
    def devices(self) -> int:
        """Number of JAX devices."""
        return self.chips * self.chip.devices_per_chip

    @property
    def usable_bytes(self) -> float:
        """Bytes of one device that a program may use."""
        return self.chip.usable_hbm_bytes / self.chip.devices_per_chip

    @property
    def chips_per_host(self) -> int:
        """Number of chips per process."""
        return min(self.chip.chips_per_host, self.chips_per_slice)

    @property
    def hosts(self) -> int:
        """Number of processes."""
        return self.chips // self.chips_per_host

    @property
    def wraps(self) -> tuple[bool, ...]:
        """Whether each axis of a slice is a ring.

        An axis of 16 is one on chips of two dimensions; on those of three, axes of multiples of 4
        are in slices of at least a cube (How to Scale Your Model, TPUs).
        """
        if self.chip.torus == 2:
            return tuple(size == 16 for size in self.shape)
        cube = self.chips_per_slice >= 64
        return tuple(cube and size % 4 == 0 for size in self.shape)

    @property
    def libtpu_name(self) -> str:
        """Name for `jax.experimental.topologies.get_topology_desc`.

        Raises:
            UserError: If these are GPUs, for which ahead-of-time compilation takes a GPU.
        """
        if not self.chip.libtpu:
            raise UserError(f"{self.name} cannot be compiled for ahead of time; pass --roofline.")
        return f"{self.chip.libtpu}:{_written(self.shape)}"

    @property
    def libtpu_options(self) -> dict[str, Any]:
        """Keyword arguments for `jax.experimental.topologies.get_topology_desc`."""
        options: dict[str, Any] = {"num_slices": self.slices}
        if self.chips_per_slice == 1:
            options["chips_per_host_bounds"] = (1, 1, 1)
        if self.chip.name == "v4":
            # As on Cloud TPU: the two cores of a chip are one device.
            options["chip_config_name"] = "megacore"
        return options


def parse_topology(text: str, slices: int = 1) -> Topology:
    """Reads a topology.

    Args:
        text: ``CHIP:AxB`` or ``CHIP:AxBxC`` for TPUs (``v5e:16x16``, ``v4:4x4x8``); for GPUs
            ``gpu:CHIPxN`` (one machine) or ``gpu:CHIPxNxM`` (M machines).
        slices: Slices of a TPU.

    Returns:
        The topology.

    Raises:
        UserError: If chip or shape are unknown, with near misses and valid shapes.
    """
    text = text.strip()
    if slices < 1:
        raise UserError(f"--slices {slices}: at least one slice is needed.")
    if text.lower().startswith("gpu:"):
        return _parse_gpu(text, slices)
    name, colon, shape_text = text.partition(":")
    accelerator = re.fullmatch(r"([A-Za-z0-9]+)-(\d+)", text)
    if accelerator and (chip := _find_chip(accelerator[1], "tpu")):
        raise UserError(
            f"topology {text!r} names no shape: write it as {chip.name}:{_SHAPES_OF[chip.torus]}. "
            f"Valid: {_valid_shapes(chip)}."
        )
    chip = _find_chip(name, "tpu")
    if chip is None:
        gpu = _find_chip(re.sub(r"[xX:].*", "", text), "gpu")
        if gpu:
            raise UserError(f"topology {text!r}: GPUs are written gpu:{gpu.name}x8.")
        names = [c.name for c in CHIPS.values() if c.kind == "tpu"]
        raise UserError(
            f"topology {text!r}: no TPU is called {name!r}.{near_misses(name, names)} There are "
            f"{', '.join(names)}, and GPUs as gpu:H100x8."
        )
    if not colon or not re.fullmatch(r"\d+(x\d+)*", shape_text):
        raise UserError(
            f"topology {text!r} needs a shape: {chip.name}:{_SHAPES_OF[chip.torus]}. "
            f"Valid: {_valid_shapes(chip)}."
        )
    shape = tuple(int(size) for size in shape_text.split("x"))
    if not _is_valid(chip, shape):
        rising = tuple(sorted(shape))
        if _is_valid(chip, rising):
            # The same sizes in another order.
            nearest = f" Did you mean {_written(rising)!r}?"
        else:
            nearest = near_misses(shape_text, map(_written, slice_shapes(chip)))
        raise UserError(
            f"{chip.name} has no slice of {shape_text}.{nearest} Valid: {_valid_shapes(chip)}."
        )
    return Topology(chip=chip, shape=shape, slices=slices)


def slice_shapes(chip: Chip) -> Iterator[tuple[int, ...]]:
    """Yields the shapes of a TPU's slices (of GPUs, of a machine), fewest chips first."""
    if chip.kind == "gpu":
        yield from ((1,), (2,), (4,), (8,))
    elif chip.torus == 2:
        yield from _FLAT_SHAPES
    else:
        if chip.name == "tpu7x":
            yield (1, 1, 1)
        yield from _SMALL_SHAPES
        largest = chip.max_slice // 64
        cubes = (
            (a, b, c)
            for a in range(1, round(largest ** (1 / 3)) + 1)
            for b in range(a, math.isqrt(largest // a) + 1)
            for c in range(b, largest // (a * b) + 1)
        )
        yield from sorted(
            ((4 * a, 4 * b, 4 * c) for a, b, c in cubes), key=lambda s: (math.prod(s), s[::-1])
        )


def _parse_gpu(text: str, slices: int) -> Topology:
    match = re.fullmatch(r"gpu:([A-Za-z0-9-]+?)(?:x(\d+))?(?:x(\d+))?", text, re.IGNORECASE)
    names = [c.name for c in CHIPS.values() if c.kind == "gpu"]
    chip = _find_chip(match[1], "gpu") if match else None
    if match is None or chip is None:
        name = match[1] if match else text[len("gpu:") :]
        raise UserError(
            f"topology {text!r}: no GPU is called {name!r}.{near_misses(name, names)} There are "
            f"{', '.join(names)}, as gpu:H100x8, or gpu:H100x8x4 for four machines."
        )
    count, nodes = int(match[2] or 1), int(match[3] or 1)
    if slices > 1 and match[3]:
        raise UserError(f"topology {text!r} has its machines in its name: leave --slices out.")
    if count not in (1, 2, 4, 8) or nodes < 1:
        raise UserError(
            f"topology {text!r}: a machine has 1, 2, 4 or 8 GPUs; more are written as machines, "
            f"gpu:{chip.name}x8x{max(2, count // 8)}."
        )
    return Topology(chip=chip, shape=(count,), slices=max(nodes, slices))


_SHAPES_OF = {2: "16x16", 3: "4x4x4"}


def _written(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _find_chip(name: str, kind: str) -> Chip | None:
    for chip in CHIPS.values():
        if chip.kind == kind and name.lower() in {n.lower() for n in (chip.name, *chip.aliases)}:
            return chip
    return None


def _is_valid(chip: Chip, shape: tuple[int, ...]) -> bool:
    return any(shape == valid for valid in slice_shapes(chip))


def _valid_shapes(chip: Chip) -> str:
    if chip.torus == 2:
        return ", ".join(_written(shape) for shape in _FLAT_SHAPES)
    small = ", ".join(_written(shape) for shape in slice_shapes(chip) if math.prod(shape) < 64)
    return (
        f"{small}, and multiples of 4 in rising order up to {chip.max_slice} chips "
        "(4x4x4, 4x4x8, 4x8x8, 8x8x8 ...)"
    )

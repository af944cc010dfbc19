"""Compiles programs ahead of time for a target topology, with the TPU compiler.

    devices = compiler_devices(parse_topology("v5e:16x16"))
    ...lower a jitted function on a mesh of them...
    compiled = compile_program(lowered, topology.chip)
    compiled.memory.temporaries, compiled.text

No TPU is needed. libtpu refuses a program that does not fit with a single number; its buffers are
listed in the files that it dumps, which are therefore read for every program.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import re
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from maestro_jax.errors import UserError
from maestro_jax.planning.chips import GIB, Chip, Topology

_QUICK_TILES_KIB = 8192
# The quantizer's noise and maximum over 16 rows of 30 s need 10.3 MiB there.
_QUICK_TILES_KIB_OF = {"v5p": 12288}

_LARGEST = 12

# Without these, libtpu queries a metadata server, which only cloud machines have, admits only one
# process at a time, and warns of missing hardware.
_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Buffer:
    """A buffer that is live at the time of peak memory.

    Attributes:
        bytes: Its size on one chip.
        name: The operation that produced it, or the path of an argument, as in
            ``state.params['decoder']``.
        part: Part of the model: ``shared_encoder/stack/layers``, ``state.params``, ``batch`` ...
    """

    bytes: int
    name: str
    part: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompiledMemory:
    """The memory of one chip, in bytes.

    Attributes:
        arguments: State and batch (of decoding: the parameters).
        results: Results that do not reuse the memory of arguments.
        temporaries: Peak of intermediate buffers.
        code: The program.
        capacity: Memory that a program may use.
    """

    arguments: int
    results: int
    temporaries: int
    code: int
    capacity: int

    @property
    def used(self) -> int:
        """Sum of all parts."""
        return self.arguments + self.results + self.temporaries + self.code

    @property
    def free_share(self) -> float:
        """Free fraction of the capacity; negative if the program does not fit."""
        return 1.0 - self.used / self.capacity


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompiledProgram:
    """A compiled program; all figures are of one chip.

    Attributes:
        memory: Bytes by purpose.
        largest: The largest buffers at the time of peak memory.
        text: The optimized module, with the compiler's cycles.
        compile_seconds: Time of the compilation.
    """

    memory: CompiledMemory
    largest: tuple[Buffer, ...]
    text: str
    compile_seconds: float


class DoesNotFit(UserError):
    """A program needs more memory than a chip has.

    Attributes:
        needed: Bytes that it needs.
        capacity: Bytes that a program may use.
        largest: The largest buffers at the time of peak memory; may be empty.
    """

    def __init__(self, message: str, needed: int, capacity: int, largest: tuple[Buffer, ...]):
        super().__init__(message)
        self.needed = needed
        self.capacity = capacity
        self.largest = largest


class TileTooLarge(UserError):
    """One tile of an operation does not fit into the fast memory of a core (VMEM)."""


def quick_options(chip: Chip) -> dict[str, str]:
    """Returns options that shorten the compilation for TPUs.

    The compiler spends its time on the code of one tile of each fusion. Tiles of a fraction of the
    usual size change the code and its cycles, and hardly change buffers and collectives. Some
    operations cannot be cut into such small tiles: `TileTooLarge`.
    """
    tiles = _QUICK_TILES_KIB_OF.get(chip.name, _QUICK_TILES_KIB)
    return {"xla_tpu_scoped_vmem_limit_kib": str(tiles)}


def compiler_devices(topology: Topology) -> list[Any]:
    """Returns the compiler's devices of a topology, of which to build a mesh.

    Raises:
        UserError: If libtpu is missing or too old for the chip, or the chips are GPUs.
    """
    name = topology.libtpu_name
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            "the TPU compiler is not installed: pip install libtpu, or give --roofline for an "
            "estimate without it"
        )
    for variable, value in _ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    from jax.experimental import topologies

    try:
        description = topologies.get_topology_desc(name, platform="tpu", **topology.libtpu_options)
    except (jax.errors.JaxRuntimeError, NotImplementedError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"the TPU compiler does not know {topology} ({reason}); try a newer one: "
            "pip install --upgrade libtpu"
        ) from error
    return list(description.devices)


def compile_program(
    lowered: Any,
    chip: Chip,
    what: str = "the program",
    options: Mapping[str, str] | None = None,
) -> CompiledProgram:
    """Compiles a program.

    Args:
        lowered: The result of ``jax.jit(...).lower(...)`` on a mesh of `compiler_devices`.
        chip: The kind of chip.
        what: Name of the program, for messages.
        options: Options of the compiler, as from `quick_options`; None for its defaults.

    Raises:
        DoesNotFit: If it needs more memory than a chip has.
        TileTooLarge: If a tile of one operation does not fit into VMEM.
    """
    capacity = int(chip.usable_hbm_bytes)
    with tempfile.TemporaryDirectory(prefix="maestro_plan_") as directory:
        began = time.monotonic()
        try:
            compiled = lowered.compile(
                compiler_options={**(options or {}), "xla_dump_to": directory}
            )
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            if "memory space vmem" in str(error):
                raise _tile_too_large(str(error), chip, what) from error
            raise _does_not_fit(str(error), Path(directory), chip, what) from error
        seconds = time.monotonic() - began
        largest = _largest_buffers(Path(directory))
        text = _written_text(Path(directory)) or compiled.as_text()
    analysis = compiled.memory_analysis()
    memory = CompiledMemory(
        arguments=analysis.argument_size_in_bytes,
        results=max(0, analysis.output_size_in_bytes - analysis.alias_size_in_bytes),
        temporaries=analysis.temp_size_in_bytes,
        code=analysis.generated_code_size_in_bytes,
        capacity=capacity,
    )
    return CompiledProgram(
        memory=memory,
        largest=largest,
        text=text,
        compile_seconds=seconds,
    )


def _written_text(directory: Path) -> str:
    """Reads the final module that the compiler dumped; empty if it did not.

    JAX's text of it goes through a parser in jaxlib, which does not know all instructions of a
    newer libtpu (jaxlib 0.10.2 and libtpu 0.0.52: asynchronous updates in programs for v5p).
    """
    paths = sorted(directory.glob("*.after_codegen.txt"))
    return paths[-1].read_text(errors="replace") if paths else ""


_OPERATION = re.compile(r'op_name="([^"]*)"')


def _tile_too_large(message: str, chip: Chip, what: str) -> TileTooLarge:
    """Shortens the compiler's error to one line with the operation."""
    name = match[1] if (match := _OPERATION.search(message)) else "the compiler does not say which"
    return TileTooLarge(
        f"{what} has an operation of which one tile is too large for the VMEM of a {chip.name} "
        f"chip ({name}); give a chip fewer rows of a batch, or shorter ones."
    )


_SIZE = re.compile(r"\(([\d.]+)([KMGT]?)\)")
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": GIB, "T": 2**40}


def _does_not_fit(message: str, directory: Path, chip: Chip, what: str) -> DoesNotFit:
    """Shortens the compiler's error to one line with the largest parts."""
    sizes = [round(float(number) * _UNITS[unit]) for number, unit in _SIZE.findall(message)]
    largest = _largest_buffers(directory)
    capacity = sizes[1] if len(sizes) > 1 else int(chip.usable_hbm_bytes)
    needed = sizes[0] if sizes else sum(buffer.bytes for buffer in largest)
    line = (
        f"{what} does not fit: it asks for {needed / GIB:.2f} GiB of the "
        f"{capacity / GIB:.2f} GiB of a {chip.name} chip"
    )
    parts: dict[str, int] = {}
    for buffer in largest:
        parts[buffer.part] = parts.get(buffer.part, 0) + buffer.bytes
    if parts:
        most = sorted(parts.items(), key=lambda item: -item[1])[:3]
        sizes_text = ", ".join(f"{part} {size / GIB:.2f} GiB" for part, size in most)
        line += f"; the most is asked for by {sizes_text} (largest buffer: {largest[0].name})"
    return DoesNotFit(
        line + ". Take more chips, a smaller batch, more devices along fsdp, or REMAT = True.",
        needed,
        capacity,
        largest,
    )


_LINE = re.compile(r"^(\W*)(.*?) \([\d.]+%, total: [\d ]+ bytes, current: ([\d ]+) bytes,")
_INDENT = 4


def _largest_buffers(directory: Path) -> tuple[Buffer, ...]:
    """Reads the buffers at the peak from the live ranges that the compiler dumped."""
    largest: tuple[Buffer, ...] = ()
    for path in directory.glob("*live-range.txt"):
        buffers = parse_live_ranges(path.read_text(errors="replace"))
        if sum(buffer.bytes for buffer in buffers) > sum(buffer.bytes for buffer in largest):
            largest = buffers
    return largest[:_LARGEST]


def parse_live_ranges(text: str) -> tuple[Buffer, ...]:
    """Parses the buffers at the peak, largest first.

    Args:
        text: The compiler's dump, which ends with a tree of names and sizes.
    """
    buffers: list[Buffer] = []
    names: list[str] = []
    reading = False
    for line in text.splitlines():
        if "Stack trace breakdown for peak usage" in line:
            reading, buffers, names = True, [], []
        elif reading and (match := _LINE.match(line)):
            depth = len(match[1]) // _INDENT
            size = int(match[3].replace(" ", ""))
            if depth <= 1:  # The program itself.
                continue
            names = [*names[: depth - 2], match[2]]
            if size:
                name = "/".join(names)
                buffers.append(Buffer(bytes=size, name=name, part=part_of(name)))
    return tuple(sorted(buffers, key=lambda buffer: -buffer.bytes))


_WRAPPED = re.compile(r"^(?:\w+\()+(.*?)\)+$")
_DEPTH = 3


def part_of(name: str) -> str:
    """Finds the part of the model to which an operation belongs.

    Args:
        name: ``jit(train_step)/transpose(jvp(Maestro.lattices))/decoder/output/while/body/add``.

    Returns:
        ``decoder/output``; for arguments ``state.params``, ``batch`` ...; ``other`` if unknown.
    """
    if match := re.match(r"^(state[./](?:params|opt_state|ema_params)|batch|params)\b", name):
        return match[1].replace("/", ".")
    parts: list[str] = []
    scopes = name.split("/")
    # The last one is the primitive.
    for scope in scopes[:-1]:
        match = _WRAPPED.match(scope)
        inner = match[1] if match else scope
        if scope.startswith("jit("):
            continue
        inner = inner.partition(".")[0]
        if inner in _CONTROL or "->" in inner or not inner or inner[:1].isupper():
            continue
        if inner not in parts[-1:]:
            parts.append(inner)
    return "/".join(parts[:_DEPTH]) or ("other" if len(scopes) < 2 else "objective")


_CONTROL = {
    "while", "body", "cond", "scan", "checkpoint", "rematted_computation", "closed_call",
    "shard_map", "remat", "custom_vjp_call", "recomputed", "eval_jaxpr",
}  # fmt: skip

"""Plans a run on a topology: memory by ahead-of-time compilation, time by roofline.

    plan = plan_run(run, parse_topology("v5e:16x16"))
    plan.training.memory.free_share, plan.estimate.step.utilisation, plan.as_dict()

The training step and the decoding are the programs of `training`, compiled ahead of time for the
target topology by the TPU compiler. Time, utilisation and hours come from a roofline (`estimate`),
along with the compiler's own count of cycles. GPUs are planned by roofline alone.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from maestro_jax.batches import SAMPLE_RATE
from maestro_jax.planning.chips import Topology
from maestro_jax.planning.collectives import between_slices, by_kind_and_axes, find_collectives
from maestro_jax.planning.compiled import (
    Buffer,
    CompiledMemory,
    CompiledProgram,
    DoesNotFit,
    TileTooLarge,
    compile_program,
    compiler_devices,
    quick_options,
)
from maestro_jax.planning.cycles import (
    LoopTime,
    TimeShare,
    compiler_seconds,
    loop_times,
    time_shares,
)
from maestro_jax.planning.estimate import Estimate, estimate, rows_of_a_device
from maestro_jax.planning.hlo import parse_hlo
from maestro_jax.training.curriculum_controller import initial_controls
from maestro_jax.training.mesh_decoding import jitted_decoding, longest_audio
from maestro_jax.training.parameter_trees import parameters_by_module, unbox
from maestro_jax.training.run import TrainRun
from maestro_jax.training.state import ShardedState, sharded_state
from maestro_jax.training.step import jit_train_step

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProgramPlan:
    """The plan of a compiled program; bytes and seconds of one chip.

    Attributes:
        memory: Bytes by purpose; None if the program does not fit or cannot be compiled.
        largest: The largest buffers at the time of peak memory.
        refusal: Why the program does not fit or cannot be compiled, in one line; else None.
        needed: Bytes that a program needs that does not fit; else None.
        compiler_seconds: Time of one run by the compiler's cycles, without waiting for other chips.
        collectives: Bytes sent by kind and mesh axes, ``{"all-gather over fsdp": bytes}``.
        between_slices: Those of them that are sent to other slices.
        time_shares: What kinds, phases and parts take of the time by the compiler's cycles.
        loops: The loops of the program.
        compile_seconds: Time of the compilation, failed attempts included.
        compiler_options: Options that shorten the compilation; empty for the program that a run
            compiles.
    """

    memory: CompiledMemory | None
    largest: tuple[Buffer, ...] = ()
    refusal: str | None = None
    needed: int | None = None
    compiler_seconds: float | None = None
    collectives: Mapping[str, float] = dataclasses.field(default_factory=dict)
    between_slices: float = 0.0
    time_shares: tuple[TimeShare, ...] = ()
    loops: tuple[LoopTime, ...] = ()
    compile_seconds: float = 0.0
    compiler_options: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def fits(self) -> bool:
        """Whether it was compiled."""
        return self.memory is not None


@dataclasses.dataclass(frozen=True, kw_only=True)
class StreamPlan:
    """The part of a batch that comes from one stream.

    Attributes:
        batch: Examples per step.
        per_chip: Examples per chip.
        audio_seconds: Seconds to which audio is padded; 0 without audio.
        tokens: Tokens to which text is padded; 0 without text.
    """

    batch: int
    per_chip: float
    audio_seconds: float
    tokens: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """The plan of a run on a topology.

    Attributes:
        topology: The topology.
        mesh: Devices along data, fsdp and tensor.
        parameters: Number of parameters by module.
        streams: Batches of the streams that the objective uses.
        shardings: Mesh axes of every parameter.
        estimate: The roofline: FLOPs, time, utilisation, hours.
        training: The training step with all streams; None without a compiler.
        decoding: The search over one batch; None without a compiler, or if not requested.
    """

    topology: Topology
    mesh: tuple[int, int, int]
    parameters: Mapping[str, int]
    streams: Mapping[str, StreamPlan]
    shardings: Mapping[str, str]
    estimate: Estimate
    training: ProgramPlan | None = None
    decoding: ProgramPlan | None = None

    @property
    def refusals(self) -> tuple[str, ...]:
        """One line per program that does not fit."""
        compiled = [p.refusal for p in (self.training, self.decoding) if p is not None]
        lines = compiled or [self.estimate.refusal]
        return tuple(line for line in lines if line)

    def as_dict(self) -> dict[str, Any]:
        """Returns the plan as plain JSON values."""
        step, time = self.estimate.step, self.estimate.time
        return {
            "topology": str(self.topology),
            "chips": self.topology.chips,
            "slices": self.topology.slices,
            "hosts": self.topology.hosts,
            "mesh": dict(zip(("data", "fsdp", "tensor"), self.mesh, strict=True)),
            "fits": not self.refusals,
            "refusals": list(self.refusals),
            "parameters": {**self.parameters, "all": sum(self.parameters.values())},
            "streams": {name: dataclasses.asdict(each) for name, each in self.streams.items()},
            "training": _program_dict(self.training),
            "decoding": _program_dict(self.decoding),
            "roofline": {
                "model_flops": step.model_flops,
                "seconds": step.seconds,
                "model_flops_utilisation": step.utilisation,
                "bound": step.bound,
                "phases": [dataclasses.asdict(phase) for phase in step.phases],
                "memory_bytes": dataclasses.asdict(self.estimate.memory),
                "sent_bytes": {
                    f"{each.kind} over {each.axis}": each.sent for each in self.estimate.transfers
                },
            },
            "run": {
                "hours": time.hours,
                "chip_hours": time.chip_hours,
                "audio_hours": time.audio_hours,
                "audio_hours_per_second": time.audio_hours_per_second,
                "phases": [
                    {
                        "begins": each.phase.begins,
                        "steps": each.phase.steps,
                        "streams": list(each.phase.streams),
                        "step_seconds": each.step_seconds,
                        "hours": each.hours,
                        "audio_hours_per_second": each.audio_hours_per_second,
                    }
                    for each in time.phases
                ],
            },
            "shardings": dict(self.shardings),
        }


def plan_run(
    run: TrainRun,
    topology: Topology,
    *,
    compile_it: bool = True,
    exact: bool = False,
    decoding: bool = True,
    decoding_rows: int = 1,
    beam_size: int = 1,
) -> Plan:
    """Plans a run.

    Args:
        run: The run.
        topology: The topology.
        compile_it: Whether to compile, if there is a compiler: not for GPUs.
        exact: Whether to compile as a run does, without `quick_options`.
        decoding: Whether to compile the decoding as well.
        decoding_rows: Number of utterances that each device decodes at once.
        beam_size: Beam size of the decoding.

    Raises:
        UserError: If mesh, batches and topology do not match, or libtpu is missing.
    """
    compiling = compile_it and topology.chip.kind == "tpu"
    shape = run.partitioning.shape(topology.devices)
    rows_of_a_device(run, shape)
    devices = compiler_devices(topology) if compiling else []
    options = quick_options(topology.chip) if compiling and not exact else {}
    log.info("tracing the step for %s, mesh %s", topology, " x ".join(map(str, shape)))
    if not compiling:
        estimated = estimate(run, topology, shape)
        training, decoded, shardings = None, None, {}
    else:
        mesh = run.partitioning.mesh(devices)
        placed = sharded_state(run, mesh)
        shardings = parameter_shardings(placed)
        lowered = lower_training(run, mesh, placed=placed)
        # Much of a compilation runs on one core: the rest of the plan is made at the same time.
        with concurrent.futures.ThreadPoolExecutor(max_workers=1) as executor:
            log.info("compiling the training step (minutes for a large model)")
            compiled = executor.submit(
                _program, lowered, topology, mesh, "the training step", options
            )
            decoded = None
            speaks = any(stream.audio_samples for stream in run.streams.values())
            # An objective that trains no decoder has nothing to decode with.
            if decoding and speaks and run.objective.decoders:
                log.info("compiling the decoding")
                lowered = lower_decoding(
                    run, mesh, rows_per_device=decoding_rows, beam_size=beam_size, placed=placed
                )
                decoded = _program(lowered, topology, mesh, "the decoding", options)
                log.info("compiled the decoding in %.0f s", decoded.compile_seconds)
            estimated = estimate(run, topology, shape)
            training = compiled.result()
            log.info("compiled the training step in %.0f s", training.compile_seconds)
    boxed = run.abstract_state()
    return Plan(
        topology=topology,
        mesh=shape,
        parameters=parameters_by_module(unbox(boxed.params)),
        streams={
            name: StreamPlan(
                batch=stream.batch_size,
                per_chip=stream.batch_size / topology.chips,
                audio_seconds=stream.audio_samples / SAMPLE_RATE,
                tokens=max(stream.text_tokens, stream.translation_tokens),
            )
            for name, stream in run.streams.items()
            if name in run.used_streams
        },
        shardings=shardings,
        estimate=estimated,
        training=training,
        decoding=decoded,
    )


def training_program(
    run: TrainRun,
    topology: Topology,
    mesh: jax.sharding.Mesh,
    *,
    exact: bool = False,
) -> ProgramPlan:
    """Compiles the training step with all streams, as `plan_run` does."""
    lowered = lower_training(run, mesh)
    options = {} if exact else quick_options(topology.chip)
    return _program(lowered, topology, mesh, "the training step", options)


def _program(
    lowered: Any,
    topology: Topology,
    mesh: Any,
    what: str,
    options: Mapping[str, str],
) -> ProgramPlan:
    start = time.perf_counter()
    try:
        compiled: CompiledProgram = compile_program(lowered, topology.chip, what, options)
    except TileTooLarge as error:
        if not options:
            seconds = time.perf_counter() - start
            return ProgramPlan(memory=None, refusal=str(error), compile_seconds=seconds)
        log.info("%s cannot be compiled with smaller tiles; compiling it as training does", what)
        refused = time.perf_counter() - start
        program = _program(lowered, topology, mesh, what, {})
        return dataclasses.replace(program, compile_seconds=refused + program.compile_seconds)
    except DoesNotFit as error:
        return ProgramPlan(
            memory=None,
            largest=error.largest,
            refusal=str(error),
            needed=error.needed,
            compile_seconds=time.perf_counter() - start,
            compiler_options=options,
        )
    module = parse_hlo(compiled.text)
    sends = find_collectives(module, dict(mesh.shape), slices=topology.slices)
    return ProgramPlan(
        memory=compiled.memory,
        largest=compiled.largest,
        compiler_seconds=compiler_seconds(module, topology.chip),
        collectives={
            f"{kind} over {'+'.join(axes)}": sent
            for (kind, axes), sent in by_kind_and_axes(sends).items()
        },
        between_slices=between_slices(sends),
        time_shares=time_shares(module, topology.chip),
        loops=loop_times(module, topology.chip),
        compile_seconds=compiled.compile_seconds,
        compiler_options=options,
    )


def _program_dict(program: ProgramPlan | None) -> dict[str, Any] | None:
    if program is None:
        return None
    memory = program.memory
    return {
        **dataclasses.asdict(program),
        "fits": program.fits,
        "memory": None
        if memory is None
        else {**dataclasses.asdict(memory), "used": memory.used, "free_share": memory.free_share},
    }


def lower_training(
    run: TrainRun,
    mesh: Mesh,
    streams: Sequence[str] | None = None,
    placed: ShardedState | None = None,
) -> Any:
    """Lowers the training step.

    Args:
        run: The run.
        mesh: The device mesh.
        streams: The streams that have begun; None for all that the objective uses.
        placed: The state on the mesh; computed if None.

    Returns:
        The result of ``jax.jit(...).lower(...)``.

    Raises:
        UserError: If the mesh cannot split a batch evenly.
    """
    run.partitioning.check_batch_sizes(mesh, run.batch_sizes)
    placed = placed or sharded_state(run, mesh)
    names = run.used_streams if streams is None else tuple(streams)
    rows = run.partitioning.batch_sharding(mesh)
    batch = {
        name: jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=rows), features
        )
        for name, features in run.batch_shapes().items()
        if name in names
    }
    controls = initial_controls(run.objective)
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
    """Lowers encoders and search over one batch of the run's longest audio.

    Args:
        run: The run.
        mesh: The device mesh.
        rows_per_device: Utterances per device along data and fsdp.
        beam_size: Number of hypotheses in the beam; 1 is greedy search.
        placed: The state on the mesh; computed if None.

    Returns:
        The result of ``jax.jit(...).lower(...)``.

    Raises:
        UserError: If the run has no audio.
    """
    placed = placed or sharded_state(run, mesh)
    trained = run.objective.decoders
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
    """Returns the mesh axes of parameters, ``{"decoder/embed/embedding": "(None, 'fsdp')"}``."""
    leaves = jax.tree_util.tree_leaves_with_path(placed.shardings.params)
    return {
        "/".join(str(getattr(key, "key", key)) for key in path): str(tuple(sharding.spec))
        for path, sharding in leaves
    }

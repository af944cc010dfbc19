"""`maestro plan`: the memory, time and cost of a run on a topology, compiled ahead of time."""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import TYPE_CHECKING, Any

from maestro_jax.chip_table import GIB
from maestro_jax.cli import environment, options
from maestro_jax.errors import UserError
from maestro_jax.tables import table

if TYPE_CHECKING:
    from collections.abc import Callable

    from maestro_jax.planning.chips import Topology
    from maestro_jax.planning.cycles import TimeShare
    from maestro_jax.planning.plan import Plan, ProgramPlan
    from maestro_jax.training.run import TrainRun

_SHOWN_BUFFERS = 5
_SHOWN_PARTS = 16


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    options.add_gin(parser)
    parser.add_argument(
        "--topology",
        metavar="CHIP:SHAPE",
        help="target topology: v5e:16x16, v4:4x4x8, v5p:4x4x4, v6e:16x16; GPUs, by roofline alone: "
        "gpu:H100x8",
    )
    parser.add_argument(
        "--slices", type=options.positive, default=1, help="number of TPU slices; default: 1"
    )
    parser.add_argument(
        "--mesh",
        metavar="DATA,FSDP,TENSOR",
        help="devices along each axis instead of MESH of the gin files, as in --mesh=-1,16,1; -1 "
        "stands for the remaining devices",
    )
    parser.add_argument(
        "--steps",
        type=options.positive,
        help="number of training steps; default: STEPS of the gin files",
    )
    parser.add_argument(
        "--roofline",
        action="store_true",
        help="estimate without the compiler, in seconds instead of minutes",
    )
    parser.add_argument(
        "--exact",
        action="store_true",
        help="compile with the options of training; by default smaller tiles make the compilation "
        "faster, with the same buffers and nearly the same collectives, but less code and more "
        "cycles",
    )
    parser.add_argument(
        "--explain",
        action="store_true",
        help="say where the time of the training step goes, by the compiler's cycles: kinds of "
        "operations, parts of the model and loops, beside the limits of the chip",
    )
    parser.add_argument(
        "--decoding",
        default="greedy",
        metavar="BEAM",
        help="decoding to compile: greedy (the default), a beam size, or none",
    )
    parser.add_argument(
        "--decoding_rows",
        type=options.positive,
        default=8,
        metavar="N",
        help="utterances per device in a decoding batch; default: %(default)s",
    )
    parser.add_argument(
        "--search",
        action="store_true",
        help="search meshes and batch sizes, and compile the fastest that fits (not with "
        "--roofline)",
    )
    parser.add_argument(
        "--scale",
        metavar="N,N,...",
        help="print a weak-scaling table by roofline, for these numbers of chips and the same "
        "batch per chip",
    )
    parser.add_argument(
        "--plot", metavar="FILE", help="draw the table of --scale as png, svg or pdf"
    )
    options.add_json(parser)


def run(arguments: argparse.Namespace) -> None:
    """Runs the command."""
    if not arguments.gin_file:
        raise UserError("plan needs a run: give --gin_file runs/paper_voxpopuli.gin, or another")
    if not arguments.topology:
        raise UserError("plan needs --topology: v5e:16x16, v5p:4x4x4, gpu:H100x8 ...")
    from maestro_jax.planning.chips import parse_topology

    topology = parse_topology(arguments.topology, arguments.slices)
    if arguments.explain and (arguments.roofline or topology.chip.kind != "tpu"):
        raise UserError("--explain reads what the TPU compiler made: name a TPU, and no --roofline")
    # The compiler needs no device; one that is there is left alone.
    os.environ["JAX_PLATFORMS"] = "cpu"
    environment.prepare_process()
    beam_size = _beam_size(arguments.decoding)
    if arguments.plot and not arguments.scale:
        raise UserError("--plot draws the table of --scale: give --scale 16,64,256")
    sizes = _sizes(arguments.scale) if arguments.scale else []
    train_run = _planned_run(arguments)
    if sizes:
        _scale(arguments, train_run, topology, sizes)
        return
    if arguments.search:
        _search(arguments, train_run, topology)
        return
    from maestro_jax.planning.plan import plan_run

    plan = plan_run(
        train_run,
        topology,
        compile_it=not arguments.roofline,
        exact=arguments.exact,
        decoding=beam_size > 0,
        decoding_rows=arguments.decoding_rows,
        beam_size=max(beam_size, 1),
    )
    text = plan_text(plan, explain=arguments.explain)
    print(json.dumps(plan.as_dict(), indent=2) if arguments.json else text, flush=True)
    if plan.refusals:
        raise UserError(plan.refusals[0])


def _scale(
    arguments: argparse.Namespace, train_run: TrainRun, topology: Topology, sizes: list[int]
) -> None:
    """Prints the weak-scaling table."""
    from maestro_jax.planning.scaling import plot_scaling, scale_run, scaling_cells

    rows = scale_run(train_run, topology, sizes)
    head, *cells = scaling_cells(rows)
    records = [dict(zip(head, line, strict=True)) for line in cells]
    print(json.dumps(records, indent=2) if arguments.json else table(records))
    if arguments.plot:
        plot_scaling(rows, arguments.plot)
        print(f"wrote {arguments.plot}", file=sys.stderr)


def _search(arguments: argparse.Namespace, train_run: TrainRun, topology: Topology) -> None:
    """Prints the candidates of the search."""
    from maestro_jax.planning.search import search

    found = search(
        train_run,
        topology,
        compiled=0 if arguments.roofline else 1,
        exact=arguments.exact,
    )
    records = [each.as_dict() for each in found]
    print(json.dumps(records, indent=2) if arguments.json else table(records), flush=True)
    if not records[0]["fits"]:
        raise UserError(
            f"no mesh or batch fits {topology}: a device needs at least "
            f"{min(record['GiB, estimated'] for record in records)} GiB; take more chips or a "
            "smaller batch."
        )


def _sizes(text: str) -> list[int]:
    words = text.split(",")
    if not all(word.isdecimal() and int(word) for word in words):
        raise UserError(f"--scale {text}: write numbers of chips, as in --scale 16,64,256")
    return sorted({int(word) for word in words})


def _beam_size(text: str) -> int:
    """Returns the beam size; 0 for no decoding."""
    sizes = {"none": 0, "greedy": 1}
    if text in sizes:
        return sizes[text]
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"--decoding {text}: write greedy, none, or the size of a beam")
    return int(text)


def _planned_run(arguments: argparse.Namespace) -> TrainRun:
    """Returns the run of the gin files with the changes of the options."""
    from maestro_jax.gin_utils import gin_config

    macros = gin_config.macros(arguments.gin_file)
    bindings = dict(arguments.bindings)
    if arguments.steps is not None:
        bindings["STEPS" if "STEPS" in macros else "TrainRun.steps"] = str(arguments.steps)
    if arguments.mesh is not None:
        sizes = arguments.mesh.split(",")
        if len(sizes) != 3 or not all(size.lstrip("-").isdecimal() for size in sizes):
            raise UserError(
                f"--mesh {arguments.mesh}: write three whole numbers, as in --mesh=-1,16,1"
            )
        name = "MESH" if "MESH" in macros else "Partitioning.mesh_shape"
        bindings[name] = f"({', '.join(sizes)})"
    return gin_config.parse_and_build(arguments.gin_file, bindings)


def plan_text(plan: Plan, *, explain: bool = False) -> str:
    """Returns batch, memory, time, communication and hours of a plan as text.

    Args:
        plan: The plan.
        explain: Whether to say where the time of the training step goes.
    """
    topology, chip = plan.topology, plan.topology.chip
    data, fsdp, tensor = plan.mesh
    head = (
        f"{topology}: {_count(topology.chips, 'chip')} on {_count(topology.hosts, 'host')}; "
        f"mesh data {data}, "
        f"fsdp {fsdp}, tensor {tensor}; {sum(plan.parameters.values()):,} parameters"
    )
    sections = [head, table(_streams(plan))]
    compiled = [
        (name, program)
        for name, program in (("training step", plan.training), ("decoding", plan.decoding))
        if program is not None
    ]
    if compiled:
        sections.append(
            f"memory per chip in GiB, as compiled, of {chip.usable_hbm_bytes / GIB:.2f}:\n"
            + table([_memory(name, program) for name, program in compiled])
        )
        sections.append(
            "largest buffers at the peak of the training step:\n"
            + table(
                [
                    {"GiB": round(each.bytes / GIB, 3), "part": each.part, "operation": each.name}
                    for each in compiled[0][1].largest[:_SHOWN_BUFFERS]
                ]
            )
            if compiled[0][1].largest
            else "the compiler listed no buffers"
        )
        sections += [
            _quick(name, program) for name, program in compiled if program.compiler_options
        ]
    else:
        estimated = plan.estimate.memory
        rows = [
            {"part": name, "GiB": round(size / GIB, 3)}
            for name, size in {**estimated.by_part(), "all": estimated.total}.items()
        ]
        sections.append(
            f"memory per chip, estimated, of {plan.estimate.capacity / GIB:.2f} GiB:\n"
            + table(rows)
        )
    sections.append(table(_time(plan)))
    if explain and plan.training is not None and plan.training.fits:
        sections += explanation(plan.training)
    sections.append(table(_sent(plan)))
    sections.append(_hours(plan))
    return "\n\n".join(sections)


def _quick(name: str, program: ProgramPlan) -> str:
    options = ", ".join(f"{key}={value}" for key, value in program.compiler_options.items())
    caveat = "cycles are overestimated, code size underestimated; " if program.fits else ""
    return (
        f"the {name} was compiled with {options}, smaller tiles that compile faster: {caveat}"
        "--exact compiles with the options of training"
    )


def _streams(plan: Plan) -> list[dict[str, Any]]:
    return [
        {
            "stream": name,
            "batch": each.batch,
            "per chip": each.per_chip,
            "audio (s)": each.audio_seconds or None,
            "tokens": each.tokens or None,
        }
        for name, each in plan.streams.items()
    ]


def _memory(name: str, program: ProgramPlan) -> dict[str, Any]:
    memory = program.memory
    if memory is None:
        asked = None if program.needed is None else round(program.needed / GIB, 2)
        why = "not compiled" if asked is None else "does not fit"
        nothing = dict.fromkeys(("arguments", "results", "temporaries", "code"))
        return {"program": name, **nothing, "all": asked, "free": why}
    return {
        "program": name,
        "arguments": round(memory.arguments / GIB, 3),
        "results": round(memory.results / GIB, 3),
        "temporaries": round(memory.temporaries / GIB, 3),
        "code": round(memory.code / GIB, 3),
        "all": round(memory.used / GIB, 2),
        "free": f"{memory.free_share:.0%}",
    }


def _time(plan: Plan) -> list[dict[str, Any]]:
    step = plan.estimate.step
    rows: list[tuple[str, str]] = [
        ("model FLOPs per step", f"{step.model_flops:.4g}"),
        ("seconds per step, roofline", f"{step.seconds:.3g} (bound by {step.bound})"),
    ]
    if plan.training is not None and plan.training.compiler_seconds is not None:
        seconds = plan.training.compiler_seconds
        tiles = ", small tiles" if plan.training.compiler_options else ""
        rows.append(
            ("seconds per step, cycles of the compiler", f"{seconds:.3g} (without waiting{tiles})")
        )
    rows.append(("model-FLOPs utilisation, roofline", f"{step.utilisation:.1%}"))
    if plan.decoding is not None and plan.decoding.compiler_seconds is not None:
        seconds = plan.decoding.compiler_seconds
        rows.append(
            (
                "seconds per decoded batch, cycles of the compiler",
                f"{seconds:.3g} (each loop counted once)",
            )
        )
    return [{"time": name, "value": value} for name, value in rows]


def explanation(program: ProgramPlan) -> list[str]:
    """Returns tables of where the time of a program goes."""
    from maestro_jax.planning.compiled import part_of
    from maestro_jax.planning.cycles import PHASES, phase_of, summed

    shares = program.time_shares
    if not shares:
        return ["where the time goes: unknown, since the clock of this chip is not published"]
    all_seconds = sum(share.seconds for share in shares)

    def rows(
        column: str, key: Callable[[TimeShare], str], most: int | None = None
    ) -> list[dict[str, Any]]:
        found = []
        for name, (seconds, floor) in list(summed(shares, key).items())[:most]:
            row: dict[str, Any] = {column: name}
            own = [share for share in shares if key(share) == name]
            for phase in PHASES:
                taken = sum(share.seconds for share in own if share.phase == phase)
                row[phase] = _milliseconds(taken)
            row |= {"all": _milliseconds(seconds), "share": f"{seconds / all_seconds:.1%}"}
            found.append({**row, "at the limits": _milliseconds(floor)})
        return found

    loops = [
        {
            "loop": part_of(loop.name),
            "phase": phase_of(loop.name),
            "turns": "unknown: counted as 1" if loop.turns is None else loop.turns,
            "ms": _milliseconds(loop.seconds),
        }
        for loop in program.loops
        if loop.seconds >= 0.01 * all_seconds or loop.turns is None
    ]
    return [
        "ms of the training step by the compiler's cycles, and at the chip's limits (FLOPs of "
        "products, or bytes to and from the memory):\n"
        + table(rows("kind", lambda share: share.kind)),
        table(rows("part", lambda share: share.part, _SHOWN_PARTS)),
        table(loops) if loops else "no loop takes 1% of the time",
    ]


def _milliseconds(seconds: float) -> float:
    return round(1e3 * seconds, 1)


def _sent(plan: Plan) -> list[dict[str, Any]]:
    if plan.training is not None and plan.training.fits:
        found, source = plan.training.collectives, "compiled"
    else:
        source = "estimated"
        found = {f"{each.kind} over {each.axis}": each.sent for each in plan.estimate.transfers}
    rows = [
        {f"sent per chip and step, {source}": name, "MiB": round(size / 2**20, 1)}
        for name, size in found.items()
    ]
    if plan.topology.slices > 1 and plan.training is not None and plan.training.fits:
        rows.append(
            {
                f"sent per chip and step, {source}": "of these to other slices",
                "MiB": round(plan.training.between_slices / 2**20, 1),
            }
        )
    return rows or [{f"sent per chip and step, {source}": "nothing", "MiB": 0.0}]


def _count(number: int, noun: str) -> str:
    """Writes a number with its noun, in the plural unless it is 1."""
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _rounded(value: float, digits: int) -> float:
    """Rounds to `digits` decimals, but keeps two significant digits of a small value."""
    if value * 10**digits < 10:
        return float(f"{value:.2g}")
    return round(value, digits or None)


def _hours(plan: Plan) -> str:
    time = plan.estimate.time
    rows = [
        {
            "from step": each.phase.begins,
            "steps": each.phase.steps,
            "streams": each.phase.streams,
            "s per step": _rounded(each.step_seconds, 3),
            "hours": _rounded(each.hours, 1),
            "chip-hours": _rounded(each.hours * time.chips, 0),
            "audio hours per second": round(each.audio_hours_per_second, 2),
        }
        for each in time.phases
    ]
    return table(rows) + (
        f"\ntotal {_rounded(time.hours, 1):,} hours, {_rounded(time.chip_hours, 0):,} chip-hours, "
        f"{time.audio_hours:,.0f} hours of audio ({time.audio_hours_per_second:.2f} per second)"
    )

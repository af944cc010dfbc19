"""A plan in words and tables: what `maestro plan` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from maestro_jax.planning.chips import GIB
from maestro_jax.tables import table

if TYPE_CHECKING:
    from maestro_jax.planning.plan import Plan, ProgramPlan

_SHOWN_BUFFERS = 5


def plan_text(plan: Plan) -> str:
    """Lines of text: the batch, the memory, the time, what is sent, the hours.

    Args:
        plan: The plan.
    """
    topology, chip = plan.topology, plan.topology.chip
    data, fsdp, tensor = plan.mesh
    head = (
        f"{topology}: {topology.chips} chips on {topology.hosts} hosts; mesh data {data}, "
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
            f"memory a chip in GiB, as compiled, of {chip.usable_hbm_bytes / GIB:.2f}:\n"
            + table([_memory(name, program) for name, program in compiled])
        )
        sections.append(
            "most at one moment of the training step:\n"
            + table(
                [
                    {"GiB": round(each.bytes / GIB, 3), "part": each.part, "operation": each.name}
                    for each in compiled[0][1].largest[:_SHOWN_BUFFERS]
                ]
            )
            if compiled[0][1].largest
            else "the compiler named no buffers"
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
            f"memory a chip, estimated, of {plan.estimate.capacity / GIB:.2f} GiB:\n" + table(rows)
        )
    sections.append(table(_time(plan)))
    sections.append(table(_sent(plan)))
    sections.append(_hours(plan))
    return "\n\n".join(sections)


def _quick(name: str, program: ProgramPlan) -> str:
    options = ", ".join(f"{key}={value}" for key, value in program.compiler_options.items())
    worth = "its cycles are too high, its code too small; " if program.fits else ""
    return (
        f"the {name} is compiled with {options}, smaller tiles that are sooner compiled: {worth}"
        "--exact compiles it as a run does"
    )


def _streams(plan: Plan) -> list[dict[str, Any]]:
    return [
        {
            "stream": name,
            "batch": each.batch,
            "a chip": each.per_chip,
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
        ("model FLOPs a step", f"{step.model_flops:.4g}"),
        ("seconds a step, roofline", f"{step.seconds:.3g} (bound by {step.bound})"),
    ]
    if plan.training is not None and plan.training.compiler_seconds is not None:
        seconds = plan.training.compiler_seconds
        tiles = ", small tiles" if plan.training.compiler_options else ""
        rows.append(("seconds a step, the compiler's cycles", f"{seconds:.3g} (no waiting{tiles})"))
    rows.append(("model-FLOPs utilisation, roofline", f"{step.utilisation:.1%}"))
    if plan.decoding is not None and plan.decoding.compiler_seconds is not None:
        seconds = plan.decoding.compiler_seconds
        rows.append(
            ("seconds to decode a batch, the compiler's cycles", f"{seconds:.3g} (loops once)")
        )
    return [{"time": name, "value": value} for name, value in rows]


def _sent(plan: Plan) -> list[dict[str, Any]]:
    if plan.training is not None and plan.training.fits:
        found, source = plan.training.collectives, "compiled"
    else:
        source = "estimated"
        found = {f"{each.kind} over {each.axis}": each.sent for each in plan.estimate.transfers}
    rows = [
        {f"sent by a chip in a step, {source}": name, "MiB": round(size / 2**20, 1)}
        for name, size in found.items()
    ]
    if plan.topology.slices > 1 and plan.training is not None and plan.training.fits:
        rows.append(
            {
                f"sent by a chip in a step, {source}": "to other slices, of these",
                "MiB": round(plan.training.between_slices / 2**20, 1),
            }
        )
    return rows or [{f"sent by a chip in a step, {source}": "nothing", "MiB": 0.0}]


def _hours(plan: Plan) -> str:
    time = plan.estimate.time
    rows = [
        {
            "from step": each.phase.begins,
            "steps": each.phase.steps,
            "streams": each.phase.streams,
            "s a step": round(each.step_seconds, 3),
            "hours": round(each.hours, 1),
            "chip-hours": round(each.hours * time.chips),
            "audio hours a second": round(each.audio_hours_per_second, 2),
        }
        for each in time.phases
    ]
    return table(rows) + (
        f"\nin all {time.hours:.1f} hours, {time.chip_hours:,.0f} chip-hours, "
        f"{time.audio_hours:,.0f} hours of audio ({time.audio_hours_per_second:.2f} a second)"
    )

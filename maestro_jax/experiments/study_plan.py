"""What a study will take, before it is run: cells, shapes, FLOPs and time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from etils import epath

from maestro_jax.batches import SAMPLE_RATE
from maestro_jax.experiments.study import Cell, Study, check_macros, read_result
from maestro_jax.experiments.study_runner import time_left
from maestro_jax.planning.analytic import step_flops
from maestro_jax.planning.estimate import run_phases
from maestro_jax.tables import table
from maestro_jax.training.metrics import duration
from maestro_jax.training.run import TrainRun


def run_flops(run: TrainRun) -> float:
    """Counts the model FLOPs of a whole run, gates aside, from its traced steps."""
    shapes = run.batch_shapes()
    total = 0.0
    for phase in run_phases(run):
        count = step_flops(
            run.model,
            run.objective,
            run.optimizer,
            {stream: shapes[stream] for stream in phase.streams},
            ema_decay=run.ema_decay,
            accumulate=run.accumulate,
        )
        total += phase.steps * count.model
    return total


def plan_text(study: Study, cells: Sequence[Cell], output: epath.PathLike | None) -> str:
    """Formats the cells of a study, the shapes and FLOPs of their runs, and the estimated time.

    Args:
        study: The study.
        cells: The cells to run.
        output: Directory of the study, whose cells that are done tell the time of others.

    Raises:
        UserError: A run is wrong.
    """
    sections = [
        f"{study.name}: {len(cells)} cells; methods {', '.join(m.name for m in study.methods)}; "
        f"paired speech {', '.join(study.amounts)}; seeds {', '.join(map(str, study.seeds))}"
    ]
    check_macros(study)
    runs = []
    flops = _flops_by_method(study, cells)
    shown: set[tuple[str, str]] = set()
    for cell in cells:
        key = (cell.method.name, cell.amount)
        if key in shown:
            continue
        shown.add(key)
        for stage in cell.stages:
            run = cell.build(study, stage)
            runs.append(_run_row(cell, stage, run, flops[key][stage]))
    sections.append(table(runs))
    state = [] if output is None else [cell for cell in cells if read_result(output, cell)]
    sections.append(
        "cells, in the order in which they run:\n"
        + "\n".join(f"  {cell.name}{'  done' if cell in state else ''}" for cell in cells)
    )
    expected = {}
    if study.flops_per_second:
        for cell in cells:
            of_cell = flops[cell.method.name, cell.amount]
            training = sum(of_cell.values()) / study.flops_per_second
            expected[cell.name] = training + study.overhead_seconds
    left = time_left(cells, study, output, expected)
    sections.append(
        "estimated time: unknown, before a cell is done or without Study.flops_per_second"
        if left is None
        else f"estimated time, one cell after the other: {duration(left)}"
    )
    return "\n\n".join(sections)


def _run_row(cell: Cell, stage: str, run: TrainRun, flops: float) -> dict[str, Any]:
    streams = {
        name: (
            shape.batch_size,
            f"{shape.audio_samples / SAMPLE_RATE:g} s" if shape.audio_samples else "",
            shape.text_tokens or shape.translation_tokens or "",
        )
        for name in run.used_streams
        if any(name in phase.streams for phase in run_phases(run))
        for shape in run.streams[name].shapes()[-1:]
    }
    shapes = "; ".join(
        f"{name} " + " x ".join(str(part) for part in parts if part != "")
        for name, parts in streams.items()
    )
    return {
        "method": cell.method.name,
        "paired": cell.amount,
        "stage": stage,
        "steps": run.steps,
        "streams (examples x audio x tokens)": shapes,
        "parameters": _parameters(run),
        "model FLOPs": f"{flops:.3g}",
    }


def _parameters(run: TrainRun) -> int:
    import jax

    return sum(leaf.size for leaf in jax.tree.leaves(run.abstract_state().params))


def _flops_by_method(
    study: Study, cells: Sequence[Cell]
) -> dict[tuple[str, str], dict[str, float]]:
    """Counts the FLOPs of the stages of each method and amount; runs of one shape once."""
    known: dict[str, float] = {}
    found: dict[tuple[str, str], dict[str, float]] = {}
    for cell in cells:
        key = (cell.method.name, cell.amount)
        if key in found:
            continue
        found[key] = {}
        for stage in cell.stages:
            run = cell.build(study, stage)
            shape = repr((run.model, run.objective, run.batch_shapes(), run.optimizer, run.steps))
            if shape not in known:
                known[shape] = run_flops(run)
            found[key][stage] = known[shape]
    return found

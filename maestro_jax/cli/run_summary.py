"""Summarises a run from its shapes alone, as `maestro train --dry_run` prints it."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax

from maestro_jax.batches import SAMPLE_RATE, StreamConfig, batch_shapes
from maestro_jax.objectives.curriculum import Schedule, Weight
from maestro_jax.planning.estimate import run_phases
from maestro_jax.tables import table
from maestro_jax.training.parameter_trees import parameters_by_module, unbox
from maestro_jax.training.step import train_step

if TYPE_CHECKING:
    from maestro_jax.training.run import TrainRun


def summary(run: TrainRun) -> str:
    """Traces a whole training step without computing it, and formats the sizes of the run.

    Returns:
        Lines of text: the streams with their shapes, the parameters by part, the step's metrics,
        and the phases with their streams and losses.
    """
    state = unbox(run.abstract_state())
    step = functools.partial(
        train_step,
        model=run.model,
        objective=run.objective,
        optimizer=run.optimizer,
        ema_decay=run.ema_decay,
        seed=run.seed,
    )
    used = {name: run.streams[name] for name in run.used_streams}
    if any(stream.buckets for stream in used.values()):
        # Where the shortest and the longest buckets fit, those in between do, too.
        shortest = {name: stream.shapes()[0] for name, stream in used.items()}
        jax.eval_shape(step, state, batch_shapes(shortest))
    _, metrics = jax.eval_shape(step, state, batch_shapes(used))
    streams = [
        {
            "stream": name,
            "mixture": str(stream.mixture),
            "batch": shape.batch_size,
            "audio (s)": shape.audio_samples / SAMPLE_RATE or None,
            "text": shape.text_tokens or None,
            "translation": shape.translation_tokens or None,
            "frames": _frames(run, shape),
        }
        for name, stream in used.items()
        for shape in stream.shapes()
    ]
    unused = [name for name in run.streams if name not in used]
    counts = parameters_by_module(state.params)
    parameters = [
        {"part": name, "parameters": count}
        for name, count in {**counts, "all": sum(counts.values())}.items()
    ]
    return "\n\n".join(
        [
            table(streams) + _unused_text(run, unused),
            table(parameters),
            "metrics: " + ", ".join(sorted(metrics)),
            phases_text(run),
            f"{run.steps} steps; all shapes fit; nothing was written.",
        ]
    )


def _unused_text(run: TrainRun, unused: Sequence[str]) -> str:
    """Says which streams of the run the objective does not read, as a line below a table."""
    if not unused:
        return ""
    objective = type(run.objective).__name__
    return f"\nnot read, because {objective} does not use them: {', '.join(unused)}"


def _frames(run: TrainRun, shape: StreamConfig) -> int | None:
    """Returns the length of the shared encoder's input in frames, of audio or resampled text."""
    if shape.audio_samples:
        return int(run.model.frame_count(shape.audio_samples))
    return run.objective.max_text_frames


def phases_text(run: TrainRun) -> str:
    """Formats the phases of a run: the first step of each stream, and the losses it adds.

    Returns:
        A table with one line per stream and phase; below it, one line per gate, and one about
        weights that are learned.
    """
    rows = [
        {
            "from step": phase.begins,
            "steps": phase.steps,
            "stream": name,
            "batch": run.streams[name].batch_size,
            "losses x weights": ", ".join(
                f"{term} x {_weight(weight)}"
                for term, weight in run.objective.loss_weights[name].items()
            ),
        }
        for phase in run_phases(run)
        for name in phase.streams
    ]
    lines = ["phases:", table(rows)]
    curriculum = run.objective.curriculum
    for phase in curriculum.phases if curriculum is not None else ():
        used = [name for name in phase.streams if name in run.used_streams]
        if phase.gates and used and phase.start_step < run.steps:
            gates = ", ".join(map(str, phase.gates))
            lines.append(f"{' and '.join(used)} wait{'s' * (len(used) == 1)} for: {gates}")
    if run.objective.weighting is not None:
        weighting = type(run.objective.weighting).__name__
        lines.append(f"multiplied by learned factors: {weighting}")
    return "\n".join(lines)


def _weight(weight: Weight) -> str:
    """Formats a number, or the points of a schedule as `0@515000..1@517000`."""
    if isinstance(weight, Schedule):
        return "..".join(f"{value:g}@{step}" for step, value in weight.points)
    return f"{weight:g}"

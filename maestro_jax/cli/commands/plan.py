"""`maestro plan`: what a run would need on chips that are not there."""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import TYPE_CHECKING

from maestro_jax.cli import environment, options
from maestro_jax.errors import UserError

if TYPE_CHECKING:
    from maestro_jax.training.run import TrainRun


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    options.add_gin(parser)
    parser.add_argument(
        "--topology",
        metavar="CHIP:SHAPE",
        help="v5e:16x16, v4:4x4x8, v5p:4x4x4, v6e:16x16; GPUs, by roofline alone: gpu:H100x8",
    )
    parser.add_argument(
        "--slices", type=options.positive, default=1, help="TPU slices that a network joins"
    )
    parser.add_argument(
        "--mesh",
        metavar="DATA,FSDP,TENSOR",
        help="devices along each axis instead of the files' MESH; one may be -1: what is left",
    )
    parser.add_argument(
        "--steps", type=options.positive, help="steps of the run instead of the files' STEPS"
    )
    parser.add_argument(
        "--roofline",
        action="store_true",
        help="leave the compiler out: seconds instead of minutes, and memory by estimate",
    )
    parser.add_argument(
        "--decoding",
        default="greedy",
        metavar="BEAM",
        help="also compile the decoding: greedy (the default), the size of a beam, or none",
    )
    parser.add_argument(
        "--decoding_rows",
        type=options.positive,
        default=8,
        metavar="N",
        help="utterances that each device decodes at once; default: %(default)s",
    )
    options.add_json(parser)


def run(arguments: argparse.Namespace) -> None:
    """Runs the command."""
    if not arguments.gin_file:
        raise UserError("plan needs a run: --gin_file runs/pretrain.gin, and what it needs")
    if not arguments.topology:
        raise UserError("plan needs --topology: v5e:16x16, v5p:4x4x4, gpu:H100x8 ...")
    from maestro_jax.planning.chips import parse_topology

    topology = parse_topology(arguments.topology, arguments.slices)
    # The compiler needs no device; one that is there is left alone.
    os.environ["JAX_PLATFORMS"] = "cpu"
    environment.prepare_process()
    beam_size = _beam_size(arguments.decoding)
    train_run = _planned_run(arguments)
    from maestro_jax.cli.plan_text import plan_text
    from maestro_jax.planning.plan import plan_run

    plan = plan_run(
        train_run,
        topology,
        compile_it=not arguments.roofline,
        decoding=beam_size > 0,
        decoding_rows=arguments.decoding_rows,
        beam_size=max(beam_size, 1),
        say=lambda line: print(line, file=sys.stderr, flush=True),
    )
    print(json.dumps(plan.as_dict(), indent=2) if arguments.json else plan_text(plan), flush=True)
    if plan.refusals:
        raise UserError(plan.refusals[0])


def _beam_size(text: str) -> int:
    """0 for none."""
    sizes = {"none": 0, "greedy": 1}
    if text in sizes:
        return sizes[text]
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"--decoding {text}: write greedy, none, or the size of a beam")
    return int(text)


def _planned_run(arguments: argparse.Namespace) -> TrainRun:
    """The run of the files, with what the options change."""
    from maestro_jax.cli import gin_config

    macros = gin_config.macros(arguments.gin_file)
    bindings = dict(arguments.bindings)
    if arguments.steps is not None:
        bindings["STEPS" if "STEPS" in macros else "TrainRun.steps"] = str(arguments.steps)
    if arguments.mesh is not None:
        sizes = arguments.mesh.split(",")
        if len(sizes) != 3 or not all(size.lstrip("-").isdecimal() for size in sizes):
            raise UserError(
                f"--mesh {arguments.mesh}: write three whole numbers, as in --mesh 1,-1,1"
            )
        name = "MESH" if "MESH" in macros else "Partitioning.mesh_shape"
        bindings[name] = f"({', '.join(sizes)})"
    return gin_config.parse_and_build(arguments.gin_file, bindings)

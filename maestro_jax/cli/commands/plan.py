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
    from maestro_jax.planning.chips import Topology
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
        help="devices along each axis instead of the files' MESH, as in --mesh=-1,16,1; one may "
        "be -1: what is left",
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
        "--exact",
        action="store_true",
        help="compile as training does; without, smaller tiles are sooner "
        "compiled: the same buffers and nearly the same collectives, but less code and more cycles",
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
    parser.add_argument(
        "--search",
        action="store_true",
        help="try meshes and batches, and compile the fastest that fits (with --roofline: none)",
    )
    parser.add_argument(
        "--scale",
        metavar="N,N,...",
        help="the weak-scaling table by roofline: the same rows a chip on so many chips",
    )
    parser.add_argument("--plot", metavar="FILE", help="with --scale: draw it, as png, svg or pdf")
    options.add_json(parser)


def run(arguments: argparse.Namespace) -> None:
    """Runs the command."""
    if not arguments.gin_file:
        raise UserError("plan needs a run: --gin_file runs/paper_voxpopuli.gin, or another")
    if not arguments.topology:
        raise UserError("plan needs --topology: v5e:16x16, v5p:4x4x4, gpu:H100x8 ...")
    from maestro_jax.planning.chips import parse_topology

    topology = parse_topology(arguments.topology, arguments.slices)
    # The compiler needs no device; one that is there is left alone.
    os.environ["JAX_PLATFORMS"] = "cpu"
    environment.prepare_process()
    beam_size = _beam_size(arguments.decoding)
    if arguments.plot and not arguments.scale:
        raise UserError("--plot draws the table of --scale: say --scale 16,64,256")
    sizes = _sizes(arguments.scale) if arguments.scale else []
    train_run = _planned_run(arguments)
    if sizes:
        _scale(arguments, train_run, topology, sizes)
        return
    if arguments.search:
        _search(arguments, train_run, topology)
        return
    from maestro_jax.cli.plan_text import plan_text
    from maestro_jax.planning.plan import plan_run

    plan = plan_run(
        train_run,
        topology,
        compile_it=not arguments.roofline,
        exact=arguments.exact,
        decoding=beam_size > 0,
        decoding_rows=arguments.decoding_rows,
        beam_size=max(beam_size, 1),
        say=lambda line: print(line, file=sys.stderr, flush=True),
    )
    print(json.dumps(plan.as_dict(), indent=2) if arguments.json else plan_text(plan), flush=True)
    if plan.refusals:
        raise UserError(plan.refusals[0])


def _scale(
    arguments: argparse.Namespace, train_run: TrainRun, topology: Topology, sizes: list[int]
) -> None:
    """Prints the weak-scaling table."""
    from maestro_jax.planning.scaling import plot_scaling, scale_run, scaling_cells
    from maestro_jax.tables import table

    rows = scale_run(train_run, topology, sizes)
    head, *cells = scaling_cells(rows)
    records = [dict(zip(head, line, strict=True)) for line in cells]
    print(json.dumps(records, indent=2) if arguments.json else table(records))
    if arguments.plot:
        plot_scaling(rows, arguments.plot)
        print(f"wrote {arguments.plot}", file=sys.stderr)


def _search(arguments: argparse.Namespace, train_run: TrainRun, topology: Topology) -> None:
    """Prints what the search found."""
    from maestro_jax.planning.search import search
    from maestro_jax.tables import table

    found = search(
        train_run,
        topology,
        compiled=0 if arguments.roofline else 1,
        exact=arguments.exact,
        say=lambda line: print(line, file=sys.stderr, flush=True),
    )
    records = [each.as_dict() for each in found]
    print(json.dumps(records, indent=2) if arguments.json else table(records), flush=True)
    if not records[0]["fits"]:
        raise UserError(
            f"nothing fits {topology}: the least that a device needs is "
            f"{min(record['GiB, estimated'] for record in records)} GiB; take more chips or a "
            "smaller batch."
        )


def _sizes(text: str) -> list[int]:
    words = text.split(",")
    if not all(word.isdecimal() and int(word) for word in words):
        raise UserError(f"--scale {text}: write numbers of chips, as in --scale 16,64,256")
    return sorted({int(word) for word in words})


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

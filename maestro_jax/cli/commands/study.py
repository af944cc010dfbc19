"""`maestro study`: runs a grid of methods, amounts of paired speech and seeds; compares them."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from typing import TYPE_CHECKING

from maestro_jax.cli import environment, options
from maestro_jax.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from maestro_jax.experiments.study import Cell, Study


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    options.add_gin(parser)
    parser.add_argument(
        "--output_dir",
        metavar="DIR",
        help="directory of the cells and of the page; the same one continues a study",
    )
    parser.add_argument(
        "--data_dir",
        metavar="DIR",
        help="root of the prepared data; default: `data` in the output directory if the study "
        "prepares MiniVox and $MAESTRO_DATA_DIR is not set; else that, else ~/maestro_data",
    )
    parser.add_argument(
        "--cell",
        metavar="NAME",
        help="run one cell (METHOD-AMOUNT-SEED, see --dry_run) in this process",
    )
    parser.add_argument(
        "--cells",
        nargs="+",
        default=(),
        metavar="PATTERN",
        help="run the cells whose names match, as in --cells 'maestro-100-*' 'scratch-*'; the page "
        "is of all that are done",
    )
    parser.add_argument(
        "--shard",
        metavar="I/N",
        help="run the I-th of N parts of the grid, from 0: one of several jobs",
    )
    parser.add_argument(
        "--jobs",
        type=int,
        default=1,
        metavar="N",
        help="run N cells at the same time, each on an equal part of the cores of a CPU "
        "(default: 1)",
    )
    parser.add_argument(
        "--tune",
        action="store_true",
        help="run the trials of each method instead, judge them by the validation set, and write "
        "what was chosen to tuning/chosen.gin in the output directory",
    )
    parser.add_argument(
        "--retrain",
        action="store_true",
        help="remove what was trained with other settings than the gin files have now, and train "
        "it again; what has not changed stays",
    )
    parser.add_argument(
        "--report",
        action="store_true",
        help="only write the page of the cells that are done",
    )
    parser.add_argument(
        "--dry_run",
        action="store_true",
        help="print the cells, the shapes and FLOPs of their runs and the estimated time, and exit",
    )


def run(arguments: argparse.Namespace) -> None:
    """Runs the command."""
    if not arguments.gin_file:
        raise UserError("study needs a grid: give --gin_file runs/study.gin, or one of your own")
    if not arguments.output_dir and not arguments.dry_run:
        raise UserError("study needs --output_dir DIR, or --dry_run")
    if arguments.cell and (arguments.shard or arguments.cells):
        raise UserError("give --cell, or --shard and --cells")
    if arguments.cell and not (arguments.dry_run or arguments.report):
        _run_cell(arguments)
        return
    own = dict(os.environ)
    # This process starts the others and needs no device; it must not take one from them.
    os.environ["JAX_PLATFORMS"] = "cpu"
    environment.prepare_process()
    from maestro_jax.experiments.study_runner import parse_shard, run_cells, shares_of_cores

    study, output = _study_and_output(arguments)
    shard = parse_shard(arguments.shard) if arguments.shard else None
    shares_of_cores(arguments.jobs)
    cells = study.select([arguments.cell] if arguments.cell else (), shard, arguments.cells)
    if arguments.dry_run:
        from maestro_jax.experiments.study_plan import plan_text

        print(plan_text(study, cells, output))
        return
    assert output is not None
    if not arguments.report:
        _discard_changed(study, cells, output, arguments)
        _prepare(study, arguments)
        failed = run_cells(
            study,
            cells,
            output,
            lambda cell: _command(arguments, cell),
            environment=own,
            jobs=arguments.jobs,
            done=lambda: _try_to_write_page(study, output),
        )
    else:
        _warn_of_changed(study, cells, output)
    page = _write_page(study, output, show=True)
    print(f"\nThe page of the study is {page}.")
    if arguments.tune:
        _write_chosen(arguments, output)
    if not arguments.report and failed:
        raise UserError(
            f"{len(failed)} of {len(cells)} cells failed: "
            f"{', '.join(cell.name for cell in failed)}; the same command tries them again"
        )


def _study_and_output(arguments: argparse.Namespace) -> tuple[Study, str | None]:
    """Returns the study, or that of its trials, and the directory of its cells and page."""
    from maestro_jax.experiments.study import TUNING, load_study
    from maestro_jax.files import as_path

    study = load_study(arguments.gin_file, arguments.bindings)
    if not arguments.tune:
        return study, arguments.output_dir
    output = arguments.output_dir and str(as_path(arguments.output_dir) / TUNING)
    return study.tuning(), output


def _discard_changed(
    study: Study, cells: Sequence[Cell], output: str, arguments: argparse.Namespace
) -> None:
    """Removes evaluations with other settings, and with --retrain what was trained with them."""
    from maestro_jax.experiments.study import check_study, discard
    from maestro_jax.experiments.study_runner import alone

    changed = check_study(study, cells, output, retrain=arguments.retrain)
    for cell in cells:
        if parts := changed.get(cell.name):
            print(f"{cell.name}: {', '.join(parts)} had other settings", flush=True)
            with alone(cell, output):
                discard(output, cell, parts)


def _warn_of_changed(study: Study, cells: Sequence[Cell], output: str) -> None:
    """Names the cells on the page that the gin files no longer describe."""
    from maestro_jax.experiments.study import check_study, read_result

    changed = check_study(study, cells, output, retrain=True)
    names = [cell.name for cell in cells if cell.name in changed and read_result(output, cell)]
    if names:
        print(f"warning: made with other settings than now: {', '.join(names)}", file=sys.stderr)


def _run_cell(arguments: argparse.Namespace) -> None:
    """Runs one cell in this process, which may be one of several that train together."""
    from maestro_jax.experiments.study_runner import PARENT_VARIABLE, alone, end_with_parent

    parent = os.environ.get(PARENT_VARIABLE)
    if parent:
        end_with_parent(int(parent))
    environment.prepare_process()
    from maestro_jax.data.tensorflow_import import import_tensorflow

    import_tensorflow()
    environment.enable_compilation_cache()
    from maestro_jax.experiments.study import run_cell
    from maestro_jax.training import distributed

    study, output = _study_and_output(arguments)
    assert output is not None
    [cell] = study.select([arguments.cell])
    if not parent:
        _discard_changed(study, [cell], output, arguments)
        _prepare(study, arguments)
    distributed.initialize()
    with alone(cell, output), distributed.ending_together():
        run_cell(study, cell, output, _data_dir(study, arguments))


def _command(arguments: argparse.Namespace, cell: Cell) -> list[str]:
    """Returns the command line that runs a cell."""
    command = [sys.executable, "-m", "maestro_jax.cli.main", "study", f"--cell={cell.name}"]
    command += [f"--gin_file={file}" for file in arguments.gin_file]
    command += [f"--import={module}" for module in arguments.imports]
    command += [f"--gin.{name}={value}" for name, value in arguments.bindings.items()]
    command += ["--tune"] if arguments.tune else []
    command.append(f"--output_dir={arguments.output_dir}")
    return command + ([f"--data_dir={arguments.data_dir}"] if arguments.data_dir else [])


def _data_dir(study: Study, arguments: argparse.Namespace) -> str | None:
    if arguments.data_dir or study.minivox is None or os.environ.get("MAESTRO_DATA_DIR"):
        return arguments.data_dir
    from maestro_jax.files import as_path

    return str(as_path(arguments.output_dir) / "data")


def _prepare(study: Study, arguments: argparse.Namespace) -> None:
    """Prepares MiniVox if the study has it, in a process of its own, which needs TensorFlow."""
    if study.minivox is None:
        return
    command = [sys.executable, "-m", "maestro_jax.cli.main", "prepare", "minivox"]
    command += ["--config", study.minivox]
    if data_dir := _data_dir(study, arguments):
        command += ["--data_dir", data_dir]
    if status := subprocess.run(command, check=False).returncode:
        sys.exit(status)


def _write_page(study: Study, output: str, *, show: bool = False) -> str:
    from maestro_jax.experiments.study_summary import summarise
    from maestro_jax.provenance import command_line
    from maestro_jax.reports.study_page import summary_text, write_study_page

    summary = summarise(study, output, command_line())
    if show:
        print(f"\n{summary_text(summary)}")
    return str(write_study_page(summary, output))


def _try_to_write_page(study: Study, output: str) -> None:
    """Writes the page between two cells, which go on if it cannot be written."""
    try:
        line = _write_page(study, output)
    except Exception as error:  # The page at the end raises it.
        line = f"the page was not written: {type(error).__name__}: {error}"
    print(f"    {line}", flush=True)


def _write_chosen(arguments: argparse.Namespace, output: str) -> None:
    """Writes the gin file with the best trial of each method, once all trials are done."""
    from maestro_jax.experiments.study import load_study
    from maestro_jax.experiments.study_tuning import write_chosen

    try:
        path = write_chosen(load_study(arguments.gin_file, arguments.bindings), output)
    except UserError as error:
        if not arguments.shard:
            raise
        print(error)  # Other jobs have the rest of the trials.
        return
    print(f"What was chosen is in {path}: give it as the last --gin_file of the study.")

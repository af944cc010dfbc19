"""`maestro compare`: compares two runs on the same utterances."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from maestro_jax.cli import environment, options
from maestro_jax.errors import UserError
from maestro_jax.files import as_path

if TYPE_CHECKING:
    from maestro_jax.evaluation.comparison import Comparison, PairedComparison
    from maestro_jax.evaluation.paired_minutes import FewPoint
    from maestro_jax.training.run import TrainRun


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="two model directories, result directories (MODEL_DIR/evaluation/RESULT) or files of "
        "hypotheses (*.hypotheses.jsonl): the baseline, A, then the model, B; with --minutes any "
        "number of model directories",
    )
    parser.add_argument(
        "--minutes",
        action="store_true",
        help="list the scores of the runs beside the minutes of paired speech of each language "
        "that they and the runs they began from have trained on",
    )
    parser.add_argument(
        "--plot", metavar="FILE", help="draw the list of --minutes (.png, .svg, .pdf)"
    )
    options.add_data_dir(parser)
    options.add_result_step(parser)
    parser.add_argument(
        "--name", metavar="NAME", help="test set; default: all that both runs were evaluated on"
    )
    parser.add_argument(
        "--metric",
        action="extend",
        type=options.names,
        default=[],
        metavar="NAME,NAME",
        help="metrics; default: the one that each language is reported by (wer, cer or bleu)",
    )
    parser.add_argument(
        "--bootstrap_samples",
        type=options.not_negative,
        default=1000,
        metavar="N",
        help="draws of the paired bootstrap, 0 for none; default: %(default)s",
    )
    parser.add_argument(
        "--randomisations",
        type=options.not_negative,
        default=10_000,
        metavar="N",
        help="draws of approximate randomisation, 0 for none; default: %(default)s",
    )
    parser.add_argument(
        "--seed", type=options.not_negative, default=0, metavar="N", help="seed of the draws"
    )
    options.add_json(parser)


def run(arguments: argparse.Namespace) -> None:
    """Runs the command."""
    if arguments.minutes:
        _compare_minutes(arguments)
        return
    if arguments.plot:
        raise UserError("--plot draws the list of --minutes: give that as well")
    if len(arguments.runs) != 2:
        raise UserError(f"compare takes two runs, not {len(arguments.runs)}")
    from maestro_jax.evaluation.comparison import compare
    from maestro_jax.evaluation.predictions import read_predictions
    from maestro_jax.evaluation.stored_hypotheses import find_hypotheses
    from maestro_jax.evaluation.suites import rows_of_stored

    first, second = (
        find_hypotheses(path, step=arguments.step, name=arguments.name) for path in arguments.runs
    )
    test_sets = [name for name in first if name in second]
    pairs = [(name, first[name], second[name]) for name in test_sets]
    if all(as_path(path).is_file() for path in arguments.runs):
        # Two files may have any names: what counts is whose utterances are in them.
        pairs = [(next(iter(first)), *first.values(), *second.values())]
    if not pairs:
        raise UserError(
            f"the runs were evaluated on different test sets: {arguments.runs[0]} on "
            f"{', '.join(first)} and {arguments.runs[1]} on {', '.join(second)}; evaluate both on "
            "the same one"
        )
    results = []
    for name, baseline_file, model_file in pairs:
        baseline, model = read_predictions(baseline_file), read_predictions(model_file)
        of_suite = rows_of_stored(name, model)
        for metric in arguments.metric or [None]:
            comparison = compare(
                model,
                baseline,
                metric=metric,
                bootstrap_samples=arguments.bootstrap_samples,
                randomisations=arguments.randomisations,
                seed=arguments.seed,
                names=(arguments.runs[1], arguments.runs[0]),
                **of_suite,
            )
            results.append((name, str(baseline_file), str(model_file), comparison))
    if arguments.json:
        content = [
            {"test_set": name, "baseline": baseline, "model": model} | comparison.as_dict()
            for name, baseline, model, comparison in results
        ]
        print(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False))
        return
    for name, baseline_name, model_name, comparison in results:
        print(f"{name}\n\nA: {baseline_name}\nB: {model_name}\n")
        print(_table(comparison) + "\n")
    print(_notes(arguments))


def _compare_minutes(arguments: argparse.Namespace) -> None:
    """Lists the scores of runs beside their minutes of paired speech."""
    from maestro_jax.evaluation.paired_minutes import (
        minutes_of_paired_speech,
        points_table,
        read_points,
    )
    from maestro_jax.evaluation.stored_hypotheses import find_hypotheses

    if arguments.metric:
        raise UserError("--minutes lists the metric of each language: leave --metric out")
    environment.prepare_process()
    # Before a run is built: what can be missing at once is the results.
    found = [
        find_hypotheses(path, step=arguments.step, name=arguments.name) for path in arguments.runs
    ]
    from maestro_jax.data.tensorflow_import import import_tensorflow

    import_tensorflow()
    points = []
    names = [as_path(path).name for path in arguments.runs]
    for path, name, files in zip(arguments.runs, names, found, strict=True):
        runs = _with_ancestors(path)
        minutes = {
            kind: minutes_of_paired_speech(runs, kind, arguments.data_dir) for kind in ("asr", "st")
        }
        # Runs of the same name are told apart by their paths.
        shown = name if names.count(name) == 1 else path
        for test_set, file in files.items():
            points += read_points(file.parent / f"{test_set}.json", shown, minutes)
    if arguments.json:
        content = [dataclasses.asdict(point) for point in points]
        print(json.dumps(content, indent=2, ensure_ascii=False))
    else:
        print(points_table(points))
    if arguments.plot:
        _plot_minutes(points, arguments.plot)


def _with_ancestors(model_dir: str) -> list[TrainRun]:
    """Loads a run and the runs that it began from, the latest first."""
    from maestro_jax.gin_utils import gin_config

    runs: list[TrainRun] = []
    directory: str | None = model_dir
    while directory is not None:
        run = gin_config.load_run(directory)
        runs.append(run)
        directory = None
        if run.init_from is not None:
            # A checkpoint lies in the model directory of its run.
            origin = as_path(run.init_from)
            places = [each for each in (origin, *origin.parents) if list(each.glob("config.gin"))]
            if not places:
                raise UserError(
                    f"{model_dir} began from {run.init_from}, which is not there any more, so it "
                    "is not known what was trained on before; put it back, or leave the run out"
                )
            directory = str(places[0])
    return runs


def _plot_minutes(points: Sequence[FewPoint], path: str) -> None:
    from maestro_jax.reports.figures import plot_minutes

    titles = list(dict.fromkeys(point.title for point in points))
    test_sets = list(dict.fromkeys(point.test_set for point in points))
    lines: dict[str, list[tuple[str, float, float, tuple[float, float] | None]]] = {}
    for point in points:
        if point.score is not None:
            sets = {other.test_set for other in points if other.row == point.row}
            label = point.row if len(sets) == 1 else f"{point.row}, {point.test_set}"
            lines.setdefault(label, []).append(
                (point.run, point.minutes, point.score, point.interval)
            )
    if not lines:
        raise UserError("there is no score to draw")
    title = test_sets[0] if len(test_sets) == 1 else ""
    plot_minutes(lines, path, unit=" or ".join(titles), title=title)


def _table(comparison: Comparison) -> str:
    from tabulate import SEPARATING_LINE

    from maestro_jax.tables import align_columns

    metrics = {row.metric for row in comparison.rows}
    rows: list[object] = [_cells(row, len(metrics) > 1) for row in comparison.rows]
    if len(comparison.rows) > 1:
        average = _cells(comparison.average, len(metrics) > 1)
        average[0] = f"average of {len(comparison.rows)}"
        rows += [SEPARATING_LINE, average]
    [title] = metrics if len(metrics) == 1 else ["error"]
    header = ["", "utterances", f"{title.upper()} of A", "95% interval", f"{title.upper()} of B"]
    header += ["95% interval", "B - A", "95% interval", "p bootstrap", "p random.", "better"]
    if len(metrics) > 1:
        header.insert(1, "metric")
    return align_columns(header, rows, ["left"] + ["right"] * (len(header) - 1))


def _cells(row: PairedComparison, with_metric: bool) -> list[str]:
    better = "B" if row.model_is_better else "A"
    return [
        row.name,
        *([row.metric.upper().replace("_", " ")] if with_metric else []),
        str(row.utterances),
        f"{row.baseline_score:.2f}",
        _interval(row.baseline_interval),
        f"{row.score:.2f}",
        _interval(row.interval),
        f"{row.difference:+.2f}",
        _interval(row.difference_interval, "+"),
        _p_value(row.bootstrap_p_value),
        _p_value(row.randomisation_p_value),
        better if row.significant else "-",
    ]


def _interval(interval: tuple[float, float] | None, sign: str = "") -> str:
    return "-" if interval is None else f"{interval[0]:{sign}.2f} to {interval[1]:{sign}.2f}"


def _p_value(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _notes(arguments: argparse.Namespace) -> str:
    from maestro_jax.evaluation.comparison import SIGNIFICANT

    return (
        f"Intervals and p bootstrap: {arguments.bootstrap_samples} draws of utterances, the same "
        "for both runs, within each language.\n"
        f"p random.: {arguments.randomisations} random exchanges of the two outputs of an "
        "utterance.\n"
        f"Both p-values are two-sided; better: the run whose lead has both below {SIGNIFICANT}."
    )

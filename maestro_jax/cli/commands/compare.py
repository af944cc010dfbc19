"""`maestro compare`: compares two runs on the same utterances."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from maestro_jax.cli import options
from maestro_jax.errors import UserError
from maestro_jax.files import as_path

if TYPE_CHECKING:
    from maestro_jax.evaluation.comparison import Comparison, PairedComparison


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="two model directories, result directories (MODEL_DIR/evaluation/RESULT) or files of "
        "hypotheses (*.hypotheses.jsonl): the baseline, A, then the model, B",
    )
    parser.add_argument(
        "--step",
        type=options.checkpoint_step,
        metavar="STEP",
        help="step of the results, where a model directory has those of several, or latest",
    )
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
    if len(arguments.runs) != 2:
        raise UserError(f"compare takes two runs, not {len(arguments.runs)}")
    from maestro_jax.evaluation.comparison import compare
    from maestro_jax.evaluation.predictions import read_predictions
    from maestro_jax.evaluation.stored_hypotheses import find_hypotheses

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
        for metric in arguments.metric or [None]:
            comparison = compare(
                model,
                baseline,
                metric=metric,
                bootstrap_samples=arguments.bootstrap_samples,
                randomisations=arguments.randomisations,
                seed=arguments.seed,
                names=(arguments.runs[1], arguments.runs[0]),
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

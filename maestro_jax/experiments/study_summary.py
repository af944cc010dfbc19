"""What a study has found so far, as plain JSON values: scores, significance, curves, costs.

Scores are computed again from the stored hypotheses. A method and the baseline are compared over
the seeds that both have: an utterance with its hypotheses of all seeds is one block, which the
paired bootstrap draws and approximate randomisation exchanges as a whole. These tests tell of other
utterances and not of other seeds, of which Welch's t-test over the scores of the seeds tells.
"""

from __future__ import annotations

import dataclasses
import datetime
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from scipy import stats

from maestro_jax import provenance
from maestro_jax.evaluation.comparison import SIGNIFICANT, Comparison, compare
from maestro_jax.evaluation.evaluate import ERROR_RATE, score
from maestro_jax.evaluation.predictions import Prediction, read_predictions
from maestro_jax.experiments.study import (
    Cell,
    Study,
    cell_directory,
    read_failure,
    read_result,
)
from maestro_jax.reports.run_log import METRICS_FILE, read_curves
from maestro_jax.scoring.metrics import finite_or_none, get_metric

AVERAGE = "average"
"""The row of the mean over languages or directions, which counts most in every table."""

_SEED_MARK = "#seed"


def summarise(study: Study, output: epath.PathLike, command: Sequence[str]) -> dict[str, Any]:
    """Summarises the cells that are done, and names those that are not.

    Args:
        study: The study.
        output: Its directory.
        command: The command line that ran it.

    Returns:
        JSON values, as `maestro_jax.reports.study_page.write_study_page` takes them.
    """
    cells = study.cells()
    results = {
        cell.name: result for cell in cells if (result := read_result(output, cell)) is not None
    }
    failures = {
        cell.name: failure["error"]
        for cell in cells
        if cell.name not in results and (failure := read_failure(output, cell)) is not None
    }
    done = [cell for cell in cells if cell.name in results]
    return {
        "study": study.name,
        "baseline": study.baseline,
        "methods": [method.name for method in study.methods],
        "amounts": list(study.amounts),
        "seeds": list(study.seeds),
        "trials": {method.name: len(study.trials_of(method)) for method in study.methods},
        "chosen": dict(study.chosen),
        "chosen_by": study.chosen_by,
        "cells": {
            "all": len(cells),
            "done": len(done),
            "failed": failures,
            "missing": [c.name for c in cells if c.name not in results | failures],
        },
        "tables": _tables(study, output, done, results),
        "curves": _curves(study, output, done),
        "costs": _costs(study, done, results),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "trained": sorted({result["date"][:10] for result in results.values()}),
        "commits": sorted({_commit(result["git"]) for result in results.values()}),
        "devices": sorted({_devices(result["devices"]) for result in results.values()}),
        **provenance.versions(command),
    }


def join_seeds(by_seed: Mapping[int, Sequence[Prediction]]) -> list[Prediction]:
    """Puts the hypotheses of several seeds together; `block_of` gives an utterance's own id."""
    return [
        dataclasses.replace(each, id=f"{each.id}{_SEED_MARK}{seed}", index=-1)
        for seed, predictions in by_seed.items()
        for each in predictions
    ]


def block_of(prediction: Prediction) -> str:
    """Returns the id that a prediction had before `join_seeds`."""
    return prediction.id.rpartition(_SEED_MARK)[0]


def confidence_band(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Computes means over seeds and their 95% confidence intervals by Student's t distribution.

    Args:
        values: [seeds, points].

    Returns:
        Means and lower and upper ends, [points] each; the ends are NaN of a single seed.
    """
    count = len(values)
    mean = values.mean(axis=0)
    if count < 2:
        return mean, np.full_like(mean, np.nan), np.full_like(mean, np.nan)
    half = stats.t.ppf(0.975, count - 1) * values.std(axis=0, ddof=1) / math.sqrt(count)
    return mean, mean - half, mean + half


def _tables(
    study: Study,
    output: epath.PathLike,
    cells: Sequence[Cell],
    results: Mapping[str, Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """Returns a table for each test set and condition, of the test sets first."""
    sets: dict[tuple[str, str, str], dict[tuple[str, str], dict[int, list[Prediction]]]] = {}
    kinds = {}
    for cell in cells:
        for record in results[cell.name]["evaluations"]:
            key = (record["split"], record["test_set"], record["condition"])
            kinds[key] = record["kind"]
            by_row = sets.setdefault(key, {}).setdefault((cell.method.name, cell.amount), {})
            path = cell_directory(output, cell) / record["hypotheses"]
            by_row[cell.seed] = read_predictions(path)
    order = sorted(sets, key=lambda key: (key[0] != "test", key[1], key[2] != "", key[2]))
    tables = []
    for key in order:
        split, test_set, condition = key
        members = sets[key]
        rows = []
        for amount in study.amounts:
            baseline = members.get((study.baseline, amount))
            for method in study.methods:
                own = members.get((method.name, amount))
                if own is None:
                    continue
                of_row = [c for c in cells if (c.method.name, c.amount) == (method.name, amount)]
                is_baseline = method.name == study.baseline
                rows.append(
                    {
                        "method": method.name,
                        "amount": amount,
                        "minutes": results[of_row[0].name]["minutes"],
                        "seeds": sorted(own),
                        "scores": _scores(own, kinds[key], test_set),
                        **_compared(own, None if is_baseline else baseline, study.metric),
                    }
                )
        _adjust(rows, study.baseline)
        tables.append(
            {
                "split": split,
                "test_set": test_set,
                "condition": condition,
                "kind": kinds[key],
                "rows": rows,
            }
        )
    return tables


def _scores(
    by_seed: Mapping[int, Sequence[Prediction]], kind: Any, name: str
) -> dict[str, dict[str, Any]]:
    """Returns mean, standard deviation and values by seed: by language, then by metric."""
    values: dict[str, dict[str, dict[int, float]]] = {}
    for seed, predictions in sorted(by_seed.items()):
        evaluation = score(predictions, kind=kind, name=name, bootstrap_samples=0)
        found = {
            row.direction: {metric: each.value for metric, each in row.scores.items()}
            for row in evaluation.rows
        }
        found[AVERAGE] = dict(evaluation.average()[0])
        for row, scores in found.items():
            for metric, value in scores.items():
                values.setdefault(row, {}).setdefault(metric, {})[seed] = value
    return {
        row: {metric: _spread(each) for metric, each in by_metric.items()}
        for row, by_metric in values.items()
    }


def _spread(values: Mapping[int, float]) -> dict[str, Any]:
    numbers = np.array(list(values.values()), np.float64)
    deviation = float(numbers.std(ddof=1)) if len(numbers) > 1 else None
    _, low, high = confidence_band(numbers)
    return {
        "mean": finite_or_none(float(numbers.mean())),
        "sd": finite_or_none(deviation),
        "interval": [float(low), float(high)] if np.isfinite([low, high]).all() else None,
        "by_seed": {str(seed): finite_or_none(value) for seed, value in values.items()},
    }


def _compared(
    own: Mapping[int, Sequence[Prediction]],
    baseline: Mapping[int, Sequence[Prediction]] | None,
    metric: str | None,
) -> dict[str, Any]:
    """Returns the intervals of a row, and its comparison with the baseline."""
    alone = compare(
        join_seeds(own), join_seeds(own), metric=metric, randomisations=0, blocks=block_of
    )
    name = alone.average.metric
    content: dict[str, Any] = {
        "metric": name,
        "title": "error rate %" if name == ERROR_RATE else get_metric(name).title,
        "higher_is_better": alone.average.higher_is_better,
        "intervals": {row.name: row.interval for row in (*alone.rows, alone.average)},
        "comparison": None,
    }
    common = sorted(set(own) & set(baseline or {}))
    if baseline is not None and common:
        found = compare_seeds(own, baseline, metric)
        content["comparison"] = {"seeds": common, **found.as_dict()}
    return content


def _adjust(rows: Sequence[dict[str, Any]], baseline: str) -> None:
    """Adds to the comparisons of a table: p over seeds, p for all rows together, significance.

    A difference is significant if both tests over utterances say so with that many rows.
    """
    compared = [row for row in rows if row["comparison"] is not None]
    baselines = {row["amount"]: row for row in rows if row["method"] == baseline}
    p_values = []
    for row in compared:
        average = row["comparison"]["average"]
        found = [average["bootstrap_p_value"], average["randomisation_p_value"]]
        p_values.append(max((p for p in found if p is not None), default=1.0))
        sides = (
            list(each["scores"][AVERAGE][row["metric"]]["by_seed"].values())
            for each in (row, baselines[row["amount"]])
        )
        row["comparison"]["seeds_p_value"] = seeds_p_value(*sides)
    for row, p_value in zip(compared, holm(p_values), strict=True):
        row["comparison"]["adjusted_p_value"] = p_value
        row["comparison"]["significant"] = p_value < SIGNIFICANT


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusts p-values for their number (Holm 1979).

    Below 0.05, the chance that any of those differences is none is at most 0.05.

    Args:
        p_values: Of the comparisons of a family, in any order.

    Returns:
        The adjusted ones, in the same order.
    """
    count = len(p_values)
    adjusted = [0.0] * count
    largest = 0.0
    for rank, index in enumerate(np.argsort(p_values)):
        largest = max(largest, min(1.0, (count - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def seeds_p_value(own: Sequence[float | None], baseline: Sequence[float | None]) -> float | None:
    """Computes the p-value of Welch's t-test between the scores of the seeds of two methods.

    Returns:
        None with fewer than two seeds of either, or without any spread.
    """
    sides = [[score for score in side if score is not None] for side in (own, baseline)]
    if min(map(len, sides)) < 2 or all(np.ptp(side) == 0 for side in sides):
        return None
    (mean, deviation), (other_mean, other_deviation) = (
        (np.mean(side), np.std(side, ddof=1)) for side in sides
    )
    found = stats.ttest_ind_from_stats(
        mean,
        deviation,
        len(sides[0]),
        other_mean,
        other_deviation,
        len(sides[1]),
        equal_var=False,
    )
    return float(found.pvalue)


def compare_seeds(
    own: Mapping[int, Sequence[Prediction]],
    baseline: Mapping[int, Sequence[Prediction]],
    metric: str | None = None,
) -> Comparison:
    """Compares two methods over the seeds that both have.

    Args:
        own: Predictions by seed.
        baseline: Those of the baseline.
        metric: As of `compare`.
    """
    common = sorted(set(own) & set(baseline))
    return compare(
        join_seeds({seed: own[seed] for seed in common}),
        join_seeds({seed: baseline[seed] for seed in common}),
        metric=metric,
        blocks=block_of,
    )


def _curves(study: Study, output: epath.PathLike, cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """Returns the validation scores over the steps of fine-tuning, with bands over seeds."""
    curves = []
    for amount in study.amounts:
        for method in study.methods:
            directories = [
                cell_directory(output, cell) / "finetune"
                for cell in cells
                if (cell.method.name, cell.amount) == (method.name, amount)
            ]
            logged = [read_curves(each) for each in directories if (each / METRICS_FILE).exists()]
            for name in ("validation/wer", "validation/cer", "validation/bleu"):
                found = [each[name] for each in logged if name in each]
                if not found or any(len(one[0]) != len(found[0][0]) for one in found):
                    continue
                values = np.stack([values for _, values in found])
                mean, low, high = confidence_band(values)
                curves.append(
                    {
                        "method": method.name,
                        "amount": amount,
                        "metric": name.rpartition("/")[2],
                        "seeds": len(found),
                        "steps": [int(step) for step in found[0][0]],
                        **{
                            key: [finite_or_none(float(value)) for value in band]
                            for key, band in (("mean", mean), ("low", low), ("high", high))
                        },
                    }
                )
                break
    return curves


def _costs(
    study: Study, cells: Sequence[Cell], results: Mapping[str, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Returns what a cell of each method and amount took, on average over its seeds."""
    costs = []
    for amount in study.amounts:
        for method in study.methods:
            own = [
                results[cell.name]
                for cell in cells
                if (cell.method.name, cell.amount) == (method.name, amount)
            ]
            if not own:
                continue
            stages = [list(result["stages"].values()) for result in own]
            flops = [sum(stage["flops"] or math.nan for stage in each) for each in stages]
            host = [result["memory"]["host_gib"] for result in own]
            device = [result["memory"]["device_gib"] or 0.0 for result in own]
            costs.append(
                {
                    "method": method.name,
                    "amount": amount,
                    "seeds": len(own),
                    "steps": {n: stage["steps"] for n, stage in own[0]["stages"].items()},
                    "flops": finite_or_none(float(np.mean(flops))),
                    "hours": float(np.mean([result["seconds"] for result in own])) / 3600,
                    "host_gib": max(host),
                    "device_gib": max(device) or None,
                }
            )
    return costs


def _commit(git: Mapping[str, Any] | None) -> str:
    if git is None:
        return "unknown"
    return str(git["commit"]) + (" with changes" if git["changed"] else "")


def _devices(devices: Mapping[str, Any]) -> str:
    return f"{devices['count']} x {devices['kind']}"

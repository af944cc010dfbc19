"""Chooses the trial of each method of a study by the validation set.

Every method has as many trials, over settings such as its peak learning rate, and each is trained
and fine-tuned as a cell of the study is, with a seed that no result is reported of.
"""

from __future__ import annotations

import pprint
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from maestro_jax.errors import UserError
from maestro_jax.experiments.study import CHOSEN, Study
from maestro_jax.experiments.study_summary import AVERAGE, summarise
from maestro_jax.files import as_path, write_atomically

_TEXT = """\
# The trial of each method with the best score on the validation set: `maestro study --tune`.
#
# Required to be set: nothing; it comes after the file of the study.

from __gin__ import dynamic_registration

from maestro_jax.experiments import study

study.Study:
  chosen_by = {chosen_by!r}
  chosen = {chosen}
"""


def choose(study: Study, summary: Mapping[str, Any]) -> dict[str, str]:
    """Returns the name of the best trial of each method; the first of those that are equally good.

    Args:
        study: The study.
        summary: The summary of its `tuning()`, all of whose cells are done.

    Raises:
        UserError: Some trials are not done.
    """
    lacking = [*summary["cells"]["failed"], *summary["cells"]["missing"]]
    if lacking:
        raise UserError(
            f"{len(lacking)} of {summary['cells']['all']} trials are not done, so nothing is "
            f"chosen yet: {', '.join(lacking)}; the same command runs them"
        )
    scores: dict[str, list[float]] = {}
    for table in summary["tables"]:
        for row in table["rows"]:
            value = row["scores"][AVERAGE][row["metric"]]["mean"]
            worse = np.inf if value is None else -value if row["higher_is_better"] else value
            scores.setdefault(row["method"], []).append(worse)
    # Where there are several test sets, the mean over them.
    names = iter(summary["methods"])
    chosen = {}
    for method in study.methods:
        trials = {trial: np.mean(scores[next(names)]) for trial in study.trials_of(method)}
        chosen[method.name] = min(trials, key=lambda trial: trials[trial])
    return chosen


def write_chosen(study: Study, output: epath.PathLike) -> epath.Path:
    """Writes a gin file that sets `Study.chosen`.

    Args:
        study: The study.
        output: Directory of its trials.

    Returns:
        The path of the file.

    Raises:
        UserError: Some trials are not done.
    """
    tuning = study.tuning()
    summary = summarise(tuning, output, [])
    chosen = choose(study, summary)
    sets = ", ".join(dict.fromkeys(table["test_set"] for table in summary["tables"]))
    text = _TEXT.format(
        chosen_by=f"{summary['tables'][0]['rows'][0]['title']} of {sets}, seed {study.tuning_seed}",
        chosen=pprint.pformat(chosen, width=100, sort_dicts=False).replace("\n", "\n           "),
    )
    path = as_path(output) / CHOSEN
    write_atomically(path, text.encode())
    return path

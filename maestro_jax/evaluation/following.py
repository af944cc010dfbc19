"""Evaluates the checkpoints of a run while it trains, each as it appears.

Training keeps few checkpoints. One that it removes before or while it is evaluated is passed over,
with a line that says so. What was evaluated is in ``evaluation/follow.jsonl``, one line per
checkpoint and test set, so that an interrupted evaluation goes on where it stood.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import logging
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
from etils import epath

from maestro_jax.errors import UserError
from maestro_jax.evaluation.evaluate import ERROR_RATE
from maestro_jax.evaluation.results import SUBDIRECTORY
from maestro_jax.evaluation.run_evaluation import RunScores
from maestro_jax.evaluation.score_table import ScoreTable
from maestro_jax.files import as_path, write_atomically
from maestro_jax.scoring.metrics import finite_or_none
from maestro_jax.training import distributed
from maestro_jax.training.checkpoint_files import STATE
from maestro_jax.training.saved_checkpoints import SUBDIRECTORY as CHECKPOINTS

log = logging.getLogger(__name__)

FOLLOW_FILE = "follow.jsonl"
CURVE_FILE = "curve.png"
POLL_SECONDS = 20.0
_NOTHING, _STOP = -1, -2


@dataclasses.dataclass(frozen=True, kw_only=True)
class FollowedScore:
    """The score of one checkpoint on one test set.

    Attributes:
        step: Step of the checkpoint.
        search: Weights and search: the name of the directory of results without the step.
        test_set: Name of the test set, with its split.
        metric: Metric of the scores: `error_rate` or `bleu`.
        average: Average over the rows; None where it is not defined.
        rows: Score of each row.
        utterances: Number of utterances scored.
        date: When the evaluation was complete.
    """

    step: int
    search: str
    test_set: str
    metric: str
    average: float | None
    rows: dict[str, float | None]
    utterances: int
    date: str

    @classmethod
    def of_table(cls, table: ScoreTable, step: int, search: str) -> FollowedScore:
        """Takes the scores of a table."""
        evaluation = table.evaluation
        metric = ERROR_RATE if evaluation.kind == "asr" else "bleu"
        means, _ = evaluation.average()
        return cls(
            step=step,
            search=search,
            test_set=evaluation.name,
            metric=metric,
            average=finite_or_none(means[metric]),
            rows={row.direction: finite_or_none(row.value(metric)) for row in evaluation.rows},
            utterances=evaluation.utterances,
            date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        )


def read_followed(model_dir: epath.PathLike) -> list[FollowedScore]:
    """Reads the scores that were followed so far.

    Raises:
        UserError: The file holds something else.
    """
    path = as_path(model_dir) / SUBDIRECTORY / FOLLOW_FILE
    if not path.exists():
        return []
    try:
        return [FollowedScore(**json.loads(line)) for line in path.read_text().splitlines() if line]
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} is not what was written; move it away") from error


def complete_steps(model_dir: epath.PathLike) -> list[int]:
    """Returns the steps of the complete checkpoints of a model directory, ascending."""
    directory = as_path(model_dir) / CHECKPOINTS
    if not directory.is_dir():
        return []
    # The name of one that is being written has an ending.
    return sorted(
        int(path.name)
        for path in directory.iterdir()
        if path.name.isdecimal() and (path / STATE).is_dir()
    )


def follow(
    model_dir: epath.PathLike,
    evaluate: Callable[[int], RunScores],
    *,
    last_step: int,
    search: str,
    test_sets: Sequence[str],
    draw: Callable[[Sequence[FollowedScore], epath.Path], None],
    timeout: float = math.inf,
    poll: float = POLL_SECONDS,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> list[FollowedScore]:
    """Evaluates checkpoints as they appear, in the order of their steps.

    Ends after the last step of the run, after a time without a new checkpoint, or when it is
    interrupted (SIGINT). Every process of several calls this; the first one decides.

    Args:
        model_dir: Model directory of the run.
        evaluate: Evaluates the checkpoint of a step; must raise where it is gone.
        last_step: Step at which training ends.
        search: Name of weights and search, such as `ema-greedy`; other scores in the file are left
            as they are.
        test_sets: Names of the test sets. Checkpoints of which the file has all scores are done.
        draw: Draws the scores into a file.
        timeout: Seconds to wait for another checkpoint.
        poll: Seconds between two looks at the directory.
        sleep: Waits.
        clock: Returns the time in seconds.

    Returns:
        All scores with this search, earlier ones included, on the first process.

    Raises:
        UserError: As `evaluate` does for a checkpoint that is still there.
    """
    directory = as_path(model_dir) / SUBDIRECTORY
    scores = read_followed(model_dir)
    known = {(one.step, one.test_set) for one in scores if one.search == search}
    done = {step for step, _ in known if all((step, name) in known for name in test_sets)}
    gone: set[int] = set()
    waiting_since = clock()
    try:
        while True:
            step = _STOP if last_step in done | gone else _NOTHING
            new = [one for one in complete_steps(model_dir) if one not in done | gone]
            if new:
                step = new[0]
            elif step == _NOTHING and clock() - waiting_since > timeout:
                log.warning("no new checkpoint for %.0f s: the evaluation ends", timeout)
                step = _STOP
            step = distributed.first_process_decides(step)
            if step == _STOP:
                break
            if step == _NOTHING:
                sleep(poll)
                continue
            found = _evaluated(model_dir, evaluate, step)
            waiting_since = clock()
            if found is None:
                gone.add(step)
                continue
            done.add(step)
            if jax.process_index():
                continue
            fresh = [FollowedScore.of_table(table, step, search) for table in found.tables]
            replaced = {(one.step, one.search, one.test_set) for one in fresh}
            scores = [one for one in scores if (one.step, one.search, one.test_set) not in replaced]
            scores = sorted([*scores, *fresh], key=lambda one: one.step)
            _write(scores, directory)
            draw([one for one in scores if one.search == search], directory / CURVE_FILE)
            for one in fresh:
                average = "undefined" if one.average is None else f"{one.average:.2f}"
                log.info("step %d: %s %s on %s", step, one.metric, average, one.test_set)
    except KeyboardInterrupt:
        log.warning("interrupted after %d checkpoints", len(done))
    return [one for one in scores if one.search == search]


def _evaluated(
    model_dir: epath.PathLike, evaluate: Callable[[int], RunScores], step: int
) -> RunScores | None:
    """Evaluates a checkpoint; None, with a line, if training has removed it."""
    try:
        return evaluate(step)
    except Exception as error:
        if step in complete_steps(model_dir):
            raise
        log.warning(
            "the checkpoint of step %d was removed before it was evaluated (%s); keep more of "
            "them: TrainRun.keep_checkpoints",
            step,
            " ".join(str(error).split())[:100] or type(error).__name__,
        )
        return None


def _write(scores: Sequence[FollowedScore], directory: epath.Path) -> None:
    """Writes the whole file: object stores cannot append."""
    directory.mkdir(parents=True, exist_ok=True)
    lines: list[Any] = [json.dumps(dataclasses.asdict(one), ensure_ascii=False) for one in scores]
    write_atomically(directory / FOLLOW_FILE, ("\n".join(lines) + "\n").encode())

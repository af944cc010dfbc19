"""Compares a run with the checkpoints of its model directory, before anything is written there."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from etils import epath

from maestro_jax.errors import UserError
from maestro_jax.training.changes import changes_table
from maestro_jax.training.records import TrainingRecord
from maestro_jax.training.saved_checkpoints import (
    SUBDIRECTORY,
    check_same_model,
    has_same_optimizer,
    saved_record,
    saved_shapes,
)
from maestro_jax.training.state import TrainState

if TYPE_CHECKING:
    from maestro_jax.training.run import TrainRun

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Start:
    """Says from where a run goes on.

    Attributes:
        record: Record of its newest checkpoint; an empty one for a run that begins.
        same_optimizer: Whether the state of its optimizer can be restored.
    """

    record: TrainingRecord = TrainingRecord()
    same_optimizer: bool = True


def check_start(
    run: TrainRun,
    model_dir: epath.Path,
    steps: Sequence[int],
    abstract: TrainState,
    *,
    allow_changes: bool,
) -> Start:
    """Checks that a run continues its checkpoints, and logs what it changes.

    Args:
        run: The run.
        model_dir: The model directory.
        steps: Steps of its checkpoints, ascending; none for a run that begins.
        abstract: Shapes of the run's state.
        allow_changes: Whether the user has asked for what changes the result.

    Raises:
        UserError: The run has another model, or changes the result and the user has not asked for
            it.
    """
    newest = _newest_record(model_dir, steps)
    if newest is None:
        return Start()
    directory, record = newest
    found = record.changes(run)
    if found:
        log.warning("changed since the last checkpoint:\n%s", changes_table(found))
    check_same_model(directory, abstract, optimizer=False)
    record.check_compatible(run, model_dir, allow_changes=allow_changes)
    same_optimizer = has_same_optimizer(directory, abstract)
    if not same_optimizer:
        if not allow_changes:
            raise UserError(
                f"{directory} has the state of another optimizer: set TrainRun.optimizer back, "
                "choose another model directory, or give --allow_changes to start its state anew."
            )
        log.warning("the state of the optimizer, with its warm-up, is started anew")
    return Start(record, same_optimizer)


def _newest_record(
    model_dir: epath.Path, steps: Sequence[int]
) -> tuple[epath.Path, TrainingRecord] | None:
    """Returns the newest readable checkpoint, if there is one, and its record."""
    for step in reversed(steps):
        directory = model_dir / SUBDIRECTORY / str(step)
        try:
            # Damaged ones are named when a checkpoint is restored.
            saved_shapes(directory, "params")
            return directory, TrainingRecord.from_json(saved_record(directory))
        except (UserError, KeyError):
            continue
    return None

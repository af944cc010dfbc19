"""Checkpoints of earlier versions: the model as it was when they were made."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence

from etils import epath

from maestro_jax.errors import UserError
from maestro_jax.training.checkpoints import Which, saved_shapes
from maestro_jax.training.run import TrainRun

log = logging.getLogger(__name__)


def as_saved(run: TrainRun, directory: epath.PathLike, which: Which = "ema") -> TrainRun:
    """A run without the parts that its model has got since a checkpoint was made.

    These are: the refiner's last layer normalisation.

    Args:
        run: The run that the model directory describes.
        directory: A model directory (its newest checkpoint counts), or one checkpoint in it.
        which: The parameters that are to be read.

    Returns:
        The run, whose model computes what it computed when it was trained.
    """
    refiner = getattr(run.model, "refiner", None)
    if refiner is None or not refiner.normalize:
        return run
    if "refiner/final_norm/scale" in saved_shapes(directory, which):
        return run
    model = run.model.clone(refiner=refiner.clone(normalize=False))
    return dataclasses.replace(run, model=model)


def as_begun(run: TrainRun, directory: epath.PathLike, steps: Sequence[int]) -> TrainRun:
    """A run that goes on from its own checkpoints, with the model with which it began.

    Args:
        run: The run.
        directory: The directory of its checkpoints.
        steps: Their steps, ascending; none for a run that begins.

    Returns:
        See `as_saved`.
    """
    for step in reversed(steps):
        try:
            begun = as_saved(run, epath.Path(directory) / str(step), "params")
        except UserError:
            # A damaged one; `Checkpoints.restore_latest` names it. All are of one model.
            continue
        if begun is not run:
            log.warning(
                "%s was begun by an earlier version: its refiner ends without a layer "
                "normalisation, and stays so",
                epath.Path(directory).parent,
            )
        return begun
    return run

"""Checkpoints of earlier versions: the model as it was when they were made."""

from __future__ import annotations

import dataclasses

from etils import epath

from maestro_jax.training.checkpoints import Which, saved_shapes
from maestro_jax.training.run import TrainRun


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

"""Fits a run to fewer devices, or more, than it began with: with the same batches.

What limits a run on fewer devices is memory. So a batch stays divided into as many parts as it was
when the run began, one for each device along ``data`` and ``fsdp`` and each microbatch; fewer
devices take more microbatches.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from typing import TYPE_CHECKING

from maestro_jax.errors import UserError

if TYPE_CHECKING:
    from maestro_jax.training.run import TrainRun

log = logging.getLogger(__name__)


def batch_parts(run: TrainRun, devices: int) -> int:
    """Returns into how many parts a run divides a batch, of which each device has one at a time.

    Args:
        run: The run, whose mesh fits the devices.
        devices: Number of devices.
    """
    data, fsdp, _ = run.partitioning.shape(devices)
    return data * fsdp * run.accumulate


def fitted(run: TrainRun, devices: int, parts: int) -> TrainRun:
    """Fits mesh and accumulation of a run to its devices.

    Args:
        run: The run.
        devices: Number of devices.
        parts: Parts into which it divided a batch when it began (`batch_parts`); 0 if it begins.

    Returns:
        The run with a mesh for the devices, and at least as many parts. Where no number of
        microbatches gives as many, it has the most that divide all batch sizes.
    """
    partitioning = run.partitioning
    try:
        partitioning.shape(devices)
    except UserError:
        partitioning = partitioning.fitted(devices)
        log.warning(
            "mesh_shape %s does not fit %d devices: %s is taken",
            run.partitioning.mesh_shape,
            devices,
            partitioning.shape(devices),
        )
    data, fsdp, _ = partitioning.shape(devices)
    rows = math.gcd(*(size for sizes in run.batch_sizes.values() for size in sizes))
    possible = [n for n in range(1, rows + 1) if rows % (n * data * fsdp) == 0]
    enough = [n for n in possible if n * data * fsdp >= parts]
    accumulate = run.accumulate
    if parts and possible:
        accumulate = enough[0] if enough else possible[-1]
    if accumulate != run.accumulate:
        log.warning(
            "%d devices take %d microbatches instead of %d", devices, accumulate, run.accumulate
        )
    return dataclasses.replace(run, partitioning=partitioning, accumulate=accumulate)

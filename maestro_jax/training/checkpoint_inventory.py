"""Lists, verifies and removes the checkpoints of a model directory."""

from __future__ import annotations

import dataclasses
import datetime
import json
from collections.abc import Iterable, Iterator
from typing import Any

import orbax.checkpoint as ocp
from etils import epath

from maestro_jax.errors import UserError
from maestro_jax.files import absolute_path, files_below, models_below
from maestro_jax.training import checkpoint_files
from maestro_jax.training.saved_checkpoints import BEST_FILE, SUBDIRECTORY


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointSummary:
    """Describes one checkpoint.

    Attributes:
        directory: Its directory.
        step: Its step.
        size: Size of its files in bytes.
        saved: When it was saved.
        damage: What is wrong with it; None if it is whole.
        best: Metric and value, as ``validation/wer 0.12``, of the best checkpoint; empty for
            others.
    """

    directory: epath.Path
    step: int
    size: int
    saved: datetime.datetime
    damage: str | None
    best: str

    def row(self) -> dict[str, Any]:
        """Returns the row of a table."""
        return {
            "step": self.step,
            "GB": f"{self.size / 1e9:.3f}",
            "saved": f"{self.saved:%Y-%m-%d %H:%M:%S}",
            "state": "whole" if self.damage is None else f"damaged: {self.damage}",
            "best": self.best,
        }


def summaries(model_dir: epath.PathLike, *, thorough: bool = False) -> Iterator[CheckpointSummary]:
    """Yields what is known of each checkpoint of a model directory, by ascending step.

    Args:
        model_dir: The model directory.
        thorough: Whether to read all arrays, also in an object store.

    Raises:
        UserError: The directory has no checkpoints.
        RestartableError: The object store does not answer.
    """
    path = absolute_path(model_dir)
    directory = path / SUBDIRECTORY
    steps = sorted(ocp.utils.checkpoint_steps(directory)) if directory.is_dir() else []
    if not steps:
        raise UserError(
            f"{model_dir} has no checkpoints; give a model directory{models_below(path)}."
        )
    best: dict[str, Any] = {}
    if (path / BEST_FILE).exists():
        best = json.loads((path / BEST_FILE).read_text())
    for step in steps:
        checkpoint = directory / str(step)
        stats = [file.stat() for file in files_below(checkpoint)]
        yield CheckpointSummary(
            directory=checkpoint,
            step=step,
            size=sum(stat.length for stat in stats),
            saved=datetime.datetime.fromtimestamp(max((stat.mtime for stat in stats), default=0)),
            damage=checkpoint_files.damage(checkpoint, thorough=thorough),
            best=f"{best['metric']} {best['value']:.4g}" if best.get("step") == step else "",
        )


def superfluous(
    checkpoints: Iterable[CheckpointSummary], *, keep_last: int, keep_every: int | None = None
) -> list[CheckpointSummary]:
    """Chooses the checkpoints that may be removed.

    Args:
        checkpoints: Result of `summaries`.
        keep_last: Number of newest whole checkpoints to keep, 1 or more.
        keep_every: Keep also whole ones whose step is a multiple of it.

    Returns:
        Those that are neither kept nor the best one: damaged ones too, but none if none is whole.
    """
    checkpoints = list(checkpoints)
    whole = [each for each in checkpoints if each.damage is None]
    if not whole:
        return []
    kept = {each.step for each in whole[-keep_last:]}
    kept |= {each.step for each in checkpoints if each.best}
    if keep_every is not None:
        kept |= {each.step for each in whole if each.step % keep_every == 0}
    return [each for each in checkpoints if each.step not in kept]

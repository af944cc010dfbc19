"""Averages the parameters of several checkpoints of one run.

The mean of the last few checkpoints often generalises better than the last one (Vaswani et al.
2017, arXiv 1706.03762, section 6.1; Izmailov et al. 2018, arXiv 1803.05407), also beside a moving
average. As in fairseq, ESPnet and NeMo the result is a checkpoint of its own: here in a model
directory that `maestro eval`, `maestro transcribe` and `INIT_FROM` take like any other.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from maestro_jax.errors import UserError
from maestro_jax.files import absolute_path, write_atomically
from maestro_jax.text.language_tokens import LANGUAGE_TOKENS_FILE
from maestro_jax.text.languages import LANGUAGES_FILE
from maestro_jax.text.vocabularies import MODEL_FILE
from maestro_jax.training.checkpoint_files import check_whole, damage
from maestro_jax.training.checkpoints import Checkpoints
from maestro_jax.training.partial_restore import restore_params
from maestro_jax.training.saved_checkpoints import SUBDIRECTORY, Which, saved_record, saved_shapes

log = logging.getLogger(__name__)

AVERAGED_DIRECTORY = "averaged"
"""Name of the directory of averages in a model directory."""


def last_steps(model_dir: epath.PathLike, count: int) -> list[int]:
    """Returns the steps of the last whole checkpoints of a model directory, ascending.

    Raises:
        UserError: There are fewer.
    """
    directory = absolute_path(model_dir) / SUBDIRECTORY
    names = [path.name for path in directory.iterdir()] if directory.is_dir() else []
    steps: list[int] = []
    for step in sorted((int(name) for name in names if name.isdecimal()), reverse=True):
        if len(steps) == count:
            break
        reason = damage(directory / str(step))
        if reason is None:
            steps.insert(0, step)
        else:
            log.warning(
                "the checkpoint %s is damaged (%s); left out", directory / str(step), reason
            )
    if len(steps) < count:
        raise UserError(
            f"{model_dir} has {len(steps)} whole checkpoints "
            f"({', '.join(map(str, steps)) or 'none'}), not {count}: ask for as many, and let the "
            "next run keep more (--gin.TrainRun.keep_checkpoints)."
        )
    return steps


def average_checkpoints(
    model_dir: epath.PathLike,
    steps: Sequence[int],
    output_dir: epath.PathLike | None = None,
) -> epath.Path:
    """Writes a model directory with one checkpoint, the mean of several.

    Both the parameters of the steps and their moving averages are averaged, in float64, where the
    checkpoints have them. Memory holds the parameters of one checkpoint and their sums.

    Args:
        model_dir: The model directory of the run.
        steps: Steps of its checkpoints; the result has the last one.
        output_dir: Directory to write; by default `averaged` in the model directory.

    Returns:
        The directory of the new checkpoint.

    Raises:
        UserError: A checkpoint is missing, damaged or of another model, or the directory has other
            checkpoints already.
    """
    source = absolute_path(model_dir)
    target = absolute_path(output_dir) if output_dir else source / AVERAGED_DIRECTORY
    steps = sorted(set(steps))
    if not steps:
        raise UserError("there is no checkpoint to average: give at least one step.")
    directories = [source / SUBDIRECTORY / str(step) for step in steps]
    for directory in directories:
        if not directory.is_dir():
            raise UserError(f"there is no checkpoint {directory} to average.")
        check_whole(directory)
    last = steps[-1]
    record = saved_record(directories[-1]) | {"step": last, "averaged_steps": steps}
    written = target / SUBDIRECTORY / str(last)
    if (target / SUBDIRECTORY).exists():
        if written.is_dir() and saved_record(written).get("averaged_steps") == steps:
            log.info("%s has this average already", written)
            return written
        raise UserError(f"{target} has checkpoints; give another --output, or remove it.")
    state = {}
    names: tuple[tuple[str, Which], ...] = (("params", "params"), ("ema_params", "ema"))
    for field, which in names:
        try:
            saved_shapes(directories[-1], which)
        except UserError:
            continue  # A run without a moving average.
        state[field] = _mean(directories, which)
    target.mkdir(parents=True, exist_ok=True)
    for name in (MODEL_FILE, LANGUAGES_FILE, LANGUAGE_TOKENS_FILE):
        if (source / name).exists():
            write_atomically(target / name, (source / name).read_bytes())
    checkpoints = Checkpoints(target, keep=1)
    checkpoints.save(state, json.loads(json.dumps(record)))
    checkpoints.close()
    return written


def _mean(directories: Sequence[epath.Path], which: Which) -> Any:
    """Averages the parameters of checkpoints, which are read one after the other."""
    sums: Any = None
    for directory in directories:
        params = restore_params(directory, which)
        if sums is None:
            types = jax.tree.map(lambda leaf: leaf.dtype, params)
            sums = jax.tree.map(lambda leaf: np.array(leaf, np.float64), params)
        else:
            _check_same_shapes(sums, params, directories[0], directory)
            jax.tree.map(lambda total, leaf: np.add(total, leaf, out=total), sums, params)
        del params  # Before the next ones are read.
    return jax.tree.map(lambda total, dtype: (total / len(directories)).astype(dtype), sums, types)


def _check_same_shapes(one: Any, other: Any, first: epath.Path, directory: epath.Path) -> None:
    shapes = [
        {jax.tree_util.keystr(path): leaf.shape for path, leaf in leaves}
        for leaves in (jax.tree_util.tree_leaves_with_path(tree) for tree in (one, other))
    ]
    if shapes[0] != shapes[1]:
        name = sorted(set(shapes[0].items()) ^ set(shapes[1].items()))[0][0]
        raise UserError(f"{directory} is not of the model of {first}: they differ in {name}.")

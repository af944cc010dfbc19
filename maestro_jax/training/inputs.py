"""Where the batches of a run come from, and the vocabulary that their tokens belong to."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from maestro_jax.errors import UserError
from maestro_jax.training import checkpoints, model_vocabulary, parameter_trees
from maestro_jax.training.checkpoints import find_checkpoint, saved_shapes
from maestro_jax.training.partitioning import BATCH_AXES
from maestro_jax.training.run import TrainRun
from maestro_jax.vocabularies.vocabulary import MODEL_FILE, Vocabulary

log = logging.getLogger(__name__)

Batches = Callable[[int], Iterator[Any]]


def task_batches(
    run: TrainRun, mesh: Mesh, model_dir: epath.Path, data_dir: str | Path | None
) -> Batches:
    """Batches from the seqio tasks of a run; their vocabulary is kept with the model.

    Args:
        run: The run.
        mesh: The device mesh, which says what this process loads.
        model_dir: The directory that gets ``vocabulary.model``.
        data_dir: The root of the prepared data.

    Returns:
        From the number of steps done to an iterator of numpy batches (this process's rows).
    """
    # Imported here: these import TensorFlow, which all other training code does without.
    from maestro_jax.data.data_dir import data_root
    from maestro_jax.data.loader import StreamLoader

    index, count = run.partitioning.data_shard(mesh)

    def batches(start_step: int) -> Iterator[Any]:
        loader = StreamLoader(
            {name: run.streams[name] for name in run.used_streams},
            split="train",
            seed=run.seed,
            start_step=start_step,
            data_dir=data_root(data_dir),
            process_index=index,
            process_count=count,
        )
        vocabulary = getattr(loader, "vocabulary", None)
        if vocabulary is not None:
            keep_vocabulary(run, vocabulary, model_dir)
        return iter(loader)

    return batches


def held_out_pairs(
    run: TrainRun, mesh: Mesh, data_dir: str | Path | None
) -> dict[str, np.ndarray] | None:
    """The pairs that diagnostics look at: drawn once, at the rates of the mixture.

    Args:
        run: The run.
        mesh: The device mesh, which must be able to share them.
        data_dir: The root of the prepared data.

    Returns:
        All of them, on every process; None where the run has no pairs, its objective no probe, or
        the mixture no such split, of which a line of the log tells.
    """
    config, paired = run.diagnostics, run.streams.get("paired")
    if paired is None or not hasattr(run.objective, "probe"):
        return None
    from maestro_jax.data.data_dir import data_root
    from maestro_jax.data.loader import StreamLoader

    devices = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    stream = dataclasses.replace(
        paired,
        mixture=config.mixture or paired.mixture,
        batch_size=-(-config.examples // devices) * devices,
        buckets=None,
        augmentation=None,
    )
    try:
        # Without a cache: no more is read than is looked at.
        loader = StreamLoader(
            {"paired": stream},
            split=config.split,
            seed=run.seed,
            data_dir=data_root(data_dir),
            cache_bytes=0,
        )
    except UserError as error:
        log.warning("diagnostics go without held-out pairs: %s", error)
        return None
    with loader:
        return next(loader)["paired"]


def keep_vocabulary(run: TrainRun, vocabulary: Vocabulary, model_dir: epath.Path) -> None:
    """Write ``vocabulary.model``; the same ids must mean the same tokens for a model's life.

    Args:
        run: The run.
        vocabulary: That of its data.
        model_dir: The model directory.

    Raises:
        UserError: The vocabulary is larger than the model's, or another one than before: than that
            of the model directory or of its checkpoint, or than that of ``init_from`` although what
            depends on it would be taken over.
    """
    size = getattr(run.model, "vocab_size", None)
    if size is not None and vocabulary.vocab_size > size:
        raise UserError(
            f"The vocabulary has {vocabulary.vocab_size} tokens, but the model's vocab_size is "
            f"{size}; set vocab_size to {vocabulary.vocab_size} or more."
        )
    content = vocabulary.model_bytes
    path = model_dir / MODEL_FILE
    if path.exists() and path.read_bytes() != content:
        raise UserError(
            f"{path} is not the vocabulary of this run's data; choose another model directory."
        )
    before = model_vocabulary.recorded_in(model_dir)
    if before not in (None, model_vocabulary.fingerprint(vocabulary)):
        raise UserError(
            f"the checkpoints of {model_dir} were trained with another vocabulary than that of "
            f"this run's data ({before['pieces']} and {vocabulary.vocab_size} pieces); train on "
            "data prepared with the former, or choose another model directory."
        )
    if run.init_from is not None:
        source = _another_vocabulary(run.init_from, vocabulary)
        taken = _taken_over_of_tokens(run) if source else ()
        if taken:
            raise UserError(
                f"{source} is another vocabulary than this run's, whose ids mean other tokens, "
                f"and {taken[0]} of it would be taken over; set init_exclude as "
                "runs/finetune_new_vocabulary.gin does, or train on data prepared with it."
            )
        if source:
            log.info("%s is another vocabulary; nothing that depends on it is taken over", source)
    # Last: a run that was refused leaves none behind.
    if jax.process_index() == 0:
        path.write_bytes(content)


def _another_vocabulary(init_from: str, vocabulary: Vocabulary) -> str | None:
    """Where the vocabulary of a checkpoint is, if it is another one; None if it is not known."""
    checkpoint = find_checkpoint(init_from)
    trained = model_vocabulary.recorded(checkpoint)
    if trained is not None:
        same = trained == model_vocabulary.fingerprint(vocabulary)
        return None if same else str(checkpoint.parent.parent / MODEL_FILE)
    for directory in (checkpoint, checkpoint.parent, checkpoint.parent.parent):
        source = directory / MODEL_FILE
        if source.exists() and source.read_bytes() != vocabulary.model_bytes:
            return str(source)
    return None


def _taken_over_of_tokens(run: TrainRun) -> list[str]:
    """Parameters with an entry a token that the run would begin with."""
    boxes = run.abstract_state().params
    leaves = jax.tree_util.tree_flatten_with_path(boxes, is_leaf=parameter_trees.is_box)[0]
    wanted = {
        parameter_trees.parameter_name(parameter_trees.path_keys(path)): box.value
        for path, box in leaves
        if parameter_trees.is_box(box) and "vocab" in box.names
    }
    return [
        name
        for name, shape in saved_shapes(run.init_from, run.init_which).items()
        if checkpoints.mismatch_reason(
            name, shape, wanted, include=run.init_include, exclude=run.init_exclude
        )
        is None
    ]

"""A model that was never trained, in a directory as `maestro train` leaves it.

Its weights are random, and such that it writes another text for each utterance: letters come and go
with the sound. Where utterances, processes or batches must not be mixed up, that is worth as much
as a trained one, and costs no training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
from narrow_model import NARROW

from maestro_jax.text.vocabularies import Vocabulary

GIN_FILES = (
    "runs/pretrain.gin",
    "models/tiny.gin",
    "objectives/maestro.gin",
    "data/minivox_small.gin",
)
"""A run that transcribes and translates."""


def write_random_model(
    directory: Path,
    vocabulary: Vocabulary,
    *,
    gin_files: Sequence[str] = GIN_FILES,
    bindings: Mapping[str, str] | None = None,
    step: int = 7,
) -> Path:
    """Writes configuration, vocabulary and one checkpoint.

    Args:
        directory: The model directory.
        vocabulary: What the model writes.
        gin_files: Its run.
        bindings: Over `NARROW`.
        step: The step of the checkpoint.

    Returns:
        The model directory.
    """
    from maestro_jax.gin_utils import gin_config, run_record
    from maestro_jax.training.checkpoints import Checkpoints
    from maestro_jax.training.model_vocabulary import fingerprint
    from maestro_jax.training.state import sharded_state

    bindings = {
        **NARROW,
        "VOCAB_SIZE": str(vocabulary.vocab_size),
        "DROPOUT": "0.0",
        "DIAGNOSTICS_EVERY": "0",
        "STEPS": "10",
        **(bindings or {}),
    }
    run = gin_config.parse_and_build(list(gin_files), bindings)
    run_record.write(directory, gin_config.record_texts(), ["maestro", "train"])
    (directory / "vocabulary.model").write_bytes(vocabulary.model_bytes)
    mesh = run.partitioning.mesh(jax.devices()[:1])
    rng = np.random.default_rng(5)
    pieces = [vocabulary.pieces([i])[0] for i in range(vocabulary.vocab_size)]
    bias = np.zeros(len(pieces))
    for index, piece in enumerate(pieces):
        # Letters and words, and neither the unknown letter nor the end of a sentence.
        bias[index] = {" ": 12, "\u2581": 12}.get(piece, -99 if piece.startswith("<") else 0)
    # Most frames end without a further letter.
    bias[0] = 18

    def draw(path: Sequence[object], leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        fan_in = max(1, int(np.prod(leaf.shape[:-1])))
        values = rng.normal(size=leaf.shape) / np.sqrt(fan_in)
        if name.endswith("scale"):
            values = np.ones(leaf.shape)
        elif name.endswith("bias"):
            values = np.zeros(leaf.shape)
        if name.endswith("decoder/output/kernel"):
            values *= 8
        if name.endswith("decoder/output/bias"):
            values = bias
        if name.endswith(("frame_projection/kernel", "label_projection/kernel")):
            values *= 3
        return values.astype(leaf.dtype)

    abstract = sharded_state(run, mesh).abstract.params
    params = jax.tree_util.tree_map_with_path(draw, abstract)
    checkpoints = Checkpoints(directory)
    state = {"step": np.int32(step), "params": params, "ema_params": params}
    checkpoints.save(state, {"step": step, "vocabulary": fingerprint(vocabulary)})
    checkpoints.close()
    return directory

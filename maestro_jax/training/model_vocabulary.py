"""Which vocabulary a checkpoint was trained with, and whether the file beside it is that one.

The ids of a model mean what one vocabulary says; with another one, it writes other letters, and
nothing else tells. Checkpoints hold the vocabulary's size and a hash of its file.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from typing import Any

from etils import epath

from maestro_jax.errors import UserError
from maestro_jax.training.checkpoints import find_checkpoint, saved_record
from maestro_jax.vocabularies.loading import vocabulary_from_bytes
from maestro_jax.vocabularies.vocabulary import MODEL_FILE, Vocabulary

log = logging.getLogger(__name__)

KEY = "vocabulary"
"""Where the record of a checkpoint has it."""


def fingerprint(vocabulary: Vocabulary) -> dict[str, Any]:
    """What a checkpoint holds of a vocabulary: its size, and the SHA-256 of its file."""
    digest = hashlib.sha256(vocabulary.model_bytes).hexdigest()
    return {"pieces": vocabulary.vocab_size, "sha256": digest}


def fingerprint_in(model_dir: epath.PathLike) -> dict[str, Any] | None:
    """The fingerprint of ``vocabulary.model`` in a model directory; None if there is none."""
    path = epath.Path(model_dir) / MODEL_FILE
    if not path.exists():
        return None
    return fingerprint(vocabulary_from_bytes(path.read_bytes(), str(path)))


def recorded(step_directory: epath.PathLike) -> dict[str, Any] | None:
    """The fingerprint that one checkpoint holds; None of one that was written without."""
    return saved_record(step_directory).get(KEY)


def recorded_in(model_dir: epath.PathLike) -> dict[str, Any] | None:
    """The fingerprint that the newest checkpoint of a model directory holds, if there is any."""
    try:
        return recorded(find_checkpoint(model_dir))
    except UserError:
        return None


def load_model_vocabulary(checkpoint: epath.PathLike, vocab_size: int | None = None) -> Vocabulary:
    """Reads the vocabulary of a model, and refuses that of another one.

    Args:
        checkpoint: A model directory (its newest checkpoint counts), or one checkpoint in it.
        vocab_size: How many tokens the model writes, if that is known already. It may be more than
            the vocabulary has.

    Raises:
        UserError: There is no vocabulary, it is not the one that the checkpoint was trained with,
            or it has more pieces than the model writes tokens.
    """
    step_directory = find_checkpoint(checkpoint)
    model_dir = step_directory.parent.parent
    path = model_dir / MODEL_FILE
    if not path.exists():
        raise UserError(
            f"there is no vocabulary {path}; copy the one that the model was trained with there."
        )
    vocabulary = vocabulary_from_bytes(path.read_bytes(), str(path))
    trained = recorded(step_directory)
    found = fingerprint(vocabulary)
    if trained is not None and found != trained:
        raise UserError(
            f"{path} is not the vocabulary that {step_directory} was trained with: it has "
            f"{found['pieces']} pieces and SHA-256 {found['sha256'][:12]}, that has "
            f"{trained['pieces']} and {trained['sha256'][:12]}; put that one back."
        )
    if vocab_size is not None and vocabulary.vocab_size > vocab_size:
        raise UserError(
            f"{path} has {vocabulary.vocab_size} pieces, but the model {step_directory} writes "
            f"{vocab_size} tokens: it is the vocabulary of another model; put this model's back."
        )
    if trained is None and vocab_size is not None and vocabulary.vocab_size < vocab_size:
        log.info(
            "%s has %d pieces, the model %d tokens; the checkpoint does not hold which vocabulary "
            "it was trained with",
            path,
            vocabulary.vocab_size,
            vocab_size,
        )
    return vocabulary


def token_names(model_dir: epath.PathLike, tokens: Sequence[int]) -> list[str]:
    """The pieces of some tokens, for pictures; numbers where the vocabulary has none for them."""
    path = epath.Path(model_dir) / MODEL_FILE
    if not path.exists():
        return [str(token) for token in tokens]
    vocabulary = vocabulary_from_bytes(path.read_bytes(), str(path))
    size = vocabulary.vocab_size
    return [vocabulary.pieces([int(t)])[0] if int(t) < size else str(t) for t in tokens]

"""The vocabulary of a model: its file, and the fingerprint by which checkpoints know it.

With another vocabulary a model writes other letters, and nothing else reveals it. So checkpoints
hold the size of the vocabulary and a hash of its file.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
from etils import epath

from maestro_jax.errors import UserError
from maestro_jax.files import write_if_changed
from maestro_jax.text.vocabularies import MODEL_FILE, Vocabulary, vocabulary_from_bytes
from maestro_jax.training import parameter_trees
from maestro_jax.training.partial_restore import mismatch_reason
from maestro_jax.training.saved_checkpoints import find_checkpoint, saved_record, saved_shapes

if TYPE_CHECKING:
    from maestro_jax.training.run import TrainRun

log = logging.getLogger(__name__)


def fingerprint(vocabulary: Vocabulary) -> dict[str, Any]:
    """Returns what a checkpoint holds of a vocabulary: its size, and the SHA-256 of its file."""
    digest = hashlib.sha256(vocabulary.model_bytes).hexdigest()
    return {"pieces": vocabulary.vocab_size, "sha256": digest}


def fingerprint_in(model_dir: epath.PathLike) -> dict[str, Any] | None:
    """Returns the fingerprint of ``vocabulary.model`` in a model directory, or None."""
    path = epath.Path(model_dir) / MODEL_FILE
    if not path.exists():
        return None
    return fingerprint(vocabulary_from_bytes(path.read_bytes(), str(path)))


def recorded(step_directory: epath.PathLike) -> dict[str, Any] | None:
    """Returns the fingerprint that one checkpoint holds; None if it was written without."""
    return saved_record(step_directory).get("vocabulary")


def recorded_in(model_dir: epath.PathLike) -> dict[str, Any] | None:
    """Returns the fingerprint that the newest checkpoint of a model directory holds, if any."""
    try:
        return recorded(find_checkpoint(model_dir))
    except UserError:
        return None


def load_model_vocabulary(checkpoint: epath.PathLike, vocab_size: int | None = None) -> Vocabulary:
    """Reads the vocabulary of a model, and refuses that of another one.

    Args:
        checkpoint: A checkpoint, as `checkpoints.find_checkpoint` takes it.
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
            f"there is no vocabulary {path}; copy the one with which the model was trained to it."
        )
    vocabulary = vocabulary_from_bytes(path.read_bytes(), str(path))
    trained = recorded(step_directory)
    present = fingerprint(vocabulary)
    if trained is not None and present != trained:
        raise UserError(
            f"{path} is not the vocabulary that {step_directory} was trained with: it has "
            f"{present['pieces']} pieces and SHA-256 {present['sha256'][:12]} instead of "
            f"{trained['pieces']} and {trained['sha256'][:12]}; copy the right one there."
        )
    if vocab_size is not None and vocabulary.vocab_size > vocab_size:
        raise UserError(
            f"{path} has {vocabulary.vocab_size} pieces, but the model {step_directory} writes "
            f"{vocab_size} tokens: it is the vocabulary of another model; copy the right one there."
        )
    if trained is None and vocab_size is not None and vocabulary.vocab_size < vocab_size:
        log.info(
            "%s has %d pieces, the model %d tokens; the checkpoint does not say with which "
            "vocabulary it was trained",
            path,
            vocabulary.vocab_size,
            vocab_size,
        )
    return vocabulary


def token_names(model_dir: epath.PathLike, tokens: Sequence[int]) -> list[str]:
    """Returns the pieces of some tokens, for figures; numbers where the vocabulary has no piece."""
    path = epath.Path(model_dir) / MODEL_FILE
    if not path.exists():
        return [str(token) for token in tokens]
    vocabulary = vocabulary_from_bytes(path.read_bytes(), str(path))
    size = vocabulary.vocab_size
    return [vocabulary.pieces([int(t)])[0] if int(t) < size else str(t) for t in tokens]


def check_vocabulary(run: TrainRun, vocabulary: Vocabulary, model_dir: epath.Path) -> None:
    """Checks that ids go on to mean the same tokens, for the life of a model.

    A file that is not the vocabulary of this run, although its checkpoints were trained with that
    one, is damaged: `save_vocabulary` writes it again.

    Args:
        run: The run.
        vocabulary: Vocabulary of its data.
        model_dir: The model directory.

    Raises:
        UserError: The vocabulary is larger than the model's, or differs from that of the model
            directory or its checkpoint, or from that of ``init_from`` although parameters that
            depend on it would be restored.
    """
    size = getattr(run.model, "vocab_size", None)
    if size is not None and vocabulary.vocab_size > size:
        raise UserError(
            f"The vocabulary has {vocabulary.vocab_size} tokens, but the model's vocab_size is "
            f"{size}; set VOCAB_SIZE (vocab_size of the text encoder and the decoders) to "
            f"{vocabulary.vocab_size} or more."
        )
    path = model_dir / MODEL_FILE
    trained = recorded_in(model_dir)
    if path.exists() and path.read_bytes() != vocabulary.model_bytes:
        if trained != fingerprint(vocabulary):
            raise UserError(
                f"{path} is not the vocabulary of this run's data; choose another model directory."
            )
        log.warning("%s is damaged, and is written again from this run's data", path)
    if trained not in (None, fingerprint(vocabulary)):
        raise UserError(
            f"the checkpoints of {model_dir} were trained with another vocabulary than that of "
            f"this run's data ({trained['pieces']} and {vocabulary.vocab_size} pieces); train on "
            "data prepared with the former, or choose another model directory."
        )
    if run.init_from is not None:
        source = _another_vocabulary(run.init_from, vocabulary)
        names = _restored_token_parameters(run) if source else ()
        if names:
            raise UserError(
                f"{source} is another vocabulary than this run's, whose ids mean other tokens, "
                f"and its {names[0]} would be restored; set init_exclude as "
                "runs/finetune_new_vocabulary.gin does, or train on data prepared with it."
            )
        if source:
            log.info("%s is another vocabulary; nothing that depends on it is restored", source)


def save_vocabulary(vocabulary: Vocabulary, model_dir: epath.Path) -> None:
    """Writes ``vocabulary.model``, once its run has been accepted; the first process does it."""
    if jax.process_index() == 0:
        write_if_changed(model_dir / MODEL_FILE, vocabulary.model_bytes)


def _another_vocabulary(init_from: str, vocabulary: Vocabulary) -> str | None:
    """Returns the path of the vocabulary of a checkpoint if it differs; None if it is not known."""
    checkpoint = find_checkpoint(init_from)
    trained = recorded(checkpoint)
    if trained is not None:
        same = trained == fingerprint(vocabulary)
        return None if same else str(checkpoint.parent.parent / MODEL_FILE)
    for directory in (checkpoint, checkpoint.parent, checkpoint.parent.parent):
        source = directory / MODEL_FILE
        if source.exists() and source.read_bytes() != vocabulary.model_bytes:
            return str(source)
    return None


def _restored_token_parameters(run: TrainRun) -> list[str]:
    """Lists the parameters with an entry per token that the run would restore."""
    assert run.init_from is not None
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
        if mismatch_reason(name, shape, wanted, include=run.init_include, exclude=run.init_exclude)
        is None
    ]

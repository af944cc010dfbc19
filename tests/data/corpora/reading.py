"""What a run reads of a prepared corpus: examples through seqio tasks and the loader."""

from __future__ import annotations

import itertools
from pathlib import Path

from maestro_jax.batches import StreamConfig
from maestro_jax.files import write_atomically
from maestro_jax.text.languages import LANGUAGES
from maestro_jax.vocabularies.byte_vocabulary import CONTENT, ByteVocabulary


def examples(root: Path, stream: str, task: str, count: int) -> list[dict[str, object]]:
    """The first examples that a run gets, without padding: language, audio and text as they have.

    Args:
        root: The data root; it gets a vocabulary of bytes.
        stream: Of the task.
        task: A task or mixture.
        count: How many; those of one step.
    """
    from maestro_jax.data.loader import StreamLoader

    write_atomically(root / "vocabularies" / "multilingual.model", CONTENT)
    limits = {
        "audio_samples": 0 if stream == "text" else 40 * 16_000,
        "text_tokens": 0 if stream == "speech" else 100,
    }
    config = StreamConfig(mixture=task, batch_size=count, **limits)
    with StreamLoader({stream: config}, seed=1, data_dir=root) as loader:
        [batch] = itertools.islice(loader, 1)
    features = batch[stream]
    found: list[dict[str, object]] = []
    for row, language in enumerate(features["language"]):
        example: dict[str, object] = {"language": LANGUAGES[language]}
        if "audio" in features:
            example["audio"] = features["audio"][row, : features["audio_length"][row]]
        if "text" in features:
            tokens = features["text"][row, : features["text_length"][row]]
            example["text"] = ByteVocabulary().decode(tokens)
        found.append(example)
    return found


def sizes(root: Path, task: str) -> dict[str, int]:
    """The examples of each split of a task."""
    from maestro_jax.data.data_scope import data_scope
    from maestro_jax.data.task_listing import get_task_or_mixture

    with data_scope(root):
        found = get_task_or_mixture(task)
        return {split: found.num_input_examples(split) for split in found.splits}

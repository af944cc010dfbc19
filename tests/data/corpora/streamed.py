"""PreparedConfig corpora, as a training run reads them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from maestro_jax.batches import StreamConfig
from maestro_jax.text.languages import LANGUAGES
from maestro_jax.vocabularies.sentencepiece_vocabulary import train_sentencepiece


def make_vocabulary(root: Path, texts: Sequence[str]) -> None:
    """The vocabulary that all corpora share, of some texts alone."""
    train_sentencepiece(texts, root / "vocabularies" / "multilingual.model", 200)


def epoch(root: Path, task: str, stream: str, examples: int) -> list[dict[str, object]]:
    """All training examples of a task: a batch of as many as there are.

    Returns:
        Audio as int16 `[samples]`, text and translation as strings, languages as codes; sorted.
    """
    from maestro_jax.data.loader import StreamLoader

    config = StreamConfig(
        mixture=task,
        batch_size=examples,
        audio_samples=0 if stream in ("text", "mt") else 16000 * 10,
        text_tokens=0 if stream in ("speech", "st") else 200,
        translation_tokens=200 if stream in ("mt", "st") else 0,
    )
    with StreamLoader({stream: config}, seed=1, data_dir=root) as loader:
        batch, vocabulary = next(loader)[stream], loader.vocabulary
    found = []
    for row in range(examples):
        example: dict[str, object] = {}
        for name in ("audio", "text", "translation"):
            if name in batch:
                values = batch[name][row, : batch[f"{name}_length"][row]]
                example[name] = values if name == "audio" else vocabulary.decode(values.tolist())
        for name in ("language", "target_language"):
            if name in batch:
                example[name] = LANGUAGES[batch[name][row]]
        found.append(example)
    return sorted(
        found,
        key=lambda example: (example.get("text", ""), np.size(example.get("audio", ()))),
    )

"""How long the examples of a split are: a small file beside its shards.

`lengths_<split>.npy` holds int32 `[records, 3]` in the order of the records: samples of audio, and
characters of the text and of the translation. Buckets are made of it without reading any record.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from maestro_jax.files import write_atomically

TEXTS_ONLY = "texts"
"""The directory, below that of a data set, of the same records without audio."""
COLUMNS = ("audio", "text", "translation")
"""What the columns measure."""


def lengths_file(directory: Path, split: str) -> Path:
    """Returns the file of the lengths of a split, given the directory of its data set."""
    return directory / f"lengths_{split}.npy"


def record_lengths(record: Mapping[str, Any]) -> tuple[int, int, int]:
    """Counts samples of audio, characters of text and of translation; 0 for what is missing.

    Args:
        record: Audio `[samples]`, and texts as str or UTF-8.
    """
    text, translation = (_characters(record.get(name, "")) for name in COLUMNS[1:])
    return len(record.get("audio", ())), text, translation


def _characters(text: str | bytes) -> int:
    return len(text.decode() if isinstance(text, bytes) else text)


def as_array(lengths: Iterable[tuple[int, int, int]]) -> np.ndarray:
    """Returns the lengths of records as int32 `[records, 3]`."""
    return np.fromiter(lengths, np.dtype((np.int32, len(COLUMNS))))


def save_lengths(path: Path, lengths: np.ndarray) -> None:
    """Writes the file; nobody ever sees half of it."""
    content = io.BytesIO()
    np.save(content, lengths.astype(np.int32))
    write_atomically(path, content.getvalue())


def load_lengths(path: Path, records: int) -> np.ndarray | None:
    """Reads the file.

    Args:
        path: File of `lengths_file`.
        records: Number of records of the split.

    Returns:
        int32 `[records, 3]`; None if there is no such file, or one of other records.
    """
    try:
        lengths = np.load(io.BytesIO(path.read_bytes()), allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return lengths if lengths.shape == (records, len(COLUMNS)) else None

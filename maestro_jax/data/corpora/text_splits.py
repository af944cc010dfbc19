"""Files of texts: which there are, and of which split each is, by its name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

_OF_WORDS = {
    "dev": "validation",
    "newsdev": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "newstest": "test",
    "tst": "test",
}


def split_of(name: str) -> str:
    """The split of a file: `validation` or `test` if a word of its name says so, else `train`.

    `newstest2014.de-en.de` is of the test split, `c4-de-validation.tfrecord-00000-of-00001.json.gz`
    of the validation split, `latest.txt` of the training split.
    """
    splits = (_OF_WORDS.get(word) for word in re.findall(r"[a-z]+", name.lower()))
    return next((split for split in splits if split), "train")


def files_in(directory: Path, endings: Sequence[str]) -> list[Path]:
    """The files with some endings, or these and `.gz`, in the order of their names."""
    suffixes = tuple(f"{ending}{more}" for ending in endings for more in ("", ".gz"))
    return sorted(
        path for path in directory.iterdir() if path.name.endswith(suffixes) and path.is_file()
    )

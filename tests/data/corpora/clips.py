"""Clips and tables as Common Voice has them, and how to tell that the right one was read."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import scipy.signal
from spoken import say, speak_to

RATE = 48_000
OLD = "client_id path sentence up_votes down_votes age gender accent".split()
NEW = (
    "client_id path sentence_id sentence sentence_domain up_votes down_votes age gender accents "
    "variant locale segment"
).split()


def write_table(path: Path, columns: Sequence[str], rows: Sequence[dict[str, str]]) -> None:
    """Writes a table as pandas does with no quoting and a backslash before what would break it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(
            file,
            delimiter="\t",
            quoting=csv.QUOTE_NONE,
            escapechar="\\",
            quotechar=None,
            lineterminator="\n",
        )
        writer.writerow(columns)
        writer.writerows([row.get(column, "") for column in columns] for row in rows)


def clip_row(clip: str, sentence: str, speaker: str = "f00", **more: str) -> dict[str, str]:
    """A row of a table of Common Voice."""
    return {"path": clip, "sentence": sentence, "client_id": speaker, "up_votes": "2", **more}


def speak_clip(directory: Path, clip: str, sentence: str, language: str) -> None:
    """Says a sentence into a clip: mp3 at 48 kHz with a variable bit rate."""
    speak_to(directory / "clips" / clip, sentence, language, RATE)


def likeness(recorded: np.ndarray, sentence: str, language: str) -> float:
    """The highest correlation of a recording with what is said, at any delay; 1 if it is the same.

    Args:
        recorded: int16 `[samples]` at 16 kHz.
        sentence: What should have been said in it.
        language: In which language.
    """
    spoken = say(sentence, language)
    found = scipy.signal.correlate(recorded / 32768.0, spoken, method="fft").max()
    return float(found / np.linalg.norm(recorded / 32768.0) / np.linalg.norm(spoken))

"""Libri-Light as its archives unpack, with books of half a minute."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from layouts_librispeech import chapters
from spoken import record, say

RATE = 16_000
PIECES = [[0.5, 10.5], [12.0, 24.0], [24.5, 33.0], [40.0, 41.25]]
"""What is spoken in the book of `small`: three pieces are more than half a minute."""

LIMITED = {
    "1h/0/clean": {"103-1240-0000": "CHAPTER ONE"},
    "1h/0/other": {"20-205-0000": "TEN ELEVEN"},
    "1h/1/clean": {"103-1241-0000": "TWELVE"},
    "1h/5/other": {"20-206-0000": "'TIS THREE"},
    "9h/clean": {"14-208-0000": "EIGHT", "14-208-0001": "NINE"},
    "9h/other": {"116-288-0000": "SIX SEVEN"},
}


def book(seconds: float) -> np.ndarray:
    """Someone who counts on and on: float32 `[samples]`."""
    spoken = say("one two three four five six seven eight nine ten")
    return np.resize(spoken, round(seconds * RATE))


def chapter(path: Path, seconds: float, description: object) -> None:
    """Writes an audio file and the description beside it."""
    record(path.with_suffix(".flac"), book(seconds))
    path.with_suffix(".json").write_text(json.dumps(description), encoding="utf-8")


def lay_out(source: Path) -> None:
    """Writes `small`, with all that can be wrong, `medium` and `librispeech_finetuning`."""
    shelf = source / "small" / "100" / "sea_fairies_0812_librivox_64kb_mp3"
    shelf.mkdir(parents=True)
    described = {
        "speaker": "100",
        "book_meta": {"id": "319", "title": 'The "Sea" Fairies', "meta_genre": "Literature"},
        "snr": 5.391,
        "voice_activity": PIECES,
    }
    chapter(shelf / "01_baum_sea_fairies_64kb", 42.0, described)
    ends_early = {**described, "voice_activity": [[0.0, 1.0], [1.5, 4.0], [9.0, 10.0]]}
    chapter(shelf / "02_baum_sea_fairies_64kb", 3.0, ends_early)
    chapter(shelf / "03_silent", 1.0, {**described, "voice_activity": []})
    strange = [[0.0, 0.5], [0.25, 0.75], "soon", [2.0, 1.0], [0.75, 1.0]]
    chapter(shelf / "04_strange", 1.5, {**described, "voice_activity": strange})
    chapter(shelf / "05_undescribed", 1.0, {"speaker": "100"})
    (shelf / "06_half.json").write_text('{"speaker": "100", "voice')
    record(shelf / "06_half.flac", book(1.0))
    record(shelf / "07_alone.flac", book(1.0))
    (shelf / "08_gone.json").write_text(json.dumps({**described, "voice_activity": [[0, 1]]}))

    other = source / "medium" / "1001" / "history_1303"
    chapter(other / "history_01", 2.0, {"voice_activity": [[0.0, 2.0]]})

    for place, spoken in LIMITED.items():
        chapters(source / "librispeech_finetuning" / place, spoken)
    phones = source / "librispeech_finetuning" / "phones"
    phones.mkdir()
    (phones / "10h_phones.txt").write_text("103-1240-0000 1 2 3\n")

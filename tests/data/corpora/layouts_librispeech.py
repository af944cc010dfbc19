"""LibriSpeech, its text and Libri-Light as their archives unpack, with a few utterances."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
from spoken import record, say, speak_to

SPOKEN = {
    "train-clean-100": {
        "103-1240-0000": "CHAPTER ONE",
        "103-1240-0001": "'TIS FIVE O'CLOCK",
        "103-1241-0000": "TWELVE",
        "1034-121119-0000": "SIX SEVEN",
    },
    "train-clean-360": {"14-208-0000": "EIGHT NINE"},
    "train-other-500": {"20-205-0000": "TEN ELEVEN", "20-205-0001": "THREE"},
    "dev-clean": {"84-121123-0000": "GO"},
    "dev-other": {"116-288045-0000": "STOP"},
    "test-clean": {"61-70968-0000": "LEFT"},
    "test-other": {"1688-142285-0000": "RIGHT"},
}
"""What is said, in the order in which it is read."""

LINES = ["A FIRST LINE", "", "THE WIDOW'S  TWO"]

_SPEAKERS = """\
; Some pipe(|) separated metadata about all LibriSpeech speakers
;
;ID  |SEX| SUBSET           |MINUTES| NAME
14   | F | train-clean-360  | 25.03 | Kristin LeMoine
20   | F | train-other-500  | 30.07 | Gesine
60   | M | train-clean-100  | 20.18 | |CBW|Simon
61   | M | test-clean       | 8.08  | Paul-Gabriel Wiener
84   | F | dev-clean        | 8.02  | Christie Nowak
103  | F | train-clean-100  | 23.83 | Karen Savage
116  | M | dev-other        | 8.05  | Guignol
1034 | M | train-clean-100
1688 | M | test-other       | 8.03  | JudyGibson
"""


def chapters(directory: Path, spoken: dict[str, str]) -> None:
    """Speaks utterances into the directories of their speakers and chapters.

    Args:
        directory: It gets `<speaker>/<chapter>/`.
        spoken: Words by `<speaker>-<chapter>-<utterance>`.
    """
    for name, words in spoken.items():
        speaker, chapter, _ = name.split("-")
        place = directory / speaker / chapter
        speak_to(place / f"{name}.flac", words.lower())
        with (place / f"{speaker}-{chapter}.trans.txt").open("a", encoding="utf-8") as file:
            file.write(f"{name} {words}\n")


def lay_out(source: Path) -> None:
    """Writes `LibriSpeech/` with what is wrong with one split, and the text beside it.

    In `train-clean-100`: a line without words, without audio, twice, with a broken file; audio
    without a line, a chapter without a transcript file, a speaker who was not unpacked.
    """
    root = source / "LibriSpeech"
    for folder, spoken in SPOKEN.items():
        chapters(root / folder, spoken)
    (root / "SPEAKERS.TXT").write_text(_SPEAKERS, encoding="utf-8")
    (root / "README.TXT").write_text("The LibriSpeech corpus\n", encoding="utf-8")

    chapter = root / "train-clean-100" / "103" / "1240"
    with (chapter / "103-1240.trans.txt").open("a", encoding="utf-8") as file:
        file.write("103-1240-0002 \n103-1240-0003 GONE\n103-1240-0000 AGAIN\n")
        file.write("103-1240-0004 BROKEN\n")
    speak_to(chapter / "103-1240-0002.flac", "hm")
    (chapter / "103-1240-0004.flac").write_bytes(b"fLaC and then nothing")
    speak_to(chapter / "103-1240-0005.flac", "nobody wrote this down")
    speak_to(chapter.parent / "1242" / "103-1242-0000.flac", "nor this")

    with gzip.open(source / "librispeech-lm-norm.txt.gz", "wt", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in LINES)


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


def lay_out_libri_light(source: Path) -> None:
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

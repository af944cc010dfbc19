"""LibriSpeech and its text as their archives unpack, a few utterances large."""

from __future__ import annotations

import gzip
from pathlib import Path

from spoken import speak_to

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

"""Small text corpora: mC4 as it is published, one's own files, and translated files."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

DOCUMENTS = [
    "Guten Morgen! Es ist z.B. acht Uhr.\nDie Sonne scheint -- endlich.",
    "Ein Satz.\n***\nNoch einer.",
]
TRANSLATED = [
    ("Guten Morgen!", "Good morning!"),
    ("Es ist acht Uhr.", "It is eight o'clock."),
    ("Die Sonne scheint.", "The sun is shining."),
]


def lay_out_mc4(source: Path) -> None:
    """Two files of training documents and one of validation, with lines that are none."""
    directory = source / "multilingual"
    first = [_document(text) for text in DOCUMENTS] + ["{broken", '{"url": "x"}', _document("?!")]
    _write(directory / "c4-de.tfrecord-00000-of-00002.json.gz", first)
    _write(directory / "c4-de.tfrecord-00001-of-00002.json.gz", [_document("Drei."), _document("")])
    _write(directory / "c4-de-validation.tfrecord-00000-of-00001.json.gz", [_document("Vier.")])
    _write(directory / "c4-xh.tfrecord-00000-of-00001.json.gz", [_document("Molo.")])


def lay_out_files(source: Path) -> None:
    """Plain and compressed files of two languages; one has a byte order mark."""
    _write(source / "de" / "a.txt", ["\ufeffEins. Zwei.", "", "Drei."])
    _write(source / "de" / "b.txt.gz", ["Vier."])
    _write(source / "de" / "test.jsonl", [_document("Sechs. Sieben.")])
    _write(source / "zh-CN" / "a.txt", ["今天很好。明天呢？"])
    _write(source / "notes" / "readme.txt", ["No language."])
    _write(source / "europarl-v7.de.gz", ["Acht."])
    _write(source / "convert.py", ["pass"])


def lay_out_parallel(source: Path) -> None:
    """Files of training and test, one compressed, with empty sides."""
    sides = list(zip(*TRANSLATED, strict=True))
    empty = (["Leer.", "", "..."], ["", "Empty.", "Dots."])
    for side, language in enumerate(("de", "en")):
        _write(source / f"train.de-en.{language}", [*sides[side], *empty[side]])
        ending = ".gz" if side else ""
        _write(source / f"newstest2014.de-en.{language}{ending}", sides[side][:2])


def _document(text: str) -> str:
    return json.dumps({"text": text, "timestamp": "2019-04-22T08:51:27Z", "url": "https://a.b"})


def _write(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = "".join(f"{line}\n" for line in lines).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)

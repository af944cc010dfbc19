"""A small Common Voice with the quirks of the large one, and its tables and clips for CoVoST-2."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from spoken import speak_to

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


RELEASE = "cv-corpus-17.0-2024-03-15"
GERMAN = {
    "common_voice_de_1.mp3": 'Das ist "gut", ja!',
    "common_voice_de_2.mp3": '"Eins zwei.',
    "common_voice_de_3.mp3": "drei\tund\\vier",
    "common_voice_de_11.mp3": "Fünf.",
    "common_voice_de_12.mp3": "Sechs?",
    "common_voice_de_21.mp3": "Sieben acht",
    "common_voice_de_31.mp3": "neun",
}
SWEDISH = {"common_voice_sv-SE_1.mp3": "Ett, två.", "common_voice_sv-SE_2.mp3": "tre"}


def lay_out(source: Path) -> Path:
    """Lays a release out.

    German has the columns of newer releases; three utterances of its training can be used, and
    one each of the other tables. Swedish has those of older ones, and names without an ending.
    Two kinds of Chinese and a language that is not known have nothing but an empty table.

    Returns:
        The directory of the release.
    """
    release = source / RELEASE
    german = release / "de"
    for clip, sentence in GERMAN.items():
        speak_clip(german, clip, sentence, "de")
    (german / "clips" / "common_voice_de_5.mp3").write_bytes(b"this is no music" * 40)
    (german / "clips" / "common_voice_de_6.mp3").write_bytes(b"")

    def rows(*numbers: int) -> list[dict[str, str]]:
        clips = [f"common_voice_de_{number}.mp3" for number in numbers]
        return [clip_row(c, GERMAN[c], f"speaker{c[-5]}", locale="de") for c in clips]

    train = [
        *rows(1, 2, 3),
        clip_row("common_voice_de_4.mp3", "verschwunden"),
        clip_row("common_voice_de_5.mp3", "kaputt"),
        clip_row("common_voice_de_6.mp3", "leer"),
        clip_row("common_voice_de_7.mp3", "… !"),
        *rows(1),
        clip_row("", "ohne Namen"),
    ]
    write_table(german / "train.tsv", NEW, train)
    with (german / "train.tsv").open("a", encoding="utf-8") as file:
        file.write("f00\tcommon_voice_de_8.mp3\tzu kurz\n")
    write_table(german / "dev.tsv", NEW, rows(11))
    write_table(german / "test.tsv", NEW, rows(12))
    write_table(german / "validated.tsv", NEW, [*rows(21), *train[:3], *rows(11, 12)])
    write_table(german / "other.tsv", NEW, rows(31))

    swedish = release / "sv-SE"
    for clip, sentence in SWEDISH.items():
        speak_clip(swedish, clip, sentence, "sv")
    for table, (clip, sentence) in zip(("train", "test"), SWEDISH.items(), strict=True):
        write_table(swedish / f"{table}.tsv", OLD, [clip_row(clip.removesuffix(".mp3"), sentence)])
    for locale in ("zh-CN", "zh-TW", "eo"):
        write_table(release / locale / "train.tsv", NEW, [])
    return release

"""Multilingual LibriSpeech and its text as their archives unpack."""

from __future__ import annotations

from pathlib import Path

from spoken import speak_to

GERMAN = {
    "train": {
        "1001_10_000000": "eins zwei",
        "1001_10_000001": "drei",
        "1001_11_000000": "vier-fünf",
        "2002_20_000000": "sechs",
    },
    "dev": {"3003_30_000000": "sieben"},
    "test": {"4004_40_000000": "acht"},
}
POLISH = {
    "train": {"5005_50_000000": "jeden dwa"},
    "dev": {"6006_60_000000": "trzy"},
    "test": {"7007_70_000000": "cztery"},
}
HANDLES = {
    "1hr/0": ["1001_10_000001"],
    "1hr/1": ["1001_10_000000"],
    "1hr/5": ["2002_20_000000"],
    "9hr": ["1001_11_000000", "9009_90_000000"],
}
TEXT = ["ein erster satz", "und - ein zweiter"]

_METAINFO = """\
 SPEAKER   |   GENDER   | PARTITION  |  MINUTES   |  BOOK ID   |  TITLE  |  CHAPTER
  1001     |     F      |   train    |   17.148   |   10       | A | B | Ch. 1
"""


def language(directory: Path, spoken: dict[str, dict[str, str]], code: str, ending: str) -> None:
    """Speaks one language, opus at a rate that is not ours, and writes its tables."""
    for folder, utterances in spoken.items():
        lines, segments = [], []
        for name, words in utterances.items():
            speaker, book, _ = name.split("_")
            rate = 48_000 if ending == ".opus" else 16_000
            path = directory / folder / "audio" / speaker / book / f"{name}{ending}"
            speak_to(path, words, code, rate)
            lines.append(f"{name}\t{words}\n")
            segments.append(f"{name}\thttp://www.archive.org/download/a_b/a_64kb.mp3\t1.5\t3.0\n")
        (directory / folder / "transcripts.txt").write_text("".join(lines), encoding="utf-8")
        (directory / folder / "segments.txt").write_text("".join(segments), encoding="utf-8")
    (directory / "metainfo.txt").write_text(_METAINFO, encoding="utf-8")


def lay_out(source: Path) -> None:
    """Writes German as flac, with what can be wrong, Polish as opus, and German text.

    In German training: a line without text, without tab, with an id that is none, twice, without
    audio, with a broken file, and one more segment than lines.
    """
    german = source / "mls_german"
    language(german, GERMAN, "de", ".flac")
    train = german / "train"
    with (train / "transcripts.txt").open("a", encoding="utf-8") as file:
        file.write("1001_10_000002\t\n1001_10_000003 ohne tab\nunsinn\tein wort\n")
        file.write("1001_10_000000\tnoch einmal\n1001_10_000004\tweg\n1001_10_000005\tkaputt\n")
    (train / "audio" / "1001" / "10" / "1001_10_000005.flac").write_bytes(b"fLaC")
    with (train / "segments.txt").open("a", encoding="utf-8") as file:
        file.writelines(f"1001_10_{number:06d}\thttp\t1.5\t3.0\n" for number in range(2, 9))
    for place, names in HANDLES.items():
        path = train / "limited_supervision" / place / "handles.txt"
        path.parent.mkdir(parents=True)
        path.write_text("\n".join(names) + "\n", encoding="utf-8")
    language(source / "mls_polish_opus", POLISH, "pl", ".opus")
    text = source / "mls_lm_german"
    text.mkdir()
    (text / "data.txt").write_text("\n".join(TEXT) + "\n", encoding="utf-8")
    (text / "3-gram_lm.arpa").write_text("\\data\\\n")

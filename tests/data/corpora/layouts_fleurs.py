"""A small FLEURS, laid out as it is published, with what is wrong in it."""

from __future__ import annotations

from pathlib import Path

from spoken import say, speak_to

GERMAN = {
    "train": [
        ("1003", "Eins, zwei und drei.", "eins zwei und drei"),
        ("1003", "Eins, zwei und drei.", "eins zwei und drei"),
        ("1004", 'Das "Ei ist rund.', "das ei ist rund"),
        ("1005", "Gut-und-gern.", "gut-und-gern"),
    ],
    "dev": [("1101", "Vier.", "vier")],
    "test": [("1201", "Fünf Äpfel!", "fünf äpfel")],
}
MANDARIN = {
    split: [(number, "一二三。", "一二三")]
    for split, number in (("train", "7"), ("dev", "8"), ("test", "9"))
}


def lay_out(source: Path) -> None:
    """German with everything wrong that can be, Mandarin, and Xhosa, which has no id."""
    for name, language, splits in (
        ("de_de", "de", GERMAN),
        ("cmn_hans_cn", "cmn", MANDARIN),
        ("xh_za", "en", {"train": [("1", "Molo.", "molo")], "dev": [], "test": []}),
    ):
        for split, rows in splits.items():
            lines = []
            for place, (number, raw, text) in enumerate(rows):
                file = f"{number}{place:04d}77.wav"
                speak_to(source / name / "audio" / split / file, raw, language)
                lines.append(_line(number, file, raw, text, len(say(raw, language))))
            (source / name).mkdir(parents=True, exist_ok=True)
            (source / name / f"{split}.tsv").write_text("".join(lines), encoding="utf-8")
    broken = source / "de_de" / "audio" / "train" / "broken.wav"
    broken.write_bytes(b"RIFF and then nothing")
    with (source / "de_de" / "train.tsv").open("a", encoding="utf-8") as table:
        table.write(_line("1006", "missing.wav", "Weg.", "weg", 1))
        table.write(_line("1007", "broken.wav", "Kaputt.", "kaputt", 1))
        table.write(_line("1003", "1003000077.wav", "Nochmal.", "nochmal", 1))
        table.write(_line("1008", "1004000277.wav", "?!", "", 1))
        table.write("1009\tlost.wav\tEine Spalte fehlt.\n")


def _line(number: str, file: str, raw: str, text: str, samples: int) -> str:
    characters = " ".join(text.replace(" ", "|")) + " |"
    return "\t".join((number, file, raw, text, characters, str(samples), "FEMALE")) + "\n"

"""VoxPopuli as it is downloaded and as its scripts leave it, with a few spoken utterances.

Audio is espeak-ng's, in Ogg Vorbis at 16 kHz as in the corpus; ids, columns and quirks are the
corpus'. German is cut, Slovene is raw, in transcribed as in unlabelled speech.
"""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
from spoken import record, say, speak_to

from maestro_jax.batches import SAMPLE_RATE

HEADER = "id raw_text normalized_text speaker_id split gender is_gold_transcript accent".split()
SESSION = "20180613-0900-PLENARY-15"
EARLIER = "20120313-0900-PLENARY-11"

# Raw and normalised text of what is fine, by id.
GERMAN = {
    "train": {
        f"{SESSION}-de_20180613-10:01:02_0": ("Eins, zwei!", "eins zwei"),
        # A quotation mark without a partner, and no raw text.
        f"{SESSION}-de_20180613-10:01:02_1": ('Drei "vier', "drei vier"),
        f"{EARLIER}-de_20120313-09:00:00_0": ("", "fünf sechs"),
        f"{EARLIER}-de_20120313-09:00:00_1": ('"Sieben"', "sieben"),
    },
    "dev": {f"{SESSION}-de_20180613-11:00:00_0": ("Acht neun.", "acht neun")},
    "test": {f"{SESSION}-de_20180613-12:00:00_0": ("Zehn elf.", "zehn elf")},
}
ACCENTED = {f"{SESSION}-en_20180613-13:00:00_2": ("", "one two three")}

SLOVENE_SESSION = "20190212-0900-PLENARY-7"
# Id, split, words of each of its pieces.
SLOVENE = (
    ("sl_20190212-09:10:00_0", "train", ("ena dve", "tri")),
    ("sl_20190212-09:10:00_1", "train", ("štiri",)),
    ("sl_20190212-09:12:00_0", "dev", ("pet šest",)),
    ("sl_20190212-09:13:00_0", "test", ("sedem", "osem", "devet")),
)

UNLABELLED = {
    "20190114-1700-PLENARY_de": ("eins zwei", "drei"),
    "20200723-0900-PLENARY-2_de": ("vier",),
    "20120313-0900-PLENARY-11_de": ("fünf",),
    "20190115-0900-COMMITTEE-ENVI_de": ("sechs",),
}
UNLABELLED_RAW = {"20190212-0900-PLENARY-7_sl": ("ena", "dve tri")}
SENTENCES = ("guten tag", "das ist ein satz", "", "das ist ein satz")


def lay_out(source: Path) -> None:
    """All of it; nothing but the empty sentence is wrong."""
    lay_out_cut(source)
    lay_out_raw(source)
    lay_out_unlabelled(source)
    lay_out_unlabelled_raw(source)
    lay_out_text(source)


def lay_out_cut(source: Path) -> None:
    """`transcribed_data` of German, and of accented English with empty train and dev tables."""
    for split, utterances in GERMAN.items():
        write_table(source, "de", split, utterances)
    for split in GERMAN:
        write_table(source, "en_accented", split, ACCENTED if split == "test" else {})
    for config, utterances in (
        *(("de", utterances) for utterances in GERMAN.values()),
        ("en_accented", ACCENTED),
    ):
        for name, (_, text) in utterances.items():
            path = source / "transcribed_data" / config / name[:4] / f"{name}.ogg"
            speak_to(path, text, config[:2])


def write_table(
    source: Path, config: str, split: str, utterances: dict[str, tuple[str, str]], *more: str
) -> Path:
    """A table as the scripts write it, without any quoting, and further lines."""
    accent = "en_de" if config == "en_accented" else "None"
    rows = [
        (name, raw_text, text, "96779", split, "female", "False", accent)
        for name, (raw_text, text) in utterances.items()
    ]
    path = source / "transcribed_data" / config / f"asr_{split}.tsv"
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ["\t".join(row) for row in (HEADER, *rows)]
    path.write_text("\n".join([*lines, *more]) + "\n", encoding="utf-8")
    return path


def session(pieces: tuple[str, ...], language: str) -> tuple[np.ndarray, list[tuple[float, float]]]:
    """Pieces of speech with a loud tone before, between and behind them, and where they are."""
    tone = 0.4 * np.sin(np.arange(SAMPLE_RATE // 5) * (2 * np.pi * 440 / SAMPLE_RATE))
    parts, spans, position = [tone], [], len(tone)
    for piece in pieces:
        samples = say(piece, language)
        spans.append((position / SAMPLE_RATE, (position + len(samples)) / SAMPLE_RATE))
        parts += [samples, tone]
        position += len(samples) + len(tone)
    return np.concatenate(parts).astype(np.float32), spans


def lay_out_raw(source: Path, *more: str) -> None:
    """`asr_sl.tsv.gz` and a session; the first row lacks a raw text and a speaker."""
    columns = ("session_id", "id_", "original_text", "normed_text", "speaker_id", "split")
    header = (*columns, "gender", "vad", "is_gold_transcript")
    samples, spans = session(tuple(w for _, _, words in SLOVENE for w in words), "sl")
    record(source / "raw_audios/original/2019" / f"{SLOVENE_SESSION}_original.ogg", samples)
    rows = []
    for name, split, words in SLOVENE:
        own, spans = spans[: len(words)], spans[len(words) :]
        text = " ".join(words)
        raw_text, speaker = ("", "None") if not rows else (f'"{text.capitalize()}.', "124")
        vad = str(own)
        row = (SLOVENE_SESSION, name, raw_text, text, speaker, split, "male", vad, "True")
        rows.append("|".join(row))
    path = source / "transcribed_data/sl/asr_sl.tsv.gz"
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.write("\n".join(["|".join(header), *rows, *more]) + "\n")


def lay_out_unlabelled(source: Path) -> None:
    """`unlabelled_data` of German: two events of the smallest subset, and one of each other."""
    for event, segments in UNLABELLED.items():
        for number, text in enumerate(segments):
            path = source / "unlabelled_data/de" / event[:4] / f"{event}_{number}.ogg"
            speak_to(path, text, "de")


def lay_out_unlabelled_raw(source: Path, *more: str) -> None:
    """`unlabelled_v2.tsv.gz`, `unlabelled_sd.tsv.gz` and an event in Slovene."""
    segments = ["event_id\tsegment_no\tstart\tend"]
    turns = ["session_id|id_|start_time|end_time"]
    for event, words in UNLABELLED_RAW.items():
        samples, spans = session(words, "sl")
        record(source / "raw_audios/sl" / event[:4] / f"{event}.ogg", samples)
        segments += [f"{event}\t{n}\t{begin}\t{end}" for n, (begin, end) in enumerate(spans)]
        turns.append(f"{event}|0|{spans[0][0]}|{spans[-1][1]}")
    # Of a language that was not downloaded.
    segments.append("20190212-0900-PLENARY-7_pl\t0\t0.5\t9.5")
    directory = source / "unlabelled_data"
    directory.mkdir(parents=True, exist_ok=True)
    for name, lines in (("v2", [*segments, *more]), ("sd", turns)):
        with gzip.open(directory / f"unlabelled_{name}.tsv.gz", "wt", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")


def lay_out_text(source: Path) -> None:
    """`lm_data` of German."""
    path = source / "lm_data/de/sentences.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in SENTENCES), encoding="utf-8")

"""Every corpus in its official layout, what is wrong with it, and what its test sets say."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import layouts_babel
import layouts_common_voice
import layouts_covost2
import layouts_fleurs
import layouts_librispeech
import layouts_mls
import layouts_tedlium
import layouts_text
import layouts_voxpopuli
from spoken import speak_to


def lay_out_manifest(source: Path) -> None:
    """Two spoken lines and one to test with, and another in a second test set of some corpora."""
    lines = {"train": ["One, two!", "three four"], "test": ["Five - six."]}
    second = {"ami": "test_distant", "switchboard_fisher": "test_callhome"}
    if source.name in second:
        lines[second[source.name]] = ["Three four."]
    for split, texts in lines.items():
        rows = []
        for number, text in enumerate(texts):
            speak_to(source / split / f"{number}.flac", text)
            row = {"audio": f"{split}/{number}.flac", "text": text, "language": "en"}
            rows.append(json.dumps(row) + "\n")
        (source / f"{split}.jsonl").write_text("".join(rows))


def lay_out_libri_text(source: Path) -> None:
    """The text as it is downloaded."""
    source.mkdir()
    with gzip.open(source / "librispeech-lm-norm.txt.gz", "wt", encoding="utf-8") as file:
        file.write("A SENTENCE OF A BOOK\nAND ANOTHER ONE\n")


def lay_out_libri_light(source: Path) -> None:
    """With all six folds of ten minutes."""
    layouts_librispeech.lay_out_libri_light(source)
    for fold, words in ((2, "ONE"), (3, "TWO"), (4, "FOUR")):
        place = source / "librispeech_finetuning" / "1h" / str(fold) / "clean"
        layouts_librispeech.chapters(place, {f"103-125{fold}-0000": words})


def lay_out_mls(source: Path) -> None:
    """With all six folds of ten minutes."""
    layouts_mls.lay_out(source)
    limited = source / "mls_german" / "train" / "limited_supervision" / "1hr"
    for fold in (2, 3, 4):
        (limited / str(fold)).mkdir()
        (limited / str(fold) / "handles.txt").write_text("1001_11_000000\n", encoding="utf-8")


def lay_out_voxpopuli(source: Path) -> None:
    """With lines of the raw table, whose columns stand between pipes, that are not as they should.

    A text with a pipe, an id for the second time, a transcript without words, a piece of the
    session after its end, a file that cannot be decoded and one that is not there.
    """
    layouts_voxpopuli.lay_out(source)
    session = layouts_voxpopuli.SLOVENE_SESSION
    first = layouts_voxpopuli.SLOVENE[0][0]
    ending = "124|train|male"
    lost = session.replace("2019", "2018")
    broken = session.replace("2019", "2017")
    layouts_voxpopuli.lay_out_raw(
        source,
        f"{session}|sl_pipe|Ena|dve|ena dve|{ending}|[(0.2, 0.5)]|True",
        f"{session}|{first}|Ena.|ena|{ending}|[(0.2, 0.5)]|True",
        f"{session}|sl_silent|...||{ending}|[(0.2, 0.5)]|True",
        f"{session}|sl_late|Ena.|ena|{ending}|[(900.0, 901.0)]|True",
        f"{lost}|sl_lost|Ena.|ena|{ending}|[(0.2, 0.5)]|True",
        f"{broken}|sl_broken|Ena.|ena|{ending}|[(0.2, 0.5)]|True",
    )
    path = source / "raw_audios" / "original" / "2017" / f"{broken}_original.ogg"
    path.parent.mkdir()
    path.write_bytes(b"OggS and then nothing")


LAYOUTS: dict[str, Callable[[Path], object]] = {
    "librispeech": layouts_librispeech.lay_out,
    "librispeech_text": lay_out_libri_text,
    "libri_light": lay_out_libri_light,
    "mls": lay_out_mls,
    "mls_text": layouts_mls.lay_out,
    "common_voice": layouts_common_voice.lay_out,
    "covost2": layouts_covost2.lay_out,
    "voxpopuli": lay_out_voxpopuli,
    "voxpopuli_unlabelled": layouts_voxpopuli.lay_out,
    "voxpopuli_text": layouts_voxpopuli.lay_out,
    "fleurs": layouts_fleurs.lay_out,
    "babel": layouts_babel.lay_out,
    "tedlium": layouts_tedlium.lay_out,
    "ami": lay_out_manifest,
    "broadcast_news": lay_out_manifest,
    "switchboard_fisher": lay_out_manifest,
    "wsj": lay_out_manifest,
    "text_files": layouts_text.lay_out_mc4,
    "parallel_text": layouts_text.lay_out_parallel,
}
"""By corpus, what lays it out in a directory; a directory below it is returned if that is meant."""

ISSUES: dict[tuple[str, str], dict[str, int]] = {
    ("babel/lt", "train"): {
        "set aside": 4,
        "partly transcribed": 4,
        "bad row": 3,
        "bad value": 1,
        "no counterpart": 1,
        "unreadable audio": 1,
        "missing audio": 1,
    },
    ("babel/lt", "sub_train"): {"set aside": 2, "partly transcribed": 2},
    ("babel/lt", "validation"): {"set aside": 2, "partly transcribed": 2},
    ("common_voice/de", "train"): {
        "empty text": 1,
        "duplicate id": 1,
        "bad value": 1,
        "bad row": 1,
        "missing audio": 1,
        "unreadable audio": 1,
        "empty audio": 1,
    },
    ("covost2/de_en", ""): {"unknown split": 1},
    ("covost2/de_en", "train"): {
        "set aside": 2,
        "duplicate id": 1,
        "incomplete": 1,
        "missing audio": 1,
    },
    ("covost2/de_en", "test"): {"incomplete": 1, "no counterpart": 1},
    ("fleurs/de", "train"): {
        "duplicate id": 1,
        "empty text": 1,
        "bad row": 1,
        "missing audio": 1,
        "unreadable audio": 1,
    },
    ("libri_light/small", "train"): {
        "bad value": 4,
        "no counterpart": 1,
        "empty audio": 1,
        "bad row": 1,
        "cut short": 1,
        "missing audio": 1,
    },
    ("librispeech/en", ""): {"bad row": 1},
    ("librispeech/en", "train_clean_100"): {
        "no counterpart": 3,
        "empty text": 1,
        "duplicate id": 1,
        "missing audio": 1,
        "unreadable audio": 1,
    },
    ("mls/de", "train"): {
        "empty text": 1,
        "bad row": 1,
        "bad value": 1,
        "duplicate id": 1,
        "no counterpart": 1,
        "missing audio": 1,
        "unreadable audio": 1,
    },
    ("mls/de", "train_9h"): {"no counterpart": 1},
    ("parallel_text/de_en", "train"): {"empty text": 2, "empty translation": 1},
    ("tedlium/en", "train"): {
        "set aside": 2,
        "bad value": 2,
        "partly transcribed": 1,
        "bad row": 1,
        "unreadable audio": 1,
        "missing audio": 1,
        "outside of audio": 1,
    },
    ("tedlium/en", "validation"): {"set aside": 2, "partly transcribed": 1},
    ("tedlium/en", "test"): {"set aside": 2, "partly transcribed": 1},
    ("text_files/de", "train"): {"empty text": 2, "bad row": 1, "bad value": 1},
    ("voxpopuli/sl", ""): {"bad row": 1},
    ("voxpopuli/sl", "train"): {
        "duplicate id": 1,
        "empty text": 1,
        "outside of audio": 1,
        "missing audio": 1,
        "unreadable audio": 1,
    },
    ("voxpopuli_text/de", "train"): {"empty text": 1},
}
"""What is wrong with each split, `""` for lines of none; nothing with all others."""

_TALK = ["it's a good day", "they're here and don't", "just cause", "read it"]
_CALL = ["labas rytas", "vienas du", "kaip sek"]
_COVOST = ['"Five six.', "REMOVE"]

REFERENCES: dict[str, list[str]] = {
    **dict.fromkeys(
        [f"{c}_paired_en" for c in ("ami", "broadcast_news", "switchboard_fisher", "wsj")],
        ["five six"],
    ),
    "ami_paired_en_distant": ["three four"],
    "switchboard_fisher_paired_en_callhome": ["three four"],
    # Without a test set: its training utterances, both sides of a call and a broken recording.
    "babel_paired_lt": [*_CALL, *_CALL, "labas"],
    "common_voice_paired_de": ["sechs"],
    "common_voice_paired_sv": ["tre"],
    "covost2_paired_de_en": ["fünf sechs", "acht"],
    "covost2_paired_en_de": ["five six"],
    "covost2_paired_en_zh": ["five six"],
    "covost2_paired_sv_en": ["fem"],
    "fleurs_paired_de": ["fünf äpfel"],
    "fleurs_paired_zh": ["一二三"],
    "libri_light_paired_limited_10min": ["chapter one", "ten eleven"],
    "libri_light_paired_limited_9h": ["eight", "nine", "six seven"],
    "libri_light_paired_limited_1h": [
        *("chapter one", "ten eleven", "twelve", "one", "two", "four", "'tis three"),
    ],
    "libri_light_paired_limited_10h": [
        *("chapter one", "ten eleven", "twelve", "one", "two", "four", "'tis three"),
        *("eight", "nine", "six seven"),
    ],
    **dict.fromkeys(
        [f"librispeech_paired_en{s}" for s in ("", "_clean100", "_clean460")], ["left"]
    ),
    "librispeech_paired_en_other": ["right"],
    **dict.fromkeys([f"mls_paired_de{s}" for s in ("", "_10min", "_1h", "_9h", "_10h")], ["acht"]),
    **dict.fromkeys(
        [f"mls_paired_pl{s}" for s in ("", "_10min", "_1h", "_9h", "_10h")], ["cztery"]
    ),
    "tedlium_paired_en": _TALK,
    "voxpopuli_paired_de": ["zehn elf"],
    "voxpopuli_paired_en_accented": ["one two three"],
    "voxpopuli_paired_sl": ["sedem osem devet"],
    "covost2_st_de_en": _COVOST,
    "covost2_st_en_de": ["Fünf sechs."],
    "covost2_st_en_zh": ["五六。"],
    "covost2_st_sv_en": ["Five."],
    "covost2_mt_de_en": _COVOST,
    "covost2_mt_en_de": ["Fünf sechs."],
    "covost2_mt_en_zh": ["五六。"],
    "covost2_mt_sv_en": ["Five."],
    "parallel_text_mt_de_en": ["Good morning!", "It is eight o'clock."],
}
"""Of each task that is scored, what should come out of its test set, or of training without one."""

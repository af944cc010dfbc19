"""Parquet files as the library `datasets` and the converter of the hub write them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import layouts_covost2
import pyarrow as pa
import pyarrow.parquet
from spoken import record, say

AUDIO = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def spoken_bytes(directory: Path, text: str, language: str, suffix: str = ".mp3") -> bytes:
    """A recording of a text in a container, as a file has it."""
    return record(directory / f"recording{suffix}", say(text, language)).read_bytes()


def write(
    path: Path,
    rows: Sequence[Mapping[str, Any]],
    *,
    audio: Any = AUDIO,
    labels: Mapping[str, Sequence[str]] | None = None,
    rows_per_group: int = 2,
) -> Path:
    """Writes rows; columns of class labels hold numbers, whose names the metadata have."""
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    types = {"audio": audio, "speech": audio}
    table = pa.table({n: pa.array(values, types.get(n)) for n, values in columns.items()})
    features = {name: {"names": list(names)} for name, names in (labels or {}).items()}
    table = table.replace_schema_metadata(
        {"huggingface": json.dumps({"info": {"features": features}})}
    )
    pyarrow.parquet.write_table(table, path, row_group_size=rows_per_group)
    return path


def lay_out_covost2(source: Path) -> Path:
    """German into English, with what `layouts_covost2` has wrong; English into Chinese, converted.

    Returns:
        The directory of both.
    """
    scratch = source.parent / "scratch"

    def row(language: str, number: int, sentence: str, translation: str | None) -> dict[str, Any]:
        clip = layouts_covost2.clip(language, number)
        spoken = sentence if any(map(str.isalpha, sentence)) else "acht"
        return {
            "client_id": f"speaker{number}",
            "file": f"/somewhere/{clip}",
            "audio": {"bytes": spoken_bytes(scratch, spoken, language), "path": clip},
            "sentence": sentence,
            "translation": translation,
            "id": clip.removesuffix(".mp3"),
        }

    rows: dict[str, list[dict[str, Any]]] = {"train": [], "validation": [], "test": []}
    splits = {"train": "train", "train_covost": "train", "dev": "validation", "test": "test"}
    for number, sentence, translation, split in layouts_covost2.GERMAN:
        rows[splits[split]].append(row("de", number, sentence, translation))
    broken, nowhere = row("de", 9, "Neun.", "Nine."), row("de", 10, "Zehn.", "Ten.")
    broken["audio"] = {"bytes": b"ID3 and then nothing", "path": "broken.mp3"}
    nowhere["audio"] = {"bytes": None, "path": None}
    rows["train"] += [
        row("de", 5, "… !", "Seven."),
        row("de", 7, "unübersetzt", "REMOVE"),
        row("de", 8, "leer", None),
        broken,
        nowhere,
        row("de", 1, "Eins.", "Again."),
    ]
    rows["test"].append(row("de", 6, "Acht.", "REMOVE"))
    for split, members in rows.items():
        half = -(-len(members) // 2)
        for number, part in enumerate((members[:half], members[half:])):
            if part:
                write(source / "de_en" / f"{split}-{number:05d}-of-00002.parquet", part)
    for number, sentence, _, translation, split in layouts_covost2.ENGLISH:
        name = {"train": "partial-train", "dev": "validation", "test": "test"}[split]
        write(
            source / "en_zh-CN" / name / "0000.parquet", [row("en", number, sentence, translation)]
        )
    return source


def lay_out_voxpopuli(source: Path) -> Path:
    """Slovene, with the columns and class labels of the data set's own loader.

    Returns:
        The directory of the languages.
    """
    scratch = source.parent / "scratch"
    languages = ["en", "de", "sl"]
    rows: dict[str, list[dict[str, Any]]] = {"train": [], "validation": [], "test": []}
    for split, (name, text) in zip(
        ("train", "validation", "test", "train"),
        [
            (f"20190114-0900-PLENARY_sl_{n}", t)
            for n, t in enumerate(("Ena, dve.", "Tri štiri!", "Pet šest.", "..."))
        ],
        strict=True,
    ):
        normal = " ".join("".join(c for c in text.lower() if c.isalpha() or c == " ").split())
        rows[split].append(
            {
                "audio_id": name,
                "language": languages.index("sl"),
                "audio": {
                    "bytes": spoken_bytes(scratch, normal or "ena", "sl", ".wav"),
                    "path": f"{name}.wav",
                },
                "raw_text": text,
                "normalized_text": normal,
                "gender": "female",
                "speaker_id": "None" if split == "test" else "97058",
                "is_gold_transcript": True,
                "accent": "None",
            }
        )
    for split, members in rows.items():
        path = source / "sl" / f"{split}-00000-of-00001.parquet"
        write(path, members, labels={"language": languages})
    return source

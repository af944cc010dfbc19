"""MiniVox's utterances in the layouts of VoxPopuli and CoVoST-2: the official ones, and Parquet.

So the whole way from a download to a table can be walked with speech that a small model can
recognise. Both corpora are laid out as they are published: file names, columns, quoting, audio
containers and sampling rates.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import soundfile

from maestro_jax.audio.reading import resample
from maestro_jax.batches import SAMPLE_RATE

_CLIP_RATE = 48_000
_SEGMENTED = "id raw_text normalized_text speaker_id split gender is_gold_transcript accent".split()
_RAW = (
    "session_id id_ original_text normed_text speaker_id split gender vad is_gold_transcript"
).split()
_CLIPS = "client_id path sentence up_votes down_votes age gender accent".split()
_PARTS = {"train": "train", "validation": "dev", "test": "test"}


class Spoken(Protocol):
    """What is needed of an utterance, as `maestro_jax.minivox.corpus.Example` has it."""

    id: str
    audio: np.ndarray
    text: str
    raw_text: str
    translation: str
    language: str
    speaker: str


def spoken(language: str, part: str, count: int, config: Any = None) -> list[Spoken]:
    """Makes the first utterances of a split of MiniVox, the same that `small` has by default."""
    from maestro_jax.minivox.config import SMALL
    from maestro_jax.minivox.corpus import make_example

    split = f"paired_{language}_{part}"
    return [make_example(config or SMALL, split, number) for number in range(count)]


def voxpopuli(
    source: Path, utterances: Mapping[tuple[str, str], Sequence[Spoken]], raw: Iterable[str] = ()
) -> None:
    """Writes VoxPopuli: `transcribed_data`, or the raw sessions that its scripts cut.

    Args:
        source: Directory of the corpus.
        utterances: Utterances by language and part: `train`, `validation` or `test`.
        raw: Languages whose sessions were not cut.
    """
    raw = set(raw)
    for language in dict.fromkeys(language for language, _ in utterances):
        parts = {part: said for (code, part), said in utterances.items() if code == language}
        if language in raw:
            _raw_session(source, language, parts)
            continue
        directory = source / "transcribed_data" / language
        for part, name in _PARTS.items():
            rows = []
            for number, one in enumerate(parts.get(part, ())):
                identity = _voxpopuli_id(language, part, number)
                path = directory / identity[:4] / f"{identity}.ogg"
                _write(path, one.audio, SAMPLE_RATE, format="OGG", subtype="VORBIS")
                speaker = one.speaker or "None"
                rows.append([identity, one.raw_text, one.text, speaker, name, "male", "False"])
            path = directory / f"asr_{name}.tsv"
            path.parent.mkdir(parents=True, exist_ok=True)
            lines = ["\t".join(_SEGMENTED), *("\t".join([*row, "None"]) for row in rows)]
            path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _voxpopuli_id(language: str, part: str, number: int) -> str:
    day = 10 + list(_PARTS).index(part)
    hour, minute, second = 9 + number // 3600, number // 60 % 60, number % 60
    return (
        f"201806{day}-0900-PLENARY-15-{language}_201806{day}-{hour:02d}:{minute:02d}:{second:02d}_0"
    )


def _raw_session(source: Path, language: str, parts: Mapping[str, Sequence[Spoken]]) -> None:
    """Writes one recording of all utterances, half a second apart, and where each of them is."""
    rows = []
    for part, said in parts.items():
        # Languages share sessions, but these are not interpreted: each language has its own.
        number_of_session = sum(map(ord, language))
        day = 10 + list(_PARTS).index(part)
        session = f"201806{day}-0900-PLENARY-{number_of_session}"
        pieces, position = [], 0
        for number, one in enumerate(said):
            name = _voxpopuli_id(language, part, number).split("PLENARY-15-")[1]
            begin, end = position / SAMPLE_RATE, (position + len(one.audio)) / SAMPLE_RATE
            speaker = one.speaker or "None"
            row = [session, name, one.raw_text, one.text, speaker, _PARTS[part], "male"]
            rows.append("|".join([*row, str([(begin, end)]), "True"]))
            pieces += [one.audio, np.zeros(SAMPLE_RATE // 2, np.int16)]
            position += len(one.audio) + SAMPLE_RATE // 2
        path = source / "raw_audios" / "original" / session[:4] / f"{session}_original.ogg"
        _write(path, np.concatenate(pieces), SAMPLE_RATE, format="OGG", subtype="VORBIS")
    path = source / "transcribed_data" / language / f"asr_{language}.tsv.gz"
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.write("\n".join(["|".join(_RAW), *rows]) + "\n")


def covost2(source: Path, utterances: Mapping[tuple[str, str], Sequence[Spoken]]) -> None:
    """Writes CoVoST-2's tables of translations into English beside Common Voice 4.

    Args:
        source: Directory of the corpus.
        utterances: Utterances by language and part: `train`, `validation` or `test`.
    """
    for language in dict.fromkeys(language for language, _ in utterances):
        clips, translations = [], []
        for (code, part), said in utterances.items():
            for number, one in enumerate(said if code == language else ()):
                clip = _clip(language, part, number)
                audio = resample(one.audio / np.float32(32768), SAMPLE_RATE, _CLIP_RATE)
                _write(source / language / "clips" / clip, audio, _CLIP_RATE, **_MP3)
                clips.append([one.speaker, clip, one.raw_text, "2", "0", "", "", ""])
                translations.append([clip, one.translation, _PARTS[part]])
        _table(source / language / "validated.tsv", _CLIPS, clips)
        _table(
            source / f"covost_v2.{language}_en.tsv", ["path", "translation", "split"], translations
        )


def voxpopuli_parquet(source: Path, utterances: Mapping[tuple[str, str], Sequence[Spoken]]) -> None:
    """Writes VoxPopuli as the Hugging Face hub has it, with WAV files in a column."""
    languages = sorted({language for language, _ in utterances})
    for (language, part), said in utterances.items():
        rows = [
            {
                "audio_id": _voxpopuli_id(language, part, number),
                # A class label.
                "language": languages.index(language),
                "audio": {
                    "bytes": _encoded(one.audio, SAMPLE_RATE, format="WAV"),
                    "path": f"{_voxpopuli_id(language, part, number)}.wav",
                },
                "raw_text": one.raw_text,
                "normalized_text": one.text,
                "gender": "male",
                "speaker_id": one.speaker,
                "is_gold_transcript": False,
                "accent": "None",
            }
            for number, one in enumerate(said)
        ]
        labels = {"names": languages, "_type": "ClassLabel"}
        _parquet(source / language, part, rows, {"language": labels, "audio": _AUDIO})


def covost2_parquet(source: Path, utterances: Mapping[tuple[str, str], Sequence[Spoken]]) -> None:
    """Writes CoVoST-2 as mirrors on the Hugging Face hub have it, with MP3 files in a column."""
    for (language, part), said in utterances.items():
        rows = []
        for number, one in enumerate(said):
            clip = _clip(language, part, number)
            audio = resample(one.audio / np.float32(32768), SAMPLE_RATE, _CLIP_RATE)
            rows.append(
                {
                    "client_id": one.speaker,
                    "file": clip,
                    "audio": {"bytes": _encoded(audio, _CLIP_RATE, **_MP3), "path": clip},
                    "sentence": one.raw_text,
                    "translation": one.translation,
                    "id": clip.removesuffix(".mp3"),
                }
            )
        _parquet(source / f"{language}_en", part, rows, {"audio": _AUDIO})


_AUDIO = {"_type": "Audio"}
_MP3: dict[str, Any] = {
    "format": "MP3",
    "bitrate_mode": "VARIABLE",
    "compression_level": 0.3,
}


def _encoded(audio: np.ndarray, rate: int, **options: Any) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, audio, rate, **options)
    return file.getvalue()


def _parquet(
    directory: Path, part: str, rows: Sequence[dict[str, Any]], features: Mapping[str, Any]
) -> None:
    """Writes a split into two files, with the features that `datasets` keeps beside the columns."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    directory.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(list(rows))
    metadata = json.dumps({"info": {"features": features}})
    table = table.replace_schema_metadata({"huggingface": metadata})
    half = -(-len(rows) // 2)
    for number in range(2):
        path = directory / f"{part}-{number:05d}-of-00002.parquet"
        pq.write_table(table.slice(number * half, half), path, row_group_size=5)


def _clip(language: str, part: str, number: int) -> str:
    return f"common_voice_{language}_{1_000_000 * (1 + list(_PARTS).index(part)) + number}.mp3"


def _table(path: Path, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(
            file, delimiter="\t", quoting=csv.QUOTE_NONE, escapechar="\\", lineterminator="\n"
        )
        writer.writerow(header)
        writer.writerows(rows)


def _write(path: Path, audio: np.ndarray, rate: int, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with soundfile.SoundFile(path, "w", samplerate=rate, channels=1, **options) as file:
        # libsndfile's encoder of Vorbis keeps what it is given on the stack, which overflows.
        for start in range(0, len(audio), rate):
            file.write(audio[start : start + rate])

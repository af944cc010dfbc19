"""Manifests of a directory of recordings: tables and JSON files, with fields of many names.

Lines of JSON, one JSON list, objects by their ids (SpeechBrain), and tables with a header whose
columns are parted by tabs, commas, semicolons or bars. The fields are those of
`maestro_jax.data.corpora.manifest.Manifest`, NeMo, Hugging Face, Common Voice and SpeechBrain.
"""

from __future__ import annotations

import contextlib
import csv
import itertools
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from maestro_jax.audio.reading import EXTENSIONS
from maestro_jax.data.corpora import tables
from maestro_jax.data.corpora.issues import IssueLog
from maestro_jax.data.corpora.speech_entries import (
    SPEECH,
    TEXT,
    Entry,
    ReadingLog,
    files_below,
    is_beside,
    listed,
    some_names,
    split_of_name,
)
from maestro_jax.text.languages import base_language

FIELDS: Mapping[str, Sequence[str]] = {
    "audio": (
        *("audio", "audio_filepath", "audio_path", "audio_file", "path", "file_name", "filename"),
        *("file", "wav"),
    ),
    "text": ("text", "sentence", "transcript", "transcription", "wrd"),
    "translation": ("translation", "translation_text", "target_text", "tgt_text"),
    "language": ("language", "lang", "locale", "source_language", "source_lang", "src_lang"),
    "target_language": ("target_language", "target_lang", "tgt_lang", "translation_language"),
    "speaker": ("speaker", "speaker_id", "spk_id", "spk", "client_id"),
    "id": ("id", "utt_id", "utterance_id"),
    "split": ("split",),
    "offset": ("offset",),
    "duration": ("duration",),
}
"""Names of each field of a manifest; capitals do not matter, and the first with a value counts."""
_SUFFIXES = tuple(
    f"{name}{end}" for name in (".jsonl", ".json", ".tsv", ".csv") for end in ("", ".gz")
)
_AUDIO_FOLDERS = ("clips", "audio", "wavs", "wav")
"""Folders in which the paths of a manifest may begin: Common Voice has them without `clips`."""


def find_tables(files: Iterable[Path]) -> dict[str, list[Path]]:
    """Returns tables by kind: `manifest` with recordings, `text` without, `lhotse`, or `other`.

    Raises:
        UserError: One cannot be read, or is not UTF-8: it may be the one that matters.
    """
    kinds: dict[str, list[Path]] = {"manifest": [], "text": [], "lhotse": [], "other": []}
    for file in files:
        if not (file.name.lower().endswith(_SUFFIXES) and file.is_file()):
            continue
        # What stands beside a recording of the same name describes that one alone.
        if any(file.with_suffix(suffix).is_file() for suffix in EXTENSIONS):
            continue
        if kind := _kind(file):
            kinds[kind].append(file)
    return kinds


def tables_in_folders(path: Path) -> list[Path]:
    """Returns the files of the folders of a directory, without those of unpaired data."""
    return [
        file
        for folder in listed(path)
        if folder.is_dir() and folder.name.lower() not in (SPEECH, TEXT)
        # The output of `maestro quickstart` has manifests, too.
        if not (folder / "survey.jsonl").exists()
        for file in listed(folder)
    ]


def _kind(file: Path) -> str:
    """Returns the kind of a table, see `find_tables`; empty for what is no table."""
    if _is_json(file):
        objects = _first_objects(file)
        if not objects:
            # A JSON file may be anything, but one object per line is data.
            return "other" if ".jsonl" in file.suffixes or split_of_name(file.name) else ""
        names = {name.strip().lower() for fields in objects for name in fields}
        if _is_lhotse(objects[0]):
            return "lhotse"
    else:
        names = set(_columns(file)[0])
    has = {field for field, known in FIELDS.items() if names & set(known)}
    if names & {"audio", "audio_filepath"} or {"audio", "text"} <= has:
        return "manifest"
    if "text" in names:
        return "text"
    if {"audio", "translation"} <= has:
        return "manifest"
    return "" if file.suffix == ".json" and not split_of_name(file.name) else "other"


def missing_fields(file: Path) -> str:
    """Says what a table has, and that it is no manifest."""
    if not _is_json(file):
        names = _columns(file)[0]
    else:
        names = list(first_object(file) or ())
    if not names:
        return "it has no line with fields; it needs audio and text"
    return f"no manifest: it has {', '.join(names[:12])}; it needs audio and text"


def _is_json(file: Path) -> bool:
    return bool({".json", ".jsonl"} & {suffix.lower() for suffix in file.suffixes})


def first_object(file: Path) -> Mapping[str, Any] | None:
    """Returns the first object of a JSON file that has a field that we know; else the first.

    Returns:
        None if there is no object.

    Raises:
        UserError: The file cannot be read, or is not UTF-8.
    """
    return next(iter(_first_objects(file)), None)


def _first_objects(file: Path) -> list[Mapping[str, Any]]:
    """Returns the first objects with fields that we know; others if there are none."""
    values = _objects(file) or [_json(line) for _, line in itertools.islice(tables.lines(file), 99)]
    objects: list[Mapping[str, Any]] = [one for one in values if isinstance(one, dict)]
    return [one for one in objects if _is_known(one)] or objects


def _json(line: str) -> Any:
    """Returns the value of a line; None if it has none."""
    with contextlib.suppress(ValueError, RecursionError):
        return json.loads(line)
    return None


def _is_known(fields: Any) -> bool:
    """Returns whether a value is an object with recordings or texts, or one of lhotse."""
    if not isinstance(fields, dict):
        return False
    names = {name.strip().lower() for name in fields}
    return _is_lhotse(fields) or bool(names & {*FIELDS["audio"], *FIELDS["text"]})


def _objects(file: Path) -> list[Any]:
    """Returns the objects of a file that is one JSON value; empty for a file of lines.

    They may be a list, a list under one name, or have their ids as names (SpeechBrain).
    """
    if _is_known(_json(next((line for _, line in tables.lines(file) if line.strip()), ""))):
        return []
    try:
        with tables.open_text(file) as text:
            value = json.load(text)
    except (ValueError, RecursionError, OSError, EOFError):
        return []
    if isinstance(value, dict):
        lists = [each for each in value.values() if isinstance(each, list) and each]
        if value and all(map(_is_known, value.values())):
            return [{"id": name, **each} for name, each in value.items()]
        value = lists[0] if len(lists) == 1 else []
    return value if isinstance(value, list) else []


def _columns(file: Path) -> tuple[list[str], str]:
    """Returns the header of a table in lower case, and the delimiter that it has."""
    first = next((line for _, line in tables.lines(file) if line.strip()), "")
    known = set(itertools.chain(*FIELDS.values()))
    headers = {
        delimiter: [name.strip().lower() for name in next(csv.reader([first], delimiter=delimiter))]
        for delimiter in "\t,;|"
    }
    delimiter = max(headers, key=lambda one: (len(known & set(headers[one])), len(headers[one])))
    return headers[delimiter], delimiter


def read_manifest(file: Path, split: str, log: ReadingLog) -> list[Entry]:
    """Returns the lines of a manifest."""
    rows = [
        (place, {name.strip().lower(): value for name, value in fields.items()})
        for place, fields in _rows(file, split, log.issues)
    ]
    _note_fields(file, [fields for _, fields in rows], log)
    audio_folder = _audio_folder(file, rows)
    entries = []
    for place, fields in rows:
        try:
            entry = _entry(place, fields, audio_folder, split, log.target)
        except ValueError as error:
            log.issues.add("bad value", split=split, item=place, detail=str(error))
        else:
            entries.append(entry)
    return entries


def _entry(
    place: str, fields: Mapping[str, Any], audio_folder: Path, split: str, target: str
) -> Entry:
    """Returns the entry of one line.

    Raises:
        ValueError: A value is of another kind, or there is neither audio nor text.
    """

    def field(name: str) -> str:
        values = (_value(one, fields[one]) for one in FIELDS[name] if one in fields)
        return next((value for value in values if value), "")

    target_language = field("target_language")
    for name in FIELDS["translation"]:
        if isinstance(fields.get(name), dict) and fields[name]:
            # Texts by language.
            into = {str(code): text for code, text in fields[name].items()}
            code = next((one for one in into if base_language(one) == base_language(target)), "")
            code = code or next(iter(into))
            fields = {**fields, name: into[code]}
            target_language = target_language or code
    audio, text, translation = field("audio"), field("text"), field("translation")
    if not (audio or text):
        raise ValueError(f"neither audio nor text; it has {', '.join(fields) or 'nothing'}")
    span = _span(field("offset"), field("duration"))
    language = field("language")
    return Entry(
        id=field("id") or place,
        audio=str(audio_folder / _path(audio)) if audio else "",
        span=span if audio else None,
        text=text,
        translation=translation,
        language="" if language.lower() in ("und", "unknown") else language,
        target_language=target_language,
        speaker=field("speaker"),
        split=split_of_name(field("split")) or split,
    )


def _value(name: str, value: Any) -> str:
    """Returns a value of a line as text; empty for none.

    Raises:
        ValueError: It is a list or an object.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if name in FIELDS["audio"] and isinstance(value, dict) and "path" in value:
        # Hugging Face: a path, and perhaps the bytes.
        value = value["path"]
    if not isinstance(value, str | int | float):
        kind = "a list" if isinstance(value, list) else "an object"
        raise ValueError(f"{name} is {kind}, and not a text")
    return str(value).strip()


def _path(audio: str) -> str:
    """Returns a path without what stands for a root, with the separators of this system."""
    audio = re.sub(r"^(file://|\{\w+\}/|\$\w+/)", "", audio)
    is_of_windows = "\\" in audio and "/" not in audio
    return os.path.expanduser(audio.replace("\\", "/") if is_of_windows else audio)


def _audio_folder(file: Path, rows: Sequence[tuple[str, Mapping[str, Any]]]) -> Path:
    """Returns the folder in which the paths of a manifest begin: its own, unless nothing is there.

    Paths are relative to the manifest, to a folder of recordings beside it, or to a folder above.
    """
    paths = [
        _path(value)
        for _, fields in rows[:50]
        for name in FIELDS["audio"]
        if isinstance(value := fields.get(name), str) and value
    ]
    own = file.parent
    others = [own / name for name in _AUDIO_FOLDERS]
    for folder in (own, *others, *own.absolute().parents[:3]):
        if any(os.path.isfile(folder / path) for path in paths):
            return folder
    return own


def _note_fields(file: Path, rows: Sequence[Mapping[str, Any]], log: ReadingLog) -> None:
    """Says which fields are read under an unusual name, and which are not."""
    there = dict.fromkeys(name for fields in rows for name in fields)
    parts, read = [], {"duration"}
    for field, names in FIELDS.items():
        used = next((name for name in names if name in there), field)
        read.add(used)
        if used not in (field, "audio_filepath", "lang"):
            parts.append(f"{field} is {used}")
    if unread := [name for name in there if name not in read]:
        parts.append(f"not read: {', '.join(unread[:12])}")
    if parts:
        log.notes.append(f"{file.name}: {'; '.join(parts)}.")


def note_unlisted(path: Path, entries: Sequence[Entry], log: ReadingLog) -> None:
    """Says how many audio files no manifest lists."""
    listed = {os.path.abspath(entry.audio) for entry in entries if entry.audio}
    unlisted = [
        file
        for file in files_below(path)
        if file.suffix.lower() in EXTENSIONS
        and not is_beside(file, path)
        and os.path.abspath(file) not in listed
    ]
    if unlisted:
        log.notes.append(
            f"{some_names(path, unlisted)}: in no manifest, not used; in {SPEECH}/ it would be, as "
            "untranscribed speech."
        )


def _rows(file: Path, split: str, issues: IssueLog) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if not _is_json(file):
        delimiter = _columns(file)[1]
        yield from tables.rows(file, issues, delimiter=delimiter, quoted=True, split=split)
    elif objects := _objects(file):
        for number, fields in enumerate(objects, start=1):
            if isinstance(fields, dict):
                yield f"{file.name}:{number}", fields
            else:
                place = f"{file.name}:{number}"
                issues.add("bad row", split=split, item=place, detail="no JSON object")
    else:
        yield from tables.objects(file, issues, split=split)


def _span(offset: str, duration: str) -> tuple[float, float] | None:
    """Returns a part of a file; None for the whole file.

    Raises:
        ValueError: A number is none, or negative.
    """
    numbers: list[float | None] = []
    for name, value in (("offset", offset), ("duration", duration)):
        try:
            number = float(value) if value else None
        except ValueError:
            raise ValueError(f"{name} is {value!r}, and not seconds") from None
        if number is not None and not (math.isfinite(number) and number >= 0):
            raise ValueError(f"{name} is {value}")
        numbers.append(number)
    begin, length = numbers
    # In NeMo's manifests, a duration without an offset is that of the whole file.
    if begin is None or (begin == 0 and length is None):
        return None
    return begin, math.inf if length is None else begin + length


def _is_lhotse(fields: Mapping[str, Any]) -> bool:
    """Returns whether an object is a cut, a recording or a supervision of lhotse."""
    is_cut = str(fields.get("type", "")).endswith("Cut")
    return is_cut or "sources" in fields or {"recording_id", "duration"} <= fields.keys()

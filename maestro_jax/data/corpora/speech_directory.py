"""Finds what a directory of recordings holds, in whichever of four layouts it is.

- *Manifests*: `train.jsonl`, `validation.tsv`, `test.csv` or any one manifest, with the fields of
  `FIELDS`: those of `Manifest`, NeMo, Hugging Face, Common Voice and SpeechBrain.
- Files of *lhotse*: `cuts.jsonl.gz`, or `recordings.jsonl.gz` and `supervisions.jsonl.gz`, which
  the package lhotse reads.
- A data directory of *Kaldi*: `wav.scp`, `text` and, if they exist, `segments`, `utt2spk`,
  `utt2lang` and translations in `text.en`; or one folder per split with these.
- *Pairs*: `a.wav` beside `a.txt` and, if there is a translation, `a.en.txt`; at any depth. Or one
  file for many recordings, whose lines begin with their names (`metadata.csv` of LJSpeech,
  `*.trans.txt` of LibriSpeech).

Beside any of them, recordings in `speech/` count as untranscribed, and lines of `text/**/*.txt` and
of text files in the directory itself as unspoken text. A split is named by a file or a folder whose
name says so (`train`, `dev`, `test`); where no name does, the entries have none. Hidden files are
left alone.
"""

from __future__ import annotations

import collections
import csv
import dataclasses
import importlib
import itertools
import math
import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from maestro_jax.audio.reading import EXTENSIONS
from maestro_jax.data.corpora import tables
from maestro_jax.data.corpora.issues import Issue, IssueLog
from maestro_jax.data.corpora.speech_entries import (
    SPEECH,
    TEXT,
    Entry,
    ReadingLog,
    best_translation,
    files_below,
    is_beside,
    listed,
    names_language,
    some_names,
    split_of_name,
    splits_of_parts,
    with_known_splits,
)
from maestro_jax.data.corpora.speech_manifests import (
    find_tables,
    first_object,
    missing_fields,
    note_unlisted,
    read_manifest,
    tables_in_folders,
)
from maestro_jax.errors import UserError
from maestro_jax.text.languages import is_language

_NO_TEXTS = {
    "readme",
    "license",
    "licence",
    "copying",
    "notice",
    "changelog",
    "changes",
    "metadata",
    "requirements",
}
_FOLDERS_OF_NO_SPEAKER = {"audio", "audios", "wav", "wavs", "clips", "data", "recordings", "flac"}
_LINES_OF_A_TRANSCRIPT = 3
"""A text file with more lines is a text, and not the transcript of a recording that is lost."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpeechDirectory:
    """What a directory holds.

    Attributes:
        path: The directory.
        layout: `manifest`, `lhotse`, `kaldi` or `pairs`.
        entries: All recordings and texts, in a fixed order.
        issues: What cannot be used, by line or file.
        notes: What else is there and how it was understood, a sentence each.
    """

    path: Path
    layout: str
    entries: tuple[Entry, ...]
    issues: tuple[Issue, ...]
    notes: tuple[str, ...] = ()


def read_speech_directory(path: Path, target_language: str = "") -> SpeechDirectory:
    """Reads the tables and the names of all files of a directory, without opening a recording.

    Args:
        path: The directory.
        target_language: The language of the translations to read where there are several.

    Raises:
        UserError: It is no directory, has no recording in any known layout, or needs lhotse; a
            table is not UTF-8.
    """
    if not path.is_dir():
        raise UserError(f"{path} is not a directory; name the one with the recordings.")
    log = ReadingLog(IssueLog(), [], target_language, set())
    layout, entries = _read(path, log)
    entries += _unpaired(path, layout, entries, log)
    if not any(entry.audio for entry in entries):
        found = ", ".join(sorted(each.name for each in listed(path))[:8]) or "nothing"
        first = "".join(f" {one.item}: {one.detail}." for one in log.issues.issues[:1])
        raise UserError(
            f"{path} has no recordings in a layout that is known ({found}).{first} It needs "
            "train.jsonl or another manifest with the fields audio and text, wav.scp and text, "
            "cuts.jsonl.gz, or audio files beside .txt files."
        )
    return SpeechDirectory(
        path=path,
        layout=layout,
        entries=tuple(_with_unique_ids(with_known_splits(entries), log.issues)),
        issues=tuple(log.issues.issues),
        notes=tuple(log.notes),
    )


def _read(path: Path, log: ReadingLog) -> tuple[str, list[Entry]]:
    """Returns the layout and the entries of its tables."""
    kinds = find_tables(listed(path))
    folders = _kaldi_folders(path)
    if not (kinds["manifest"] or kinds["lhotse"] or folders):
        below = find_tables(tables_in_folders(path))
        kinds |= {kind: below[kind] for kind in ("manifest", "lhotse")}
    there = {
        "manifest": kinds["manifest"],
        "lhotse": kinds["lhotse"],
        "kaldi": [folder / "wav.scp" for folder in folders],
    }
    layout = next((name for name, files in there.items() if files), "pairs")
    if others := [file for name, files in there.items() if name != layout for file in files]:
        log.notes.append(
            f"{some_names(path, others)}: not read, since {some_names(path, there[layout])} is, "
            "which is another layout."
        )
    entries: list[Entry] = []
    # Manifests without audio are texts, whatever the layout of the recordings; or what is said in
    # recordings that are called like their lines.
    manifests = [*(kinds["manifest"] if layout == "manifest" else ()), *kinds["text"]]
    found = [
        split_of_name(file.name) or split_of_name(str(file.relative_to(path))) for file in manifests
    ]
    for file, split in zip(manifests, splits_of_parts(found), strict=True):
        entries += read_manifest(file, split, log)
    if layout == "pairs" and (joined := _with_recordings(path, entries, log.issues)):
        layout, entries = "manifest", joined
    if layout == "kaldi":
        splits = [split_of_name(folder.name) if folder != path else "" for folder in folders]
        for folder, split in zip(folders, splits_of_parts(splits), strict=True):
            entries += _kaldi(folder, split, log)
    elif layout == "lhotse":
        entries += _lhotse(kinds["lhotse"], log.issues)
    elif layout == "pairs":
        # A table with a header is no list of transcripts without one.
        log.transcripts.update(manifests)
        entries += _pairs(path, log)
    if layout == "manifest":
        note_unlisted(path, entries, log)
    for file in kinds["other"]:
        if file not in log.transcripts:
            log.issues.add("bad value", item=file.name, detail=missing_fields(file))
    return layout, entries


def _with_recordings(path: Path, texts: Sequence[Entry], issues: IssueLog) -> list[Entry]:
    """Gives texts the recordings that are called like their ids, if most of them have one.

    Returns:
        None of them if they have not.
    """
    by_stem: dict[str, list[Path]] = collections.defaultdict(list)
    for file in files_below(path):
        if file.suffix.lower() in EXTENSIONS:
            by_stem[file.stem].append(file)
    named = [by_stem.get(Path(entry.id).name, by_stem.get(Path(entry.id).stem)) for entry in texts]
    if sum(files is not None for files in named) <= len(texts) / 2:
        return []
    entries = []
    for entry, files in zip(texts, named, strict=True):
        if files is not None and len(files) == 1:
            entries.append(dataclasses.replace(entry, audio=str(files[0])))
        else:
            detail = some_names(path, files) if files else "no recording is called like that"
            issues.add("no counterpart", split=entry.split, item=entry.id, detail=detail)
    return entries


# ----------------------------------------------------------------------------------------- Kaldi


def _kaldi_folders(path: Path) -> list[Path]:
    """Returns the directory itself, or those of its folders that are data directories."""
    if (path / "wav.scp").is_file():
        return [path]
    found = (*listed(path, "*/wav.scp"), *listed(path, "data/*/wav.scp"))
    return sorted(each.parent for each in found if each.parent.name != SPEECH)


def _kaldi(folder: Path, split: str, log: ReadingLog) -> Iterator[Entry]:
    """Yields the utterances of a data directory of Kaldi."""
    where, issues = folder.name, log.issues
    recordings: dict[str, str] = {}
    for name, value in _kaldi_table(folder / "wav.scp"):
        audio = _kaldi_audio(folder, value)
        if audio is None:
            detail = f"a command or an archive, which is not run: {value}"
            issues.add("bad value", split=split, item=f"{where}/{name}", detail=detail)
        else:
            recordings[name] = audio
    texts = dict(_kaldi_table(folder / "text"))
    speakers = dict(_kaldi_table(folder / "utt2spk"))
    for speaker, utterances in _kaldi_table(folder / "spk2utt"):
        speakers = {**dict.fromkeys(utterances.split(), speaker), **speakers}
    languages = dict(_kaldi_table(folder / "utt2lang"))
    translations, target = _kaldi_translations(folder, log)
    known = {name for name, _ in _kaldi_table(folder / "wav.scp")}
    listed: list[tuple[str, str, tuple[float, float] | None]] = []
    if (folder / "segments").is_file():
        for name, value in _kaldi_table(folder / "segments"):
            parts = value.split()
            try:
                recording, begin, end = parts[0], float(parts[1]), float(parts[2])
                # Kaldi writes -1 for the end of the recording.
                listed.append((name, recording, (begin, math.inf if end < 0 else end)))
            except (IndexError, ValueError):
                detail = f"segments has {value!r} instead of recording, begin and end"
                issues.add("bad row", split=split, item=f"{where}/{name}", detail=detail)
    else:
        listed = [(name, name, None) for name, _ in _kaldi_table(folder / "wav.scp")]
    for name, recording, span in listed:
        if recording not in recordings:
            texts.pop(name, None)
            # A recording without segments has been named above.
            if recording != name or recording not in known:
                detail = f"wav.scp has no usable recording {recording!r}"
                issues.add("no counterpart", split=split, item=f"{where}/{name}", detail=detail)
            continue
        yield Entry(
            id=name,
            audio=recordings[recording],
            span=span,
            text=texts.pop(name, ""),
            translation=translations.get(name, ""),
            language=languages.get(name, ""),
            target_language=target,
            speaker=speakers.get(name, ""),
            split=split,
        )
    for name in texts:
        detail = "text without a recording"
        issues.add("no counterpart", split=split, item=f"{where}/{name}", detail=detail)


def _kaldi_table(path: Path) -> list[tuple[str, str]]:
    """Reads `key value` lines; none if the file does not exist."""
    if not path.is_file():
        return []
    rows = (line.strip().partition(" ") for _, line in tables.lines(path))
    return [
        (key.partition("\t")[0], (key.partition("\t")[2] + " " + value).strip())
        for key, _, value in rows
        if key
    ]


def _kaldi_audio(folder: Path, value: str) -> str | None:
    """Returns the file of a line of `wav.scp`; None if it is not one file.

    Commands (`flac -c -d a.flac |`) are not run; of one that reads a single file, the file is read.
    """
    candidates = [value]
    if value.endswith("|"):
        try:
            words = shlex.split(value.rstrip("| "))
        except ValueError:
            return None
        candidates = [word for word in words if Path(word).suffix.lower() in EXTENSIONS]
        if len(candidates) != 1 or "|" in words:
            return None
    elif re.search(r"\.ark:\d+$", value):
        return None
    file = Path(os.path.expanduser(candidates[0]))
    # Kaldi's paths are relative to where its recipe runs: the folder above data/train, mostly.
    for base in (folder, *folder.absolute().parents[:4]):
        if (base / file).is_file():
            return str(base / file)
    return str(folder / file)


def _kaldi_translations(folder: Path, log: ReadingLog) -> tuple[dict[str, str], str]:
    """Returns the translations in `text.en` or the like, and their language."""
    found: dict[str, Path] = {}
    for file in listed(folder, "text.*"):
        code = file.name.rpartition(".")[2]
        if names_language(code, log.target):
            # ESPnet has several forms of a text: text.en, text.lc.en, text.tc.en with capitals.
            found[code] = found.get(code, file) if file.name != f"text.{code}" else file
        else:
            log.notes.append(f"{folder.name}/{file.name}: not read, {code!r} being no language.")
    best = best_translation(found, folder.name, log)
    return (dict(_kaldi_table(best[1])), best[0]) if best else ({}, "")


# ---------------------------------------------------------------------------------------- lhotse


def _lhotse(files: Sequence[Path], issues: IssueLog) -> list[Entry]:
    """Reads cuts, or recordings with their supervisions.

    Raises:
        UserError: lhotse is not installed or cannot read a file, or a part is missing.
    """
    try:
        lhotse: Any = importlib.import_module("lhotse")
    except ImportError:
        raise UserError(
            f"{files[0]} is a manifest of lhotse: pip install maestro_jax[lhotse], or write "
            "train.jsonl with audio, text, language and speaker on each line."
        ) from None
    kinds: dict[str, list[Path]] = collections.defaultdict(list)
    for file in files:
        fields = first_object(file) or {}
        kind = "recordings" if "sources" in fields else "supervisions"
        kinds["cuts" if str(fields.get("type", "")).endswith("Cut") else kind].append(file)
    groups: list[tuple[Path, Any]] = []
    for file in kinds["cuts"]:
        groups.append((file, lhotse.load_manifest_lazy(file)))
    if not groups:
        if not (kinds["recordings"] and kinds["supervisions"]):
            raise UserError(
                f"{files[0].parent} has recordings or supervisions of lhotse, but not both; put "
                "the other file beside it."
            )
        for file in kinds["supervisions"]:
            name = file.name.replace("supervisions", "recordings")
            recordings = next(
                (one for one in kinds["recordings"] if one.name == name), kinds["recordings"][0]
            )
            cuts = lhotse.CutSet.from_manifests(
                recordings=lhotse.load_manifest(recordings),
                supervisions=lhotse.load_manifest(file),
            )
            groups.append((file, cuts))
    paths = [file for file, _ in groups]
    splits = splits_of_parts([split_of_name(file.name) for file in paths])
    return [
        entry
        for (file, cuts), split in zip(groups, splits, strict=True)
        for cut in cuts
        for entry in _cut(file, cut, split, issues)
    ]


def _cut(file: Path, cut: Any, split: str, issues: IssueLog) -> Iterator[Entry]:
    """Yields the supervisions of a cut; the cut itself if it has none."""
    recording: Any = getattr(cut, "recording", None)
    sources = [] if recording is None else recording.sources
    if len(sources) != 1 or sources[0].type != "file":
        detail = "the cut has no recording in one file"
        issues.add("bad value", split=split, item=f"{file.name}:{cut.id}", detail=detail)
        return
    audio = Path(sources[0].source)
    candidates = (base / audio for base in (Path(), file.parent, *file.absolute().parents[1:4]))
    audio = next((each for each in candidates if each.is_file()), audio)
    spoken = [one for one in cut.supervisions if one.text and one.text.strip()]
    # A cut of one supervision is cut where its speech is; one of none is untranscribed.
    parts = spoken if len(spoken) > 1 else [None]
    for part in parts:
        begin, length = cut.start, cut.duration
        if part is not None:
            begin, length = cut.start + part.start, part.duration
        about: Any = part or next(iter(spoken or cut.supervisions), None)
        custom = getattr(about, "custom", None) or {}
        whole = begin == 0 and abs(length - recording.duration) < 0.01
        yield Entry(
            id=str(cut.id if part is None else part.id),
            audio=str(audio),
            span=None if whole else (float(begin), float(begin + length)),
            text=(getattr(about, "text", None) or "").strip(),
            translation=str(custom.get("translation") or "").strip(),
            language=_lhotse_language(getattr(about, "language", None)),
            target_language=str(custom.get("target_language") or "").strip(),
            speaker=getattr(about, "speaker", None) or "",
            split=split,
        )


def _lhotse_language(name: str | None) -> str:
    """Returns the code of a language; empty for a name in English, as some recipes write it."""
    return name if name and is_language(name) else ""


# ------------------------------------------------------------------- audio files beside text files


def _pairs(path: Path, log: ReadingLog) -> Iterator[Entry]:
    """Yields the audio files of a directory with the text files of the same name."""
    below = files_below(path)
    by_name: dict[Path, Path] = {}
    audio = [
        (file.with_suffix(""), EXTENSIONS.index(file.suffix.lower()), file)
        for file in below
        if file.suffix.lower() in EXTENSIONS
        and not (is_beside(file, path) and _text_beside(file) is None)
    ]
    # Of one recording in several forms the first is read, and the lossless come first.
    for name, _, file in sorted(audio):
        other = by_name.setdefault(name, file)
        if other != file:
            item, detail = str(file.relative_to(path)), f"the recording of {other.name}"
            log.issues.add("duplicate id", item=item, detail=detail)
    files = list(by_name.values())
    translations: dict[Path, dict[str, Path]] = collections.defaultdict(dict)
    for file in below:
        code = file.with_suffix("").suffix[1:]
        if file.suffix == ".txt" and code and names_language(code, log.target):
            translations[file.with_suffix("").with_suffix("")][code] = file
    transcripts = _listed_transcripts(path, files, below, log)
    folders = [file.relative_to(path).parts[:-1] for file in files]
    found = [
        next((split for part in parts if (split := split_of_name(part))), "") for parts in folders
    ]
    names = [
        [
            part
            for part in parts
            if not split_of_name(part) and part.lower() not in (*_FOLDERS_OF_NO_SPEAKER, SPEECH)
        ]
        for parts in folders
    ]
    # Folders are languages if all of them are called like one, and else speakers.
    are_languages = all(names_language(own[0], log.target) for own in names if own)
    for file, own, split in zip(files, names, splits_of_parts(found), strict=True):
        language = own.pop(0) if own and are_languages else ""
        beside = _text_beside(file)
        item = str(file.relative_to(path))
        best = best_translation(translations[file.with_suffix("")], item, log)
        yield Entry(
            id=str(file.relative_to(path).with_suffix("")),
            audio=str(file),
            text=transcripts.get(file, "") if beside is None else _transcript(beside, log.issues),
            translation=_transcript(best[1], log.issues) if best else "",
            language=language,
            target_language=best[0] if best else "",
            speaker=own[-1] if own else "",
            split=split,
        )


def _text_beside(file: Path) -> Path | None:
    """Returns the transcript beside an audio file: `a.txt`, `a.lab` or `a.wav.txt`."""
    names = (f"{file.stem}.txt", f"{file.stem}.TXT", f"{file.stem}.lab", f"{file.name}.txt")
    return next((path for name in names if (path := file.with_name(name)).is_file()), None)


def _transcript(path: Path, issues: IssueLog) -> str:
    """Reads a text file as one line; empty if it is not text."""
    try:
        return " ".join(" ".join(line.split()) for _, line in tables.lines(path)).strip()
    except UserError as error:
        issues.add("bad value", item=path.name, detail=str(error))
        return ""


def _listed_transcripts(
    path: Path, files: Sequence[Path], below: Sequence[Path], log: ReadingLog
) -> dict[Path, str]:
    """Reads the text files most of whose lines begin with the name of a recording.

    Args:
        path: The directory.
        files: Its recordings.
        below: All its files.
        log: What is to be said about it.
    """
    by_stem: dict[str, list[Path]] = collections.defaultdict(list)
    for file in files:
        by_stem[file.stem].append(file)
    stems = {file.with_suffix("") for file in files}
    found: dict[Path, str] = {}
    for table in below:
        if (
            not table.name.lower().endswith((".txt", ".tsv", ".csv", ".trn", ".lst"))
            or is_beside(table, path)
            or table in log.transcripts
            or _belongs_to(table.parent, table.stem, stems)
        ):
            continue
        try:
            numbered = [(number, line) for number, line in tables.lines(table) if line.strip()]
        except UserError as error:
            log.issues.add("bad value", item=table.name, detail=str(error))
            continue
        rows = [(number, _named(line, by_stem)) for number, line in numbered]
        if sum(row is not None for _, row in rows) <= len(rows) / 2:
            continue
        log.transcripts.add(table)
        for number, row in rows:
            place = f"{table.name}:{number}"
            if row is None:
                log.issues.add("no counterpart", item=place, detail="a line without a recording")
                continue
            name, text = row
            near = [file for file in by_stem[name] if file.is_relative_to(table.parent)]
            candidates = near or by_stem[name]
            if len(candidates) > 1:
                detail = f"{name} may be {some_names(path, candidates)}"
                log.issues.add("bad value", item=place, detail=detail)
                continue
            found[candidates[0]] = text
    return found


def _named(line: str, by_stem: Mapping[str, Sequence[Path]]) -> tuple[str, str] | None:
    """Divides a line into the stem of a recording and its text; None if it begins with none."""
    for delimiter in ("\t", "|", ";", ",", " "):
        cell, found, rest = line.partition(delimiter)
        name = re.split(r"[/\\]", cell.strip().strip('"'))[-1]
        if Path(name).suffix.lower() in EXTENSIONS:
            name = name.rpartition(".")[0]
        if not found or name not in by_stem:
            continue
        if delimiter in "\t|;":
            # Further columns have other forms of the text, or the speaker.
            rest = rest.partition(delimiter)[0]
        elif delimiter == "," and rest.startswith('"'):
            rest = next(csv.reader([rest]))[0]
        return name, " ".join(rest.split())
    return None


# --------------------------------------------------------------------------------- unpaired data


def _unpaired(
    path: Path, layout: str, entries: Sequence[Entry], log: ReadingLog
) -> Iterator[Entry]:
    """Yields recordings in `speech/`, and lines of text files that are no transcripts."""
    known = {entry.audio for entry in entries}
    for file in files_below(path / SPEECH):
        if file.suffix.lower() in EXTENSIONS and str(file) not in known:
            folder = file.relative_to(path).parts[1]
            language = folder if names_language(folder, log.target) else ""
            name = str(file.relative_to(path))
            yield Entry(id=name, audio=str(file), language=language, split="train")
    files = [
        *(file for file in listed(path) if file.is_file()),
        *files_below(path / TEXT),
    ]
    stems = {Path(entry.audio).with_suffix("") for entry in entries if entry.audio}
    read: dict[Path, int] = {}
    for file in files:
        stem = file.name.removesuffix(".gz").removesuffix(".txt")
        if (
            not file.name.lower().endswith((".txt", ".txt.gz"))
            or stem.lower() in _NO_TEXTS
            or file in log.transcripts
            or _belongs_to(file.parent, stem, stems)
        ):
            continue
        try:
            lines = [(number, line.strip()) for number, line in tables.lines(file) if line.strip()]
        except UserError as error:
            log.issues.add("bad value", item=file.name, detail=str(error))
            continue
        is_lost = layout == "pairs" and any(other.parent == file.parent for other in stems)
        if is_lost and len(lines) <= _LINES_OF_A_TRANSCRIPT:
            detail = "a transcript without a recording"
            log.issues.add("no counterpart", item=file.name, detail=detail)
            continue
        read[file] = len(lines)
        named = [stem.rpartition(".")[2]] + [file.parent.name] * (file.parent != path)
        language = next((name for name in named if names_language(name, log.target)), "")
        for number, line in lines:
            name = f"{file.relative_to(path)}:{number}"
            yield Entry(id=name, text=line, language=language, split="train")
    if read:
        lines_of_all = sum(read.values())
        log.notes.append(f"{some_names(path, read)}: {lines_of_all} lines, used as unspoken text.")


def _belongs_to(folder: Path, stem: str, stems: set[Path]) -> bool:
    """Returns whether a text file is a transcript or a translation of a recording."""
    return folder / stem in stems or folder / stem.rpartition(".")[0] in stems


def _with_unique_ids(entries: Sequence[Entry], issues: IssueLog) -> Iterator[Entry]:
    """Yields each entry once; of two with the same id that differ, both, with numbered ids."""
    taken = {entry.id for entry in entries}
    seen: set[str] = set()
    parts: set[tuple[str, tuple[float, float] | None]] = set()
    for entry in entries:
        if entry.audio:
            part = (entry.audio, entry.span)
            if part in parts:
                detail = f"{entry.audio} is listed twice"
                issues.add("duplicate id", split=entry.split, item=entry.id, detail=detail)
                continue
            parts.add(part)
        name = entry.id
        if name in seen:
            numbers = (f"{name}#{number}" for number in itertools.count(2))
            name = next(one for one in numbers if one not in taken)
            taken.add(name)
        seen.add(name)
        yield entry if name == entry.id else dataclasses.replace(entry, id=name)

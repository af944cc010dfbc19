"""Finds what a directory of recordings holds, in whichever of four layouts it is.

- A *manifest*: `train.jsonl`, `validation.tsv`, `test.jsonl` or any one manifest, with the fields
  that `Manifest` reads; NeMo's are such files.
- A data directory of *Kaldi*: `wav.scp`, `text` and, if they exist, `segments`, `utt2spk`,
  `utt2lang` and translations in `text.en`; or one folder per split with these.
- Files of *lhotse*: `cuts.jsonl.gz`, or `recordings.jsonl.gz` and `supervisions.jsonl.gz`, which
  the package lhotse reads.
- *Pairs*: `a.wav` beside `a.txt` and, if there is a translation, `a.en.txt`; at any depth.

Beside any of them, recordings in `speech/` count as untranscribed, and lines of `text/**/*.txt` and
of text files in the directory itself as unspoken text. A split is named by a file or a folder whose
name says so (`train`, `dev`, `test`); where no name does, the entries have none.
"""

from __future__ import annotations

import collections
import dataclasses
import gzip
import importlib
import json
import math
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from maestro_jax.audio.reading import EXTENSIONS
from maestro_jax.data.corpora import tables
from maestro_jax.data.corpora.issues import Issue, IssueLog
from maestro_jax.data.corpora.manifest import SUFFIXES
from maestro_jax.data.corpora.text_files import split_of
from maestro_jax.errors import UserError
from maestro_jax.text.languages import is_language, normalize_language

SPEECH, TEXT = "speech", "text"
"""Folders with recordings that nobody has transcribed, and with texts that nobody has read out."""
_NO_TEXTS = {
    "readme",
    "license",
    "licence",
    "copying",
    "notice",
    "changelog",
    "changes",
    "metadata",
}
_SPLIT_WORDS = ("train", "training", "dev", "valid", "validation", "eval", "test")
_FOLDERS_OF_NO_SPEAKER = {"audio", "audios", "wav", "wavs", "clips", "data", "recordings", "flac"}
_LINES_OF_A_TRANSCRIPT = 3
"""A text file with more lines is a text, and not the transcript of a recording that is lost."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """A recording, a text, or both.

    Attributes:
        id: Unique in the directory.
        audio: Path of the recording; empty for a text.
        span: Begin and end of the part of the file, in seconds; None for the whole file.
        text: What is said or written, as it is printed; empty if nobody has transcribed it.
        translation: Translation of the text; empty if there is none.
        language: Code of the language as the directory has it; may be empty.
        target_language: Code of the language of the translation; may be empty.
        speaker: Name of the speaker; empty if it is not known.
        split: `train`, `validation` or `test`; empty if the directory has no splits.
    """

    id: str
    audio: str = ""
    span: tuple[float, float] | None = None
    text: str = ""
    translation: str = ""
    language: str = ""
    target_language: str = ""
    speaker: str = ""
    split: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpeechDirectory:
    """What a directory holds.

    Attributes:
        path: The directory.
        layout: `manifest`, `kaldi`, `lhotse` or `pairs`.
        entries: All recordings and texts, in a fixed order.
        issues: What cannot be used, by line or file.
    """

    path: Path
    layout: str
    entries: tuple[Entry, ...]
    issues: tuple[Issue, ...]


def read_speech_directory(path: Path) -> SpeechDirectory:
    """Reads the tables and the names of all files of a directory, without opening a recording.

    Args:
        path: The directory.

    Raises:
        UserError: It is no directory, has no recording in any known layout, or needs lhotse.
    """
    if not path.is_dir():
        raise UserError(f"{path} is not a directory; name the one with the recordings.")
    issues = IssueLog()
    layout, entries = _read(path, issues)
    entries = [*entries, *_unpaired(path, layout, entries, issues)]
    if not any(entry.audio for entry in entries):
        found = ", ".join(sorted(each.name for each in path.iterdir())[:8]) or "nothing"
        raise UserError(
            f"{path} has no recordings in a layout that is known ({found}); it needs train.jsonl "
            "(or any manifest), wav.scp and text, cuts.jsonl.gz, or audio files beside .txt files."
        )
    return SpeechDirectory(
        path=path,
        layout=layout,
        entries=tuple(_with_unique_ids(entries, issues)),
        issues=tuple(issues.issues),
    )


def _read(path: Path, issues: IssueLog) -> tuple[str, list[Entry]]:
    """Returns the layout and the entries of its tables."""
    if folders := _kaldi_folders(path):
        splits = [split_of(folder.name) if folder != path else "" for folder in folders]
        return "kaldi", [
            entry
            for folder, split in zip(folders, _splits(splits, folders, path), strict=True)
            for entry in _kaldi(folder, split, issues)
        ]
    manifests, cuts = _tables(path)
    if cuts:
        return "lhotse", _lhotse(cuts, issues)
    if manifests:
        splits = _splits([split_of(each.name) for each in manifests], manifests, path)
        return "manifest", [
            entry
            for file, split in zip(manifests, splits, strict=True)
            for entry in _manifest(file, split, issues)
        ]
    return "pairs", list(_pairs(path, issues))


def _splits(found: Sequence[str], paths: Sequence[Path], root: Path) -> list[str]:
    """Returns the splits of files or folders; empty ones where no name says which is which."""
    named = [any(word in path.name.lower() for word in _SPLIT_WORDS) for path in paths]
    if not any(named):
        return [""] * len(found)
    # A directory of which only the training data have come is not split.
    if set(found) <= {"train"}:
        return [""] * len(found)
    return [split or "train" for split in found]


# ------------------------------------------------------------------------------------- manifests


def _tables(path: Path) -> tuple[list[Path], list[Path]]:
    """Returns the manifests of a directory, and the files of lhotse, by their first line."""
    manifests, cuts = [], []
    for file in sorted(path.iterdir()):
        if not file.is_file() or not file.name.endswith(SUFFIXES):
            continue
        if ".tsv" in file.suffixes:
            with tables.open_text(file) as lines:
                columns = lines.readline().rstrip("\r\n").split("\t")
            if {"audio", "audio_filepath", "text"} & {name.strip(' "') for name in columns}:
                manifests.append(file)
            continue
        first = _first_object(file)
        if _is_lhotse(first):
            cuts.append(file)
        elif {"audio", "audio_filepath", "text"} & first.keys():
            manifests.append(file)
    return manifests, cuts


def _first_object(file: Path) -> Mapping[str, Any]:
    """Returns the first JSON object of a file, which may be a list of them; empty if none is."""
    with tables.open_text(file) as lines:
        try:
            line = next((line for line in lines if line.strip()), "").strip()
            value = json.loads(line) if line.startswith("{") and line.endswith("}") else None
        except (ValueError, OSError, EOFError):
            value = None
    if value is None:
        listed = _listed(file)
        value = listed[0] if listed else {}
    return value if isinstance(value, dict) else {}


def _listed(file: Path) -> list[Any]:
    """Returns the objects of a file that is one JSON list; empty for any other file."""
    opened = gzip.open if file.suffix == ".gz" else open
    with opened(file, "rb") as stream:
        if not stream.read(64).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"["):
            return []
    try:
        with tables.open_text(file) as text:
            value = json.load(text)
    except (ValueError, OSError, EOFError):
        return []
    return value if isinstance(value, list) else []


def _manifest(file: Path, split: str, issues: IssueLog) -> Iterator[Entry]:
    """Yields the lines of a manifest; fields are those of `Manifest` and NeMo."""
    for place, fields in _rows(file, split, issues):

        def field(*names: str, fields: Mapping[str, Any] = fields) -> str:
            values = (fields.get(name) for name in names)
            return next((str(value).strip() for value in values if value not in (None, "")), "")

        audio, text = field("audio", "audio_filepath"), field("text")
        if not (audio or text):
            detail = f"neither audio nor text; it has {', '.join(fields)}"
            issues.add("bad value", split=split, item=place, detail=detail)
            continue
        try:
            span = _span(field("offset"), field("duration"))
        except ValueError as error:
            issues.add("bad value", split=split, item=place, detail=str(error))
            continue
        yield Entry(
            id=field("id", "utt_id") or place,
            audio=str(file.parent / Path(audio).expanduser()) if audio else "",
            span=span if audio else None,
            text=text,
            translation=field("translation"),
            language=field("language", "lang", "source_lang"),
            target_language=field("target_language", "target_lang", "translation_language"),
            speaker=field("speaker", "speaker_id", "spk_id"),
            split=field("split") and split_of(field("split")) or split,
        )


def _rows(file: Path, split: str, issues: IssueLog) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if ".tsv" in file.suffixes:
        yield from tables.rows(file, issues, quoted=True, split=split)
    elif listed := _listed(file):
        for number, fields in enumerate(listed, start=1):
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
    numbers = [float(value) if value else None for value in (offset, duration)]
    for name, value in zip(("offset", "duration"), numbers, strict=True):
        if value is not None and not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name} is {value}")
    begin, length = numbers
    # In NeMo's manifests, a duration without an offset is that of the whole file.
    if begin is None or (begin == 0 and length is None):
        return None
    return begin, math.inf if length is None else begin + length


# ----------------------------------------------------------------------------------------- Kaldi


def _kaldi_folders(path: Path) -> list[Path]:
    if (path / "wav.scp").is_file():
        return [path]
    return sorted(each.parent for each in path.glob("*/wav.scp") if each.parent.name != SPEECH)


def _kaldi(folder: Path, split: str, issues: IssueLog) -> Iterator[Entry]:
    """Yields the utterances of a data directory of Kaldi."""
    where = folder.name
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
    translations, target = _kaldi_translations(folder)
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
    file = Path(candidates[0]).expanduser()
    # Kaldi's paths are relative to where its recipe runs: the folder above data/train, mostly.
    for base in (folder, *folder.absolute().parents[:4]):
        if (base / file).is_file():
            return str(base / file)
    return str(folder / file)


def _kaldi_translations(folder: Path) -> tuple[dict[str, str], str]:
    """Returns the translations in `text.en` or the like, and their language."""
    for file in sorted(folder.glob("text.*")):
        language = file.name.rpartition(".")[2]
        if is_language(language):
            return dict(_kaldi_table(file)), normalize_language(language)
    return {}, ""


# ---------------------------------------------------------------------------------------- lhotse


def _is_lhotse(fields: Mapping[str, Any]) -> bool:
    """Returns whether an object is a cut, a recording or a supervision of lhotse."""
    is_cut = str(fields.get("type", "")).endswith("Cut")
    return is_cut or "sources" in fields or {"recording_id", "duration"} <= fields.keys()


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
        fields = _first_object(file)
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
    splits = _splits([split_of(file.name) for file in paths], paths, files[0].parent)
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


def _pairs(path: Path, issues: IssueLog) -> Iterator[Entry]:
    """Yields the audio files of a directory with the text files of the same name."""
    files = [
        file
        for file in sorted(path.rglob("*"))
        if file.suffix.lower() in EXTENSIONS and file.is_file() and not _is_beside(file, path)
    ]
    folders = [file.relative_to(path).parts[:-1] for file in files]
    splits = [
        next((split_of(part) for part in parts if _names_split(part)), "") for parts in folders
    ]
    # A directory of which only the training data have come is not split.
    is_split = set(splits) > {"train"} or bool(set(splits) - {"", "train"})
    for file, parts, split in zip(files, folders, splits, strict=True):
        own = [
            part
            for part in parts
            if not _names_split(part) and part.lower() not in _FOLDERS_OF_NO_SPEAKER
        ]
        text = _transcript(file.with_suffix(".txt"), issues)
        translation, target = "", ""
        for other in sorted(file.parent.glob(f"{_escaped(file.stem)}.*.txt")):
            language = other.name.removeprefix(f"{file.stem}.").removesuffix(".txt")
            if is_language(language):
                translation = _transcript(other, issues)
                target = normalize_language(language)
        yield Entry(
            id=str(file.relative_to(path).with_suffix("")),
            audio=str(file),
            text=text,
            translation=translation,
            target_language=target,
            speaker=own[-1] if own else "",
            split=(split or "train") if is_split else "",
        )


def _is_beside(file: Path, root: Path) -> bool:
    """Returns whether a file is in one of the folders of unpaired data."""
    return file.relative_to(root).parts[0].lower() in (SPEECH, TEXT) and file.parent != root


def _names_split(name: str) -> bool:
    return any(word in re.findall(r"[a-z]+", name.lower()) for word in _SPLIT_WORDS)


def _escaped(stem: str) -> str:
    return re.sub(r"([\[\]*?])", r"[\1]", stem)


def _transcript(path: Path, issues: IssueLog) -> str:
    """Reads a text file as one line; empty if there is none, or it is not text."""
    if not path.is_file():
        return ""
    try:
        return " ".join(" ".join(line.split()) for _, line in tables.lines(path)).strip()
    except UserError as error:
        issues.add("bad value", item=path.name, detail=str(error))
        return ""


# --------------------------------------------------------------------------------- unpaired data


def _unpaired(
    path: Path, layout: str, entries: Sequence[Entry], issues: IssueLog
) -> Iterator[Entry]:
    """Yields recordings in `speech/`, and lines of text files that are no transcripts."""
    listed = {entry.audio for entry in entries}
    for file in sorted(path.glob(f"{SPEECH}/**/*")):
        if file.suffix.lower() in EXTENSIONS and file.is_file() and str(file) not in listed:
            yield Entry(id=str(file.relative_to(path)), audio=str(file), split="train")
    own = sorted((*path.glob("*.txt"), *path.glob("*.txt.gz")))
    below = sorted((*path.glob(f"{TEXT}/**/*.txt"), *path.glob(f"{TEXT}/**/*.txt.gz")))
    stems = {Path(entry.audio).with_suffix("") for entry in entries if entry.audio}
    for file in (*own, *below):
        stem = file.name.removesuffix(".gz").removesuffix(".txt")
        if stem.lower() in _NO_TEXTS or _belongs_to(file.parent, stem, stems):
            continue
        lines = [(number, line.strip()) for number, line in tables.lines(file) if line.strip()]
        is_lost = layout == "pairs" and any(other.parent == file.parent for other in stems)
        if is_lost and len(lines) <= _LINES_OF_A_TRANSCRIPT:
            issues.add("no counterpart", item=file.name, detail="a transcript without a recording")
            continue
        named = stem.rpartition(".")[2], file.parent.name
        language = next((name for name in named if is_language(name) and name != TEXT), "")
        for number, line in lines:
            name = f"{file.relative_to(path)}:{number}"
            yield Entry(id=name, text=line, language=language, split="train")


def _belongs_to(folder: Path, stem: str, stems: set[Path]) -> bool:
    """Returns whether a text file is a transcript or a translation of a recording."""
    return folder / stem in stems or folder / stem.rpartition(".")[0] in stems


def _with_unique_ids(entries: Sequence[Entry], issues: IssueLog) -> Iterator[Entry]:
    """Yields each entry once; of two with the same id that differ, both, with numbered ids."""
    seen: dict[str, int] = {}
    parts: set[tuple[str, tuple[float, float] | None]] = set()
    for entry in entries:
        if entry.audio:
            part = (entry.audio, entry.span)
            if part in parts:
                detail = f"{entry.audio} is listed twice"
                issues.add("duplicate id", split=entry.split, item=entry.id, detail=detail)
                continue
            parts.add(part)
        number = seen.get(entry.id, 0)
        seen[entry.id] = number + 1
        yield entry if not number else dataclasses.replace(entry, id=f"{entry.id}#{number + 1}")

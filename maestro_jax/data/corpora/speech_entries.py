"""What the readers of a directory of recordings share: entries, and what names say.

A name may say a split (`train`, `dev`, `test`) or a language. Hidden files are left alone.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from maestro_jax.data.corpora.issues import IssueLog
from maestro_jax.text.languages import LANGUAGES, base_language, is_language, normalize_language

SPEECH, TEXT = "speech", "text"
"""Folders with recordings that nobody has transcribed, and with texts that nobody has read out."""
_SPLIT_OF_WORD = {
    **dict.fromkeys(("train", "training", "trn"), "train"),
    **dict.fromkeys(("dev", "devel", "development", "newsdev"), "validation"),
    **dict.fromkeys(("val", "valid", "validation"), "validation"),
    **dict.fromkeys(("test", "testing", "tst", "newstest"), "test"),
    **dict.fromkeys(("eval", "evaluation"), "eval"),
}


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


@dataclasses.dataclass
class ReadingLog:
    """What is to be said about a directory, beside its entries.

    Attributes:
        issues: What cannot be used.
        notes: See `SpeechDirectory`.
        target: The language of the translations to read where there are several.
        transcripts: Text files that were read as transcripts.
    """

    issues: IssueLog
    notes: list[str]
    target: str
    transcripts: set[Path]


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def listed(path: Path, pattern: str = "*") -> list[Path]:
    """Returns the files and folders of a directory, sorted, without hidden ones."""
    return [
        each
        for each in sorted(path.glob(pattern))
        if not any(map(_is_hidden, each.relative_to(path).parts))
    ]


def files_below(path: Path) -> list[Path]:
    """Returns the files at any depth, also in linked folders, sorted, without hidden ones."""
    found: list[Path] = []
    seen: set[str] = set()
    for folder, folders, files in os.walk(path, followlinks=True):
        real = os.path.realpath(folder)
        # Links may lead back; and what this command has written may be below, too.
        if real in seen or ("survey.jsonl" in files and folder != str(path)):
            folders.clear()
            continue
        seen.add(real)
        folders[:] = (name for name in folders if not _is_hidden(name))
        found += (Path(folder, name) for name in files if not _is_hidden(name))
    return sorted(found)


def some_names(root: Path, files: Iterable[Path]) -> str:
    """Returns some names for a sentence: the first three, and how many more there are."""
    names = [str(file.relative_to(root)) for file in files]
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def split_of_name(name: str) -> str:
    """Returns `train`, `validation`, `test` or `eval` if a word of a name says so; else nothing.

    An `eval` is a test set, unless there is another one; see `with_known_splits`.
    """
    words = re.findall("[a-z]+", re.sub("(?<=[a-z])(?=[A-Z])", " ", name).lower())
    found = [_SPLIT_OF_WORD.get(word.removesuffix("set").removesuffix("data")) for word in words]
    splits = [split for split in found if split]
    return next((split for split in splits if split != "train"), splits[0] if splits else "")


def splits_of_parts(found: Sequence[str]) -> list[str]:
    """Returns the splits of files or folders; empty ones where no name says which is which."""
    # A directory of which only the training data have come is not split.
    if not set(found) - {"", "train"}:
        return [""] * len(found)
    return [split or "train" for split in found]


def with_known_splits(entries: Sequence[Entry]) -> list[Entry]:
    """Calls `eval` a test set, or a validation set if there is another test set."""
    meaning = "validation" if any(entry.split == "test" for entry in entries) else "test"
    return [
        dataclasses.replace(entry, split=meaning) if entry.split == "eval" else entry
        for entry in entries
    ]


def names_language(code: str, target: str = "") -> bool:
    """Returns whether a part of a file's name is a language.

    Of the codes of three letters, thousands of which are words (`all`, `bak`, `raw`, `wav`), only
    frequent ones and that of the translations count.
    """
    if not is_language(code):
        return False
    frequent = len(base_language(code)) == 2 or base_language(code) in LANGUAGES
    return frequent or code.lower() == target.lower()


def best_translation(
    found: Mapping[str, Path], item: str, log: ReadingLog
) -> tuple[str, Path] | None:
    """Returns the language and the file of the translations to read; None for none."""
    if not found:
        return None
    ours = (code for code in found if base_language(code) == base_language(log.target))
    code = next(ours, min(found))
    for other in found.keys() - {code}:
        detail = f"a translation into {other}; those into {code} are read (--target_language)"
        log.issues.add("bad value", item=f"{item}: {found[other].name}", detail=detail)
    return normalize_language(code), found[code]


def is_beside(file: Path, root: Path) -> bool:
    """Returns whether a file is in one of the folders of unpaired data."""
    return file.relative_to(root).parts[0].lower() in (SPEECH, TEXT) and file.parent != root

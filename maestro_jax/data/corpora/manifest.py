"""Manifests, which list utterances as JSON lines or as a table, for corpora without a reader.

A directory holds one file per split (`train.jsonl`, `validation.tsv`, `test.jsonl.gz`; `dev` is
`validation`). A JSON line, or a row of a tab-separated table with a header, has these fields. Cells
of a table may be quoted, as pandas, spreadsheets and Python's csv module do.

| field | |
|---|---|
| `audio` or `audio_filepath` (NeMo) | a path, relative to the manifest; missing in text corpora |
| `offset`, `duration` | seconds of the file; the whole file without them |
| `text` | what is said or written, as it is printed |
| `language` or `lang` (NeMo) | ISO 639-1 code; `--languages` names it if no line does |
| `translation` | |
| `id`, `speaker` | by default, the id is file and line number |

Four corpora of SpeechStew (Chan et al., 2021) come on paid discs or in many versions, and every
site segments and normalises them with recipes of its own. They are read from manifests that these
recipes make, with fixed names and splits (`ami`, `broadcast_news`, `switchboard_fisher`, `wsj`). A
line is

    {"audio": "...", "offset": 1.5, "duration": 3.2, "text": "...", "language": "en", "id": "..."}
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from maestro_jax.data.corpora import tables
from maestro_jax.data.corpora.corpus import Corpus, Span, Utterance, select_languages
from maestro_jax.data.corpora.issues import IssueLog
from maestro_jax.errors import UserError
from maestro_jax.text.languages import (
    base_language,
    config_language,
    config_name,
    is_language,
    normalize_language,
)
from maestro_jax.text.normalizers import find_rules

SUFFIXES = (".jsonl", ".json", ".tsv", ".jsonl.gz", ".json.gz", ".tsv.gz")
SPLITS = {"train": "train", "validation": "validation", "dev": "validation", "test": "test"}


class Manifest(Corpus):
    """A corpus that manifests describe; a config is a language and has the lines of that language.

    Args:
        name: Name of the corpus.
        title: One line about the corpus.
        recipe: A sentence about how to make its manifests, for messages.
        more_splits: Splits besides training, validation and test, each with its own manifest.
    """

    name = "manifest"
    title = "a directory of manifests: train.jsonl or train.tsv, validation.jsonl, test.jsonl"
    text_rules = "transcript"

    def __init__(
        self,
        name: str | None = None,
        title: str | None = None,
        *,
        recipe: str = "",
        more_splits: Sequence[str] = (),
    ) -> None:
        self.name = name or type(self).name
        self.title = title or type(self).title
        self.splits = (*type(self).splits, *more_splits)
        self._recipe = recipe
        self._files_of_splits = SPLITS | {split: split for split in more_splits}

    def configs(self, source: Path, languages: Sequence[str] = ()) -> list[str]:
        """Lists the languages of the lines; see `Corpus`."""
        available: set[str] = set()
        dialects: set[str] = set()
        issues = IssueLog()
        last = ""
        for place, fields in self._lines(source, issues):
            last = place
            if language := _language(fields):
                available.add(base_language(language))
                if is_language(language):
                    dialects.add(config_name(language))
        if not last:
            first = next((f" ({i.item}: {i.kind}, {i.detail})" for i in issues.issues), "")
            raise UserError(f"no line of the manifests in {source} can be read{first}.")
        if not available:
            return [_requested_language(languages, last)]
        # A dialect is prepared by itself only if it is requested; it is a part of its language too.
        requested = {config_name(name) for name in languages if is_language(name)}
        available |= dialects & requested
        return select_languages(sorted(available), languages, source)

    def utterances(self, source: Path, config: str, issues: IssueLog) -> Iterator[Utterance]:
        """Yields the lines of a language, or all if no line names its language; see `Corpus`."""
        expected = config_language(config)
        any_language = any(_language(fields) for _, fields in self._lines(source, IssueLog()))
        for path, split in self._files(source):
            for place, fields in _lines(path, split, issues):
                language = _language(fields) if any_language else expected
                if expected not in (language, base_language(language)):
                    if not is_language(language):
                        detail = f"unknown language {language!r}" if language else "no language"
                        issues.add("bad value", split=split, item=place, detail=detail)
                    continue
                try:
                    spans = _spans(fields)
                except ValueError as error:
                    issues.add("bad value", split=split, item=place, detail=str(error))
                    continue
                utterance = _utterance(path, place, split, expected, fields, spans, self.text_rules)
                if not (utterance.audio or utterance.required):
                    detail = f"neither audio nor text; it has {', '.join(fields)}"
                    issues.add("bad value", split=split, item=place, detail=detail)
                    continue
                yield utterance

    def _lines(self, source: Path, issues: IssueLog) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yields `file:line` and fields of the lines of all manifests."""
        for path, split in self._files(source):
            yield from _lines(path, split, issues)

    def _files(self, source: Path) -> list[tuple[Path, str]]:
        files = [
            (path, split)
            for name, split in self._files_of_splits.items()
            for suffix in SUFFIXES
            if (path := source / f"{name}{suffix}").is_file()
        ]
        if not files:
            raise UserError(
                f"there is no manifest in {source}; put train.jsonl or train.tsv there, and "
                f"validation and test beside it. {self._recipe}".rstrip()
            )
        return files


def _lines(path: Path, split: str, issues: IssueLog) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields `file:line` and fields of the lines of a manifest."""
    if ".tsv" in path.suffixes:
        for place, row in tables.rows(path, issues, quoted=True, split=split):
            yield place, dict(row)
        return
    yield from tables.objects(path, issues, split=split)


def _language(fields: dict[str, Any]) -> str:
    """Returns the language code of a line, canonical if it is one; empty if it has none."""
    code = str(fields.get("language") or fields.get("lang") or "").strip()
    return normalize_language(code) if is_language(code) else code.lower()


def _requested_language(languages: Sequence[str], place: str) -> str:
    """Returns the requested language, which is that of manifests without a field for it.

    Raises:
        UserError: No language was requested, or several were.
    """
    missing = f'{place} has no field "language", nor has any other line'
    if not languages:
        raise UserError(f"{missing}; add it, or name one language for all lines: --languages en.")
    if len(languages) > 1:
        raise UserError(f"{missing}; add it, or name one language for all lines, not several.")
    return config_name(languages[0])


def _spans(fields: dict[str, Any]) -> tuple[Span, ...] | None:
    """Returns the part of its file that is the utterance; None for the whole file.

    Raises:
        ValueError: Offset or duration are not numbers, or negative.
    """
    values = {name: fields.get(name) for name in ("offset", "duration")}
    numbers = {name: float(str(value)) for name, value in values.items() if value not in (None, "")}
    for name, value in numbers.items():
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name} is {value}")
    # In NeMo's manifests, a duration without an offset is that of the whole file.
    if not numbers.get("offset"):
        return None if "offset" not in numbers else _from(0.0, numbers.get("duration"))
    return _from(numbers["offset"], numbers.get("duration"))


def _from(offset: float, duration: float | None) -> tuple[Span, ...] | None:
    if duration is None:
        return None if not offset else ((offset, math.inf),)
    return ((offset, offset + duration),)


def _utterance(
    path: Path,
    place: str,
    split: str,
    language: str,
    fields: dict[str, Any],
    spans: tuple[Span, ...] | None,
    text_rules: str,
) -> Utterance:
    def field(*names: str) -> str:
        values = (fields.get(name) for name in names)
        return next((str(value).strip() for value in values if value not in (None, "")), "")

    audio, raw_text = field("audio", "audio_filepath"), field("text")
    required = [name for name in ("text", "translation") if name in fields]
    return Utterance(
        id=field("id") or place,
        split=split,
        language=language,
        audio=str(path.parent / Path(audio).expanduser()) if audio else "",
        spans=spans if audio else None,
        text=find_rules(text_rules)(raw_text, language),
        raw_text=raw_text,
        translation=field("translation"),
        speaker=field("speaker"),
        required=tuple(required),
    )


_FROM_LHOTSE = (
    "`lhotse prepare {name}` writes recordings and supervisions: write a line for each supervision "
    "with its recording's path as audio, start as offset, and language en."
)


def ami() -> Manifest:
    """Returns AMI, meetings whose test set is recorded by headsets and by a distant microphone."""
    return Manifest(
        "ami",
        "AMI as manifests: train.jsonl, validation.jsonl, test.jsonl (headsets), "
        "test_distant.jsonl (one distant microphone)",
        recipe=_FROM_LHOTSE.format(name="ami --mic ihm") + " Use --mic sdm for test_distant.",
        more_splits=("test_distant",),
    )


def broadcast_news() -> Manifest:
    """Returns English Broadcast News (Hub4, LDC97S44)."""
    return Manifest(
        "broadcast_news",
        "English Broadcast News as manifests: train.jsonl, and validation.jsonl, test.jsonl",
        recipe=_FROM_LHOTSE.format(name="broadcast-news"),
    )


def switchboard_fisher() -> Manifest:
    """Returns Switchboard and Fisher, tested on the Switchboard and CallHome parts of Hub5'00."""
    return Manifest(
        "switchboard_fisher",
        "Switchboard and Fisher as manifests: train.jsonl, validation.jsonl, test.jsonl "
        "(Switchboard of Hub5'00), test_callhome.jsonl",
        recipe=_FROM_LHOTSE.format(name="switchboard")
        + " So do fisher-english and eval2000. Each side of a call needs a file of its own: the "
        "channels of a file are averaged.",
        more_splits=("test_callhome",),
    )


def wsj() -> Manifest:
    """Returns Wall Street Journal, read newspapers: si284 for training, dev93, eval92."""
    return Manifest(
        "wsj",
        "WSJ as manifests: train.jsonl (si284), validation.jsonl (dev93), test.jsonl (eval92)",
        recipe="Kaldi's wsj_data_prep.sh writes text and wav.scp: write a line for each utterance, "
        "with the path of its file (by `sph2pipe -p -f wav`) as audio, and language en.",
    )

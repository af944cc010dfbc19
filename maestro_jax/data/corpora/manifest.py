"""Manifests: a line an utterance, as JSON or as a table, for whatever has no reader of its own.

A directory holds one file a split (`train.jsonl`, `validation.tsv`, `test.jsonl.gz`; `dev` is
`validation`). A JSON line, or a row of a tab-separated table with a header, has what follows. Cells
of a table may be quoted as pandas, spreadsheets and Python's csv module do it (see `quoting`).

| field | |
|---|---|
| `audio` or `audio_filepath` (NeMo) | a path, relative to the manifest; missing in text corpora |
| `offset`, `duration` | seconds of the file; the whole file without them |
| `text` | what is said or written, as it is printed |
| `language` or `lang` (NeMo) | ISO 639-1 code; where no line has one, `--languages` names it |
| `translation` | |
| `id`, `speaker` | a line without an id has its number |
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from maestro_jax.data.corpora import tables
from maestro_jax.data.corpora.corpus import Corpus, choose_languages
from maestro_jax.data.corpora.problems import Problems
from maestro_jax.data.corpora.utterance import Span, Utterance
from maestro_jax.errors import UserError
from maestro_jax.text.languages import LANGUAGES, language_id
from maestro_jax.text.normalizers import base_language
from maestro_jax.text.spoken_forms import find_rules

ENDINGS = (".jsonl", ".json", ".tsv", ".jsonl.gz", ".json.gz", ".tsv.gz")
SPLITS = {"train": "train", "validation": "validation", "dev": "validation", "test": "test"}


class Manifest(Corpus):
    """A corpus that is described by manifests.

    A config is a language, and takes the lines of that language.

    Args:
        name: Of the corpus.
        title: One line about it.
        recipe: How its manifests are made, in a sentence.
        more_splits: Splits besides training, validation and test, each with its own manifest.
    """

    name = "manifest"
    title = "a directory of manifests: train.jsonl or train.tsv, validation.jsonl, test.jsonl"
    rules = "transcript"

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
        """The languages of the lines; see `Corpus`."""
        found: set[str] = set()
        problems = Problems()
        last = ""
        for place, fields in self._lines(source, problems):
            last = place
            if language := _language(fields):
                found.add(language)
        if not last:
            first = next((f" ({p.item}: {p.kind}, {p.detail})" for p in problems.found), "")
            raise UserError(f"no line of the manifests in {source} can be read{first}.")
        if not found:
            return [_said_language(languages, last)]
        return choose_languages(sorted(found), languages, source)

    def utterances(self, source: Path, config: str, problems: Problems) -> Iterator[Utterance]:
        """The lines of a language, or all of them where none says its language; see `Corpus`."""
        silent = not any(_language(fields) for _, fields in self._lines(source, Problems()))
        for path, split in self._files(source):
            for place, fields in _lines(path, split, problems):
                language = config if silent else _language(fields)
                if language != config:
                    if language not in LANGUAGES:
                        detail = f"unknown language {language!r}" if language else "no language"
                        problems.add("bad value", split=split, item=place, detail=detail)
                    continue
                try:
                    spans = _spans(fields)
                except ValueError as error:
                    problems.add("bad value", split=split, item=place, detail=str(error))
                    continue
                utterance = _utterance(path, place, split, language, fields, spans, self.rules)
                if not (utterance.audio or utterance.needs):
                    detail = f"neither audio nor text; it has {', '.join(fields)}"
                    problems.add("bad value", split=split, item=place, detail=detail)
                    continue
                yield utterance

    def _lines(self, source: Path, problems: Problems) -> Iterator[tuple[str, dict[str, Any]]]:
        """Place and fields of the lines of all manifests."""
        for path, split in self._files(source):
            yield from _lines(path, split, problems)

    def _files(self, source: Path) -> list[tuple[Path, str]]:
        found = [
            (path, split)
            for name, split in self._files_of_splits.items()
            for ending in ENDINGS
            if (path := source / f"{name}{ending}").is_file()
        ]
        if not found:
            raise UserError(
                f"there is no manifest in {source}; put train.jsonl or train.tsv there, and "
                f"validation and test beside it. {self._recipe}".rstrip()
            )
        return found


def _lines(path: Path, split: str, problems: Problems) -> Iterator[tuple[str, dict[str, Any]]]:
    """The place of every line, and its fields."""
    if ".tsv" in path.suffixes:
        for place, row in tables.rows(path, problems, quoted=True, split=split):
            yield place, dict(row)
        return
    yield from tables.objects(path, problems, split=split)


def _language(fields: dict[str, Any]) -> str:
    """The code that a line says, without a region; empty if it says none."""
    return base_language(str(fields.get("language") or fields.get("lang") or ""))


def _said_language(languages: Sequence[str], place: str) -> str:
    """The language of manifests whose lines do not say it.

    Raises:
        UserError: None was said, or several.
    """
    missing = f'{place} has no field "language", nor has any other line'
    if not languages:
        raise UserError(f"{missing}; add it, or say it of all lines: --languages en.")
    if len(languages) > 1:
        raise UserError(f"{missing}; add it, for --languages can say only one of all lines.")
    return LANGUAGES[language_id(languages[0])]


def _spans(fields: dict[str, Any]) -> tuple[Span, ...] | None:
    """Which part of its file an utterance is.

    Raises:
        ValueError: The numbers are none, or negative.
    """
    given = {name: fields.get(name) for name in ("offset", "duration")}
    numbers = {name: float(str(value)) for name, value in given.items() if value not in (None, "")}
    for name, value in numbers.items():
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name} is {value}")
    # A duration alone describes the file, in NeMo's manifests; it says nothing about where.
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
    rules: str,
) -> Utterance:
    def field(*names: str) -> str:
        values = (fields.get(name) for name in names)
        return next((str(value).strip() for value in values if value not in (None, "")), "")

    audio, raw_text = field("audio", "audio_filepath"), field("text")
    needs = [name for name in ("text", "translation") if name in fields]
    return Utterance(
        id=field("id") or place,
        split=split,
        language=language,
        audio=str(path.parent / Path(audio).expanduser()) if audio else "",
        spans=spans if audio else None,
        text=find_rules(rules)(raw_text, language),
        raw_text=raw_text,
        translation=field("translation"),
        speaker=field("speaker"),
        needs=tuple(needs),
    )
